"""An export that is tried before anything is trained: what ONNX cannot hold is told then, not after the training."""

from kdexport.data.samples import Dataset
from kdexport.errors import KDExportError
from kdexport.export.to_onnx import to_onnx
from kdexport.models.loading import Model, evaluating
from kdexport.recipe import Export


def try_export(export: Export, name: str, model: Model, data: Dataset) -> None:
    """Export a network as it stands, with a dynamic batch, and run what was captured on one sample.

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
    two, one = (model.preprocessing.apply(data.train.take(slice(0, count)).inputs) for count in (2, 1))
    if len(two[0]) < 2:
        return
    text = model.preprocessing.kind == "tokens"
    axes = tuple({0: "batch", 1: "length"} if text and item.ndim > 1 else {0: "batch"} for item in two)
    try:
        with evaluating(model.network):
            exported = to_onnx(model.network, two, input_names=data.input_names, opset=export.opset, dynamic=axes)
            exported.program.module()(*one)
    except KDExportError as error:
        raise KDExportError(f"the {name}, before it is trained: {error.message}", hint=error.hint) from error
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise KDExportError(
            f"the {name}, before it is trained: what torch.export captured of it does not take one sample: {reason}",
            hint="take the fixed batch out of its forward: sizes are read off the input",
        ) from error
