"""The distill stage: a teacher, a student taught by it, and the same student without it. OPEN FIRST in this folder.

Each of the three is a phase with a key of its own, the hash of what it depends on. A phase whose key and weights are
unchanged is not trained again.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch
from accelerate import Accelerator

from kdexport import artifacts, results
from kdexport.artifacts import RunDirectory
from kdexport.data.samples import Dataset
from kdexport.distill import preflight, qat
from kdexport.distill.context import AfterEpoch, Depends, DistillContext, depends_on, network_key
from kdexport.distill.logging import Trackers
from kdexport.distill.objective import with_usual_terms
from kdexport.distill.optimization import accelerator_for, repeatable, with_fitting_lr
from kdexport.distill.phase import Phase, run_phase
from kdexport.distill.preflight import Check
from kdexport.distill.setup import (
    Teachers,
    TrainingSetup,
    distillation_setup,
    key_of_teachers,
    label_setup,
    teacher_scores,
)
from kdexport.distill.state import Checkpoints
from kdexport.distill.trainer import TrainingResult, fit
from kdexport.errors import DivergenceError, RecipeError, SourceError
from kdexport.models.fitted_data import load_run_data
from kdexport.models.loading import Model
from kdexport.models.programs import save_program
from kdexport.progress import SILENT, Progress
from kdexport.recipe import SEARCHED, Distill, Recipe, TeacherSpec, Training
from kdexport.results import DistillResult, ExportFailure, OnChange, TrainedNetwork
from kdexport.stage_cache import cache_key, is_done, mark_done

PLAIN = "student-plain"  # the student without distillation


def distill(
    recipe: Recipe,
    directory: RunDirectory,
    progress: Progress = SILENT,
    *,
    on_change: OnChange | None = None,
    before_training: Check | None = None,
    after_epoch: AfterEpoch | None = None,
) -> DistillResult:
    """Train what the recipe asks for into a run directory.

    Args:
        recipe: What to train.
        directory: Where weights, the epoch log, checkpoints and distill.json go.
        progress: Where to say what happens.
        on_change: What becomes of training that a changed recipe would throw away: ``"ask"`` is an error that says
            so, ``"restart"`` trains again, ``"extend"`` goes on from the last weights, None asks where more than ten
            minutes would be lost. See ``phase``.
        before_training: Is called with "teacher" and "student", each network and the data, before anything is trained.
        after_epoch: Watches the student's training, and may pause it.

    Returns:
        The networks with their weights' paths: teacher, student and, with ``distill.baseline``, student-plain; where
        the training of that diverges, why it is left out.

    Raises:
        KDExportError: A reference that cannot be loaded, a network that does not take the data or cannot be trained,
            a loss that is not finite, training that would be lost.
        KeyboardInterrupt: Ctrl-C, after a checkpoint was written; the same call goes on from there.
        Paused: ``after_epoch`` asked for it.
    """
    if recipe.student.model == SEARCHED:
        raise RecipeError(
            "the recipe gives no student: it is to be searched for",
            hint="give `kdexport search RECIPE`, then `kdexport run` the recipe that it picks; or set student.model",
        )
    with _context(recipe, directory, progress, on_change, before_training, after_epoch) as context:
        return _phases(context)


def prepare_teacher(
    recipe: Recipe, directory: RunDirectory, progress: Progress = SILENT
) -> tuple[Dataset, tuple[TrainedNetwork, ...]]:
    """Take or train a recipe's teachers alone, into a run directory; the student is not looked at.

    Returns:
        The data, and the teachers in the recipe's order.

    Raises:
        KDExportError, KeyboardInterrupt: As ``distill``.
    """
    with _context(recipe, directory, progress) as context:
        context.checked.append(True)  # there is no student to try yet
        context.announce_data()
        fitting = with_fitting_lr(context)
        return context.dataset, tuple(made for made, _ in _teachers(fitting))


@contextlib.contextmanager
def _context(
    recipe: Recipe,
    directory: RunDirectory,
    progress: Progress,
    on_change: OnChange | None = None,
    before_training: Check | None = None,
    after_epoch: AfterEpoch | None = None,
) -> Iterator[DistillContext]:
    """Load the data, and open what a distillation writes to."""
    directory.prepare()
    trackers = Trackers(recipe.distill.track if artifacts.is_main() else (), directory.root, recipe.name)
    with accelerator_for(recipe.distill.precision).main_process_first():  # one downloads and decodes, all read
        data = load_run_data(recipe, directory.cache, progress)
    with contextlib.closing(trackers):
        check = partial(preflight.check, further=before_training)
        yield DistillContext(recipe, directory, data, progress, trackers, on_change, check, after_epoch=after_epoch)


def _with_usual_terms(context: DistillContext) -> DistillContext:
    settings = with_usual_terms(context.recipe.distill, context.dataset.task)
    if settings is context.recipe.distill:
        return context
    names = ", ".join(term.method for term in settings.terms)
    context.progress.message(f"the student learns by {names}, the usual for {context.dataset.task.name}")
    return replace(context, recipe=context.recipe.model_copy(update={"distill": settings}))


def _phases(context: DistillContext) -> DistillResult:
    context.announce_data()
    context = _with_usual_terms(with_fitting_lr(context))
    recipe, directory = context.recipe, context.directory
    if recipe.distill.data_free is not None and context.dataset.task.activation == "none":
        raise SourceError(
            f"data_free makes samples that a classifier is sure of, and the task is {context.dataset.task.name}",
            hint="take [distill.data_free] out, and give samples: for distillation they need no labels",
        )
    _ = context.objective, context.load("student", recipe.student)  # faults show before the teacher has cost an hour
    teachers = _teachers(context)
    networks = [teachers[0][0], _student(context, teachers)]
    _write_program(context, networks[1])
    failures = []
    if recipe.distill.baseline:
        try:
            networks.append(_student_plain(context))
        except DivergenceError as error:  # what it is compared with is there: that is not to be lost
            failures.append(ExportFailure(PLAIN, error.message, error.hint))
            context.progress.warn(f"{PLAIN} is left out: {error.message} ({error.hint})")
    result = DistillResult(
        name=recipe.name,
        class_names=context.dataset.class_names,
        splits={name: len(getattr(context.dataset, name)) for name in ("train", "val", "test")},
        splits_made_by=context.dataset.splits_made_by,
        networks=tuple(networks),
        teachers=teacher_scores(context, teachers) if len(teachers) > 1 else (),
        metric=context.dataset.task.metric,
        failures=tuple(failures),
    )
    if artifacts.is_main():
        weights = [directory.root / network.weights for network in networks]
        key = cache_key("distill", networks=results.to_json(result)["networks"])
        mark_done(directory.stage("distill"), key, result, weights)
    return result


def _teachers(context: DistillContext) -> Teachers:
    """Return the teacher, and any others beside it; only the first is exported and compared with."""
    return [(_teacher(context, name, spec), spec) for name, spec in context.recipe.teacher.named()]


def _teacher(context: DistillContext, name: str, spec: TeacherSpec) -> TrainedNetwork:
    """Take a teacher as it is, or fit it on the labels where the recipe says how."""
    training = spec.train
    if training is None:
        if spec.weights is None and spec.model.partition(":")[0] in ("torchvision", "timm"):
            raise SourceError(
                f"the {name} {spec.model} has no weights: it would teach noise",
                hint='give teacher.weights (a file or "pretrained"), or [teacher.train] to fit it on the labels',
            )
        key = cache_key("network", identity=network_key(spec))
        return run_phase(context, Phase(name, spec, Depends(key, key, {})))
    depends = depends_on([network_key(spec), context.data_key], training)
    return run_phase(context, Phase(name, spec, depends, _on_labels(context, name, training)))


def _student(context: DistillContext, teachers: Teachers) -> TrainedNetwork:
    """Train the student; where several generations are asked for, each is taught by the one before."""
    for generation in range(1, context.recipe.distill.generations):
        teachers = [(_generation(context, f"student-{generation}", teachers), context.recipe.student)]
    if not context.recipe.distill.quantize_aware:
        return _generation(context, "student", teachers)
    distilled = _generation(context, "student", teachers, ships_as=qat.BEFORE)
    return _with_rounding(context, distilled, teachers)


def _generation(context: DistillContext, name: str, teachers: Teachers, ships_as: str | None = None) -> TrainedNetwork:
    """Train a student on its teachers' outputs and, by ``label_weight``, on the labels."""
    spec, settings = context.recipe.student, context.recipe.distill
    later = {"baseline", "generations", "quantize_aware", "quantize_aware_epochs", "quantize_aware_lr"}
    start = context.student_starts_from
    made_from: list[object] = [network_key(spec), context.data_key, key_of_teachers(context, teachers)]
    made_from += [] if start is None else [artifacts.sha256(start)]

    def train(model: Model, checkpoints: Checkpoints) -> TrainingResult:
        accelerator = accelerator_for(settings.precision)
        setup = distillation_setup(context, name, model, teachers, settings, context.objective, accelerator)
        test = setup.test()  # all processes make it
        if accelerator.is_main_process:
            preflight.tell(context, teachers[0][0].name, setup.validation, test)
        return _fit(context, model, setup, accelerator, checkpoints)

    depends = depends_on(made_from, settings, later)
    return run_phase(context, Phase(name, spec, depends, train, ships_as, partial(context.load, name, spec, start)))


