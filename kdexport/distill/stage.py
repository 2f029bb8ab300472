"""The distill stage: a teacher, a student taught by it, and the same student without it. OPEN FIRST in this folder.

Each of the three is a phase with a key of its own, the hash of what it depends on. A phase whose key and weights are
unchanged is not trained again.
"""

import contextlib
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from kdexport import __version__, artifacts, references, results
from kdexport.artifacts import RunDirectory
from kdexport.distill import qat
from kdexport.distill.context import DistillContext, Spec, network_key
from kdexport.distill.job import TrainingResult
from kdexport.distill.logging import Trackers
from kdexport.distill.optimization import accelerator_for
from kdexport.distill.setup import Teachers, identity, on_labels, taught, trained, votes
from kdexport.errors import SourceError
from kdexport.models.fitted_data import load_run_data
from kdexport.models.loading import Model, count_macs
from kdexport.models.weights import save_weights
from kdexport.progress import SILENT, Progress
from kdexport.recipe import Recipe, TeacherSpec, Training
from kdexport.results import DistillResult, TrainedNetwork

# Settings of a training that its weights do not depend on.
WITHOUT_EFFECT = {"checkpoint_minutes", "teacher_cache", "track"}


def distill(recipe: Recipe, directory: RunDirectory, progress: Progress = SILENT) -> DistillResult:
    """Train what the recipe asks for into a run directory.

    Args:
        recipe: What to train.
        directory: Where weights, the epoch log, checkpoints and distill.json go.
        progress: Where to say what happens.

    Returns:
        The networks with their weights' paths: teacher, student and, with ``distill.baseline``, student-plain.

    Raises:
        KDExportError: A reference that cannot be loaded, class counts that differ, a loss that is not finite.
        KeyboardInterrupt: Ctrl-C, after a checkpoint was written; the same call goes on from there.
    """
    directory.prepare()
    trackers = Trackers(recipe.distill.track if artifacts.is_main() else (), directory.root, recipe.name)
    with accelerator_for(recipe.distill.precision).main_process_first():  # one downloads and decodes, all read
        data = load_run_data(recipe, directory.cache, progress)
    with contextlib.closing(trackers):
        return _distilled(DistillContext(recipe, directory, data, progress, trackers))


def _distilled(run: DistillContext) -> DistillResult:
    recipe, directory = run.recipe, run.directory
    run.say_what_is_special()
    _ = run.objective, run.load("student", recipe.student)  # faults show before the teacher has cost an hour
    teachers = _teachers(run)
    networks = [teachers[0][0], _student(run, teachers)]
    if recipe.distill.baseline:
        if run.dataset.train.labels is None:
            run.progress.warn("the data have no labels: there is no student-plain to compare with")
        else:
            networks.append(_student_plain(run))
    result = DistillResult(
        name=recipe.name,
        class_names=run.dataset.class_names,
        splits={name: len(getattr(run.dataset, name)) for name in ("train", "val", "test")},
        splits_made_by=run.dataset.splits_made_by,
        networks=tuple(networks),
        teachers=votes(run, teachers) if len(teachers) > 1 else (),
    )
    if artifacts.is_main():
        directory.finish("distill", result, artifacts.key_of([network.weights_sha256 for network in networks]))
    return result


def _teachers(run: DistillContext) -> Teachers:
    """Return the teacher, and any others that speak with it; only the first is exported and compared with."""
    head = run.recipe.teacher
    named = [("teacher", head), *((f"teacher-{number}", also) for number, also in enumerate(head.also, 2))]
    return [(_teacher(run, name, spec), spec) for name, spec in named]


def _teacher(run: DistillContext, name: str, spec: TeacherSpec) -> TrainedNetwork:
    """Take a teacher as it is, or fit it on the labels where the recipe says how."""
    training = spec.train
    key = artifacts.key_of(
        network_key(spec), training and [run.data_key, training.model_dump(exclude=WITHOUT_EFFECT)], __version__
    )
    if training is None:
        if spec.weights is None and spec.model.partition(":")[0] in ("torchvision", "timm"):
            raise SourceError(
                f"the {name} {spec.model} has no weights: it would teach noise",
                hint='give teacher.weights (a file or "pretrained"), or [teacher.train] to fit it on the labels',
            )
        return run_phase(run, name, spec, key, None)
    return run_phase(run, name, spec, key, lambda model: _learnt_from_labels(run, name, model, training, key))


def _student(run: DistillContext, teachers: Teachers) -> TrainedNetwork:
    """Train the student; where several generations are asked for, each is taught by the one before."""
    teaching = teachers
    for generation in range(1, run.recipe.distill.generations):
        teaching = [(_generation(run, f"student-{generation}", teaching), run.recipe.student)]
    if not run.recipe.distill.quantize_aware:
        return _generation(run, "student", teaching)
    distilled = _generation(run, "student", teaching, ships_as=qat.BEFORE)
    return _with_rounding(run, distilled, teaching)


def _generation(run: DistillContext, phase: str, teaching: Teachers, ships_as: str | None = None) -> TrainedNetwork:
    """Train a student on its teachers' word and, by ``label_weight``, on the labels."""
    spec, settings = run.recipe.student, run.recipe.distill
    later = {"baseline", "generations", "quantize_aware", "quantize_aware_epochs", "quantize_aware_lr", *WITHOUT_EFFECT}
    key = artifacts.key_of(
        network_key(spec), run.data_key, identity(run, teaching), settings.model_dump(exclude=later), __version__
    )

    def train(model: Model) -> TrainingResult:
        accelerator = accelerator_for(settings.precision)
        job = taught(run, phase, model, teaching, settings, run.objective, accelerator)
        return trained(run, model, job, accelerator, key)

    return run_phase(run, phase, spec, key, train, ships_as=ships_as)


