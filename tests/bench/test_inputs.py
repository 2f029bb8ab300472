import numpy as np
import pytest

from kdexport.bench import inputs
from kdexport.errors import KDExportError

IMAGES = {"x": ["batch", 3, "height", "width"]}


def test_the_batch_needs_no_value_and_other_axes_do():
    assert inputs.resolve_shapes(IMAGES, 4, {"height": 8, "width": 9}, model="m") == {"x": (4, 3, 8, 9)}
    with pytest.raises(KDExportError, match="axis 3 of input 'x' is dynamic \\('width'\\)") as caught:
        inputs.resolve_shapes(IMAGES, 4, {"height": 8}, model="m")
    assert "--dim width=" in caught.value.hint


def test_a_fixed_batch_is_not_measured_as_another():
    assert inputs.resolve_shapes({"x": [1, 3]}, 1, {}, model="m") == {"x": (1, 3)}
    with pytest.raises(KDExportError, match="fixed to 1; batch size 8") as caught:
        inputs.resolve_shapes({"x": [1, 3]}, 8, {}, model="m")
    assert "--batch-size 1" in caught.value.hint


def test_a_fixed_batch_is_seen_beside_another_dynamic_axis():
    with pytest.raises(KDExportError, match="fixed to 1; batch size 8"):
        inputs.resolve_shapes({"ids": [1, "sequence"]}, 8, {"sequence": 5}, model="m")


def test_the_batch_is_not_a_dim():
    with pytest.raises(KDExportError, match="--dim batch: that axis is the batch") as caught:
        inputs.check_dims([IMAGES], {"batch": 3})
    assert "--batch-size 3" in caught.value.hint


def test_an_unknown_axis_is_told_with_the_near_one():
    with pytest.raises(KDExportError) as caught:
        inputs.check_dims([IMAGES], {"widht": 3})
    assert "did you mean 'width'?" in caught.value.hint


@pytest.mark.parametrize("kind", sorted(inputs.DTYPES))
def test_values_have_the_type_and_stay_in_range(kind):
    made = inputs.values((5, 7), kind, below=11)
    assert made.shape == (5, 7)
    assert made.dtype == inputs.DTYPES[kind]
    if np.issubdtype(made.dtype, np.integer):
        assert made.min() >= 0
        assert made.max() < 11
    if np.issubdtype(made.dtype, np.floating):
        assert np.abs(made.astype(np.float64)).max() < 2
        assert made.astype(np.float64).std() == pytest.approx(1, abs=0.2)


def test_integers_of_unknown_meaning_are_ones_and_pixels_use_their_range():
    assert (inputs.values((3,), "tensor(int64)", None) == 1).all()
    assert inputs.values((1000,), "tensor(uint8)", None).max() > 250


def test_a_type_that_cannot_be_made_up_is_told():
    with pytest.raises(KDExportError, match=r"tensor\(string\)"):
        inputs.values((1,), "tensor(string)", None)


def test_inputs_beyond_the_memory_are_refused_before_they_are_made():
    with pytest.raises(MemoryError, match=r"need 3\.7 GiB"):
        inputs.check_fits({"x": (1_000_000_000,)}, {"x": "tensor(float)"}, available_mib=1000)


def test_real_inputs_are_repeated_to_the_batch(tmp_path):
    path = tmp_path / "in.npz"
    np.savez(path, x=np.arange(6, dtype=np.float32).reshape(3, 2))
    fed = inputs.from_file(str(path), {"x": "tensor(float)"}, 4)
    assert fed["x"].tolist() == [[0, 1], [2, 3], [4, 5], [0, 1]]
    with pytest.raises(KDExportError, match="holds no array 'y'"):
        inputs.from_file(str(path), {"y": "tensor(float)"}, 4)
    with pytest.raises(KDExportError, match="is float32, but the model takes") as caught:
        inputs.from_file(str(path), {"x": "tensor(int64)"}, 4)
    assert "int64" in caught.value.hint
