"""OPEN FIRST: the export stage. Each network becomes an ONNX file that is proved, then smaller variants of the student.

A file is written and proved under a temporary name, and only then gets its own. What is there already is left alone:
each file carries a key that stands for all that it was made from. A file that cannot be made costs no other: it is left
out, with the reason in the result.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from pydantic import ValidationError

from kdexport import artifacts
from kdexport.artifacts import RunDirectory
from kdexport.data.samples import Dataset
from kdexport.errors import KDExportError, StorageError
from kdexport.export import network_export, parity, variants
from kdexport.export.fitted_entries import stamp_for
from kdexport.export.target import ExportTarget, Form
from kdexport.export.variant_inputs import CalibrationData, TimerMaker, VariantSpec
from kdexport.models.fitted_data import load_run_data
from kdexport.models.loading import load_model, preprocessing_of
from kdexport.models.outputs import output_of
from kdexport.models.own_vocabulary import TOKENIZER_FILE, tokenizer_beside
from kdexport.models.preprocessing import Preprocessing
from kdexport.onnx import example, files, metadata, runtimes
from kdexport.onnx.sessions import Arrays
from kdexport.precisions import AUTO, PRECISIONS
from kdexport.progress import Progress, Silent
from kdexport.recipe import Recipe, Student, Teacher, TeacherSpec
from kdexport.recipe.text import PRETRAINED
from kdexport.results import DistillResult, ExportFailure, ExportResult, ModelFile, TrainedNetwork, from_json
from kdexport.stage_cache import as_written, cache_key, data_fingerprint, done, fingerprint, mark_done, read_sealed

SHIPPED = "student"  # the network that gets variants, and an example of its use

# Settings of [export] that an fp32 file depends on; the rest are the variants'.
FP32_SETTINGS = {
    *("opset", "also_outputs", "bake_preprocessing", "any_image_size"),
    *("softmax", "top_k", "license", "parity_tolerance"),
}


def export(
    recipe: Recipe,
    distilled: DistillResult,
    directory: RunDirectory,
    progress: Progress | None = None,
    timer: TimerMaker | None = None,
) -> ExportResult:
    """Export every network of a run and prove each file.

    Args:
        recipe: What is asked for.
        distilled: The networks, with their weights in ``directory``.
        directory: Where the files go; ``export.json`` too.
        progress: Where it says what it does.
        timer: What times files for ``quantize = ["auto"]``, on the device that [bench] names first.

    Raises:
        ParityError: No file could be written, and the first differs from its PyTorch model.
        KDExportError: No file could be written, for another reason.
    """
    progress = progress or Silent()
    work = _Work(recipe, distilled, directory, progress, timer)
    jobs = work.jobs()
    record = directory.stage("export")
    key = cache_key("export", files=[[job.name, job.key] for job in jobs])
    finished = done(record, key, ExportResult)
    if finished is not None:
        if directory.onnx(SHIPPED).is_file() and not (directory.root / "infer.py").exists():
            example.write(directory.onnx(SHIPPED))
        return finished
    earlier = _earlier(directory)
    models: dict[str, ModelFile] = {}
    failures: dict[str, KDExportError] = {}
    with progress.task("export", len(jobs)) as task:
        for job in jobs:
            task.advance(0, note=job.name)
            known = earlier.get(job.name)
            try:
                models[job.name] = known if known is not None and _holds(known, job) else job.make(models)
            except StorageError:
                raise
            except KDExportError as error:
                failures[job.name] = error
                with contextlib.suppress(OSError):  # a folder has its place
                    job.path.unlink(missing_ok=True)  # an older one is not this run's
                progress.warn(f"{job.path.name} is left out: {error.message} ({error.hint})")
            # An unfinished result has no key: it says what is there, so that a killed export goes on after it.
            mark_done(record, "", ExportResult(recipe.name, tuple(models.values())))
            task.advance()
    if not models:
        raise next(iter(failures.values()))
    tokenizer = work.write_tokenizer()
    if SHIPPED in models:
        example.write(directory.onnx(SHIPPED))
    left_out = [ExportFailure(name, error.message, error.hint) for name, error in failures.items()]
    result = ExportResult(recipe.name, tuple(models.values()), (*distilled.failures, *left_out))
    paths = [*(job.path for job in jobs if job.name in models), *tokenizer]
    mark_done(record, "" if failures else key, result, paths)  # what failed is tried again next time
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

    def __init__(
        self,
        recipe: Recipe,
        distilled: DistillResult,
        directory: RunDirectory,
        progress: Progress,
        timer: TimerMaker | None,
    ) -> None:
        self.recipe, self.distilled, self.directory, self.progress = recipe, distilled, directory, progress
        self.timer = timer

    def jobs(self) -> list[_Job]:
        """Return the files to make: the networks, then the variants."""
        networks, smaller = [], []
        for network in self.distilled.networks:
            key = self._key(network)
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
        data = self.dataset
        return parity.samples_of(data.val.inputs, data.train.inputs, data.values_per_sample)

    def calibration(self) -> Arrays:
        """Return raw training samples, seeded."""
        train = self.dataset.train
        count = min(self.recipe.export.calibration_samples, len(train))
        chosen = np.random.default_rng(self.recipe.seed).choice(len(train), count, replace=False)
        return train.take(np.sort(chosen)).inputs

    def validation(self) -> tuple[Arrays, NDArray[Any]] | None:
        """Return raw validation samples with their targets; None where they have none."""
        val = self.dataset.val.spread(variants.VALIDATION_SAMPLES)
        return None if val.labels is None else (val.inputs, val.labels)

    @cached_property
    def recipe_hash(self) -> str:
        """Stands for what the networks were trained by."""
        whole = self.recipe.to_dict(relative_to=self.directory.root)
        return artifacts.key_of({part: whole[part] for part in ("seed", "data", "teacher", "student", "distill")})

    def preprocessing(self, network: str) -> Preprocessing:
        return preprocessing_of(self._spec(network), self.dataset)

    def _spec(self, network: str) -> Teacher | Student:
        return self.recipe.teacher if network == "teacher" else self.recipe.student

    @cached_property
    def _data(self) -> list[object]:
        """All that the samples, the size and the mean in the graph come from: the data, and what its networks need."""
        networks: tuple[TeacherSpec | Student, ...] = (
            self.recipe.teacher,
            *self.recipe.teacher.also,
            self.recipe.student,
        )
        needed = [[fingerprint(spec.model, spec.args), spec.preprocessing.model_dump()] for spec in networks]
        return [data_fingerprint(self.recipe.data), self.recipe.seed, needed]

    def _key(self, network: TrainedNetwork) -> str:
        spec = self._spec(network.name)
        return cache_key(
            "fp32",
            torch=torch.__version__,
            weights=network.weights_sha256,
            network=fingerprint(spec.model, spec.args),
            output=spec.output if spec.embedding_dim is None else [spec.output, spec.embedding_dim],
            pretrained=spec.weights == PRETRAINED,  # else what the library says of preprocessing does not count
            preprocessing=spec.preprocessing.model_dump(),
            data=self._data,
            classes=as_written(self.distilled.class_names),
            settings=as_written(self.recipe.export.model_dump(include=FP32_SETTINGS)),
        )

    def _network(self, network: TrainedNetwork, key: str, _: dict[str, ModelFile]) -> ModelFile:
        path = self.directory.onnx(network.name)
        spec = self._spec(network.name)
        if spec.model.endswith(".onnx"):
            return write(Path(spec.model), network, path, self.preprocessing(network.name), key=key)
        settings = self.recipe.export
        model = load_model(network.name, spec, self.dataset, self.directory.root / network.weights)
        also = settings.also_outputs if network.name != "teacher" else ()
        if (output := output_of(model.network)) is not None:
            output.also = also
        beside = TOKENIZER_FILE if self._tokenizer_of(network.name) is not None else None
        preprocessing = replace(model.preprocessing, tokenizer_file=beside)
        target = ExportTarget(
            network.name,
            model.network,
            preprocessing,
            self.dataset.input_names,
            preprocessing.own(self.samples),
            class_names=() if self.dataset.task.embeds else self.distilled.class_names,
            feature_names=self.dataset.feature_names,
            task=self.dataset.task.name,
            output_name=self.dataset.task.output_name,
            activation=self.dataset.task.activation,
            parameters=network.parameters,
            macs=network.macs,
            recipe=self.recipe_hash,
            license=settings.license,
            val_score=network.val_score,
            notes=(*getattr(model.network, "notes", ()), *self._notes(network.name)),
            stamp=stamp_for(self.dataset, preprocessing),
        )
        form = Form(
            settings.opset,
            runtimes.ir_for(settings.opset),
            settings.parity_tolerance,
            bake=settings.bake_preprocessing,
            any_image_size=settings.any_image_size,
            softmax=settings.softmax,
            top_k=settings.top_k,
            output_names=(target.output_name, *(name.replace(".", "_") for name in also)) if also else None,
        )
        return replace(network_export.write(target, form, path, key=key, progress=self.progress), pruned=network.pruned)

    def _variant_job(self, network: TrainedNetwork, fp32_key: str, precision: str) -> _Job:
        settings = self.recipe.export
        calibration: list[object] = []
        if PRECISIONS[precision].needs_calibration:
            calibration = [settings.calibration, settings.calibration_samples, settings.weight_bits]
            calibration.append(network.activation_ranges)
        bench = self.recipe.bench
        timed = [bench.devices[0], bench.threads[0], bench.batch_sizes[0], bench.provider_options, bench.dims]
        key = cache_key(
            precision,
            fp32=fp32_key,  # stands for the data, too
            limits=[settings.max_drop, settings.max_output_error],
            calibration=calibration,
            # Not the machine: a run that goes on elsewhere keeps its files, which say where they were timed.
            **({"timed": timed} if precision == AUTO else {}),
        )
        path = self.directory.onnx(network.name, precision)
        return _Job(f"{network.name}.{precision}", path, key, partial(self._variant, network, precision, key))

    def _variant(self, network: TrainedNetwork, precision: str, key: str, made: dict[str, ModelFile]) -> ModelFile:
        source = self.directory.onnx(network.name)
        if network.name not in made:
            raise KDExportError(f"{source.name} is not there", hint="see why it is left out")
        baked = metadata.read(source).get("kdexport.baked") == "true"
        preprocessing = self.preprocessing(network.name)

        def feed(raw: Arrays) -> Arrays:
            return raw if baked else tuple(tensor.numpy() for tensor in preprocessing.apply(raw))

        data = CalibrationData(
            samples=lambda: self.samples,
            calibration=self.calibration,
            validation=self.validation,
            feed=feed,
            task=self.dataset.task,
            classes=self.dataset.num_classes,
            stamp=stamp_for(self.dataset, preprocessing),
        )
        settings = self.recipe.export
        spec = VariantSpec(
            precision,
            settings.calibration,
            settings.weight_bits,
            max_drop=settings.max_drop,
            learnt=network.activation_ranges,
            max_output_error=settings.max_output_error,
        )
        path = self.directory.onnx(network.name, precision)
        model = variants.write(source, made[network.name], spec, path, data, self.progress, key=key, timer=self.timer)
        return replace(model, notes=(*model.notes, *self._notes(network.name)))

    def write_tokenizer(self) -> list[Path]:
        """Write the tokenizer that makes the shipped file's ids beside it, where it takes text."""
        text, path = self._tokenizer_of(SHIPPED), self.directory.root / TOKENIZER_FILE
        if text is None:
            return []
        artifacts.write_text(path, text)
        return [path]

    def _tokenizer_of(self, network: str) -> str | None:
        """Return the ``tokenizer.json`` of a network that takes text; None where none lies beside its file.

        There is one: the student's. A teacher with another vocabulary has none.
        """
        data, dataset = self.recipe.data, self.dataset
        if dataset.preprocessing.kind != "tokens" or data.tokenizer is None:
            return None
        if self.recipe.student.vocabulary is None:
            return tokenizer_beside(data.tokenizer, data.text_length)
        cut = None if network == "teacher" else dataset.vocabulary
        return None if cut is None else cut.tokenizer

    def _notes(self, network: str) -> tuple[str, ...]:
        """Return what is to be said of a network's vocabulary, beside its file."""
        return self.dataset.coverage if isinstance(self._spec(network), Student) else ()


def _holds(model: ModelFile, job: _Job) -> bool:
    """Whether the file of an earlier result is still there, whole, and made from the same things."""
    if not job.path.is_file() or model.name != job.name:
        return False
    return metadata.read(job.path).get("kdexport.key") == job.key and artifacts.sha256(job.path) == model.sha256


def _earlier(directory: RunDirectory) -> dict[str, ModelFile]:
    """Return what an earlier export, finished or not, has left."""
    document = read_sealed(directory.stage("export")) or {}
    try:
        result = from_json(ExportResult, {name: document.get(name) for name in ("name", "models")})
    except ValidationError:  # none, or written by another version
        return {}
    return {model.name: model for model in result.models}


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
