"""Which models can be scored after measuring, and how the packed ones are: numpy and ONNX Runtime alone."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from kdexport.errors import SourceError


class Measured(Protocol):
    """What came out of measuring."""

    @property
    def measurements(self) -> Sequence[Any]:
        """What was measured."""

    @property
    def failures(self) -> Sequence[Any]:
        """What could not be."""


def unsafe(outcome: Measured, device: str) -> frozenset[str]:
    """Return the models that are not to be loaded into this process, on ``device``.

    That which ended a worker would end this process, and the result with it. A model is trusted once it was measured
    there; where it was not tried there, it is once it was measured anywhere.
    """
    measured = {(one.model, one.device) for one in outcome.measurements}
    failed = {(one.model, one.device) for one in outcome.failures}
    anywhere = {model for model, _ in measured}
    return frozenset(
        model
        for model, _ in failed
        if (model, device) not in measured and ((model, device) in failed or model not in anywhere)
    )


def predictor(session: Any, names: Sequence[str]) -> Callable[[tuple[NDArray[Any], ...]], NDArray[np.float32]]:
    """Return a function from inputs to logits ``[batch, classes]``.

    It chooses as ``kdexport.onnx.sessions.OnnxModel`` does, which is not in a pack; a test holds the two together.
    A fixed batch is filled up with the last sample. Probabilities are known by their values in the first batch, and
    their logarithm is returned.

    Args:
        session: An ONNX Runtime session.
        names: Of its inputs, in the order in which the arrays come.
    """
    limit = session.get_inputs()[0].shape[0]
    probabilities: list[bool] = []

    def predict(inputs: tuple[NDArray[Any], ...]) -> NDArray[np.float32]:
        batch = len(inputs[0])
        size = limit if isinstance(limit, int) else batch
        parts = []
        for start in range(0, batch, size):
            rest = min(size, batch - start)
            taken = np.minimum(np.arange(start, start + size), batch - 1)
            fed = {name: array[taken] for name, array in zip(names, inputs, strict=True)}
            parts.append(_scores(session.run(None, fed))[:rest])
        scores = np.concatenate(parts)
        if not probabilities:
            sums_to_one = bool((np.abs(scores.sum(axis=1) - 1) < 1e-3).all())
            probabilities.append(sums_to_one and bool(scores.min() >= 0))
        return np.log(np.maximum(scores, 1e-8)) if probabilities[0] else scores

    return predict


def _scores(outputs: Sequence[Any]) -> NDArray[np.float32]:
    """Return the first output that is a table of floats: not the labels that stand before it in some files."""
    for output in outputs:
        if isinstance(output, list) and output and isinstance(output[0], dict):  # scikit-learn's ZipMap
            output = np.array([[row[key] for key in sorted(row)] for row in output])
        if isinstance(output, np.ndarray) and output.ndim == 2 and output.dtype.kind == "f":
            return output.astype(np.float32)
    raise SourceError(
        "it gives no scores of shape [batch, classes]", hint="export it with logits or probabilities as an output"
    )
