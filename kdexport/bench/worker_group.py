"""The processes of one round: started together, each on cores of its own, called in turns, ended together."""

import dataclasses
import json
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np

from kdexport.bench import host
from kdexport.bench.inputs import resolve_shapes
from kdexport.bench.plan import Condition, Device, Settings, Target
from kdexport.bench.process import Child, ChildError
from kdexport.bench.session import check_placement
from kdexport.bench.web.devices import is_web

CPU = "CPUExecutionProvider"
TURN_NS = 20_000_000  # long against waking up, short against the machine's drift


class WorkerGroup:
    """The children of one round; one that died is replaced where its model is needed again.

    Args:
        stack: Ends the children when the round is over.
        condition: Device and threads.
        settings: How to measure.
        number: Of the round.
    """

    def __init__(self, stack: ExitStack, condition: Condition, settings: Settings, number: int) -> None:
        self.condition = condition
        # No two cores are alike (what else runs there, what the hypervisor gives them), and a process tends to stay on
        # its own: so all models of a round share the same cores, others in the next round.
        self._pinned: list[int] | None = None  # positions among the CPUs that may be used
        if condition.device.provider == CPU:
            cpus = host.usable()
            chosen = host.choose(condition.threads, number, cpus)
            self._pinned = None if chosen is None else [cpus.index(cpu) for cpu in chosen]
        self._stack = stack
        self._settings = settings
        self._children: dict[str, Child] = {}
        self._died: dict[str, ChildError] = {}  # before their first turn
        self._loaded: dict[str, dict[str, Any]] = {}
        self._dropped_cpu_s = 0.0

    def start(self, targets: Sequence[Target], backwards: int) -> None:
        """Start one process per model; they import their libraries side by side."""
        names = list({target.name: target for target in targets})
        for name in reversed(names) if backwards else names:
            self._start(name)

    def child(self, target: Target, task: dict[str, Any]) -> tuple[Child, dict[str, Any]]:
        """Return the model's child and what it said of loading; loads at the first call, while all others sleep.

        Raises:
            ChildError: This model's child failed; another's failure is told when that one's turn comes.
            DeviceError: The model does not run where it was asked to.
        """
        if target.name not in self._children:
            self._start(target.name)
        child = self._children[target.name]
        if target.name not in self._loaded:
            self._await_imports()
            if target.name in self._died:
                raise self._died[target.name]
            if self._pinned is not None:
                child.ask(do="pin", cores=self._pinned)
            reply, _ = child.ask(do="load", **task)
            check_placement(target.name, self.condition.device, reply, self._settings.allow_fallback)
            self._loaded[target.name] = reply
        return child, self._loaded[target.name]

    def turn(self, target: Target) -> tuple[np.ndarray, int]:
        """Let one model run for a turn.

        Returns:
            Nanoseconds per call, negative where other work had its core; and how many calls each is the mean of.
        """
        reply, payload = self._children[target.name].ask(do="turn", budget_ns=TURN_NS)
        return np.frombuffer(payload, np.int64), reply.get("calls_per_sample", 1)

    def cpu_s(self) -> float:
        """Return the CPU seconds of all children together, as of their last answers."""
        return self._dropped_cpu_s + sum(child.cpu_s for child in self._children.values())

    def drop(self, target: Target) -> None:
        """Forget a child that failed; the model gets another where another batch size needs it."""
        child = self._children.pop(target.name, None)
        self._loaded.pop(target.name, None)
        self._died.pop(target.name, None)
        if child is not None:
            self._dropped_cpu_s += child.cpu_s
            child.kill()

    def _start(self, name: str) -> None:
        self._children[name] = self._stack.enter_context(child_for(name, self.condition.device, self._settings))

    def _await_imports(self) -> None:
        """Sleep until no child is still importing; one that dies of it is its own model's failure."""
        for name, child in self._children.items():
            if name not in self._died:
                try:
                    child.ready()
                except ChildError as error:
                    self._died[name] = error


def child_for(label: str, device: Device, settings: Settings) -> Child:
    """Start the process that measures on a device: one that holds the model, or one that drives a browser's page."""
    if not is_web(device):
        return Child(label, settings.timeout_s)
    web = {**dataclasses.asdict(settings.web), **device.options, "webgpu": device.provider == "webgpu"}
    return Child(label, settings.timeout_s, "kdexport.bench.web.worker", [json.dumps(web)])


def worker_task(target: Target, batch_size: int, condition: Condition, settings: Settings) -> dict[str, Any]:
    """Return all that a worker needs to load a model and to feed it."""
    shapes = {}
    if not target.file:
        axis = settings.batch_axis
        shapes = resolve_shapes(target.inputs, batch_size, settings.dims, model=target.name, batch_axis=axis)
    return {
        "path": target.path,
        "provider": condition.device.provider,
        "provider_options": dict(condition.device.options),
        "libraries": dict(condition.device.libraries),
        "threads": condition.threads,
        "shapes": shapes,
        "batch_size": batch_size,
        "below": dict(target.below),
        "file": target.file,
        "batch_axis": settings.batch_axis,
    }
