"""The training loop: one function, read from top to bottom, for the teacher, the student and the plain student.

Epochs come in a seeded order; every epoch's randomness is set from (seed, phase, epoch), so that a resumed training
ends with the same weights as an undisturbed one. Devices, mixed precision and many processes are Accelerate's.
"""

import signal
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from accelerate.utils.memory import clear_device_cache
from torch import Tensor, nn

from kdexport.distill import form as forms
from kdexport.distill.batches import Batch
from kdexport.distill.evaluation import Seen
from kdexport.distill.form import laid_out
from kdexport.distill.inference import out_of_memory
from kdexport.distill.job import TrainingResult, TrainingSetup
from kdexport.distill.logging import MetricsLog
from kdexport.distill.optimization import make_average, make_optimizer, set_lr
from kdexport.distill.state import Checkpoints, LoopState, restore, snapshot, weights_of
from kdexport.errors import KDExportError
from kdexport.progress import Progress
from kdexport.recipe import Training
from kdexport.results import Layout
from kdexport.tasks.classification import UNLABELLED

CHECK_EVERY = 20  # steps between two looks at the loss: a look waits for the device


def fit(
    network: nn.Module,
    job: TrainingSetup,
    accelerator: Accelerator,
    checkpoints: Checkpoints,
    log: MetricsLog,
    progress: Progress,
) -> TrainingResult:
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
    return TrainingResult(epochs, loop.best_epoch, accuracy, loop.seconds_spent(), form=form)


def _seed(job: TrainingSetup, epoch: int, accelerator: Accelerator) -> int:
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
    loop: LoopState, job: TrainingSetup, optimizer: Any, checkpoints: Checkpoints, weights: Sequence[Tensor] = ()
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


