"""The proof itself, against figures worked out by hand."""

import numpy as np
import pytest

from kdexport.errors import ParityError
from kdexport.export import parity

INPUTS = (np.arange(20, dtype=np.float32).reshape(20, 1),)


def line(inputs):
    return (np.concatenate([inputs[0], -2 * inputs[0]], axis=1),)


def test_figures_are_those_worked_out_by_hand():
    def shifted(inputs):
        return (line(inputs)[0] + np.float32(0.5),)

    proof = parity.compare(line, shifted, INPUTS, tolerance=0.01)
    assert proof.max_abs == pytest.approx(0.5)
    assert proof.max_rel == pytest.approx(0.5 / 38)  # the largest value is -2 * 19
    assert not proof.passed
    assert proof.argmax_agreement == 1.0
    assert proof.samples == 20
    assert proof.batch_sizes == (1, 2, 7, 10)  # 10 are left for the batch of 64
    assert parity.compare(line, shifted, INPUTS, tolerance=0.014).passed


def test_a_failure_names_the_tolerance_that_would_pass():
    proof = parity.compare(line, lambda inputs: (line(inputs)[0] * np.float32(1.003),), INPUTS, tolerance=1e-4)
    with pytest.raises(ParityError) as caught:
        parity.demand(proof, "student.onnx")
    assert "= 0.005 would pass" in caught.value.hint


def test_no_hint_offers_to_hide_a_difference_above_a_hundredth():
    proof = parity.compare(line, lambda inputs: (line(inputs)[0] * np.float32(1.03),), INPUTS, tolerance=1e-4)
    with pytest.raises(ParityError) as caught:
        parity.demand(proof, "student.onnx")
    assert "would pass" not in caught.value.hint


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        (lambda inputs: (np.zeros((len(inputs[0]), 2)),), "answers all 20 samples alike"),
        (lambda inputs: (np.full((len(inputs[0]), 2), 7.0) + 1e-6 * inputs[0],), "answers all 20 samples alike"),
        (lambda inputs: (line(inputs)[0] * np.nan,), "not finite"),
    ],
)
def test_a_comparison_that_proves_nothing_fails(reference, message):
    with pytest.raises(ParityError, match=message):
        parity.compare(reference, reference, INPUTS, tolerance=1e-4)


def test_a_file_whose_shape_depends_on_the_batch_fails():
    with pytest.raises(ParityError, match=r"\[1, 2\], where|\[1, 2\] where"):
        parity.compare(lambda inputs: (line(inputs)[0][:, :1],), line, INPUTS, tolerance=1e-4)


def test_the_worst_output_counts():
    def two(inputs):
        return line(inputs)[0], inputs[0]

    def second_is_off(inputs):
        return line(inputs)[0], inputs[0] * np.float32(1.1)

    assert parity.compare(two, second_is_off, INPUTS, tolerance=1e-4).max_rel == pytest.approx(0.1, rel=1e-5)


def test_samples_come_from_all_over_the_data():
    """Data often lie sorted by class: the first few hundred may all be of one."""
    val, train = np.arange(1000), np.arange(1000) + 10_000
    assert parity.samples_of((val,), (train,))[0][[0, -1]].tolist() == [0, 999]
    few = parity.samples_of((val[:100],), (train,))[0]
    assert len(few) == 256
    assert few[:100].tolist() == list(range(100))
    assert few[[100, -1]].tolist() == [10_000, 10_999]


def boxes_and_scores(inputs):
    """One tensor [batch, 3 channels, 2 anchors]: a box in pixels, two scores near 0.01."""
    x = np.repeat(inputs[0][:, :, None] / 20, 2, axis=2)
    return (np.concatenate([x * 640, x * 0.01, 0.02 - x * 0.01], axis=1),)


@pytest.mark.parametrize("axis", [1, 2])
def test_a_channel_of_small_values_is_judged_by_its_own(axis):
    def right(inputs):
        return (np.moveaxis(boxes_and_scores(inputs)[0], 1, axis),)

    def no_scores(inputs):
        found = boxes_and_scores(inputs)[0].copy()
        found[:, 1:] = 0
        return (np.moveaxis(found, 1, axis),)

    proof = parity.compare(right, no_scores, INPUTS, tolerance=0.2)
    assert not proof.passed
    assert proof.max_rel == pytest.approx(1.0)
    assert parity.compare(right, right, INPUTS, tolerance=1e-6).passed


def test_rounding_of_the_references_own_excuses_a_channel_and_a_hard_sample_alone():
    """A channel of 1e-3 beside one of 38, off by 1e-5: the reference in float64 is as far away."""

    def two(inputs, off=0.0):
        return (np.concatenate([inputs[0], 1e-3 * np.cos(inputs[0]) + off], axis=1),)

    def other(inputs):
        return two(inputs, 1e-5)

    assert not parity.compare(two, other, INPUTS, tolerance=1e-4).passed
    assert parity.compare(two, other, INPUTS, tolerance=1e-4, precise=lambda inputs: two(inputs, -1e-5)).passed
    shifted = parity.compare(
        line, lambda i: (line(i)[0] + 0.5,), INPUTS, tolerance=1e-4, precise=lambda i: (line(i)[0] - 1.0,)
    )
    assert not shifted.passed  # real samples as a whole are excused by nothing


