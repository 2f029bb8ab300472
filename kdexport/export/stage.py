"""OPEN FIRST: the export stage. Each network becomes an ONNX file that is proved, then smaller variants of the student.

A file is written and proved under a temporary name, and only then gets its own. What is there already is left alone:
each file carries a key that stands for all that it was made from.
"""

import dataclasses
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch

from kdexport import __version__, artifacts
from kdexport.artifacts import RunDirectory
from kdexport.export import metadata, parity, quantize
from kdexport.export.preprocessing import Baked
from kdexport.export.runner import Arrays, Runner
from kdexport.export.to_onnx import to_onnx
from kdexport.progress import Progress
from kdexport.recipe import Recipe
from kdexport.results import DistillResult, ExportResult, ModelFile, TrainedNetwork
from kdexport.sources.datasets import load_data
from kdexport.sources.fingerprint import fingerprint
from kdexport.sources.models import load_model
from kdexport.sources.preprocessing import Preprocessing, with_spec
from kdexport.sources.samples import Dataset

QUANTIZED = "student"  # the network that ships

# How far a variant may be from fp32 before the user is warned; it ships all the same: its accuracy decides.
VARIANT_TOLERANCE = {"fp16": 0.02, "int8": 0.2, "int8-dynamic": 0.2}


def export(recipe: Recipe, distilled: DistillResult, directory: RunDirectory, progress: Progress) -> ExportResult:
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
    work = _Work(recipe, distilled, directory, progress)
    jobs = work.jobs()
    key = artifacts.key_of([(job.name, job.key) for job in jobs])
    done = directory.finished("export", ExportResult, key)
    if done is not None and all(work.holds(model, job) for model, job in zip(done.models, jobs, strict=True)):
        return done
    earlier = work.earlier()
    models: list[ModelFile] = []
    with progress.task("export", len(jobs)) as task:
        for job in jobs:
            known = earlier.get(job.name)
            models.append(known if known is not None and work.holds(known, job) else job.make())
            # An unfinished result has no key: it says what is there, so that a killed export goes on after it.
            directory.finish("export", ExportResult(recipe.name, tuple(models)), "")
            task.advance(note=job.name)
    result = ExportResult(recipe.name, tuple(models))
    directory.finish("export", result, key)
    return result


@dataclasses.dataclass(frozen=True)
class _Job:
    """One file to make."""

    name: str
    path: Path
    key: str
    make: Callable[[], ModelFile]