class Step:
    """Computes gradients.

    A batch larger than the recipe's ``micro_batch_size`` goes through in equal parts whose gradients add up to the
    batch's (losses are means over samples, so each part counts by its share; a method that compares samples with each
    other, and batch normalization, see the part alone). Where the device runs out of memory, the parts are halved,
    once.

    Args:
        network: The prepared network, in training mode.
        job: The training.
        accelerator: Mixed precision and processes.
        progress: Hears of a halving.
        layout: Of the images that the network is given.
    """

    def __init__(
        self,
        network: Any,
        job: TrainingSetup,
        accelerator: Accelerator,
        progress: Progress,
        layout: Layout = "as_it_comes",
    ) -> None:
        self._network, self._job, self._accelerator, self._progress = network, job, accelerator, progress
        self._part_size = job.training.micro_batch_size
        self._halved = False
        self._layout = layout
        self._plain = is_plain(accelerator)

    def __call__(self, batch: Batch, progress_of_training: float) -> tuple[Tensor, dict[str, Tensor], list[Seen]]:
        """Add a batch's gradients to the parameters' and return its loss, the loss's terms, and what each part showed.

        Raises:
            KDExportError: The device runs out of memory although the parts were halved, or one of several does:
                processes that wait for each other cannot go back.
        """
        try:
            return self._in_parts(batch, progress_of_training)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            self._halve(batch, error)
        for parameter in self._parameters():
            parameter.grad = None  # of the parts that went through
        clear_device_cache()
        return self(batch, progress_of_training)

    def _in_parts(self, batch: Batch, progress_of_training: float) -> tuple[Tensor, dict[str, Tensor], list[Seen]]:
        size, processes = len(batch.indices), self._accelerator.num_processes
        whole = batch.whole or size * processes
        # Of the largest share of a batch that does not divide evenly: all processes take it in as many parts.
        largest = -(-whole // processes)
        count = min(-(-largest // min(self._part_size or largest, largest)), whole // processes)
        weight = size * processes / whole  # gradients are averaged over processes, samples are to count alike
        total: Tensor | None = None
        sums: dict[str, Tensor] = {}
        seen: list[Seen] = []
        for number, part in enumerate(_parts(batch, count)):
            # With several processes the gradients are averaged once, after the last part.
            waiting = number < count - 1 and processes > 1
            with self._accelerator.no_sync(self._network) if waiting else nullcontext():
                loss, terms, shown = self._forward(part, progress_of_training, batch if count > 1 else None)
                share = len(part.indices) / size
                self._backward(loss if share * weight == 1 else loss * (share * weight))
            seen.append(shown)
            total = loss.detach() * share + (0 if total is None else total)
            for name, value in terms.items():
                sums[name] = value * share + sums.get(name, 0)
        if total is None:
            raise ValueError("a batch holds at least one sample")
        return total, sums, seen

    def _forward(
        self, batch: Batch, progress_of_training: float, whole: Batch | None
    ) -> tuple[Tensor, dict[str, Tensor], Seen]:
        job, taps = self._job, self._job.taps
        if self._plain and taps is None:
            logits = self._network(*self._inputs(batch))
        else:
            with self._accelerator.autocast(), taps.student() if taps else nullcontext():
                logits = self._network(*self._inputs(batch))
        teacher_logits = job.teacher.logits(batch) if job.teacher else None
        loss, terms = job.objective(
            logits,
            batch.labels,
            teacher_logits,
            progress_of_training=progress_of_training,
            features=taps.features(torch.from_numpy(batch.indices).to(logits.device)) if taps else None,
            labelled=None if whole is None else _labelled(whole, len(batch.indices)),
        )
        if self._accelerator.num_processes > 1 and not job.objective.uses_logits:
            # Layers behind those that are compared get no gradient, and processes wait for each other's of all of them.
            loss = loss + 0.0 * logits.float().sum()
        return loss, terms, Seen(logits.detach(), teacher_logits, batch.labels)

    def _inputs(self, batch: Batch) -> tuple[Tensor, ...]:
        return laid_out(self._job.preprocessing.apply(batch.inputs), self._layout)

    def _backward(self, loss: Tensor) -> None:
        if self._plain:
            loss.backward()  # type: ignore[no-untyped-call]
        else:
            self._accelerator.backward(loss)

    def _halve(self, batch: Batch, error: RuntimeError) -> None:
        size = len(batch.indices)
        tried = min(self._part_size or size, size)
        part = max(1, tried // 2)
        if self._halved or tried == 1 or self._accelerator.num_processes > 1:
            hint = f"set micro_batch_size = {part} for this training: the batch stays what it is"
            raise KDExportError(
                f"the device has not enough memory for {self._job.phase}, {_samples(tried)} at a time: {error}",
                hint=hint if tried > 1 else "end what else runs on the device, or take one with more memory",
            ) from error
        self._halved, self._part_size = True, part
        self._progress.warn(
            f"{self._job.phase}: not enough memory for {_samples(tried)} at once; going on with {part} at a time,"
            f" the batch stays {size} (micro_batch_size = {part} says so from the start)"
        )

    def _parameters(self) -> list[torch.nn.Parameter]:
        taps = self._job.taps
        return [*self._network.parameters(), *(taps.parameters() if taps else ())]


def is_plain(accelerator: Accelerator) -> bool:
    """Whether this is one process in fp32: Accelerate's wrappers then do nothing, and take 0.3 ms a step to do it."""
    return accelerator.num_processes == 1 and accelerator.mixed_precision == "no" and accelerator.scaler is None


def _parts(batch: Batch, count: int) -> Iterator[Batch]:
    """Yield a batch in so many parts, as even as they can be."""
    if count == 1:
        yield batch
        return
    for rows in torch.arange(len(batch.indices)).tensor_split(count):
        on_device = rows.to(batch.inputs[0].device)
        yield replace(
            batch,
            indices=batch.indices[rows.numpy()],
            inputs=tuple(tensor[on_device] for tensor in batch.inputs),
            labels=None if batch.labels is None else batch.labels[on_device],
        )


def _labelled(whole: Batch, part: int) -> Tensor | None:
    """Return a part's share of a batch's labelled samples: what the labels' loss of the part is to be divided by."""
    if whole.labels is None or whole.labels.ndim != 1:
        return None
    return (whole.labels != UNLABELLED).sum().clamp(min=1) * (part / len(whole.indices))


def _samples(count: int) -> str:
    return f"{count} sample{'' if count == 1 else 's'}"
