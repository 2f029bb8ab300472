"""Networks that come as files of their own: torch.export programs and ONNX models."""

from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from kdexport.errors import SourceError
from kdexport.onnx.sessions import OnnxSession


class Program(nn.Module):
    """A torch.export program: a graph with its weights, in the mode that it was exported in."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        if not path.is_file():
            raise SourceError(
                f"there is no file {path}", hint="check the path; in a recipe it is relative to the recipe"
            )
        try:
            program = torch.export.load(path)
        except Exception as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise SourceError(
                f"{path} is no torch.export program: {reason}",
                hint="write it with torch.export.save(torch.export.export(network, inputs), path)",
            ) from error
        self.program = program.module()
        self._batch = _fixed_batch(program)
        self.input_names = tuple(str(name) for name in program.graph_signature.user_inputs)

    def train(self, mode: bool = True) -> Self:
        """Change nothing: the graph has its mode built in."""
        self.training = mode
        return self

    def forward(self, *inputs: Tensor) -> Any:
        """Return what the program gives; one exported for a fixed batch size is run as often as it takes."""
        if self._batch is None or len(inputs[0]) == self._batch:
            return self.program(*inputs)
        outputs = []
        for start in range(0, len(inputs[0]), self._batch):
            parts = [item[start : start + self._batch] for item in inputs]
            lacking = self._batch - len(parts[0])
            filled = [torch.cat([item, item[-1:].expand(lacking, *item.shape[1:])]) for item in parts]
            outputs.append(self.program(*filled)[: len(parts[0])])
        return torch.cat(outputs)


class OnnxNetwork(nn.Module):
    """An ONNX file as a teacher: run by ONNX Runtime on the CPU, without gradients.

    It takes what the file takes; the preprocessing that it needs is ``preprocessing``.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.onnx = OnnxSession(path)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return logits ``[batch, classes]``."""
        logits = self.onnx.predict(tuple(np.asarray(item.detach().cpu()) for item in inputs))
        return torch.from_numpy(logits).to(inputs[0].device)


def _fixed_batch(program: "torch.export.ExportedProgram") -> int | None:
    """Return the batch size that a program was exported for, or None where it takes any."""
    names = set(program.graph_signature.user_inputs)
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in names and isinstance(node.meta.get("val"), Tensor):
            size = node.meta["val"].shape[0] if node.meta["val"].ndim else None
            return size if isinstance(size, int) else None
    return None
