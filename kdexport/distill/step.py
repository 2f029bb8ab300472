"""One training step: forward and backward passes of a batch, in parts where the memory asks for it.

Exceptions of the user's own code on the way become messages with their place.
"""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils.memory import clear_device_cache
from torch import Tensor

from kdexport.data.samples import Dataset
from kdexport.distill.batches import Batch, out_of_memory
from kdexport.distill.evaluation import Seen
from kdexport.distill.setup import TrainingSetup
from kdexport.errors import KDExportError
from kdexport.progress import Progress
from kdexport.tasks.base import Task

PACKAGE = Path(__file__).parents[1]


@contextmanager
def named(who: str, doing: str, hint: str = "fix the code; --verbose shows the traceback") -> Iterator[None]:
    """Turn what a network or function of the user's raises into a message; a device out of memory is not its fault.

    Args:
        who: Whose code it is, e.g. ``"the student"``.
        doing: When it was called, e.g. ``"in training mode, with a batch of 4"``.
        hint: What to do about it.

    Raises:
        KDExportError: Anything was raised.
    """
    try:
        yield
    except (KDExportError, torch.OutOfMemoryError):
        raise
    except (Exception, SystemExit) as error:
        if out_of_memory(error):
            raise
        text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        what = f"{type(error).__name__}{f': {text}' if text else ''}"
        raise KDExportError(f"{who} raises {what} {doing}{place_of(error)}", hint=hint) from error


def place_of(error: BaseException) -> str:
    """Return the last line of an error's traceback that is no library's, as `` (nets.py, line 12)``, or nothing."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if "site-packages" not in path.parts and PACKAGE not in path.parents and not frame.filename.startswith("<"):
            return f" ({path.name}, line {frame.lineno})"
    return ""


def check_output(output: object, samples: int, dataset: Dataset, who: str, *, training: bool) -> Tensor:
    """Return a network's output if it is what the data's task asks for, of finite numbers.

    Raises:
        KDExportError: It is a tuple, has another shape, or holds NaN or infinity.
    """
    when = "in training mode" if training else "in evaluation mode"
    if not isinstance(output, Tensor):
        raise KDExportError(
            f"{when} {who} gives a {type(output).__name__}, not a tensor",
            hint="let its forward return a tensor, or tensors by name, and set output to the one that is meant",
        )
    dataset.task.check_outputs(tuple(output.shape), samples, dataset.class_names, f"{when} {who}")
    if not bool(torch.isfinite(output.detach()).all()):
        raise KDExportError(
            f"{when} {who} gives NaN or infinity",
            hint="look at its weights (NaN in the file?) and its preprocessing (a std of 0?)",
        )
    return output


class Step:
    """Computes gradients.

    A batch larger than the recipe's ``micro_batch_size`` goes through in equal parts whose gradients add up to the
    batch's (losses are means over samples, so each part counts by its share; a method that compares samples with each
    other, and batch normalization, see the part alone). Where the device runs out of memory, the parts are halved,
    once.

    Args:
        network: The prepared network, in training mode.
        setup: The training.
        accelerator: Mixed precision and processes.
        progress: Where a halving is told.
        memory_format: Of the images that the network is given; None: as they are stored.
    """

    def __init__(
        self,
        network: Any,
        setup: TrainingSetup,
        accelerator: Accelerator,
        progress: Progress,
        memory_format: torch.memory_format | None = None,
    ) -> None:
        self._network, self._setup, self._accelerator, self._progress = network, setup, accelerator, progress
        self._part_size = setup.training.micro_batch_size
        self._halved = False
        self._memory_format = memory_format
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
        size_of_part = min(self._part_size or largest, largest)
        most = whole // processes // (2 if size_of_part > 1 else 1)  # no part of one, unless that was asked for
        count = max(1, min(-(-largest // size_of_part), most))
        weight = size * processes / whole  # gradients are averaged over processes, samples are to count alike
        total: Tensor | None = None
        sums: dict[str, Tensor] = {}
        seen: list[Seen] = []
        together = self._setup.objective.task.samples_together
        count = min(count, max(1, size // together))
        for number, part in enumerate(_parts(batch, count, together)):
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
        setup, hooks = self._setup, self._setup.hooks
        with named(f"the network of {setup.phase}", f"in training, with a batch of {len(batch.indices)}"):
            if self._plain and hooks is None:
                logits = self._network(*self._inputs(batch))
            else:
                with self._accelerator.autocast(), hooks.student() if hooks else nullcontext():
                    logits = self._network(*self._inputs(batch))
        teacher_logits = setup.teacher.logits(batch) if setup.teacher else None
        loss, terms = setup.objective(
            logits,
            batch.labels,
            teacher_logits,
            progress_of_training=progress_of_training,
            features=hooks.features(torch.from_numpy(batch.indices).to(logits.device)) if hooks else None,
            labelled=None if whole is None else _labelled(whole, len(batch.indices), setup.objective.task),
            heads=setup.heads,
        )
        if self._accelerator.num_processes > 1 and not setup.objective.uses_logits:
            # Layers behind those that are compared get no gradient, and processes wait for each other's of all of them.
            loss = loss + 0.0 * logits.float().sum()
        return loss, terms, Seen(logits.detach(), teacher_logits, batch.labels)

    def _inputs(self, batch: Batch) -> tuple[Tensor, ...]:
        inputs: tuple[Tensor, ...] = self._setup.preprocessing.apply(batch.inputs)
        if self._memory_format is None:
            return inputs
        return tuple(item.contiguous(memory_format=self._memory_format) if item.ndim == 4 else item for item in inputs)

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
                f"the device has not enough memory for {self._setup.phase}, {_samples(tried)} at a time: {error}",
                hint=hint if tried > 1 else "end what else runs on the device, or take one with more memory",
            ) from error
        self._halved, self._part_size = True, part
        self._progress.warn(
            f"{self._setup.phase}: not enough memory for {_samples(tried)} at once; going on with {part} at a time,"
            f" the batch stays {size} (micro_batch_size = {part} says so from the start)"
        )

    def _parameters(self) -> list[torch.nn.Parameter]:
        return [*self._network.parameters(), *self._setup.beside]


def is_plain(accelerator: Accelerator) -> bool:
    """Whether this is one process in fp32: Accelerate's wrappers then do nothing, and take 0.3 ms a step to do it."""
    return accelerator.num_processes == 1 and accelerator.mixed_precision == "no" and accelerator.scaler is None


def _parts(batch: Batch, count: int, together: int = 1) -> Iterator[Batch]:
    """Yield a batch in so many parts, as even as they can be; so many samples in a row stay together."""
    if count == 1:
        yield batch
        return
    for units in torch.arange(len(batch.indices)).view(-1, together).tensor_split(count):
        rows = units.reshape(-1)
        on_device = rows.to(batch.inputs[0].device)
        yield replace(
            batch,
            indices=batch.indices[rows.numpy()],
            inputs=tuple(tensor[on_device] for tensor in batch.inputs),
            labels=None if batch.labels is None else batch.labels[on_device],
        )


def _labelled(whole: Batch, part: int, task: Task) -> Tensor | None:
    """Return a part's share of a batch's labelled samples: what the labels' loss of the part is to be divided by."""
    count = None if whole.labels is None else task.count_labelled(whole.labels)
    return None if count is None else count * (part / len(whole.indices))


def _samples(count: int) -> str:
    return f"{count} sample{'' if count == 1 else 's'}"
