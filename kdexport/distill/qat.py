"""Quantization-aware distillation: what the last stretch of the student's training does differently.

After the distillation the student is taught on, by the same teacher on the same views, while it computes with int8's
rounding (``fake_quantize``). What comes out is one student: its weights ship as they are, in fp32 and in int8.
Layers are not compared here, for the rounded network runs as a captured graph that has none.
"""

import inspect
import itertools
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim
from torch.export.graph_signature import ExportGraphSignature, InputKind, OutputKind

from kdexport.distill.batches import Batches
from kdexport.distill.context import DistillContext
from kdexport.distill.objective import loss_of
from kdexport.distill.qat_graph import Points, find_points, rounded_activation, rounded_weight
from kdexport.errors import KDExportError
from kdexport.models.loading import Model
from kdexport.recipe import Distill

Inputs = tuple[Tensor, ...]
PACE = 10.0  # of the ranges against the weights': they start at the extremes and may have far to go


class FakeQuantized(nn.Module):
    """Wraps a network; its range ends are parameters beside the network's.

    Args:
        network: Is trained through this wrapper; on its device.
        samples: Batches of inputs as the network takes them, at least one of two samples or more: the ranges start
            at the smallest and largest values that they give.
        weight_bits: As ``export.weight_bits``.
        length_varies: Whether the second axis of an input is a length.

    Raises:
        KDExportError: torch.export cannot capture the network, or it holds no layer that int8 would round.
    """

    start: Tensor

    def __init__(
        self, network: nn.Module, samples: Iterable[Inputs], *, weight_bits: int, length_varies: bool = False
    ) -> None:
        super().__init__()
        self.network = network
        batches = list(samples)
        program = _capture(network, batches[0], length_varies)
        signature, graph_module = program.graph_signature, program.graph_module
        self._lifted = [
            (item.kind, item.target) for item in signature.input_specs if item.kind is not InputKind.USER_INPUT
        ]
        self._constants = {name: value for name, value in program.constants.items() if isinstance(value, Tensor)}
        self._position = _logits_position(signature)
        points = find_points(graph_module.graph, dict(signature.inputs_to_parameters))
        if not points.activations:
            raise KDExportError(
                f"quantize_aware: {type(network).__name__} has no convolution or linear layer that int8 would round",
                hint="leave distill.quantize_aware out",
            )
        self._places = tuple(points.activations.values())
        self.register_buffer("start", self._observe(graph_module, points, batches))
        # An end is start * exp(PACE * growth): it keeps its sign, and a step changes it by a share of its size.
        self.growth = nn.Parameter(torch.zeros_like(self.start).flatten())  # flat, so that weight decay lets it be
        _insert_rounding(graph_module, points, weight_bits)
        self._graph = graph_module

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return logits [batch, classes]."""
        outputs = self._graph(*self._state(), *inputs, self._bounds())
        logits: Tensor = outputs[self._position]
        return logits

    def ranges(self) -> dict[str, tuple[float, float]]:
        """Return the learnt range of each place, see ``rounding_points``; float32 values."""
        bounds = self._bounds().detach().cpu().tolist()
        return {name: (low, high) for names, (low, high) in zip(self._places, bounds, strict=True) for name in names}

    def _bounds(self) -> Tensor:
        return self.start * (PACE * self.growth.view(-1, 2)).exp()

    def _state(self) -> list[Tensor]:
        """Return what the graph was captured with, in its order, as the network holds it now."""
        network = self.network
        found: list[Tensor] = []
        for kind, target in self._lifted:
            if kind is InputKind.PARAMETER:
                found.append(network.get_parameter(target))
            elif kind is InputKind.BUFFER:
                found.append(network.get_buffer(target))
            else:
                found.append(self._constants[target])
        return found

    def _observe(self, graph_module: fx.GraphModule, points: Points, batches: list[Inputs]) -> Tensor:
        observer = _Observer(graph_module, points)
        with torch.no_grad():
            for inputs in batches:
                observer.run(*self._state(), *inputs)
        ends = torch.stack([torch.stack(observer.ends[node]) for node in points.activations])
        return torch.stack([ends[:, 0].clamp(max=0), ends[:, 1].clamp(min=0)], dim=1)


class _Observer(fx.Interpreter):
    """Runs the graph and keeps the smallest and largest value of each place."""

    def __init__(self, graph_module: fx.GraphModule, points: Points) -> None:
        super().__init__(graph_module)
        self._points = points
        self.ends: dict[fx.Node, tuple[Tensor, Tensor]] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n in self._points.activations:
            low, high = result.detach().float().aminmax()
            if n in self.ends:
                low, high = torch.minimum(low, self.ends[n][0]), torch.maximum(high, self.ends[n][1])
            self.ends[n] = (low, high)
        return result


def _capture(network: nn.Module, example: Inputs, length_varies: bool) -> torch.export.ExportedProgram:
    axes = tuple(
        {0: Dim.DYNAMIC, 1: Dim.DYNAMIC} if length_varies and item.ndim > 1 else {0: Dim.DYNAMIC} for item in example
    )
    shapes = dict(inspect.signature(network.forward).bind(*axes).arguments)
    try:
        return torch.export.export(network.eval(), example, dynamic_shapes=shapes)
    except Exception as error:  # the user's own code may raise anything
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise KDExportError(
            f"quantize_aware: torch.export cannot capture {type(network).__name__}: {first}",
            hint="what cannot be captured cannot be exported either: fix its forward, or leave quantize_aware out",
        ) from error


def _logits_position(signature: ExportGraphSignature) -> int:
    """Return where the first output that is the user's stands; values that the network changes come before."""
    return next(place for place, item in enumerate(signature.output_specs) if item.kind is OutputKind.USER_OUTPUT)


