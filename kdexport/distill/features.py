"""Features of both networks, captured by forward hooks and brought into the form that each term's loss takes.

The networks stay as they are: hooks exist only while a pass is captured, and what has to be learned to make two
layers comparable lives here, outside the student, its state dict and its file.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from kdexport.distill import layers
from kdexport.distill.layers import Layer
from kdexport.distill.projections import Adapter
from kdexport.references import parse
from kdexport.terms import FeatureTerm
from kdexport.user_code import load_object

DRY_RUN_SAMPLES = 2  # of which only the shapes are wanted


class FeatureHooks:
    """The hooks of all feature terms of one objective.

    Args:
        terms: ``Objective.feature_terms``: name -> term.
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
        terms: Mapping[str, FeatureTerm],
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
        self._captured: dict[str, dict[str, Tensor]] = {"student": {}, "teacher": {}}
        self.adapters = nn.ModuleDict()
        ours = layers.trace(student, tuple(part[:DRY_RUN_SAMPLES] for part in student_inputs))
        theirs = layers.trace(teacher, tuple(part[:DRY_RUN_SAMPLES] for part in teacher_inputs))
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            for name, term in terms.items():
                pair = _pair(term, ours, theirs)
                self._paths[name] = _paths_of(pair[0]), _paths_of(pair[1])
                self.adapters[_key(name)] = _adapter(term, pair[0], pair[1], samples)
        self._terms = dict(terms)
        self.adapters.to(student_inputs[0].device)

    @property
    def pairs(self) -> dict[str, tuple[tuple[str, ...], tuple[str, ...]]]:
        """Which layers each term compares: name -> (student's paths, teacher's paths)."""
        return dict(self._paths)

    def student(self, network: nn.Module | None = None) -> Any:
        """Return a context in which the student's pass is captured, or that of a copy of it."""
        return self._capturing("student", self._student if network is None else network, 0)

    def teacher(self) -> Any:
        """Return a context in which the teacher's pass is captured."""
        return self._capturing("teacher", self._teacher, 1)

    def features(self, indices: Tensor) -> dict[str, tuple[Any, ...]]:
        """Return for each term the first arguments of its loss, from the last pass of both networks.

        Args:
            indices: int64 [batch], which training samples were seen, on the networks' device.
        """
        return self._ready(self._paths, indices)

    @torch.no_grad()
    def features_elsewhere(self) -> dict[str, tuple[Any, ...]]:
        """Return the same for samples that are not trained on; without the terms that remember their samples."""
        paths = {name: pair for name, pair in self._paths.items() if self._terms[name].any_samples}
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
            student = tuple(self._captured["student"][path] for path in ours)
            teacher = tuple(self._captured["teacher"][path].detach() for path in theirs)
            adapter = self.adapters[_key(name)]
            with torch.autocast(student[0].device.type, enabled=False):
                several = self._terms[name].several_layers
                pair = (student, teacher) if several else (student[0], teacher[0])
                ready[name] = adapter(*pair, indices)
        for captured in self._captured.values():
            captured.clear()  # or the graph of this step would live until the next
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
    def _capturing(self, whose: str, network: nn.Module, side: int) -> Iterator[None]:
        captured = self._captured[whose]
        captured.clear()
        paths = {path for pair in self._paths.values() for path in pair[side]}
        with layers.capture_outputs(network, {path: path for path in paths}, captured.__setitem__):
            yield


def _pair(
    term: FeatureTerm, student: tuple[Layer, ...], teacher: tuple[Layer, ...]
) -> tuple[tuple[Layer, ...], tuple[Layer, ...]]:
    ours, theirs = _chosen(term, student, "student"), _chosen(term, teacher, "teacher")
    if term.several_layers and not term.layers("student") and not term.layers("teacher"):
        count = min(len(ours), len(theirs))  # unasked, as many of the last as both have
        return ours[len(ours) - count :], theirs[len(theirs) - count :]
    return ours, theirs


def _chosen(term: FeatureTerm, known: tuple[Layer, ...], whose: Literal["student", "teacher"]) -> tuple[Layer, ...]:
    """Return the layers that a term names, or those that its method is meant for."""
    named = [layers.find(known, name, whose) for name in term.layers(whose)]
    if named:
        return tuple(layer for found in named for layer in (found if term.several_layers else found[-1:]))
    if term.default_layers == "stage_ends":
        return layers.fusible_stages(known, whose)
    find = layers.embedding if term.default_layers == "embedding" else layers.last_map
    return (find(known, whose),)


def _adapter(term: FeatureTerm, student: tuple[Layer, ...], teacher: tuple[Layer, ...], samples: int) -> Adapter:
    shapes = [tuple(layer.shape for layer in side) for side in (student, teacher)]
    options = {name: getattr(term, name) for name in term.adapter_options}
    build = load_object(parse(term.adapter))
    adapter: Adapter = build(*(side if term.several_layers else side[0] for side in shapes), samples=samples, **options)
    return adapter


def _paths_of(found: tuple[Layer, ...]) -> tuple[str, ...]:
    return tuple(layer.path for layer in found)


def _key(name: str) -> str:
    """Return a term's name as a module's: without dots."""
    return name.replace(".", "_")
