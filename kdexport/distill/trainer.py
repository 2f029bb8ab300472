"""The training loop: one function, read from top to bottom, for the teacher, the student and the plain student.

Epochs come in a seeded order; every epoch's randomness is set from (seed, phase, epoch), so that a resumed training
ends with the same weights as an undisturbed one. Devices, mixed precision and many processes are Accelerate's.
"""

import itertools
import os
import signal
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor, nn

from kdexport import figures
from kdexport.distill.logging import MetricsLog
from kdexport.distill.optimization import make_average, make_optimizer, set_lr
from kdexport.distill.setup import TrainingSetup
from kdexport.distill.state import Checkpoints, LoopState, restore, snapshot, weights_of
from kdexport.distill.step import Step, is_plain
from kdexport.errors import DivergenceError, Terminated
from kdexport.progress import Progress
from kdexport.recipe import Training
from kdexport.tasks.base import Task


class Paused(Exception):  # noqa: N818 - no error: ``after_epoch`` asked for it
    """A training waits at a checkpoint; the same call goes on from there."""


AT_ONCE_S = 2.0
CHECK_EVERY = 20  # steps between two looks at the loss: a look waits for the device


@dataclass(frozen=True)
class TrainingResult:
    """How a training ended; the network holds the weights that were kept."""

    epochs: int
    best_epoch: int
    val_score: float | None
    seconds: float
    activation_ranges: dict[str, tuple[float, float]] = field(default_factory=dict)  # quantize_aware