def test_hard_samples_are_judged_as_finely_as_the_reference_can_tell():
    """A norm over a flat signal: float32 is off by 2e-4 there, in the reference too; else its rounding is 1e-7."""
    flat = (np.ones((2, 1), np.float32),)

    def other(inputs):
        return (line(inputs)[0] + (0.004 if len(inputs[0]) == 2 and inputs[0][0] == 1 == inputs[0][1] else 0.0),)

    def judged(rounding):
        return parity.compare(
            line, other, INPUTS, tolerance=1e-4, hard=flat, precise=lambda i: (line(i)[0] + rounding,)
        )

    assert judged(2e-4).passed
    assert judged(2e-7).max_rel == pytest.approx(0.002, rel=0.02)  # 0.004 of 2


def test_what_is_not_finite_must_be_so_in_both():
    def guarded(inputs):
        return (np.concatenate([inputs[0], np.log(inputs[0] + 1e-9)], axis=1),)

    def bare(inputs):
        with np.errstate(divide="ignore"):
            return (np.concatenate([inputs[0], np.log(inputs[0])], axis=1),)

    hard = (np.zeros((1, 1), np.float32),)
    real = (INPUTS[0][1:],)
    assert parity.compare(guarded, guarded, real, tolerance=1e-4, hard=hard).hard_samples == 1
    assert parity.compare(bare, bare, real, tolerance=1e-4, hard=hard).passed
    with pytest.raises(ParityError, match="not finite on hard samples"):
        parity.compare(guarded, bare, real, tolerance=1e-4, hard=hard)
    with pytest.raises(ParityError, match="not finite on hard samples"):
        parity.compare(bare, guarded, real, tolerance=1e-4, hard=hard)


OUTPUTS = {
    "a scalar": lambda x: (x, np.float32(x.sum())),
    "a parameter": lambda x: (x, np.float32([1.0, 2.0])),
    "every sample with every other": lambda x: (x, x @ x.T),
    "samples on the second axis": lambda x: (x, np.stack([x, 2 * x])),
    "the same anchors for each sample": lambda x: (x, np.ones((len(x), 4, 2), np.float32)),
}


@pytest.mark.parametrize("case", OUTPUTS)
def test_outputs_without_samples_first_are_compared(case):
    def both(inputs):
        return OUTPUTS[case](inputs[0])

    def off(inputs):
        first, second = OUTPUTS[case](inputs[0])
        return first, second * np.float32(1.01)

    right = parity.compare(both, both, INPUTS, tolerance=1e-4)
    assert right.passed
    assert right.constant_outputs == ((1,) if case in ("a parameter", "the same anchors for each sample") else ())
    wrong = parity.compare(both, off, INPUTS, tolerance=1e-4)
    assert wrong.max_rel == pytest.approx(0.01, rel=1e-3)


def test_an_integer_output_may_differ_where_rounding_decides_and_no_further():
    def best(inputs, wrong=0):
        found = np.arange(400).reshape(-1, 20)[: len(inputs[0])] + inputs[0].astype(np.int64)
        found.flat[:wrong] += 1
        return inputs[0], found

    assert parity.compare(best, lambda i: best(i, 1 if len(i[0]) > 7 else 0), INPUTS, tolerance=1e-4).passed
    assert not parity.compare(best, lambda i: best(i, 9), INPUTS, tolerance=1e-4).passed


def test_nan_and_infinity_that_both_give_are_counted_and_told():
    def root(inputs, at=4.0):
        with np.errstate(invalid="ignore", divide="ignore"):
            return inputs[0], np.sqrt(inputs[0] - at), np.log(np.abs(inputs[0] - 10))

    hard = (np.stack([np.zeros(1, np.float32), np.full(1, 9, np.float32)]),)
    proof = parity.compare(root, root, INPUTS, tolerance=1e-4, hard=hard)
    assert proof.passed
    assert (proof.nan_samples, proof.infinite_samples, proof.nan_hard_samples) == (4, 1, 1)  # 0 to 3; 10; 0
    told = parity.doubts(proof)
    assert told[:2] == (
        "PyTorch and the file alike give NaN for 4 of 20 samples: equal, but no answer",
        "PyTorch and the file alike give infinity for 1 of 20 samples: equal, but no answer",
    )
    assert "NaN for 1 of 2 hard samples" in told[2]
    assert parity.doubts(parity.compare(line, line, INPUTS, tolerance=1e-4, hard=hard)) == ()


def test_nan_in_some_samples_is_no_variation_and_infinity_in_some_is():
    def constant(inputs, special):
        return (np.where(inputs[0] < 4, np.float32(special), np.float32(7)),)

    with pytest.raises(ParityError, match="alike"):
        parity.compare(lambda i: constant(i, np.nan), lambda i: constant(i, np.nan), INPUTS, tolerance=1e-4)
    proof = parity.compare(lambda i: constant(i, -np.inf), lambda i: constant(i, -np.inf), INPUTS, tolerance=1e-4)
    assert proof.infinite_samples == 4
