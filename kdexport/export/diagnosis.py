"""Where a network and its file part, or the network and itself.

The first layer whose output differs is found among the intermediate outputs.

The exporter names each ONNX value after the torch.export node that it was translated from, so both sides can be
compared value by value. Values that optimization has folded away are passed over.

PyTorch is held against itself first: a forward that is random, keeps state, or depends on the rest of the batch has no
file. That is found before anything is exported, and named as what it is: the comparison with a file would call it a
difference of the file's.
"""

import copy
from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from torch import Tensor, fx, nn

from kdexport.data.samples import Dataset
from kdexport.errors import KDExportError
from kdexport.export import parity
from kdexport.export.target import ExportTarget, tensors_of
from kdexport.export.to_onnx import Exported, in_order, to_onnx
from kdexport.models.loading import Model, evaluating
from kdexport.models.programs import Program
from kdexport.onnx.sessions import Arrays, OnnxSession
from kdexport.recipe import Export


def first_difference(exported: Exported, example: tuple[Tensor, ...], fed: Arrays, tolerance: float) -> str | None:
    """Return the first layer that differs, in words, or None where no single one does.

    Args:
        exported: The network as translated; its graph may have grown a front and a back since.
        example: Inputs as the network takes them, in the order of the graph's.
        fed: The same as the graph takes them.
        tolerance: On max |onnx - torch| / max |torch| of a layer's output.
    """
    recorder = _Recorder(exported.program.module())
    with torch.no_grad():
        recorder.run(*example)
    graph = ir.to_proto(exported.model)
    names = [name for name in value_names(graph) if name in recorder.seen]
    actual = intermediate_outputs(graph, names, fed)
    for name in names:  # in the graph's order, which is that of the computation
        expected, where = recorder.seen[name]
        if expected.shape != actual[name].shape:
            return f"{where} gives {list(actual[name].shape)}, in PyTorch {list(expected.shape)}"
        largest = float(np.abs(expected).max(initial=0.0))
        difference = float(np.abs(expected - actual[name]).max(initial=0.0))
        if difference > tolerance * largest:
            return f"{where} is the first layer that differs, by {difference / largest if largest else difference:.2g}"
    return None


def value_names(model: onnx.ModelProto) -> list[str]:
    """Return the names of all intermediate values, in the order in which they are computed."""
    return [name for node in model.graph.node for name in node.output if name]


def intermediate_outputs(model: onnx.ModelProto, names: Iterable[str], inputs: Arrays) -> dict[str, np.ndarray]:
    """Return intermediate values of a graph for one batch.

    Args:
        model: The graph; it is not changed.
        names: Which values.
        inputs: One array per input.
    """
    widened = onnx.ModelProto()
    widened.CopyFrom(model)
    present = {item.name for item in widened.graph.output}
    # Without a type: ONNX Runtime infers it.
    widened.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in present)
    session = OnnxSession(widened.SerializeToString())
    return dict(zip(session.output_names, session(inputs), strict=True))


class _Recorder(fx.Interpreter):
    """Runs a captured network node by node and keeps every float tensor with the module that it came from."""

    def __init__(self, module: Any) -> None:
        super().__init__(module)
        self.seen: dict[str, tuple[np.ndarray, str]] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n.op == "call_function" and isinstance(result, Tensor) and result.is_floating_point():
            stack = list((n.meta.get("nn_module_stack") or {}).values())
            path = stack[-1][0] if stack else ""
            self.seen[n.name] = (result.detach().numpy().astype(np.float64), f"{path or 'the network'} ({n.target})")
        return result


SAMPLES = 7  # looked at, all together and one by one
ALIKE = 1e-3  # relative: batches of another size are summed in another order, by far less than this


def check(target: ExportTarget, *, static: bool) -> None:
    """Hold that a network gives a sample the same output each time, whatever else is in the batch.

    Args:
        target: The network and its samples.
        static: Whether its batch is to be 1: then nothing else is in it.

    Raises:
        KDExportError: It does not.
    """
    name = type(target.network).__name__
    _check_fast_path(target)
    count = 1 if static else min(SAMPLES, len(target.samples[0]))
    before = _state(target)
    first = _outputs(target, slice(0, count))
    changed = [key for key, value in _state(target).items() if not torch.equal(value, before[key])]
    second = _outputs(target, slice(0, count))
    _restore(target, before)
    if any(_differ(a, b) for a, b in zip(first, second, strict=True)):
        if changed:
            raise KDExportError(
                f"{name} keeps state from one call to the next ({', '.join(changed)}): an ONNX file keeps none",
                hint="capture the .pt2 from network.eval(): in training mode batch normalization keeps its statistics"
                if isinstance(target.network, Program)
                else "make the state an input and an output of forward, or leave it out in eval mode",
            )
        raise KDExportError(
            f"{name} gives another output each time for the same input: its forward is random, or in training mode",
            hint="F.dropout needs training=self.training, and a .pt2 is captured from network.eval(); "
            "noise can be made an input",
        )
    if static or count < 2:
        return
    single = [_outputs(target, slice(index, index + 1)) for index in (0, count - 1)]
    _restore(target, before)
    for number, whole in enumerate(first):
        axes = [axis for axis, size in enumerate(whole.shape) if size == count and single[0][number].shape[axis] == 1]
        if len(axes) != 1:  # of none or of several no sample can be told from the others
            continue
        for alone, index in zip(single, (0, count - 1), strict=True):
            if alone[number].ndim == whole.ndim and _differ(
                whole.narrow(axes[0], index, 1), alone[number], float(whole.abs().max())
            ):
                raise KDExportError(
                    f"{name} gives a sample another output alone than in a batch of {count}: it depends on the batch",
                    hint="batch statistics come from training mode (a .pt2 is captured from network.eval()) or from "
                    "x.mean(0) in forward; fix that, or export with --static, for batches of 1",
                )