def fit(
    network: nn.Module,
    setup: TrainingSetup,
    accelerator: Accelerator,
    checkpoints: Checkpoints,
    log: MetricsLog,
    progress: Progress,
) -> TrainingResult:
    """Train a network in place, going on from the newest checkpoint of the same training where there is one.

    Raises:
        DivergenceError: The loss is not finite; the message names the step, the learning rate and the last checkpoint.
        KeyboardInterrupt: Ctrl-C or SIGTERM, after a checkpoint was written.
    """
    training, batches, hooks = setup.training, setup.batches, setup.hooks
    network.to(accelerator.device)
    memory_format = _memory_format(network, setup, accelerator, progress)
    if memory_format is not None:
        network.to(memory_format=memory_format)
    heads = setup.heads
    optimizer = make_optimizer(network, training, beside=setup.beside)
    learned = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if not is_plain(accelerator):
        network, optimizer = accelerator.prepare(network, optimizer)
    plain = accelerator.unwrap_model(network)
    saved = checkpoints.latest()
    for path in checkpoints.damaged:
        progress.warn(f"{setup.phase}: {path} is damaged and passed over{'' if saved else ': begun anew'}")
    if saved is None and checkpoints.extended is not None:
        plain.load_state_dict(checkpoints.extended.weights)
    average = make_average(plain, training)
    objective = setup.objective
    loop = LoopState(accelerator.device, training.epochs, batches.per_epoch, objective.task, mixed=objective.mixed)

    if saved is None and checkpoints.extended is not None:
        loop.begin_after(checkpoints.extended)
    elif saved is not None:
        restore(saved, plain, optimizer, average, loop, accelerator, hooks, heads)
        if len(sums := saved.get("sums", ())) == accelerator.num_processes:
            loop.load_sums(sums[accelerator.process_index])
        begun = min(loop.step // batches.per_epoch + 1, training.epochs)
        progress.message(f"{setup.phase}: going on from epoch {begun} of {training.epochs}")
    step = Step(_compiled(network, setup, progress), setup, accelerator, progress, memory_format)
    log.start(setup.phase, loop.step // batches.per_epoch, (saved or {}).get("epochs", ()))

    def save() -> None:
        """Save, all processes at the same step."""
        sums = gather_object([loop.sums()]) if accelerator.num_processes > 1 else ()
        if accelerator.is_main_process:
            _check_finite(loop, setup, optimizer, checkpoints, learned)
            state = snapshot(plain, optimizer, average, loop, accelerator, hooks, heads)
            checkpoints.save(loop.step, {**state, "epochs": log.epochs, "sums": sums})

    with _interrupt_flag() as interrupted, progress.task(setup.phase, total=training.epochs) as shown:
        done = loop.step / batches.per_epoch  # epochs, the begun one in part
        shown.advance(done)
        for epoch in range(loop.step // batches.per_epoch, training.epochs):
            if _out_of_patience(loop, epoch, training):
                break
            start, first = time.perf_counter(), loop.step - epoch * batches.per_epoch
            teacher_from = setup.teacher.prepare(batches.view(epoch), interrupted) if setup.teacher else None
            if setup.teacher:
                accelerator.wait_for_everyone()  # others fill their share of the cache
            if first == 0:
                torch.manual_seed(_seed(setup, epoch, accelerator))
                loop.clear_sums()
            elif setup.teacher:
                with torch.random.fork_rng(devices=[]):
                    setup.teacher.catch_up(itertools.islice(batches.epoch(epoch), first))
            seen_before = loop.seen
            network.train()

            for batch in batches.epoch(epoch, start=first):
                if not accelerator.is_main_process:  # the checkpoint's random state is the first process's
                    torch.manual_seed(_seed(setup, epoch, accelerator) + loop.step)
                set_lr(optimizer, training, loop.step, batches.per_epoch)
                loss, parts, seen = step(batch, loop.step / loop.total_steps)
                if accelerator.num_processes > 1:  # the wrapped student averages its own gradients only
                    for parameter in setup.beside:
                        parameter.grad = accelerator.reduce(parameter.grad, "mean")
                if training.clip_grad_norm is not None:
                    accelerator.clip_grad_norm_(learned, training.clip_grad_norm)
                optimizer.step()
                for parameter in learned:
                    parameter.grad = None
                if average is not None:
                    average.update_parameters(plain)
                loop.count(loss, parts, seen, batch.whole or len(batch.indices))

                if loop.step % batches.per_epoch == 0:
                    break  # what follows belongs to the epoch: a checkpoint before it would leave it out
                if loop.step % CHECK_EVERY == 0:
                    _check_finite(loop, setup, optimizer, checkpoints)
                    shown.advance(loop.step / batches.per_epoch - done)
                    done = loop.step / batches.per_epoch
                due = time.monotonic() - checkpoints.written_at > 60 * training.checkpoint_minutes
                stopping, saving = _agreed((interrupted(), due), accelerator, loop.step)
                if stopping or saving:
                    save()
                if stopping:
                    raise KeyboardInterrupt

            _check_finite(loop, setup, optimizer, checkpoints)
            if setup.teacher:
                setup.teacher.finish()
            seconds = time.perf_counter() - start
            rate = (loop.seen - seen_before) / seconds  # of all processes
            candidate = average.module if average is not None else plain
            scores = _on_main(accelerator, lambda: setup.validation.score(candidate))  # noqa: B023 - called at once
            loop.judge(epoch, scores["val_score"], candidate)
            mean, terms = loop.means(accelerator)
            log.append(
                {
                    "phase": setup.phase,
                    "epoch": epoch,
                    "seconds": round(seconds, 4),
                    "samples_per_s": round(rate, 1),
                    "lr": optimizer.param_groups[0]["lr"],
                    "loss": mean,
                    "terms": terms,
                    **loop.agreement(accelerator),
                    **scores,
                    "teacher_from": teacher_from,
                }
            )
            loop.clear_sums()
            pausing = _pauses(setup, epoch + 1, candidate)
            save()
            shown.advance(epoch + 1 - done, note=_facts(setup.objective.task, mean, scores, rate))
            done = epoch + 1.0
            if pausing:
                raise Paused
            if _agreed((interrupted(), False), accelerator)[0]:
                raise KeyboardInterrupt

    network = accelerator.unwrap_model(network, keep_fp32_wrapper=False)
    network.load_state_dict(loop.best_weights if training.keep == "best" else weights_of(average or plain))
    network.to(memory_format=torch.contiguous_format)
    if accelerator.device.type != "cpu" or not is_plain(accelerator):
        accelerator.free_memory()  # half a second of garbage collection; on a CPU it would free nothing sooner
    epochs = loop.step // batches.per_epoch
    accuracy = loop.best_score if training.keep == "best" else loop.last_score
    return TrainingResult(epochs, loop.best_epoch, accuracy, loop.seconds_spent())


def _pauses(setup: TrainingSetup, epochs: int, network: nn.Module) -> bool:
    """Tell who watches that an epoch is done, before its checkpoint: what is told then is never missed after a kill."""
    if setup.after_epoch is None or epochs == setup.training.epochs:
        return False
    return setup.after_epoch(epochs, lambda: setup.validation.logits(network))


def _memory_format(
    network: nn.Module, setup: TrainingSetup, accelerator: Accelerator, progress: Progress
) -> torch.memory_format | None:
    """Return the memory format of images and kernels; None leaves images as they are stored and kernels as made.

    ``channels_last = "auto"`` is channels last on a GPU, whose tensor cores compute so, and wherever several processes
    exchange gradients in the kernels' format; a CPU takes both as they are.
    """
    setting = setup.training.channels_last
    if not any(parameter.ndim == 4 for parameter in network.parameters()):
        return None
    if setup.preprocessing.contiguous:
        if setting is True:
            progress.warn(f"{setup.phase}: not trained channels-last: the network takes images channels first only")
        return None
    if setting == "auto":
        return torch.channels_last if accelerator.device.type == "cuda" or accelerator.num_processes > 1 else None
    return torch.channels_last if setting else torch.contiguous_format


def _compiled(network: Any, setup: TrainingSetup, progress: Progress) -> Any:
    """Return what runs the network: compiled where the recipe says so; its names and its state dict stay as they are.

    Shapes are compiled as they are: an epoch has batches of two sizes at most, one sample apart.
    """
    if not setup.training.compile:
        return network
    if setup.hooks is not None:
        progress.warn(f"{setup.phase}: not compiled: a method that compares layers captures what they give")
        return network
    return torch.compile(network, dynamic=False)


def _seed(setup: TrainingSetup, epoch: int, accelerator: Accelerator) -> int:
    return zlib.crc32(f"{setup.seed}/{setup.phase}/{epoch}/{accelerator.process_index}".encode())


def _agreed(stop_and_save: tuple[bool, bool], accelerator: Accelerator, step: int = 0) -> tuple[bool, bool]:
    """Whether to stop, and to save: several processes do so at the same step, and ask each other now and then.

    Any of them may stop all. The first alone knows when it has saved.
    """
    if accelerator.num_processes == 1:
        return stop_and_save
    if step % CHECK_EVERY:
        return False, False
    stop, save = stop_and_save
    wishes = torch.tensor([float(stop), float(save and accelerator.is_main_process)], device=accelerator.device)
    stopping, saving = (accelerator.reduce(wishes, "sum") > 0).tolist()
    return stopping, saving


def _check_finite(
    loop: LoopState, setup: TrainingSetup, optimizer: Any, checkpoints: Checkpoints, weights: Sequence[Tensor] = ()
) -> None:
    """Hold that the losses, and the weights where they are given, are numbers."""
    if loop.finite and all(bool(torch.isfinite(weight).all()) for weight in weights):
        return
    newest = checkpoints.newest
    what = f"the weights of {setup.phase} are" if loop.finite else f"the loss of {setup.phase} is"
    raise DivergenceError(
        f"{what} not finite by step {loop.step}, at learning rate"
        f" {optimizer.param_groups[0]['lr']:.3g}; last good checkpoint: {newest or 'none yet'}",
        hint=f"lower lr (e.g. to {setup.training.lr / 3:.2g}) or set clip_grad_norm = 1.0 for this training",
    )


def _out_of_patience(loop: LoopState, epoch: int, training: Training) -> bool:
    return training.patience is not None and epoch - loop.best_epoch > training.patience


def _on_main(accelerator: Accelerator, function: Any) -> Any:
    """Run in one process and give every process its result: all must decide alike."""
    box = [function() if accelerator.is_main_process else None]
    if accelerator.num_processes > 1:
        broadcast_object_list(box)
    return box[0]


def _facts(task: Task, loss: float, scores: dict[str, float | None], samples_per_s: float) -> tuple[str, ...]:
    """Return how the training stands, the fact with the most worth first."""
    facts = []
    if (score := scores["val_score"]) is not None:
        facts.append(f"{task.write(score)} val" + ("" if task.unit == "share" else f" {task.label}"))
    if (agreement := scores["top1_agreement"]) is not None:
        facts.append(f"{figures.percent(agreement)} agrees")
    return (*facts, f"loss {loss:.3f}", figures.rate(samples_per_s))


@contextmanager
def _interrupt_flag() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C or SIGTERM into a flag that the loop looks at between two steps; a second ends at once.

    Where several processes train, what comes within ``AT_ONCE_S`` is one wish: Ctrl-C reaches a worker from the
    terminal and once more from torchrun.
    """
    received: list[int] = []
    several, first = "TORCHELASTIC_RUN_ID" in os.environ, 0.0

    def on_signal(number: int, frame: Any) -> None:  # noqa: ARG001
        nonlocal first
        if received and not (several and time.monotonic() - first < AT_ONCE_S):
            raise KeyboardInterrupt
        first = first or time.monotonic()
        received.append(number)

    try:
        before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: signals do not arrive here
        yield lambda: False
        return
    try:
        yield lambda: bool(received)
    except KeyboardInterrupt:
        if signal.SIGTERM in received:
            raise Terminated from None
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
