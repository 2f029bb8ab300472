"""One phase of a distillation: its earlier result where that is still true, else a training and its weights.

Training that was done is not thrown away unasked. On the command line a phase whose settings alone have changed
(``lr``, ``epochs``, the schedule), and everywhere a phase of which more than ten minutes would be lost, is trained
again with ``--restart``, or gone on from its last weights with ``--extend``; without either it is an error that says
what would be lost.
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from safetensors.torch import load_file

from kdexport import artifacts, references, results
from kdexport.distill.context import Depends, DistillContext, Spec
from kdexport.distill.optimization import accelerator_for
from kdexport.distill.state import Checkpoints, Extended
from kdexport.distill.trainer import TrainingResult
from kdexport.errors import KDExportError
from kdexport.models.loading import Model, count_macs
from kdexport.models.pruned import plan_of
from kdexport.models.weights import save_weights
from kdexport.results import TrainedNetwork
from kdexport.stage_cache import is_done, mark_done, read_sealed

ASK_SECONDS = 600.0  # of training that a change would throw away, whatever it is that has changed


@dataclass(frozen=True)
class Phase:
    """What is to be trained.

    Attributes:
        name: In the epoch log and for its checkpoints: "teacher", "student", "student-plain".
        spec: The recipe's table of its network.
        depends: What it depends on.
        train: Trains the network, from checkpoints where there are some; None where the network is taken as it is.
        ships_as: The network's name, and its weights', where it is not the phase's.
        start: Gives the network to begin with, where it isn't a fresh one.
        extendable: Whether it can go on from weights that were trained with other settings.
    """

    name: str
    spec: Spec
    depends: Depends
    train: Callable[[Model, Checkpoints], TrainingResult] | None = None
    ships_as: str | None = None
    start: Callable[[], Model] | None = None
    extendable: bool = True


def run_phase(context: DistillContext, phase: Phase) -> TrainedNetwork:
    """Return a phase's earlier result where it is still true, else train and write the weights.

    Raises:
        KDExportError: Training would be lost, and neither ``--restart`` nor ``--extend`` was given.
    """
    folder = context.directory.checkpoints / phase.name
    record = folder / "done.json"
    unchanged = _unchanged(context, phase, record)
    if unchanged is not None:
        return unchanged
    if damage := _damage(phase, record):
        context.progress.warn(f"{phase.name}: {damage}: made again")
    done = read_sealed(record) or {}
    checkpoints = Checkpoints(folder, **asdict(phase.depends))
    if phase.train is not None:
        checkpoints.extended = _extended(context, phase, checkpoints, done)
        context.check_once()
    model = phase.start() if phase.start else context.load(phase.name, phase.spec)
    for line in model.left_out:
        context.progress.warn(f"{phase.name} starts without weights for {line}")
    for line in model.notes:
        context.progress.message(line)
    for line in model.warnings:
        context.progress.warn(line)
    trained = phase.train(model, checkpoints) if phase.train else None
    model.network.to("cpu")  # what follows counts, writes and exports it there, on any machine alike
    network_name = phase.ships_as or phase.name
    weights = context.directory.weights(network_name)
    if artifacts.is_main():
        save_weights(model.network, weights)
    accelerator_for(context.recipe.distill.precision).wait_for_everyone()
    plan = plan_of(model.network)
    made = TrainedNetwork(
        name=network_name,
        reference=references.relative(phase.spec.model, context.directory.root.resolve()),
        weights=weights.name,
        weights_sha256=artifacts.sha256(weights),
        parameters=sum(parameter.numel() for parameter in model.network.parameters()),
        macs=count_macs(model, context.dataset),
        epochs=trained.epochs if trained else 0,
        seconds=trained.seconds if trained else None,
        best_epoch=trained.best_epoch if trained else None,
        val_score=trained.val_score if trained else None,
        activation_ranges=trained.activation_ranges if trained else {},
        pruned=plan.summary if plan else None,
    )
    if artifacts.is_main():
        _mark_done(record, phase, made, weights, context.log.of(phase.name) if trained else ())
        checkpoints.clear()  # the weights are written: hundreds of megabytes would be left
    return made


def _mark_done(
    record: Path, phase: Phase, made: TrainedNetwork, weights: Path, epochs: Sequence[dict[str, Any]]
) -> None:
    whole = {**asdict(phase.depends), "network": results.to_json(made), "epochs": list(epochs)}
    mark_done(record, phase.depends.key, whole, [weights])


def _unchanged(context: DistillContext, phase: Phase, record: Path) -> TrainedNetwork | None:
    """Return an earlier result under the name that it has now, if its weights are still there."""
    name = phase.ships_as or phase.name
    weights = context.directory.weights(name)
    files = (artifacts.read_json(record) or {}).get("files")
    known_as = next(iter(files), "") if isinstance(files, dict) else ""  # with quantize_aware set otherwise
    renamed = is_done(record, phase.depends.key, {known_as: weights})
    document = renamed or is_done(record, phase.depends.key)
    if document is None:
        return None
    try:
        earlier = results.from_json(TrainedNetwork, document["network"])
    except (KeyError, ValidationError):  # written by another version
        return None
    context.progress.message(f"{phase.name}: unchanged, not trained again")
    epochs = document.get("epochs") or ()
    context.log.unchanged(phase.name, epochs)
    made = replace(earlier, name=name, weights=weights.name)
    if made != earlier and artifacts.is_main():
        if renamed is None:
            artifacts.write_atomically(weights, partial(shutil.copyfile, record.parent / known_as))
        _mark_done(record, phase, made, weights, epochs)
    return made


def _damage(phase: Phase, record: Path) -> str | None:
    """Return what is wrong with a phase's result where it was finished as it is asked for; None where it was not."""
    if not record.exists():
        return None
    done = read_sealed(record)
    if done is None:
        return f"{record} is damaged"
    files = ", ".join(str(name).rpartition("/")[2] for name in done.get("files") or ())
    return f"{files} is not what was written" if done.get("key") == phase.depends.key else None