def _with_rounding(context: DistillContext, distilled: TrainedNetwork, teachers: Teachers) -> TrainedNetwork:
    """Train the distilled student on while it rounds as int8 does; its weights are those that ship."""
    spec, settings = context.recipe.student, qat.settings_of(context.recipe.distill)
    if context.dataset.task.label_head and settings.terms:  # the labels' head was thrown away: a fresh one would undo
        settings = settings.model_copy(update={"label_weight": 0.0})
    made_from = [distilled.weights_sha256, network_key(spec), context.data_key, key_of_teachers(context, teachers)]
    depends = depends_on([made_from, context.recipe.export.weight_bits], settings, {"baseline", "generations"})

    def train(model: Model, checkpoints: Checkpoints) -> TrainingResult:
        accelerator = accelerator_for(settings.precision)
        objective = context.objective_of(settings)
        setup = distillation_setup(context, qat.PHASE, model, teachers, settings, objective, accelerator)
        rounded = qat.rounded(context, model, setup.batches, accelerator.device)
        trained = _fit(context, replace(model, network=rounded), setup, accelerator, checkpoints)
        # What ships in fp32 is scored without the rounding.
        score = setup.validation.score(model.network)["val_score"]
        return replace(
            trained,
            epochs=distilled.epochs + trained.epochs,
            best_epoch=distilled.epochs + trained.best_epoch,
            seconds=(distilled.seconds or 0.0) + trained.seconds,
            val_score=score,
            activation_ranges=rounded.ranges(),
        )

    start = partial(context.load_trained, distilled, spec)
    return run_phase(context, Phase(qat.PHASE, spec, depends, train, "student", start, extendable=False))


