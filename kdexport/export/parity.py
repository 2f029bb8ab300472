"""The proof: an ONNX file computes what its reference computes, on real samples, at several batch sizes.

A comparison proves something only if it could have failed. Where a model answers every sample alike, a file that
ignored its input would pass too: such a comparison is vacuous and fails.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdexport.errors import ParityError
from kdexport.onnx.sessions import Arrays, OnnxSession, first_line
from kdexport.results import Parity

BATCH_SIZES = (1, 2, 7, 64)  # the last one for the bulk of the samples
SAMPLES = 256

# Share of samples whose best class may have another name: ties that rounding decides.
MISNAMED = 0.01

# Outputs must vary by this many tolerances from sample to sample, or a constant answer would nearly pass. The wide
# tolerances of quantized variants count as this one at most.
VACUOUS_TOLERANCES = 10.0
WIDEST_TOLERANCE = 1e-3

Predict = Callable[[Arrays], Arrays]


def compare(
    reference: Predict,
    candidate: Predict,
    inputs: Arrays,
    *,
    tolerance: float,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    against: str = "torch",
    subject: str = "the exported file",
) -> Parity:
    """Compare every output of two models over all samples.

    ``reference`` sees the same batches as ``candidate``: nothing but the models differs.

    Args:
        reference: Maps a batch of every input to every output.
        candidate: The same, by ONNX Runtime.
        inputs: One array per input, first axis samples.
        tolerance: On max |candidate - reference| / max |reference|, over each output as a whole.
        batch_sizes: Each is used once, then the last one until the samples are used up.
        against: What the reference is: ``"torch"`` or ``"fp32-onnx"``.
        subject: Names the candidate in an error.

    Raises:
        ParityError: The outputs differ in number or shape, are not finite, or the comparison is vacuous. A difference
            beyond the tolerance raises nothing: it is in the result.
    """
    other = "the PyTorch model" if against == "torch" else "the fp32 file"
    expected, actual = [], []
    for batch in batches(inputs, batch_sizes):
        expected.append(_run(reference, batch, other))
        actual.append(_run(candidate, batch, subject))
        _check_shapes(expected[-1], actual[-1], subject)
    joined = [
        (np.concatenate(e), np.concatenate(a))
        for e, a in zip(zip(*expected, strict=True), zip(*actual, strict=True), strict=True)
    ]
    pairs = [(e.astype(np.float64), a.astype(np.float64)) for e, a in joined if e.dtype != object]
    _check_names([pair for pair in joined if pair[0].dtype == object], subject)
    _check_meaning(pairs, tolerance, subject, other)
    differences = [float(np.abs(e - a).max()) for e, a in pairs]
    relative = [d / float(np.abs(e).max()) for d, (e, _) in zip(differences, pairs, strict=True)]
    return Parity(
        max_abs=max(differences),
        max_rel=max(relative),
        samples=len(inputs[0]),
        tolerance=tolerance,
        passed=max(relative) <= tolerance,
        cosine=min(_cosine(e, a) for e, a in pairs),
        argmax_agreement=_argmax_agreement(*pairs[0]),
        batch_sizes=tuple(sorted({len(batch[0]) for batch in expected})),
        reference=against,
    )


def batches(inputs: Arrays, sizes: Sequence[int]) -> Iterator[Arrays]:
    """Cut samples into batches of each size in turn, then of the last size."""
    start, position = 0, 0
    while start < len(inputs[0]):
        size = sizes[min(position, len(sizes) - 1)]
        yield tuple(array[start : start + size] for array in inputs)
        start, position = start + size, position + 1


def spread(available: int, wanted: int) -> NDArray[np.int64]:
    """Return the indices of at most ``wanted`` samples, evenly spaced: data often lie sorted by class."""
    return np.linspace(0, available - 1, min(available, wanted)).astype(np.int64)


def samples_of(val: Arrays, train: Arrays) -> Arrays:
    """Return raw samples for a proof: of the validation split, then of the training split; never of test.

    Args:
        val: One array per input, first axis samples.
        train: The same.
    """
    first = spread(len(val[0]), SAMPLES)
    more = spread(len(train[0]), SAMPLES - len(first)) if len(first) < SAMPLES else np.zeros(0, np.int64)
    return tuple(np.concatenate([v[first], t[more]]) for v, t in zip(val, train, strict=True))


def batch_sizes_for(path: Path) -> tuple[int, ...]:
    """Return the batch sizes that a file can be proved at."""
    return (1,) if OnnxSession(path).fixed_batch else BATCH_SIZES


def demand(parity: Parity, subject: str, where: str | None = None) -> None:
    """Refuse a file that does not hold its tolerance.

    Args:
        parity: The proof.
        subject: Names the file.
        where: The first layer that differs, in words, where one is found.

    Raises:
        ParityError: It does not; the message says which tolerance would pass.
    """
    if not parity.passed:
        raise ParityError(
            f"{subject} differs from the PyTorch model by {parity.max_rel:.2g} relative ({parity.max_abs:.2g} "
            f"absolute) over {parity.samples} samples; {parity.tolerance:g} is allowed"
            + (f"; {where}" if where else ""),
            hint=f"export.parity_tolerance = {_next_power(parity.max_rel):g} would pass, if that much is harmless",
        )


def _next_power(value: float) -> float:
    """Return the least of 1, 2, 5 times a power of ten that is at least ``value``."""
    power = 10.0 ** np.floor(np.log10(value))
    return float(next(step * power for step in (1, 2, 5, 10) if step * power >= value))


def _run(model: Predict, batch: Arrays, subject: str) -> Arrays:
    try:
        return model(batch)
    except Exception as error:  # ONNX Runtime's errors have no common class, and the user's code may raise anything
        raise ParityError(
            f"{subject} cannot be run with a batch of {len(batch[0])}: {first_line(error)}",
            hint="the network's forward, or a .pt2's capture, fixes the batch size; fix that, or export with --static",
        ) from error


def _check_shapes(expected: Arrays, actual: Arrays, subject: str) -> None:
    here, there = [e.shape for e in expected], [a.shape for a in actual]
    if here != there:
        raise ParityError(
            f"{subject} gives outputs of shape {_shapes(there)} where the PyTorch model gives {_shapes(here)}",
            hint="the network's shapes depend on the batch size; fix that in its forward, or export with --static",
        )


def _check_names(pairs: Sequence[tuple[np.ndarray, np.ndarray]], subject: str) -> None:
    """Hold that the best class has the same name; further down the list near ties may change places."""
    for expected, actual in pairs:
        wrong = int((expected[:, 0] != actual[:, 0]).sum())
        if wrong > MISNAMED * len(expected):
            raise ParityError(
                f"{subject} names another best class for {wrong} of {len(expected)} samples",
                hint="check that the labels are in the order of the network's outputs",
            )


def _shapes(shapes: Sequence[tuple[int, ...]]) -> str:
    return ", ".join(str(list(shape)) for shape in shapes)


def _check_meaning(pairs: Sequence[tuple[np.ndarray, np.ndarray]], tolerance: float, subject: str, other: str) -> None:
    for expected, actual in pairs:
        for values, which in ((expected, other), (actual, subject)):
            if not np.isfinite(values).all():
                raise ParityError(
                    f"{which} gives values that are not finite on real samples: nothing can be proved",
                    hint="look at the weights: a training that diverged leaves NaN behind"
                    if which == other
                    else "leave this form of the file out; its arithmetic overflows where the original's does not",
                )
        largest = float(np.abs(expected).max())
        spread = float(np.ptp(expected, axis=0).max())
        if len(expected) < 2 or spread <= VACUOUS_TOLERANCES * min(tolerance, WIDEST_TOLERANCE) * largest:
            raise ParityError(
                f"parity of {subject} would prove nothing: {other} answers all {len(expected)} samples "
                f"alike (outputs vary by {spread:.2g}, the largest is {largest:.2g})",
                hint="give it trained weights; networks fresh from initialization often answer all zeros",
            )


def _cosine(expected: np.ndarray, actual: np.ndarray) -> float:
    """Return the smallest cosine between a sample's outputs; samples of all zeros are left out."""
    e, a = expected.reshape(len(expected), -1), actual.reshape(len(actual), -1)
    norms = np.linalg.norm(e, axis=1) * np.linalg.norm(a, axis=1)
    nonzero = norms > 0
    return float(((e * a).sum(axis=1)[nonzero] / norms[nonzero]).min()) if nonzero.any() else 0.0


def _argmax_agreement(expected: np.ndarray, actual: np.ndarray) -> float | None:
    if expected.ndim < 2:
        return None
    return float((expected.argmax(axis=-1) == actual.argmax(axis=-1)).mean())
