"""How a network is run while it is trained: memory layout and compilation.

Whether channels-last or ``torch.compile`` pays depends on the network, the batch and the machine, so that it is
measured: a few training steps of a copy, in turns, before the first real step. The real network, its statistics, the
optimizer and the random state never hear of it. What was chosen is written down beside the checkpoints before the
first step, for a resumed training must compute in the same way to end with the same weights.

A trial is made only where the training is long enough to pay it back. That is judged by arithmetic and not by the
clock: two short trainings of one recipe give the same weights on a machine that is busy and on one that is not.
"""

import copy
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from kdexport.distill.job import TrainingSetup
from kdexport.distill.state import Checkpoints
from kdexport.progress import Progress
from kdexport.results import Layout, TrainingForm, from_json, to_json

# Operations of a whole training from which a trial is made: minutes on two CPU cores, half a minute on a GPU.
WORTH_A_TRIAL = {"cpu": 1e13, "cuda": 1e15, "mps": 1e14}
MARGIN = 0.10  # of a step, that another form must save before it is believed
ROUNDS = 7  # in turns
SLICE_SECONDS = 0.15  # of one turn
PAYS_BACK = 3.0  # what compiling must save in the steps that are left, over what it costs

COMPILING_SECONDS = {"cpu": 1800.0, "cuda": 300.0}  # a training shorter than that need not know what compiling saves

PLAIN = TrainingForm()


class NotCompilableError(Exception):
    """torch.compile does not work here; the text says why."""


def chosen(
    network: nn.Module, job: TrainingSetup, accelerator: Accelerator, checkpoints: Checkpoints, said: Progress
) -> TrainingForm:
    """Return how this training runs: as it ran before, as the recipe says, or as a trial finds.

    Args:
        network: What will be trained, on its device; it is copied, never run.
        job: The training.
        accelerator: Its mixed precision is the trial's.
        checkpoints: Where an earlier sitting has written its choice and this one writes its own.
        said: Hears of a choice that is not the plain one.
    """
    noted = checkpoints.noted("form")
    if noted is not None:
        return from_json(TrainingForm, noted)
    form = _decided(network, job, accelerator, said)
    checkpoints.note("form", to_json(form))
    return form


def laid_out(inputs: tuple[Tensor, ...], layout: Layout) -> tuple[Tensor, ...]:
    """Return a network's inputs with images in a layout."""
    if layout == "as_it_comes":
        return inputs
    wanted = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    return tuple(item.contiguous(memory_format=wanted) if item.ndim == 4 else item for item in inputs)


def lay_out(network: nn.Module, layout: Layout) -> None:
    """Bring a network's kernels into a layout, in place; their values stay."""
    if layout != "as_it_comes":
        network.to(memory_format=torch.channels_last if layout == "channels_last" else torch.contiguous_format)


def compiled(network: Any) -> Any:
    """Return what runs ``network`` compiled; the network itself, its names and its state dict stay as they are.

    Shapes are compiled as they are: an epoch has batches of two sizes at most, one sample apart.
    """
    return torch.compile(network, dynamic=False)


def _decided(network: nn.Module, job: TrainingSetup, accelerator: Accelerator, said: Progress) -> TrainingForm:
    training = job.training
    inputs = _first_inputs(job)
    layouts = _layouts(training.channels_last, accelerator.num_processes)
    if not (inputs[0].ndim == 4 and any(parameter.ndim == 4 for parameter in network.parameters())):
        layouts = ("as_it_comes",)  # there are no images or no kernels to lay out
    if job.preprocessing.contiguous:
        if training.channels_last is True:
            said.warn(f"{job.phase}: not trained channels-last: the network takes images channels first only")
        layouts = ("as_it_comes",)
    compiling = training.compile
    if job.taps is not None:
        if compiling is True:
            said.warn(f"{job.phase}: not compiled: a method that compares layers has to listen between them")
        compiling = False
    work = None if job.macs is None else 6.0 * job.macs * len(job.batches.split) * training.epochs
    if work is None or work < WORTH_A_TRIAL.get(accelerator.device.type, float("inf")):
        layouts, compiling = layouts[:1], compiling is True  # a trial would cost more than it finds
    if len(layouts) == 1 and compiling is False:
        return TrainingForm(layouts[0])
    trial = _Trial(network, inputs, accelerator)
    try:
        with warnings.catch_warnings(), _same_random_state(accelerator.device):
            warnings.simplefilter("ignore")
            form = _tried(trial, layouts, compiling, training.epochs * job.batches.per_epoch, job.phase, said)
    except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:  # a copy that cannot be made or held
        said.warn(f"{job.phase}: trained as it is; another form cannot be tried: {_first_line(error)}")
        form = TrainingForm(layouts[0])
    finally:
        if compiling is not False:
            torch.compiler.reset()
    if form.step_ms:
        times = ", ".join(f"{name} {value:.3g} ms" for name, value in form.step_ms.items())
        said.say(f"{job.phase}: trained {_words(form)}, after a trial of steps: {times}")
    return form


