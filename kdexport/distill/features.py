"""Features of both networks, captured by forward hooks and brought into the form that each term's loss takes.

The networks stay as they are: hooks exist only while a pass is captured, and what has to be learned to make two
layers comparable lives here, outside the student, its state dict and its file.

Projections stand between two layers of unlike shape and the loss that compares them. Each takes (student feature,
teacher feature, sample indices) and returns the first arguments of its loss function. Their parameters learn with the
student and are thrown away afterwards.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdexport.distill import layers
from kdexport.distill.layers import Layer
from kdexport.distill.losses.checks import at_least_fp32
from kdexport.errors import KDExportError
from kdexport.references import load_object, parse
from kdexport.terms import FeatureTerm

Shape = tuple[int, ...]  # without the batch: (channels, height, width), (tokens, channels) or (channels,)


class Adapter(nn.Module):
    """What ``FeatureHooks`` builds for a term: from the features' shapes and the number of training samples."""

    def __init__(self, student: Any = (), teacher: Any = (), *, samples: int = 0) -> None:  # noqa: ARG002
        super().__init__()


class Unchanged(Adapter):
    """For methods that compare features of any shape."""

    def forward(self, student: Tensor, teacher: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """Return both as they are."""
        return student, teacher


class Pooled(Adapter):
    """For methods that compare embeddings: maps and tokens are averaged over their positions."""

    def forward(self, student: Tensor, teacher: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """Return both as [batch, channels]."""
        return as_vectors(student), as_vectors(teacher)


class Projection(Adapter):
    """Brings the student's feature to the shape of the teacher's.

    A map becomes tokens or a vector where the other side is one; then heights and widths are average-pooled or
    interpolated, tokens interpolated, and channels mapped by a 1x1 convolution or a linear layer. Where nothing differs
    there are no parameters.

    Args:
        student: Shape of the student's feature.
        teacher: Shape of the teacher's.
        samples: Of no account here.
    """

    vectors = False  # whether averages over the positions are compared

    def __init__(self, student: Shape, teacher: Shape, *, samples: int = 0) -> None:
        super().__init__(student, teacher, samples=samples)
        self._dimensions = 1 if self.vectors else min(len(student), len(teacher))
        ours, theirs = channels_of(student), channels_of(teacher)
        self.channels: nn.Module = nn.Identity()
        if ours != theirs:
            self.channels = nn.Conv2d(ours, theirs, 1) if self._dimensions == 3 else nn.Linear(ours, theirs)

    def forward(self, student: Tensor, teacher: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """Return both in the teacher's shape, in fp32."""
        student, teacher = _reduced(student, self._dimensions), _reduced(teacher, self._dimensions)
        if self._dimensions == 3 and student.shape[2:] != teacher.shape[2:]:
            student = _resized(student, teacher.shape[2], teacher.shape[3])
        elif self._dimensions == 2 and student.shape[1] != teacher.shape[1]:
            student = F.interpolate(student.transpose(1, 2), size=teacher.shape[1], mode="linear").transpose(1, 2)
        return self.channels(student), teacher


class VectorProjection(Projection):
    """A projection of averages over the positions."""

    vectors = True


class Fusion(Adapter):
    """Attention-based fusion: each stage of the student sees what the later ones made of it.

    Chen et al. 2021, "Distilling Knowledge via Knowledge Review", figure 3: from the last stage to the first, the
    feature is brought to a common width, mixed with the later stages' by two attention maps, and put out in the width
    of the teacher's stage. Convolutions are followed by batch normalization as in the authors' code.

    Args:
        student: Shapes of the student's maps, first stage first.
        teacher: Shapes of as many maps of the teacher.
        samples: Of no account here.

    Raises:
        KDExportError: Counts differ, or a feature is no map.
    """

    def __init__(self, student: tuple[Shape, ...], teacher: tuple[Shape, ...], *, samples: int = 0) -> None:
        super().__init__(student, teacher, samples=samples)
        if len(student) != len(teacher) or not student:
            raise KDExportError(
                f"review compares stage with stage: {len(student)} of the student, {len(teacher)} of the teacher",
                hint="name as many student_layers as teacher_layers, at least one",
            )
        for shape in (*student, *teacher):
            if len(shape) != 3:
                raise KDExportError(
                    f"review fuses maps [channels, height, width], and one of the layers gives {list(shape)}",
                    hint="name convolutional layers as student_layers and teacher_layers, or use hint or similarity",
                )
        width = min(512, student[-1][0])
        self.inward = nn.ModuleList(_convolution(shape[0], width, 1) for shape in student)
        self.outward = nn.ModuleList(_convolution(width, shape[0], 3) for shape in teacher)
        self.mix = nn.ModuleList(nn.Conv2d(2 * width, 2, 1) for _ in student[:-1])

    def forward(
        self,
        student: tuple[Tensor, ...],
        teacher: tuple[Tensor, ...],
        indices: Tensor,  # noqa: ARG002
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return the fused features in the teacher's shapes, and the teacher's, in fp32."""
        fused: list[Tensor] = []
        later: Tensor | None = None
        for stage in reversed(range(len(student))):
            current = self.inward[stage](at_least_fp32(student[stage]))
            if later is not None:
                later = F.interpolate(later, size=current.shape[2:], mode="nearest")
                shares = torch.sigmoid(self.mix[stage](torch.cat([current, later], dim=1)))
                current = current * shares[:, :1] + later * shares[:, 1:]
            later = current
            height, width = teacher[stage].shape[2:]
            fused.append(self.outward[stage](_resized(current, height, width)))
        return fused[::-1], [at_least_fp32(feature) for feature in teacher]


def as_vectors(feature: Tensor) -> Tensor:
    """Return [batch, channels] in fp32: the mean over all positions."""
    return _reduced(feature, 1)


def _reduced(feature: Tensor, dimensions: int) -> Tensor:
    feature = at_least_fp32(feature)
    if feature.ndim == 4 and dimensions == 2:
        return feature.flatten(2).transpose(1, 2)
    if feature.ndim == 4 and dimensions == 1:
        return feature.mean(dim=(2, 3))
    if feature.ndim == 3 and dimensions == 1:
        return feature.mean(dim=1)
    return feature


def _resized(feature: Tensor, height: int, width: int) -> Tensor:
    if height <= feature.shape[2] and width <= feature.shape[3]:
        return F.adaptive_avg_pool2d(feature, (height, width))
    return F.interpolate(feature, size=(height, width), mode="bilinear", align_corners=False)


def channels_of(shape: Shape) -> int:
    """Return how many channels a feature has."""
    return shape[1] if len(shape) == 2 else shape[0]


def _convolution(channels_in: int, channels_out: int, size: int) -> nn.Sequential:
    convolution = nn.Conv2d(channels_in, channels_out, size, padding=size // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(channels_out))


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