def _with_rounding(run: DistillContext, distilled: TrainedNetwork, teaching: Teachers) -> TrainedNetwork:
    """Teach the distilled student on while it rounds as int8 does; its weights are those that ship."""
    spec, settings = run.recipe.student, qat.settings_of(run.recipe.distill)
    key = artifacts.key_of(
        [distilled.weights_sha256, network_key(spec), run.data_key, identity(run, teaching)],
        settings.model_dump(exclude={"baseline", "generations", *WITHOUT_EFFECT}),
        run.recipe.export.weight_bits,
        __version__,
    )

    def train(model: Model) -> TrainingResult:
        accelerator = accelerator_for(settings.precision)
        objective = qat.objective_of(run, settings)
        job = taught(run, qat.PHASE, model, teaching, settings, objective, accelerator)
        job = replace(job, macs=None)  # no trial: the rounding leaves little for another form to save
        rounded = qat.rounded(run, model, job.batches, accelerator.device)
        fitted = trained(run, replace(model, network=rounded), job, accelerator, key)
        # What ships in fp32 is scored without the rounding.
        accuracy = job.validation.score(model.network)["val_accuracy"]
        return replace(
            fitted,
            epochs=distilled.epochs + fitted.epochs,
            best_epoch=distilled.epochs + fitted.best_epoch,
            seconds=(distilled.seconds or 0.0) + fitted.seconds,
            val_accuracy=accuracy,
            activation_ranges=rounded.ranges(),
        )

    return run_phase(
        run,
        qat.PHASE,
        spec,
        key,
        train,
        ships_as="student",
        start=partial(run.load_trained, distilled, spec),
    )


def _student_plain(run: DistillContext) -> TrainedNetwork:
    """Train the same student from the same start with the same budget, on the labels alone."""
    spec, settings = run.recipe.student, run.recipe.distill
    budget = settings.model_dump(include={*Training.model_fields, "views"} - WITHOUT_EFFECT)
    key = artifacts.key_of(network_key(spec), run.data_key, budget, __version__)
    return run_phase(
        run, "student-plain", spec, key, lambda model: _learnt_from_labels(run, "student-plain", model, settings, key)
    )


def _learnt_from_labels(run: DistillContext, phase: str, model: Model, training: Training, key: str) -> TrainingResult:
    accelerator = accelerator_for(training.precision)
    return trained(run, model, on_labels(run, phase, model, training, accelerator), accelerator, key)


def run_phase(
    run: DistillContext,
    name: str,
    spec: Spec,
    key: str,
    train: Callable[[Model], TrainingResult] | None,
    *,
    ships_as: str | None = None,
    start: Callable[[], Model] | None = None,
) -> TrainedNetwork:
    """Return a phase's earlier result where it is still true, else train and write the weights.

    Args:
        run: What the phases share.
        name: Of the phase.
        spec: The recipe's table of its network.
        key: Stands for all that the phase depends on.
        train: Trains the network; None where it is taken as it is.
        ships_as: The network's name, and its weights', where it is not the phase's.
        start: Gives the network to begin with, where it isn't a fresh one.
    """
    record = run.directory.checkpoints / name / "done.json"
    network_name = ships_as or name
    weights = run.directory.weights(network_name)
    done = artifacts.read_json(record)
    if done and done.get("key") == key:
        earlier = results.from_json(TrainedNetwork, done["network"])
        # They may lie under the name that they had when quantize_aware was set otherwise.
        for place in (weights, run.directory.root / earlier.weights):
            if not place.exists() or artifacts.sha256(place) != earlier.weights_sha256:
                continue
            run.progress.say(f"{name}: unchanged, not trained again")
            run.log.unchanged(name)
            if place == weights:
                return earlier
            moved = replace(earlier, name=network_name, weights=weights.name)
            if artifacts.is_main():
                artifacts.write_atomically(weights, partial(shutil.copyfile, place))
                artifacts.write_json(record, {"key": key, "network": results.to_json(moved)})
            return moved
    model = start() if start else run.load(name, spec)
    for line in model.left_out:
        run.progress.warn(f"{name} starts without weights for {line}")
    for line in model.notes:
        run.progress.say(line)
    for line in model.warnings:
        run.progress.warn(line)
    fitted = train(model) if train else None
    if artifacts.is_main():
        save_weights(model.network, weights)
    accelerator_for(run.recipe.distill.precision).wait_for_everyone()
    made = TrainedNetwork(
        name=network_name,
        reference=references.relative(spec.model, run.directory.root.resolve()),
        weights=weights.name,
        weights_sha256=artifacts.sha256(weights),
        parameters=sum(parameter.numel() for parameter in model.network.parameters()),
        macs=count_macs(model, run.dataset),
        epochs=fitted.epochs if fitted else 0,
        seconds=fitted.seconds if fitted else None,
        best_epoch=fitted.best_epoch if fitted else None,
        val_accuracy=fitted.val_accuracy if fitted else None,
        activation_ranges=fitted.activation_ranges if fitted else {},
        form=fitted.form if fitted else None,
    )
    if artifacts.is_main():
        artifacts.write_json(record, {"key": key, "network": results.to_json(made)})
    return made