def _check_fast_path(target: ExportTarget) -> None:
    """Hold that PyTorch's fast path of attention, which no file has, changes nothing: it gives zeros at padding.

    Raises:
        KDExportError: It does.
    """
    if not any(isinstance(module, nn.TransformerEncoder) for module in target.network.modules()):
        return
    enabled = torch.backends.mha.get_fastpath_enabled()
    for index in range(min(3, len(target.samples[0]))):  # alone: a mask with holes keeps a whole batch from that path
        fast = _outputs(target, slice(index, index + 1))
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            slow = _outputs(target, slice(index, index + 1))
        finally:
            torch.backends.mha.set_fastpath_enabled(enabled)
        if any(_differ(one, other) for one, other in zip(fast, slow, strict=True)):
            raise KDExportError(
                f"{type(target.network).__name__} gives zeros at padded positions in evaluation: the fast path of "
                "nn.TransformerEncoder, which a file has not",
                hint="build it with nn.TransformerEncoder(..., enable_nested_tensor=False), or multiply its output by "
                "the mask in forward",
            )


def _outputs(target: ExportTarget, which: slice) -> list[Tensor]:
    samples = tuple(array[which] for array in target.samples)
    try:
        with torch.no_grad():
            output = tensors_of(target.call(target.tensors(samples)))
    except Exception as error:  # the user's own code may raise anything
        raise parity.cannot_run("the PyTorch model", len(samples[0]), error) from error
    return [item.detach().clone().to(torch.float64) for item in output or ()]


def _differ(one: Tensor, other: Tensor, largest: float = 0.0) -> bool:
    if one.shape != other.shape:
        return True
    a, b = one.numpy(), other.numpy()
    finite = np.isfinite(a) & np.isfinite(b)
    if not np.array_equal(a[~finite], b[~finite], equal_nan=True):
        return True
    largest = max(largest, float(np.abs(a[finite]).max(initial=0.0)))
    return float(np.abs(a[finite] - b[finite]).max(initial=0.0)) > ALIKE * largest


def _state(target: ExportTarget) -> dict[str, Tensor]:
    return {name: copy.deepcopy(value.detach()) for name, value in target.network.named_buffers()}


def _restore(target: ExportTarget, state: dict[str, Tensor]) -> None:
    """Put the buffers back: what is exported is the network as it came."""
    with torch.no_grad():
        for name, value in target.network.named_buffers():
            value.copy_(state[name])


def try_export(export: Export, name: str, model: Model, data: Dataset) -> None:
    """Export a network as it stands, with a dynamic batch, and run what was captured on one sample.

    A forward that is random or depends on the rest of the batch is told, too: its training would be for nothing.

    Args:
        export: The recipe's table.
        name: "teacher" or "student", for messages.
        model: The network, on the CPU; one that is an ONNX file already is left out.
        data: Whose samples it takes.

    Raises:
        KDExportError: It cannot be exported, or not with a batch of any size.
    """
    if not any(True for _ in model.network.parameters()):  # an ONNX file, which is copied
        return
    two, one = (
        tuple(map(in_order, model.preprocessing.apply(data.train.take(slice(0, count)).inputs))) for count in (2, 1)
    )
    if len(two[0]) < 2:
        return
    text = model.preprocessing.kind == "tokens"
    axes = tuple({0: "batch", 1: "length"} if text and item.ndim > 1 else {0: "batch"} for item in two)
    try:
        with evaluating(model.network):
            exported = to_onnx(model.network, two, input_names=data.input_names, opset=export.opset, dynamic=axes)
            exported.program.module()(*one)
            few = data.train.take(slice(0, SAMPLES)).inputs
            check(ExportTarget(name, model.network, model.preprocessing, data.input_names, few), static=False)
    except KDExportError as error:
        raise KDExportError(f"the {name}, before it is trained: {error.message}", hint=error.hint) from error
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise KDExportError(
            f"the {name}, before it is trained: what torch.export captured of it does not take one sample: {reason}",
            hint="take the fixed batch out of its forward: sizes are read off the input",
        ) from error
