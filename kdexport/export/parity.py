"""The proof: an ONNX file computes what its reference computes, on real samples and hard ones, at several sizes.

A comparison proves something only if it could have failed. Where a model answers every sample alike, a file that
ignored its input would pass too: such a comparison is vacuous and fails.

An output is judged as a whole, and each channel whose values are far smaller by its own size: class scores beside
boxes in pixels. Where PyTorch's own rounding is as large as a difference, found by running it in float64, the
difference says nothing of the file.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdexport.errors import ParityError
from kdexport.export.differences import (
    Pair,
    Values,
    argmax_agreement,
    beyond_rounding,
    chooses,
    cosine,
    difference_of,
    finite,
    joined_batches,
    relative_difference,
    sample_axis,
    samples_with,
)
from kdexport.onnx.sessions import Arrays, OnnxSession, first_line
from kdexport.results import Parity

BATCH_SIZES = (1, 2, 7, 64)  # the last one for the bulk of the samples
SAMPLES = 256
FEWEST_SAMPLES, VALUES = 8, 2**22  # of large outputs: 32 MiB in float64, a few times over

# Share of samples whose best class may have another name, and of elements of an integer output that may differ: ties
# that rounding decides.
MISNAMED = 0.01

# Outputs must vary by this many tolerances from sample to sample, or a constant answer would nearly pass. The wide
# tolerances of quantized variants count as this one at most.
VACUOUS_TOLERANCES = 10.0
WIDEST_TOLERANCE = 1e-3

FIXED_BATCH = (
    "the network's forward, or a .pt2's capture, fixes the batch size, or takes its input for a list of tensors (then "
    "wrap it, with a parameter for each); write x.shape[0], not len(x), or export with --static"
)
OTHER_AXIS = "; where the batch is not the first axis of an input, say so: --input-shape h:2,batch,64"
# What PyTorch says where forward takes its one input for a list, a tuple or a dict of tensors.
AS_A_LIST = re.compile(
    r"out of bounds for dimension 0|must be tuple of Tensors|cat\(\) received an invalid combination|values to unpack"
    r"|too many indices|invalid data type 'str'"
    r"|'Tensor' object has no attribute '(?:get|items|keys|values|[a-z_]*ids|pixel_values)'"
)
SEVERAL_IN_ONE = (
    "ONNX inputs are tensors: where forward takes a list, a tuple or a dict of them, wrap the network in a class with "
    "forward(self, a, b) that calls it with [a, b], give that as file.py:Name, and --input-shape once for each"
)
OTHER_SIZE = "inputs of shape"  # begins what is said of a batch at another size of a dynamic axis
FIXED_SIZE = (
    "forward takes the size in the data for a constant (adaptive pooling, int(x.shape[2]), a table of fixed length): "
    "leave that axis fixed, or compute it from x.shape with operators that take any size"
)
LARGEST_HINT = 1e-2  # a tolerance beyond this would hide a wrong file: it is never suggested

Predict = Callable[[Arrays], Arrays]


def compare(
    reference: Predict,
    candidate: Predict,
    inputs: Arrays,
    *,
    tolerance: float,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    against: str = "torch",
    label: str = "the exported file",
    hard: Arrays = (),
    resized: Sequence[Arrays] = (),
    precise: Predict | None = None,
) -> Parity:
    """Compare every output of two models over all samples.

    ``reference`` sees the same batches as ``candidate``: nothing but the models differs.

    Args:
        reference: Maps a batch of every input to every output.
        candidate: The same, by ONNX Runtime.
        inputs: One array per input, first axis samples.
        tolerance: On max |candidate - reference| / max |reference|, over each output as a whole, and over each channel
            whose largest value is less than a tenth of the output's.
        batch_sizes: Each is used once, then the last one until the samples are used up.
        against: What the reference is: ``"torch"`` or ``"fp32-onnx"``.
        label: Names the candidate in an error.
        hard: More samples, as ``inputs``: all zero, all equal, the extremes of the value range.
        resized: Batches in which a dynamic axis has another size.
        precise: The reference in float64; asked where the file differs, for how much is rounding of the reference's
            own. On real samples that excuses single channels alone, never an output as a whole.

    Raises:
        ParityError: The outputs differ in number or shape, or in what is finite, or the comparison is vacuous. A
            difference beyond the tolerance raises nothing: it is in the result.
    """
    other = "the PyTorch model" if against == "torch" else "the fp32 file"
    both = _Both(reference, candidate, precise, label, other)
    real = both.run(batches(inputs, batch_sizes), "real samples")
    _check_names(real, label)
    constant = _check_meaning(real, tolerance, label, other)
    groups = [(real, False)]
    if hard:
        groups.append(
            (both.run(batches(hard, batch_sizes[-1:]), "hard samples: all zero, all equal, the extremes"), True)
        )
    groups += [
        (both.run([batch], f"{OTHER_SIZE} {_shapes([array.shape for array in batch])}"), True) for batch in resized
    ]
    found = [both.difference(pairs, tolerance, excuse=excuse) for pairs, excuse in groups]
    joined = [joined_batches(real, k) for k in real[0].numeric]
    floats = [arrays for arrays in joined if arrays[0].dtype.kind == "f" and arrays[0].ndim > 1]
    max_rel = max(relative for _, relative in found)
    nan = samples_with(real, np.isnan)
    return Parity(
        max_abs=max(absolute for absolute, _ in found),
        max_rel=max_rel,
        samples=len(inputs[0]),
        tolerance=tolerance,
        passed=max_rel <= tolerance,
        cosine=min((cosine(e, a) for e, a in joined), default=None),
        argmax_agreement=argmax_agreement(*floats[0]) if floats and chooses(floats[0][0]) else None,
        batch_sizes=tuple(sorted({pair.size for pair in real})),
        reference=against,
        hard_samples=len(hard[0]) if hard else 0,
        other_sizes=len(resized),
        constant_outputs=constant,
        nan_samples=int(nan.sum()),
        infinite_samples=int((samples_with(real, np.isinf) & ~nan).sum()),
        nan_hard_samples=int(samples_with(groups[1][0], np.isnan).sum()) if hard else 0,
    )


def doubts(proof: Parity) -> tuple[str, ...]:
    """Return what a proof that passes leaves to be warned of: outputs that are equal and no answers."""
    both = "PyTorch and the file alike give" if proof.reference == "torch" else "this file and fp32's alike give"
    told = [
        f"{both} {what} for {count} of {proof.samples} samples: equal, but no answer"
        for what, count in (("NaN", proof.nan_samples), ("infinity", proof.infinite_samples))
        if count
    ]
    if proof.nan_hard_samples:
        told.append(
            f"{both} NaN for {proof.nan_hard_samples} of {proof.hard_samples} hard samples (all zero, all equal, the "
            "extremes of the value range): clamp what is divided by, or the argument of a logarithm or a root"
        )
    return tuple(told)


def batches(inputs: Arrays, sizes: Sequence[int]) -> Iterator[Arrays]:
    """Cut samples into batches of each size in turn, then of the last size."""
    start, position = 0, 0
    while inputs and start < len(inputs[0]):
        size = sizes[min(position, len(sizes) - 1)]
        yield tuple(array[start : start + size] for array in inputs)
        start, position = start + size, position + 1


def spread(available: int, wanted: int) -> NDArray[np.int64]:
    """Return the indices of at most ``wanted`` samples, evenly spaced: data often lie sorted by class."""
    return np.linspace(0, available - 1, min(available, wanted)).astype(np.int64)


def samples_of(val: Arrays, train: Arrays, values_per_sample: int = 1) -> Arrays:
    """Return raw samples for a proof: of the validation split, then of the training split; never of test.

    Args:
        val: One array per input, first axis samples.
        train: The same.
        values_per_sample: Of an output; of large ones fewer samples are compared, for all are held at once.
    """
    wanted = max(FEWEST_SAMPLES, min(SAMPLES, VALUES // max(values_per_sample, 1)))
    first = spread(len(val[0]), wanted)
    more = spread(len(train[0]), wanted - len(first)) if len(first) < wanted else np.zeros(0, np.int64)
    return tuple(np.concatenate([v[first], t[more]]) for v, t in zip(val, train, strict=True))


def batch_sizes_for(path: Path) -> tuple[int, ...]:
    """Return the batch sizes that a file can be proved at."""
    return (1,) if OnnxSession(path).fixed_batch else BATCH_SIZES


def demand(parity: Parity, label: str, where: str | None = None) -> None:
    """Refuse a file that does not hold its tolerance.

    Args:
        parity: The proof.
        label: Names the file.
        where: The first layer that differs, in words, where one is found.

    Raises:
        ParityError: It does not; the message says which tolerance would pass.
    """
    if not parity.passed:
        raise ParityError(
            f"{label} differs from the PyTorch model by {parity.max_rel:.2g} relative ({parity.max_abs:.2g} "
            f"absolute) over {parity.samples} samples; {parity.tolerance:g} is allowed"
            + (f"; {where}" if where else ""),
            hint=f"export.parity_tolerance = {_next_power(parity.max_rel):g} would pass, if that much is harmless"
            if parity.max_rel <= LARGEST_HINT
            else "no tolerance should hide that much: write the part of forward that differs in another way, or try "
            "another --opset",
        )


def _next_power(value: float) -> float:
    """Return the least of 1, 2, 5 times a power of ten that is at least ``value``."""
    power = 10.0 ** np.floor(np.log10(value))
    return float(next(step * power for step in (1, 2, 5, 10) if step * power >= value))


@dataclass(frozen=True)
class _Both:
    """Two models, run side by side."""

    reference: Predict
    candidate: Predict
    precise: Predict | None
    label: str
    other: str

    def run(self, several: Iterable[Arrays], what: str) -> list[Pair]:
        pairs = []
        for batch in several:
            expected = tuple(np.asarray(array) for array in _run(self.reference, batch, self.other, what))
            actual = tuple(np.asarray(array) for array in _run(self.candidate, batch, self.label, what))
            _check_shapes(expected, actual, self.label, what)
            pairs.append(Pair(batch, expected, actual))
        self._check_finite(pairs, what)
        return pairs

    def difference(self, pairs: list[Pair], tolerance: float, *, excuse: bool) -> tuple[float, float]:
        """Return the largest absolute and the largest relative difference.

        Args:
            pairs: Batches; values are judged by the largest among them.
            tolerance: Beyond it, the reference's own rounding is looked at.
            excuse: Whether that excuses an output as a whole, too.
        """
        absolute, relative = 0.0, 0.0
        for k in pairs[0].numeric:
            expected, differences = (
                [finite(pair.expected[k]) for pair in pairs],
                [difference_of(pair, k) for pair in pairs],
            )
            if pairs[0].expected[k].dtype.kind != "f":
                share = float(np.mean([(item != 0).mean() for item in differences]))
                relative = max(relative, share if share > MISNAMED else 0.0)
                continue
            absolute = max(absolute, *(float(item.max(initial=0.0)) for item in differences))
            found = relative_difference(expected, differences)
            if found > tolerance:
                rounding = self._rounding(pairs, k)
                if rounding is not None:
                    excused = [beyond_rounding(d, r) for d, r in zip(differences, rounding, strict=True)]
                    excused = excused if excuse else differences
                    found = relative_difference(expected, excused, rounding)
            relative = max(relative, found)
        return absolute, relative

    def _rounding(self, pairs: list[Pair], k: int) -> list[Values] | None:
        """Return how far the reference is from its own result in float64; None where it cannot be run so."""
        if self.precise is None:
            return None
        try:
            exact = [np.asarray(self.precise(pair.inputs)[k]) for pair in pairs]
            return [np.abs(finite(pair.expected[k]) - finite(item)) for pair, item in zip(pairs, exact, strict=True)]
        except Exception:  # noqa: BLE001 user code that names float32 fails in float64, each in a way of its own
            return None

    def _check_finite(self, pairs: list[Pair], what: str) -> None:
        """Hold that both models give NaN and infinity in the same places, if at all."""
        for k in pairs[0].numeric if pairs else ():
            for pair in pairs:
                expected, actual = pair.expected[k].astype(np.float64), pair.actual[k].astype(np.float64)
                here, there = np.isfinite(expected), np.isfinite(actual)
                if (here & ~there).any():
                    raise ParityError(
                        f"{self.label} gives values that are not finite on {what}, where {self.other} gives numbers",
                        hint="leave this form of the file out; its arithmetic overflows where the original's does not"
                        if self.other != "the PyTorch model"
                        else "a division, a logarithm or a root loses its guard there: clamp its argument in forward, "
                        "e.g. x / norm.clamp(min=1e-8)",
                    )
                if (there & ~here).any() or not np.array_equal(expected[~here], actual[~here], equal_nan=True):
                    raise ParityError(
                        f"{self.other} gives values that are not finite on {what}, and {self.label} gives others",
                        hint="keep forward's values finite there, e.g. clamp what is divided by; both must agree",
                    )
            if what == "real samples" and not any(
                np.isfinite(pair.expected[k].astype(np.float64)).any() for pair in pairs
            ):
                raise ParityError(
                    f"{self.other} gives values that are not finite on real samples: nothing can be proved",
                    hint="look at the weights: a training that diverged leaves NaN behind",
                )


def _run(model: Predict, batch: Arrays, label: str, what: str) -> Arrays:
    try:
        return model(batch)
    except Exception as error:  # ONNX Runtime's errors have no common class, and the user's code may raise anything
        if what.startswith(OTHER_SIZE):
            raise ParityError(f"{label} cannot be run with {what}: {first_line(error)}", hint=FIXED_SIZE) from error
        raise cannot_run(label, len(batch[0]), error) from error


def cannot_run(label: str, batch: int, error: Exception) -> ParityError:
    """Return what to tell of a model that does not take a batch of some size."""
    return ParityError(
        f"{label} cannot be run with a batch of {batch}: {first_line(error)}",
        hint=SEVERAL_IN_ONE if AS_A_LIST.search(str(error)) else FIXED_BATCH + OTHER_AXIS,
    )


def _check_shapes(expected: Arrays, actual: Arrays, label: str, what: str) -> None:
    here, there = [e.shape for e in expected], [a.shape for a in actual]
    if here != there:
        other_size = what.startswith(OTHER_SIZE)
        raise ParityError(
            f"{label} gives outputs of shape {_shapes(there)} where the PyTorch model gives {_shapes(here)}"
            + (f", for {what}" if other_size else ""),
            hint=FIXED_SIZE
            if other_size
            else "the network's shapes depend on the batch size; fix that in its forward, or export with --static",
        )


def _check_names(pairs: list[Pair], label: str) -> None:
    """Hold that the best class has the same name; further down the list near ties may change places."""
    for k in set(range(len(pairs[0].expected))) - set(pairs[0].numeric):
        expected, actual = joined_batches(pairs, k)
        wrong = int((expected[:, 0] != actual[:, 0]).sum())
        if wrong > MISNAMED * len(expected):
            raise ParityError(
                f"{label} names another best class for {wrong} of {len(expected)} samples",
                hint="check that the labels are in the order of the network's outputs",
            )


def _shapes(shapes: Sequence[tuple[int, ...]]) -> str:
    return ", ".join(str(list(shape)) for shape in shapes)


def _check_meaning(pairs: list[Pair], tolerance: float, label: str, other: str) -> tuple[int, ...]:
    """Hold that the outputs vary from sample to sample, and return which of several do not."""
    constant, spreads, largest = [], [0.0], [0.0]
    samples = sum(pair.size for pair in pairs)
    for k in pairs[0].numeric:
        axis = sample_axis(pairs, k)
        first, last = pairs[0].expected[k].shape, pairs[-1].expected[k].shape
        if axis is not None:
            by_sample = joined_batches(pairs, k)[0].astype(np.float64)
        elif first == last:  # alike in shape whatever the batch
            by_sample = np.stack([pair.expected[k].astype(np.float64) for pair in pairs])
        else:  # [batch, batch]: within the largest batch
            by_sample = max(pairs, key=lambda pair: pair.size).expected[k].astype(np.float64)
        large = float(np.abs(finite(by_sample)).max(initial=0.0))
        spread = _spread(by_sample)
        spreads.append(spread)
        largest.append(large)
        if len(by_sample) < 2 or spread <= VACUOUS_TOLERANCES * min(tolerance, WIDEST_TOLERANCE) * large:
            constant.append(k)
    if len(constant) == len(pairs[0].numeric):
        raise ParityError(
            f"parity of {label} would prove nothing: {other} answers all {samples} samples alike "
            f"(outputs vary by {max(spreads):.2g}, the largest is {max(largest):.2g})",
            hint="give samples that differ: these are all the same, or one"
            if _alike(pairs)
            else "train it for longer, or give it trained weights; networks fresh from initialization often do so",
        )
    return tuple(constant)


def _alike(pairs: list[Pair]) -> bool:
    """Whether all samples are the same."""
    first = pairs[0].inputs
    return all((array == one[:1]).all() for pair in pairs for array, one in zip(pair.inputs, first, strict=True))


def _spread(by_sample: Values) -> float:
    """Return by how much the outputs vary over the samples; NaN is left out, infinity in some of them is as much."""
    known, signs = np.isfinite(by_sample), np.where(np.isinf(by_sample), np.sign(by_sample), 0.0)
    if len(by_sample) and np.ptp(signs, axis=0).any():
        return np.inf
    high = np.where(known, by_sample, -np.inf).max(axis=0, initial=-np.inf)
    low = np.where(known, by_sample, np.inf).min(axis=0, initial=np.inf)
    return float(np.maximum(high - low, 0.0).max(initial=0.0))
