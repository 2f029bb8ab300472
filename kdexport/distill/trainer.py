"""The training loop: one function, read from top to bottom, for the teacher, the student and the plain student.

Epochs come in a seeded order; every epoch's randomness is set from (seed, phase, epoch), so that a resumed training
ends with the same weights as an undisturbed one. Devices, mixed precision and many processes are Accelerate's.
"""

import signal
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn

from kdexport.distill import form as forms
from kdexport.distill.checkpoint import Checkpoints
from kdexport.distill.job import Fitted, Job
from kdexport.distill.loop_state import LoopState, restore, snapshot, weights_of
from kdexport.distill.metrics import MetricsLog
from kdexport.distill.optimization import make_average, make_optimizer, set_lr
from kdexport.distill.step import Step, is_plain
from kdexport.errors import KDExportError
from kdexport.progress import Progress
from kdexport.recipe import Training

CHECK_EVERY = 20  # steps between two looks at the loss: a look waits for the device


def fit(
    network: nn.Module,
    job: Job,
    accelerator: Accelerator,
    checkpoints: Checkpoints,
    log: MetricsLog,
    progress: Progress,
) -> Fitted:
    """Train a network in place, going on from the newest checkpoint of the same training where there is one.

    Raises:
        KDExportError: The loss is not finite; the message names the step, the learning rate and the last checkpoint.
        KeyboardInterrupt: Ctrl-C, after a checkpoint was written.
    """
    training, batches, taps = job.training, job.batches, job.taps
    network.to(accelerator.device)
    form = _on_main(accelerator, lambda: forms.chosen(network, job, accelerator, checkpoints, progress))
    forms.lay_out(network, form.layout)
    optimizer = make_optimizer(network, training, beside=taps.parameters() if taps else ())
    learned = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    network, prepared = accelerator.prepare(network, optimizer)
    if not is_plain(accelerator):
        optimizer = prepared
    plain = accelerator.unwrap_model(network)
    average = make_average(plain, training)
    loop = LoopState(accelerator.device, training.epochs, batches.per_epoch, job.objective.label_kind)

    saved = checkpoints.latest()
    if saved is None:
        checkpoints.clear()
    else:
        restore(saved, plain, optimizer, average, loop, accelerator, taps)
        begun = min(loop.step // batches.per_epoch + 1, training.epochs)
        progress.say(f"{job.phase}: going on from epoch {begun} of {training.epochs}")
    run = forms.compiled(network) if form.compiled else network
    step = Step(run, job, accelerator, progress, form.layout)
    log.start(job.phase, loop.step // batches.per_epoch)

    def save() -> None:
        if accelerator.is_main_process:
            _check_finite(loop, job, optimizer, checkpoints, learned)
            checkpoints.save(loop.step, snapshot(plain, optimizer, average, loop, accelerator, taps))

    with _interrupt_flag() as interrupted, progress.task(f"train {job.phase}", total=training.epochs) as shown:
        done = loop.step / batches.per_epoch  # epochs, the begun one in part
        shown.advance(done)
        for epoch in range(loop.step // batches.per_epoch, training.epochs):
            if _out_of_patience(loop, epoch, training):
                break
            start, first = time.perf_counter(), loop.step - epoch * batches.per_epoch
            teacher_from = job.teacher.prepare(batches.view(epoch), interrupted) if job.teacher else None
            if job.teacher:
                accelerator.wait_for_everyone()  # others fill their share of the cache
            if first == 0:
                torch.manual_seed(_seed(job, epoch, accelerator))
                loop.clear_sums()
            elif not accelerator.is_main_process:  # the checkpoint's random state is the first process's
                torch.manual_seed(_seed(job, epoch, accelerator) + loop.step)
            seen_before = loop.seen
            network.train()

            for batch in batches.epoch(epoch, start=first):
                set_lr(optimizer, training, loop.step, batches.per_epoch)
                loss, parts, seen = step(batch, loop.step / loop.total_steps)
                if taps and accelerator.num_processes > 1:  # the wrapped student averages its own gradients only
                    for parameter in taps.parameters():
                        parameter.grad = accelerator.reduce(parameter.grad, "mean")
                if training.clip_grad_norm is not None:
                    accelerator.clip_grad_norm_(network.parameters(), training.clip_grad_norm)
                optimizer.step()
                for parameter in learned:
                    parameter.grad = None
                if average is not None:
                    average.update_parameters(plain)
                loop.count(loss, parts, seen, batch.whole or len(batch.indices))

                if loop.step % batches.per_epoch == 0:
                    break  # what follows belongs to the epoch: a checkpoint before it would leave it out
                if loop.step % CHECK_EVERY == 0:
                    _check_finite(loop, job, optimizer, checkpoints)
                    shown.advance(loop.step / batches.per_epoch - done)
                    done = loop.step / batches.per_epoch
                stopping = _agreed(interrupted, accelerator, loop.step)
                if stopping or time.monotonic() - checkpoints.written_at > 60 * training.checkpoint_minutes:
                    save()
                if stopping:
                    raise KeyboardInterrupt

            _check_finite(loop, job, optimizer, checkpoints)
            if job.teacher:
                job.teacher.finish()
            seconds = time.perf_counter() - start
            rate = (loop.seen - seen_before) / seconds  # of all processes
            candidate = average.module if average is not None else plain
            scores = _on_main(accelerator, lambda: job.validation.score(candidate))  # noqa: B023 - called at once
            loop.judge(epoch, scores["val_accuracy"], candidate)
            mean, terms = loop.means(accelerator)
            log.append(
                {
                    "phase": job.phase,
                    "epoch": epoch,
                    "seconds": round(seconds, 4),
                    "samples_per_s": round(rate, 1),
                    "lr": optimizer.param_groups[0]["lr"],
                    "loss": mean,
                    "terms": terms,
                    **loop.closeness(accelerator),
                    **scores,
                    "teacher_from": teacher_from,
                }
            )
            loop.clear_sums()
            save()
            shown.advance(epoch + 1 - done, note=_note(mean, terms, scores, rate))
            done = epoch + 1.0
            if _agreed(interrupted, accelerator):
                raise KeyboardInterrupt

    network = accelerator.unwrap_model(network, keep_fp32_wrapper=False)
    network.load_state_dict(loop.best_weights if training.keep == "best" else weights_of(average or plain))
    forms.lay_out(network, "contiguous")
    accelerator.free_memory()
    epochs = loop.step // batches.per_epoch
    accuracy = loop.best_accuracy if training.keep == "best" else loop.last_accuracy
    return Fitted(epochs, loop.best_epoch, accuracy, loop.seconds_spent(), form=form)


def _seed(job: Job, epoch: int, accelerator: Accelerator) -> int:
    return zlib.crc32(f"{job.seed}/{job.phase}/{epoch}/{accelerator.process_index}".encode())


def _agreed(interrupted: Callable[[], bool], accelerator: Accelerator, step: int = 0) -> bool:
    """Whether to stop: several processes must stop at the same step, and ask each other now and then."""
    if accelerator.num_processes == 1:
        return interrupted()
    if step % CHECK_EVERY:
        return False
    asked = torch.tensor(float(interrupted()), device=accelerator.device)
    return bool(accelerator.reduce(asked, "sum") > 0)


def _check_finite(
    loop: LoopState, job: Job, optimizer: Any, checkpoints: Checkpoints, weights: Sequence[Tensor] = ()
) -> None:
    """Hold that the losses, and the weights where they are given, are numbers."""
    if loop.finite and all(bool(torch.isfinite(weight).all()) for weight in weights):
        return
    newest = checkpoints.newest
    what = f"the weights of {job.phase} are" if loop.finite else f"the loss of {job.phase} is"
    raise KDExportError(
        f"{what} not finite by step {loop.step}, at learning rate"
        f" {optimizer.param_groups[0]['lr']:.3g}; last good checkpoint: {newest or 'none yet'}",
        hint=f"lower lr (e.g. to {job.training.lr / 3:.2g}) or set clip_grad_norm = 1.0 for this training",
    )


def _out_of_patience(loop: LoopState, epoch: int, training: Training) -> bool:
    return training.patience is not None and epoch - loop.best_epoch > training.patience


def _on_main(accelerator: Accelerator, function: Any) -> Any:
    """Run in one process and give every process its result: all must decide alike."""
    box = [function() if accelerator.is_main_process else None]
    if accelerator.num_processes > 1:
        broadcast_object_list(box)
    return box[0]


def _note(loss: float, terms: dict[str, float], scores: dict[str, float | None], samples_per_s: float) -> str:
    shown = ", ".join(f"{name} {value:.3f}" for name, value in terms.items()) if len(terms) > 1 else ""
    parts = [f"loss {loss:.3f}{f' ({shown})' if shown else ''}"]
    if scores["val_accuracy"] is not None:
        parts.append(f"accuracy {scores['val_accuracy']:.3f}")
    if scores["top1_agreement"] is not None:
        parts.append(f"agreement {scores['top1_agreement']:.3f}")
    return ", ".join([*parts, f"{samples_per_s:,.0f}/s"])


@contextmanager
def _interrupt_flag() -> Iterator[Any]:
    """Turn the first Ctrl-C into a flag that the loop looks at between two steps; a second one ends at once."""
    pressed = False

    def on_signal(number: int, frame: Any) -> None:  # noqa: ARG001
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True

    try:
        before = signal.signal(signal.SIGINT, on_signal)
    except ValueError:  # not the main thread: Ctrl-C does not arrive here
        yield lambda: False
        return
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, before)
