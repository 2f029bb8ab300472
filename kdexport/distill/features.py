"""Features of both networks, tapped while they run and brought into the form that each term's loss takes.

The networks stay as they are: hooks exist only while a pass is listened to, and what has to be learned to make two
layers comparable lives here, outside the student, its state dict and its file.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from kdexport import terms
from kdexport.distill import layers
from kdexport.distill.contrast_memory import ContrastMemory
from kdexport.distill.layers import Layer
from kdexport.distill.projections import Fusion, Pooled, Projection, Unchanged, channels_of
from kdexport.errors import KDExportError

DRY_RUN_SAMPLES = 2  # of which only the shapes are wanted


class FeatureHooks:
    """The taps of all feature terms of one objective.

    Args:
        wanted: ``Objective.feature_terms``: name -> term.
        student: The student.
        teacher: The teacher.
        student_inputs: What the student takes, a batch of at least one.
        teacher_inputs: What the teacher takes.
        samples: How many training samples there are.
        seed: Draws the projections' first weights; the global generator is left as it was.

    Raises:
        KDExportError: A layer that isn't there, runs more than once, or whose feature a method cannot use.
    """

    def __init__(
        self,
        wanted: Mapping[str, terms.BaseTerm],
        student: nn.Module,
        teacher: nn.Module,
        student_inputs: tuple[Tensor, ...],
        teacher_inputs: tuple[Tensor, ...],
        *,
        samples: int,
        seed: int = 0,
    ) -> None:
        self._student, self._teacher = student, teacher
        self._paths: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {}
        self._heard: dict[str, dict[str, Tensor]] = {"student": {}, "teacher": {}}
        self.adapters = nn.ModuleDict()
        ours = layers.trace(student, tuple(part[:DRY_RUN_SAMPLES] for part in student_inputs))
        theirs = layers.trace(teacher, tuple(part[:DRY_RUN_SAMPLES] for part in teacher_inputs))
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            for name, term in wanted.items():
                pair = _pair(term, ours, theirs)
                self._paths[name] = _paths_of(pair[0]), _paths_of(pair[1])
                self.adapters[_key(name)] = _adapter(term, pair[0], pair[1], samples)
        self.adapters.to(student_inputs[0].device)

    @property
    def pairs(self) -> dict[str, tuple[tuple[str, ...], tuple[str, ...]]]:
        """Which layers each term compares: name -> (student's paths, teacher's paths)."""
        return dict(self._paths)

    def student(self, network: nn.Module | None = None) -> Any:
        """Return a context in which the student's pass is listened to, or that of a copy of it."""
        return self._listening("student", self._student if network is None else network, 0)

    def teacher(self) -> Any:
        """Return a context in which the teacher's pass is listened to."""
        return self._listening("teacher", self._teacher, 1)

    def features(self, indices: Tensor) -> dict[str, tuple[Any, ...]]:
        """Return for each term the first arguments of its loss, from the last pass of both networks.

        Args:
            indices: int64 [batch], which training samples were seen, on the networks' device.
        """
        return self._ready(self._paths, indices)

    @torch.no_grad()
    def features_elsewhere(self) -> dict[str, tuple[Any, ...]]:
        """Return the same for samples that are not trained on; without the terms that remember their samples."""
        paths = {
            name: pair
            for name, pair in self._paths.items()
            if not isinstance(self.adapters[_key(name)], ContrastMemory)
        }
        self.adapters.eval()
        try:
            return self._ready(paths, torch.empty(0, dtype=torch.int64))
        finally:
            self.adapters.train()

    def _ready(
        self, paths: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]], indices: Tensor
    ) -> dict[str, tuple[Any, ...]]:
        ready: dict[str, tuple[Any, ...]] = {}
        for name, (ours, theirs) in paths.items():
            student = tuple(self._heard["student"][path] for path in ours)
            teacher = tuple(self._heard["teacher"][path].detach() for path in theirs)
            adapter = self.adapters[_key(name)]
            with torch.autocast(student[0].device.type, enabled=False):
                if isinstance(adapter, Fusion):
                    ready[name] = adapter(student, teacher, indices)
                else:
                    ready[name] = adapter(student[0], teacher[0], indices)
        for heard in self._heard.values():
            heard.clear()  # or the graph of this step would live until the next
        return ready

    def parameters(self) -> list[nn.Parameter]:
        """Return what has to be learned beside the student."""
        return list(self.adapters.parameters())

    def state_dict(self) -> dict[str, Tensor]:
        """Return the projections' and memories' state, for a checkpoint."""
        return self.adapters.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take a state back."""
        self.adapters.load_state_dict(state)

    @contextmanager
    def _listening(self, whose: str, network: nn.Module, side: int) -> Iterator[None]:
        heard = self._heard[whose]
        heard.clear()
        paths = {path for pair in self._paths.values() for path in pair[side]}
        with layers.listening(network, {path: path for path in paths}, heard.__setitem__):
            yield


def _pair(
    term: terms.BaseTerm, student: tuple[Layer, ...], teacher: tuple[Layer, ...]
) -> tuple[tuple[Layer, ...], tuple[Layer, ...]]:
    ours, theirs = _chosen(term, student, "student"), _chosen(term, teacher, "teacher")
    if isinstance(term, terms.Review) and not term.student_layers and not term.teacher_layers:
        count = min(len(ours), len(theirs))  # unasked, as many of the last as both have
        return ours[len(ours) - count :], theirs[len(theirs) - count :]
    return ours, theirs


def _chosen(term: terms.BaseTerm, known: tuple[Layer, ...], whose: str) -> tuple[Layer, ...]:
    """Return the layers that a term names, or those that its method is meant for."""
    if isinstance(term, terms.Review):
        named = term.student_layers if whose == "student" else term.teacher_layers
        return tuple(layer for name in named for layer in layers.find(known, name, whose)) or layers.stage_ends(known)
    if not isinstance(term, terms.FeatureTerm):
        raise KDExportError(f"{term.method} compares no layers", hint="this is a fault of kdexport; please report it")
    name = term.student_layer if whose == "student" else term.teacher_layer
    if name is not None:
        return (layers.find(known, name, whose)[-1],)
    if isinstance(term, terms.Hint | terms.Attention | terms.Similarity):
        return (layers.last_map(known, whose),)
    return (layers.embedding(known, whose),)


def _adapter(term: terms.BaseTerm, student: tuple[Layer, ...], teacher: tuple[Layer, ...], samples: int) -> nn.Module:
    if isinstance(term, terms.Review):
        return Fusion(tuple(layer.shape for layer in student), tuple(layer.shape for layer in teacher))
    ours, theirs = student[0].shape, teacher[0].shape
    if isinstance(term, terms.CRD):
        return ContrastMemory(
            channels_of(ours),
            channels_of(theirs),
            samples,
            width=term.width,
            negatives=term.negatives,
            momentum=term.momentum,
            temperature=term.temperature,
        )
    if isinstance(term, terms.Hint):
        return Projection(ours, theirs)
    if isinstance(term, terms.Cosine):
        return Projection(ours, theirs, vectors=True)
    if isinstance(term, terms.Relational):
        return Pooled()
    return Unchanged()


def _paths_of(found: tuple[Layer, ...]) -> tuple[str, ...]:
    return tuple(layer.path for layer in found)


def _key(name: str) -> str:
    """Return a term's name as a module's: without dots."""
    return name.replace(".", "_")