def _student_plain(context: DistillContext) -> TrainedNetwork:
    """Train the same student from the same start with the same budget, on the labels alone."""
    spec, settings = context.recipe.student, context.recipe.distill
    others = set(Distill.model_fields) - {*Training.model_fields, "views"}
    start = context.student_starts_from
    made_from: list[object] = [network_key(spec), context.data_key]
    made_from += [] if start is None else [artifacts.sha256(start)]
    name, train = PLAIN, _on_labels(context, PLAIN, settings)
    depends, begin = depends_on(made_from, settings, others), partial(context.load, name, spec, start)
    return run_phase(context, Phase(name, spec, depends, train, start=begin))


def _write_program(context: DistillContext, student: TrainedNetwork) -> None:
    """Write a pruned student as a program too: no class makes a network of its shape."""
    if student.pruned is None or not artifacts.is_main():
        return
    path, record = context.directory.root / "student.pt2", context.directory.checkpoints / "student" / "program.json"
    key = cache_key("program", weights=student.weights_sha256, torch=torch.__version__)
    if is_done(record, key):
        return
    model = context.load_trained(student, context.recipe.student)
    inputs = model.preprocessing.apply(context.dataset.train.take(slice(0, 2)).inputs)
    axes = {0: "batch", 1: "length"} if model.preprocessing.kind == "tokens" else {0: "batch"}
    try:
        save_program(model.network, inputs, axes, path)
    except SourceError as error:
        path.unlink(missing_ok=True)
        context.progress.warn(f"{path.name} is left out: {error.message} ({error.hint})")
    else:
        mark_done(record, key, {}, [path])


def _on_labels(
    context: DistillContext, name: str, training: Training
) -> Callable[[Model, Checkpoints], TrainingResult]:
    def train(model: Model, checkpoints: Checkpoints) -> TrainingResult:
        accelerator = accelerator_for(training.precision)
        return _fit(context, model, label_setup(context, name, model, training, accelerator), accelerator, checkpoints)

    return train


def _fit(
    context: DistillContext, model: Model, setup: TrainingSetup, accelerator: Accelerator, checkpoints: Checkpoints
) -> TrainingResult:
    """Train, and tell the log which epoch's weights were kept and what they score on the test split."""
    with repeatable(accelerator.device):
        trained = fit(model.network, setup, accelerator, checkpoints, context.log, context.progress)
    test = setup.test()
    if accelerator.is_main_process:
        kept = trained.best_epoch if setup.training.keep == "best" else trained.epochs - 1
        context.log.keep(setup.phase, kept, test.score(model.network))
    return trained