def _insert_rounding(graph_module: fx.GraphModule, points: Points, weight_bits: int) -> None:
    graph = graph_module.graph
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    with graph.inserting_after(placeholders[-1]):
        bounds = graph.placeholder("activation_bounds")
    for layer, axis in points.weights:
        with graph.inserting_before(layer):
            layer.update_arg(1, graph.call_function(rounded_weight, (layer.args[1], axis, weight_bits)))
    for number, node in enumerate(points.activations):
        with graph.inserting_after(bounds if node.op == "placeholder" else node):
            ends = graph.call_function(torch.select, (bounds, 0, number))
        with graph.inserting_after(ends):
            rounded = graph.call_function(rounded_activation, (node, ends))
        node.replace_all_uses_with(rounded, delete_user_cb=lambda user, own=rounded: user is not own)  # type: ignore[misc]
    graph.lint()
    graph_module.recompile()


PHASE = "student-qat"  # in the epoch log and for its checkpoints
BEFORE = "student-distilled"  # the weights that it starts from
START_BATCHES = 8  # that the ranges start from


def settings_of(distill: Distill) -> Distill:
    """Return how the stretch is trained: short, at a small learning rate, in fp32, on the terms that compare logits."""
    terms = tuple(term for term in distill.terms if "features" not in loss_of(term).needs)
    return distill.model_copy(
        update={
            "epochs": distill.quantize_aware_epochs or max(1, distill.epochs // 4),
            "lr": distill.quantize_aware_lr or distill.lr / 10,
            "warmup_epochs": 0.0,
            "ema_decay": None,
            "patience": None,
            "compile": False,  # the graph is captured already, in the layout that it was captured in
            "channels_last": False,
            "precision": "fp32",  # a rounding error is smaller than what fewer bits lose
            "terms": terms or Distill.model_fields["terms"].default,
        }
    )


def rounded(context: DistillContext, model: Model, batches: Batches, device: torch.device) -> FakeQuantized:
    """Return the student with int8's rounding in place, its ranges started from some training batches.

    Raises:
        KDExportError: It cannot be captured.
    """
    first = itertools.islice(batches.epoch(0), START_BATCHES)
    return FakeQuantized(
        model.network.to(device),
        (model.preprocessing.apply(batch.inputs) for batch in first),
        weight_bits=context.recipe.export.weight_bits,
        length_varies=model.preprocessing.kind == "tokens",
    )
