"""OPEN FIRST: the export stage. Each network becomes an ONNX file that is proved, then smaller variants of the student.

A file is written and proved under a temporary name, and only then gets its own. What is there already is left alone:
each file carries a key that stands for all that it was made from.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from kdexport import __version__, artifacts
from kdexport.artifacts import RunDirectory
from kdexport.data.samples import Dataset
from kdexport.export import example, network_export, parity, variants
from kdexport.export.target import ExportTarget, Form
from kdexport.models.fitted_data import load_run_data
from kdexport.models.loading import load_model, preprocessing_of
from kdexport.models.preprocessing import Preprocessing
from kdexport.onnx import files, metadata, versions
from kdexport.onnx.sessions import Arrays
from kdexport.progress import Progress, Silent
from kdexport.recipe import Recipe, Student, Teacher
from kdexport.results import DistillResult, ExportResult, ModelFile, TrainedNetwork
from kdexport.stage_cache import fingerprint

SHIPPED = "student"  # the network that gets variants, and an example of its use

# Settings of [export] that an fp32 file depends on; the rest are the variants'.
FP32_SETTINGS = {"opset", "bake_preprocessing", "any_image_size", "softmax", "top_k", "license", "parity_tolerance"}


def export(
    recipe: Recipe, distilled: DistillResult, directory: RunDirectory, progress: Progress | None = None
) -> ExportResult:
    """Export every network of a run and prove each file.

    Args:
        recipe: What is asked for.
        distilled: The networks, with their weights in ``directory``.
        directory: Where the files go; ``export.json`` too.
        progress: Where it says what it does.

    Raises:
        ParityError: A file differs from its PyTorch model; it is not left under its final name.
        KDExportError: A network cannot be loaded or exported.
    """
    progress = progress or Silent()
    work = _Work(recipe, distilled, directory, progress)
    jobs = work.jobs()
    key = artifacts.key_of([(job.name, job.key) for job in jobs])
    done = directory.finished("export", ExportResult, key)
    if done is not None and all(_holds(model, job) for model, job in zip(done.models, jobs, strict=True)):
        return done
    earlier = _earlier(directory)
    models: dict[str, ModelFile] = {}
    with progress.task("export", len(jobs)) as task:
        for job in jobs:
            task.advance(0, note=job.name)
            known = earlier.get(job.name)
            models[job.name] = known if known is not None and _holds(known, job) else job.make(models)
            # An unfinished result has no key: it says what is there, so that a killed export goes on after it.
            directory.finish("export", ExportResult(recipe.name, tuple(models.values())), "")
            task.advance()
    if SHIPPED in models:
        example.write(directory.onnx(SHIPPED))
    result = ExportResult(recipe.name, tuple(models.values()))
    directory.finish("export", result, key)
    return result


@dataclass(frozen=True)
class _Job:
    """One file to make, given those made before."""

    name: str
    path: Path
    key: str
    make: Callable[[dict[str, ModelFile]], ModelFile]


class _Work:
    """What the files of one run share."""

    def __init__(self, recipe: Recipe, distilled: DistillResult, directory: RunDirectory, progress: Progress) -> None:
        self.recipe, self.distilled, self.directory, self.progress = recipe, distilled, directory, progress

    def jobs(self) -> list[_Job]:
        """Return the files to make: the networks, then the variants."""
        networks, smaller = [], []
        for network in self.distilled.networks:
            key = artifacts.key_of("fp32", *self._depends_on(network))
            path = self.directory.onnx(network.name)
            networks.append(_Job(network.name, path, key, partial(self._network, network, key)))
            if network.name == SHIPPED:
                smaller = [self._variant_job(network, key, precision) for precision in self.recipe.export.quantize]
        return networks + smaller

    @cached_property
    def dataset(self) -> Dataset:
        return load_run_data(self.recipe, self.directory.cache, class_names=self.distilled.class_names)

    @cached_property
    def samples(self) -> Arrays:
        """Raw samples for the proofs."""
        return parity.samples_of(self.dataset.val.inputs, self.dataset.train.inputs)

    def calibration(self) -> Arrays:
        """Return raw training samples, seeded."""
        train = self.dataset.train
        count = min(self.recipe.export.calibration_samples, len(train))
        chosen = np.random.default_rng(self.recipe.seed).choice(len(train), count, replace=False)
        return train.take(np.sort(chosen)).inputs

    def validation(self) -> tuple[Arrays, NDArray[np.int64]] | None:
        """Return raw validation samples with their labels; None where a sample can have several, or has none."""
        val = self.dataset.val.take(parity.spread(len(self.dataset.val), variants.VALIDATION_SAMPLES))
        return None if val.labels is None or val.multi_label else (val.inputs, val.labels)

    @cached_property
    def recipe_hash(self) -> str:
        """Stands for what the networks were trained by."""
        whole = self.recipe.to_dict(relative_to=self.directory.root)
        return artifacts.key_of({part: whole[part] for part in ("seed", "data", "teacher", "student", "distill")})

    def preprocessing(self, network: str) -> Preprocessing:
        return preprocessing_of(self._spec(network), self.dataset)

    def _spec(self, network: str) -> Teacher | Student:
        return self.recipe.teacher if network == "teacher" else self.recipe.student

    def _depends_on(self, network: TrainedNetwork) -> list[object]:
        spec = self._spec(network.name)
        return [
            __version__,
            torch.__version__,
            network.weights_sha256,
            fingerprint(spec.model, spec.args),
            spec.preprocessing.model_dump(),
            self.distilled.class_names,
            self.recipe.export.model_dump(include=FP32_SETTINGS),
        ]

    def _network(self, network: TrainedNetwork, key: str, _: dict[str, ModelFile]) -> ModelFile:
        path = self.directory.onnx(network.name)
        spec = self._spec(network.name)
        if spec.model.endswith(".onnx"):
            return write(Path(spec.model), network, path, self.preprocessing(network.name), key=key)
        settings = self.recipe.export
        model = load_model(network.name, spec, self.dataset, self.directory.root / network.weights)
        subject = ExportTarget(
            network.name,
            model.network,
            model.preprocessing,
            self.dataset.input_names,
            self.samples,
            class_names=self.distilled.class_names,
            parameters=network.parameters,
            macs=network.macs,
            recipe=self.recipe_hash,
            license=settings.license,
            accuracy=network.val_accuracy,
        )
        form = Form(
            settings.opset,
            versions.ir_for(settings.opset),
            settings.parity_tolerance,
            bake=settings.bake_preprocessing,
            any_image_size=settings.any_image_size,
            softmax=settings.softmax,
            top_k=settings.top_k,
        )
        return network_export.write(subject, form, path, key=key)

    def _variant_job(self, network: TrainedNetwork, fp32_key: str, precision: str) -> _Job:
        settings, data = self.recipe.export, self.recipe.data
        depends_on: list[object] = [precision, fp32_key, fingerprint(data.source, data.args), self.recipe.seed]
        depends_on += [data.model_dump(exclude={"source", "root"}), settings.max_accuracy_drop]
        if precision == "int8":
            depends_on += [settings.calibration, settings.calibration_samples, settings.weight_bits]
            depends_on.append(network.activation_ranges)
        key = artifacts.key_of(*depends_on)
        path = self.directory.onnx(network.name, precision)
        return _Job(f"{network.name}.{precision}", path, key, partial(self._variant, network, precision, key))

    def _variant(self, network: TrainedNetwork, precision: str, key: str, made: dict[str, ModelFile]) -> ModelFile:
        source = self.directory.onnx(network.name)
        baked = metadata.read(source).get("kdexport.baked") == "true"
        preprocessing = self.preprocessing(network.name)

        def ready(raw: Arrays) -> Arrays:
            return raw if baked else tuple(tensor.numpy() for tensor in preprocessing.apply(raw))

        labelled = self.validation()
        material = variants.CalibrationData(
            samples=lambda: ready(self.samples),
            calibration=lambda: ready(self.calibration()),
            validation=lambda: None if labelled is None else (ready(labelled[0]), labelled[1]),
        )
        settings = self.recipe.export
        wanted = variants.VariantSpec(
            precision,
            settings.calibration,
            settings.weight_bits,
            max_accuracy_drop=settings.max_accuracy_drop,
            learnt=network.activation_ranges,
        )
        path = self.directory.onnx(network.name, precision)
        return variants.write(source, made[network.name], wanted, path, material, self.progress, key=key)


def _holds(model: ModelFile, job: _Job) -> bool:
    """Whether the file of an earlier result is still there, whole, and made from the same things."""
    if not job.path.is_file() or model.name != job.name:
        return False
    return metadata.read(job.path).get("kdexport.key") == job.key and artifacts.sha256(job.path) == model.sha256


def _earlier(directory: RunDirectory) -> dict[str, ModelFile]:
    """Return what an earlier export, finished or not, has left."""
    document = artifacts.read_json(directory.stage("export")) or {}
    result = directory.finished("export", ExportResult, str(document.get("key", "")))
    return {} if result is None else {model.name: model for model in result.models}


def write(source: Path, network: TrainedNetwork, path: Path, preprocessing: Preprocessing, *, key: str) -> ModelFile:
    """Copy a given file, its graph untouched, under a run's name for it.

    Args:
        source: The user's file.
        network: Its entry.
        path: Where it goes.
        preprocessing: What it takes, where its metadata do not say.
        key: Stands for all that it is made from.
    """
    model = ir.load(source)
    image = model.graph.inputs[0].dtype == ir.DataType.UINT8
    own = metadata.entries(
        key=key, precision="fp32", opset=model.opset_imports[""], preprocessing=preprocessing, baked=image
    )
    model.metadata_props.update({name: text for name, text in own.items() if name not in model.metadata_props})
    model.metadata_props.update({name: own[name] for name in ("kdexport.key", "kdexport.version")})
    made: list[ModelFile] = []

    def entry(temporary: Path) -> None:
        made.append(
            metadata.model_file(
                network.name,
                temporary,
                shown_as=path.name,
                precision=model.metadata_props["kdexport.precision"],
                parameters=network.parameters or None,
                macs=network.macs,
                parity=None,
                notes=("given as ONNX: its graph is as it was",),
            )
        )

    files.write(model, path, entry)
    return made[0]