def _layouts(asked: bool | str, processes: int) -> tuple[Layout, ...]:
    """Return the layouts to choose from, the one to keep where there is no choice first."""
    if asked == "auto" and processes > 1:
        # Gradients are exchanged in the kernels' layout: they had better be made in it.
        return ("channels_last", "contiguous")
    if asked == "auto":
        # Images come as they are stored, channels last; the kernels do not.
        return ("as_it_comes", "channels_last", "contiguous")
    return ("channels_last",) if asked else ("contiguous",)


def _tried(
    trial: "_Trial", layouts: tuple[Layout, ...], compiling: bool | str, steps: int, phase: str, said: Progress
) -> TrainingForm:
    """Choose the layout first, then whether to compile it."""
    found: dict[str, float] = {}
    layout = layouts[0]
    if len(layouts) > 1:
        found = dict(zip(layouts, in_turns([trial.step(each) for each in layouts], trial.wait), strict=True))
        best = min(layouts, key=found.__getitem__)
        layout = best if found[best] < found[layout] * (1 - MARGIN) else layout
    elif compiling == "auto":
        found = {layout: in_turns([trial.step(layout)], trial.wait)[0]}
    plain = TrainingForm(layout, step_ms=found)
    if compiling is False:
        return plain
    if compiling == "auto" and found[layout] / 1e3 * steps < COMPILING_SECONDS.get(trial.device, float("inf")):
        return plain
    try:
        step, cost = trial.compile(layout)
    except NotCompilableError as error:
        said.warn(f"{phase}: not compiled, torch.compile does not work here: {error}")
        return plain
    if compiling is True:
        return replace(plain, compiled=True)
    before, after = in_turns([trial.step(layout), step], trial.wait)
    pays = after < before * (1 - MARGIN) and (before - after) / 1e3 * steps > PAYS_BACK * cost
    return replace(plain, compiled=pays, step_ms={**found, "compiled": after})


def _words(form: TrainingForm) -> str:
    layout = {"as_it_comes": "as it is", "channels_last": "channels-last", "contiguous": "channels-first"}[form.layout]
    return f"{layout}, compiled" if form.compiled else layout


def in_turns(steps: Sequence[Callable[[], None]], wait: Callable[[], None]) -> list[float]:
    """Return the median milliseconds of each of some steps that take turns, so that a busy moment meets them all."""
    for step in steps:
        _milliseconds(step, wait, 1)  # the first is slower: memory is taken, kernels are chosen
    count = max(1, round(SLICE_SECONDS * 1e3 / max(_milliseconds(steps[0], wait, 1), 1e-3)))
    rounds = [[_milliseconds(step, wait, count) for step in steps] for _ in range(ROUNDS)]
    return [statistics.median(times) for times in zip(*rounds, strict=True)]


def _milliseconds(step: Callable[[], None], wait: Callable[[], None], count: int) -> float:
    wait()
    start = time.perf_counter()
    for _ in range(count):
        step()
    wait()
    return (time.perf_counter() - start) / count * 1e3


class _Trial:
    """Forward and backward passes of copies of a network."""

    def __init__(self, network: nn.Module, inputs: tuple[Tensor, ...], accelerator: Accelerator) -> None:
        self._network, self._inputs, self._accelerator = network, inputs, accelerator

    @property
    def device(self) -> str:
        kind: str = self._accelerator.device.type
        return kind

    def step(self, layout: Layout) -> Callable[[], None]:
        return self._step(self._copy(layout), layout)

    def compile(self, layout: Layout) -> tuple[Callable[[], None], float]:
        """Return a compiled step and the seconds that compiling took.

        Raises:
            NotCompilableError: There is no compiler, or it cannot compile this network.
        """
        step = self._step(compiled(self._copy(layout)), layout)
        try:
            first = _milliseconds(step, self.wait, 1)
        except Exception as error:  # compilers and their absence throw anything
            raise NotCompilableError(_first_line(error)) from error
        return step, first / 1e3

    def wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()

    def _copy(self, layout: Layout) -> nn.Module:
        twin = copy.deepcopy(self._network).train()
        lay_out(twin, layout)
        return twin

    def _step(self, network: Any, layout: Layout) -> Callable[[], None]:
        parameters = list(network.parameters())
        inputs = laid_out(self._inputs, layout)

        def step() -> None:
            with self._accelerator.autocast():
                logits = network(*inputs)
            logits.float().square().mean().backward()
            for parameter in parameters:
                parameter.grad = None

        return step


def _first_inputs(job: TrainingSetup) -> tuple[Tensor, ...]:
    """Return what the network will be given first, of the size that goes through at once."""
    batch = next(job.batches.epoch(0))
    size = job.training.micro_batch_size or len(batch.indices)
    return job.preprocessing.apply(tuple(part[:size] for part in batch.inputs))


def _same_random_state(device: torch.device) -> AbstractContextManager[Any]:
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