def _extended(
    context: DistillContext, phase: Phase, checkpoints: Checkpoints, done: dict[str, object]
) -> Extended | None:
    """Return what a changed phase goes on from; None where it begins anew, or goes on from its own checkpoint.

    Raises:
        KDExportError: Training would be lost, and nothing says that it may be.
    """
    if context.on_change == "restart" or checkpoints.latest() is not None:
        return None
    earlier = _from_checkpoint(checkpoints) or _from_weights(context, done)
    if earlier is None:
        return None
    before, work = earlier
    same = before.identity == phase.depends.identity
    changed = phase.depends.changed(before) if same else ()
    if work.seconds < ASK_SECONDS and (not changed or context.on_change is None):
        return None
    if context.on_change == "extend" and not phase.extendable:
        return None
    epochs = int(phase.depends.settings["epochs"])
    if context.on_change == "extend" and changed:
        if work.epochs >= epochs:
            raise KDExportError(
                f"{phase.name} has trained {work.epochs} epochs, and the recipe asks for {epochs}: nothing is left",
                hint=f"set its epochs above {work.epochs} to go on, or give --restart to train it from the start",
            )
        context.progress.warn(
            f"{phase.name}: goes on after epoch {work.epochs} with {', '.join(changed)}; from the start it would end"
            " with other weights"
        )
        return work
    what = ", ".join(changed) if changed else "what it depends on has changed"
    minutes = f"{work.seconds / 60:.0f} minutes" if work.seconds >= 90 else f"{work.seconds:.0f} s"
    extend = ', or --extend (on_change="extend") to go on from its last weights' if changed and phase.extendable else ""
    raise KDExportError(
        f"{phase.name} would be trained again from the start ({what}): {work.epochs} epochs, {minutes}, would be lost",
        hint=f'add --restart (from Python on_change="restart") to train it again{extend}; '
        "or take the change back, or choose another --out",
    )


def _from_checkpoint(checkpoints: Checkpoints) -> tuple[Depends, Extended] | None:
    found = checkpoints.earlier()
    if found is None:
        return None
    depends, state = found
    loop = state["loop"]
    epochs = loop["step"] // max(1, loop.get("per_epoch", loop["step"] + 1))
    return depends, Extended(epochs, state["network"], loop["best"], float(loop["seconds"]))


def _from_weights(context: DistillContext, done: dict[str, object]) -> tuple[Depends, Extended] | None:
    try:
        depends = Depends(str(done["key"]), str(done["identity"]), dict(done["settings"]))  # type: ignore[call-overload]
        made = results.from_json(TrainedNetwork, done["network"])
    except (KeyError, TypeError, ValueError):  # none, damaged, or written by another version
        return None
    weights = context.directory.root / made.weights
    if not made.epochs or not weights.is_file() or artifacts.sha256(weights) != made.weights_sha256:
        return None
    state = load_file(weights)
    best = (made.best_epoch or 0, made.val_score, state)
    return depends, Extended(made.epochs, state, best, made.seconds or 0.0)