class _Work:
    """What the files of one run share."""

    def __init__(self, recipe: Recipe, distilled: DistillResult, directory: RunDirectory, progress: Progress) -> None:
        self.recipe, self.distilled, self.directory, self.progress = recipe, distilled, directory, progress

    @cached_property
    def dataset(self) -> Dataset:
        return load_data(self.recipe.data, self.recipe.seed, self.directory.cache)

    @cached_property
    def samples(self) -> Arrays:
        """Real samples for the proofs, raw: of the validation split, then of the training split; never test."""
        val, train = self.dataset.val.inputs, self.dataset.train.inputs
        missing = max(0, parity.SAMPLES - len(val[0]))
        return tuple(np.concatenate([v[: parity.SAMPLES], t[:missing]]) for v, t in zip(val, train, strict=True))

    @cached_property
    def calibration(self) -> Arrays:
        """Raw training samples, seeded."""
        train = self.dataset.train
        count = min(self.recipe.export.calibration_samples, len(train))
        chosen = np.random.default_rng(self.recipe.seed).choice(len(train), count, replace=False)
        return train.take(np.sort(chosen)).inputs

    @cached_property
    def recipe_hash(self) -> str:
        """Stands for what the networks were trained by."""
        whole = self.recipe.to_dict(relative_to=self.directory.root)
        return artifacts.key_of({part: whole[part] for part in ("seed", "data", "teacher", "student", "distill")})

    def jobs(self) -> list[_Job]:
        networks, variants = [], []
        for network in self.distilled.networks:
            key = artifacts.key_of("fp32", *self._depends_on(network))
            path = self.directory.onnx(network.name)
            networks.append(_Job(network.name, path, key, partial(self._fp32, network, key)))
            if network.name == QUANTIZED:
                variants = [self._variant_job(network, key, precision) for precision in self.recipe.export.quantize]
        return networks + variants

    def holds(self, model: ModelFile, job: _Job) -> bool:
        """Whether the file of an earlier result is still there, whole, and made from the same things."""
        if not job.path.is_file() or model.name != job.name:
            return False
        return metadata.read(job.path).get("kdexport.key") == job.key and artifacts.sha256(job.path) == model.sha256

    def earlier(self) -> dict[str, ModelFile]:
        """Return what an earlier export, finished or not, has left."""
        document = artifacts.read_json(self.directory.stage("export")) or {}
        key = str(document.get("key", ""))
        result = self.directory.finished("export", ExportResult, key)
        return {} if result is None else {model.name: model for model in result.models}

    def _depends_on(self, network: TrainedNetwork) -> list[object]:
        settings = self.recipe.export
        side = self.recipe.teacher if network.name == "teacher" else self.recipe.student
        return [
            __version__,
            torch.__version__,
            network.weights_sha256,
            fingerprint(network.reference, side.args),
            side.preprocessing.model_dump(),
            self.distilled.class_names,
            settings.opset,
            settings.bake_preprocessing,
            settings.parity_tolerance,
        ]

    def _variant_job(self, network: TrainedNetwork, fp32_key: str, precision: str) -> _Job:
        parts: list[object] = [precision, fp32_key, self.recipe.data.model_dump(), self.recipe.seed]
        if precision == "int8":
            parts.append(self.recipe.export.calibration_samples)
        key = artifacts.key_of(*parts)
        path = self.directory.onnx(network.name, precision)
        name = f"{network.name}.{precision}"
        return _Job(name, path, key, lambda: self._variant(network, name, precision, path, key))

    def _fp32(self, network: TrainedNetwork, key: str) -> ModelFile:
        path = self.directory.onnx(network.name)
        side = self.recipe.teacher if network.name == "teacher" else self.recipe.student
        model = load_model(network.name, side, self.dataset, self.directory.root / network.weights)
        module, preprocessing = model.network, model.preprocessing
        baked = self.recipe.export.bake_preprocessing and preprocessing.kind == "image"
        wrapped = Baked(module, preprocessing, self.samples[0].shape[-1]) if baked else module
        raw = tuple(array[:2] for array in self.samples)
        exported = to_onnx(
            wrapped,
            tuple(torch.from_numpy(np.array(array)) for array in raw) if baked else preprocessing.apply(raw),
            input_names=self.dataset.input_names,
            opset=self.recipe.export.opset,
            inner="network" if baked else "",
        )
        exported.model.metadata_props.update(
            metadata.entries(
                key=key,
                precision="fp32",
                opset=self.recipe.export.opset,
                labels=self.distilled.class_names,
                preprocessing=preprocessing,
                baked=baked,
                recipe=self.recipe_hash,
                parameters=network.parameters,
                macs=network.macs,
            )
        )

        def torch_model(inputs: Arrays) -> Arrays:
            with torch.no_grad():
                return (module(*preprocessing.apply(inputs)).numpy(),)

        proof: list[ModelFile] = []

        def write(temporary: Path) -> None:
            ir.save(exported.model, temporary)
            session = Runner(temporary)
            shown = parity.compare(
                torch_model,
                lambda inputs: session(inputs if baked else _numpy(preprocessing, inputs)),
                self.samples,
                tolerance=self.recipe.export.parity_tolerance,
                subject=path.name,
            )
            parity.demand(shown, path.name)
            before = sum(exported.operators_before.values())
            after = sum(1 for _ in exported.model.graph.all_nodes())
            proof.append(
                metadata.model_file(
                    network.name,
                    temporary,
                    shown_as=path.name,
                    precision="fp32",
                    parameters=network.parameters,
                    macs=network.macs,
                    parity=shown,
                    notes=(f"{before} operators as translated, {after} after optimization",),
                )
            )

        artifacts.write_atomically(path, write)
        return proof[0]

    def _variant(self, network: TrainedNetwork, name: str, precision: str, path: Path, key: str) -> ModelFile:
        source = self.directory.onnx(network.name)
        known = metadata.read(source)
        baked = known.get("kdexport.baked") == "true"
        side = self.recipe.teacher if network.name == "teacher" else self.recipe.student
        preprocessing = with_spec(self.dataset.preprocessing, side.preprocessing)

        def ready(inputs: Arrays) -> Arrays:
            return inputs if baked else _numpy(preprocessing, inputs)

        proof: list[ModelFile] = []

        def write(temporary: Path) -> None:
            if precision == "int8":
                quantize.static_int8(source, temporary, ready(self.calibration))
            elif precision == "int8-dynamic":
                quantize.dynamic_int8(source, temporary)
            else:
                quantize.half(source, temporary)
            metadata.stamp(temporary, {**known, "kdexport.key": key, "kdexport.precision": precision})
            fp32, variant = Runner(source), Runner(temporary)
            shown = parity.compare(
                fp32,
                variant,
                ready(self.samples),
                tolerance=VARIANT_TOLERANCE[precision],
                against="fp32-onnx",
                subject=path.name,
            )
            notes: tuple[str, ...] = ()
            if not shown.passed:
                notes = (f"differs from fp32 by {shown.max_rel:.2g} relative, {shown.tolerance:g} is usual",)
                self.progress.warn(f"{path.name} {notes[0]}; see what it costs in accuracy")
            proof.append(
                metadata.model_file(
                    name,
                    temporary,
                    shown_as=path.name,
                    precision=precision,
                    parameters=network.parameters,
                    macs=network.macs,
                    parity=shown,
                    notes=notes,
                )
            )

        artifacts.write_atomically(path, write)
        return proof[0]


def _numpy(preprocessing: Preprocessing, inputs: Arrays) -> Arrays:
    return tuple(tensor.numpy() for tensor in preprocessing.apply(inputs))
