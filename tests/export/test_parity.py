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
    proof = parity.compare(line, lambda inputs: (line(inputs)[0] * np.float32(1.03),), INPUTS, tolerance=1e-4)
    with pytest.raises(ParityError) as caught:
        parity.demand(proof, "student.onnx")
    assert "= 0.05 would pass" in caught.value.hint


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
