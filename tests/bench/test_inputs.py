import numpy as np
import pytest

from kdexport.bench import inputs
from kdexport.data import npz_files
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


def test_inputs_beyond_the_memory_are_refused_before_they_are_made():
    with pytest.raises(MemoryError, match=r"need 3\.7 GiB"):
        inputs.check_fits({"x": (1_000_000_000,)}, {"x": "tensor(float)"}, available_mib=1000)


def test_real_inputs_are_repeated_to_the_batch(tmp_path):
    path = tmp_path / "in.npz"
    np.savez(path, x=np.arange(6, dtype=np.float32).reshape(3, 2))
    shapes = {"x": ["batch", 2], "y": ["batch"]}
    fed = inputs.from_file(str(path), {"x": "tensor(float)"}, shapes, 4)
    assert fed["x"].tolist() == [[0, 1], [2, 3], [4, 5], [0, 1]]
    with pytest.raises(KDExportError, match="holds no array 'y'"):
        inputs.from_file(str(path), {"y": "tensor(float)"}, shapes, 4)
    with pytest.raises(KDExportError, match="is float32, but the model takes") as caught:
        inputs.from_file(str(path), {"x": "tensor(int64)"}, shapes, 4)
    assert "int64" in caught.value.hint


def test_only_the_batch_of_real_inputs_is_cut_or_repeated(tmp_path):
    path = tmp_path / "in.npz"
    arrays = {
        "x": np.arange(6, dtype=np.float32).reshape(3, 2),
        "state": np.arange(6, dtype=np.float32).reshape(1, 3, 2),
        "scale": np.ones(4, np.float32),
        "past": np.ones((3, 0), np.float32),
        "flag": np.array(7, np.float32),
    }
    np.savez(path, **arrays)
    shapes = {"x": ["n", 2], "state": [1, "n", 2], "scale": [4], "past": ["n", "length"], "flag": []}
    fed = inputs.from_file(str(path), dict.fromkeys(arrays, "tensor(float)"), shapes, 2)
    assert {name: array.shape for name, array in fed.items()} == {
        "x": (2, 2), "state": (1, 2, 2), "scale": (4,), "past": (2, 0), "flag": ()
    }  # fmt: skip
    assert fed["state"].tolist() == [[[0, 1], [2, 3]]]


@pytest.mark.parametrize("shape", [[4, 2], ["batch", 5], ["batch"], [3, 2, 1]])
def test_real_inputs_of_another_shape_are_refused(tmp_path, shape):
    path = tmp_path / "in.npz"
    np.savez(path, x=np.zeros((3, 2), np.float32))
    with pytest.raises(KDExportError, match=r"'x' has the shape \[3, 2\], but the model takes"):
        inputs.from_file(str(path), {"x": "tensor(float)"}, {"x": shape}, 3)


def test_a_file_of_anything_else_is_no_fault_of_the_model(tmp_path):
    objects, single = tmp_path / "objects.npz", tmp_path / "single.npy"
    np.savez(objects, x=np.array(["a", None]))
    np.save(single, np.zeros(2))
    for path in (objects, single, tmp_path / "absent.npz"):
        with pytest.raises(KDExportError, match=r"is not an \.npz file with arrays of numbers"):
            inputs.from_file(str(path), {"x": "tensor(float)"}, {"x": ["batch"]}, 1)


@pytest.mark.parametrize("kind", ["tensor(string)", "seq(tensor(float))", "tensor(bfloat16)"])
def test_a_type_that_cannot_be_bound_is_refused_without_advice_that_does_not_help(tmp_path, kind):
    path = tmp_path / "in.npz"
    np.savez(path, x=np.array(["a"]))
    for feed in (
        lambda: inputs.values((1,), kind, None),
        lambda: inputs.from_file(str(path), {"x": kind}, {"x": ["batch"]}, 1),
    ):
        with pytest.raises(KDExportError, match=r"cannot be measured: ONNX Runtime binds tensors of numbers") as caught:
            feed()
        assert "--input" not in caught.value.hint


def test_the_batch_is_the_batch_wherever_it_stands():
    rnn = {"x": ["batch", "steps", 8], "h0": [2, "batch", 64]}
    assert inputs.resolve_shapes(rnn, 4, {"steps": 3}, model="m") == {"x": (4, 3, 8), "h0": (2, 4, 64)}
    with pytest.raises(KDExportError, match="--dim batch: that axis is the batch"):
        inputs.check_dims([rnn], {"batch": 3})
    inputs.check_dims([rnn, {"x": ["steps", 8]}], {"steps": 3})  # the batch of one can be an axis of another


LSTM = {"x": ["seq_len", "batch", 8]}


@pytest.mark.parametrize(
    ("given", "axis", "found"),
    [
        (LSTM, None, {"x": (1,)}),
        ({"x": ["batch_size", "seq"]}, None, {"x": (0,)}),
        ({"x": ["T", "N", 8]}, None, {"x": (1,)}),  # PyTorch's letters
        ({"x": ["time", "dynamic_batch", 8], "h": [2, "dynamic_batch", 4]}, None, {"x": (1,), "h": (1,)}),
        ({"h": [2, "batch", 4], "x": ["batch", 3]}, None, {"h": (1,), "x": (0,)}),
        ({"x": [50, "batch", 8]}, None, {"x": (1,)}),  # a fixed axis leads
        ({"x": ["seq_len", 8]}, None, {"x": ()}),  # one sample a call
        ({"x": ["unk__1", "height x"]}, None, {"x": (0,)}),
        ({"x": [-1, 8], "t": []}, None, {"x": (0,), "t": ()}),
        ({"x": [0, 3, 0, 0]}, None, {"x": (0,)}),
        ({"x": ["s0", "s1"], "mask": ["s0", "s1"]}, None, {"x": (0,), "mask": (0,)}),
        ({"x": [1, 3, 8, 8], "scale": [4]}, None, {"x": (0,), "scale": ()}),
        ({"n": ["num_nodes", 16], "e": [2, "num_edges"]}, "num_nodes", {"n": (0,), "e": ()}),
        (LSTM, "seq_len", {"x": (0,)}),
        ({"x": [50, 4, 8], "h": [2, 4, 16]}, "1", {"x": (1,), "h": (1,)}),
        ({"x": [50, 4, 8], "len": [4], "in:0": [4, 3]}, "x:1, len:0,in:0:0", {"x": (1,), "len": (0,), "in:0": (0,)}),
    ],
)
def test_the_batch_axis_is_the_one_that_its_name_or_the_user_says(given, axis, found):
    assert inputs.batch_axes(given, axis) == found


def test_sequence_first_is_sized_by_its_batch():
    assert inputs.resolve_shapes(LSTM, 4, {"seq_len": 50}, model="m") == {"x": (50, 4, 8)}
    with pytest.raises(KDExportError, match=r"axis 0 of input 'x' is dynamic \('seq_len'\)"):
        inputs.resolve_shapes(LSTM, 4, {}, model="m")
    fixed = {"x": [50, 4, 8]}
    assert inputs.resolve_shapes(fixed, 4, {}, model="m", batch_axis="1") == {"x": (50, 4, 8)}
    with pytest.raises(KDExportError, match="fixed to 4; batch size 50"):
        inputs.resolve_shapes(fixed, 50, {}, model="m", batch_axis="1")


def test_where_no_axis_is_the_batch_a_call_is_one_sample():
    assert inputs.resolve_shapes({"x": ["frames", 8]}, 1, {"frames": 9}, model="m") == {"x": (9, 8)}
    with pytest.raises(KDExportError, match=r"m has no axis for a batch \(its inputs are x \[frames, 8\]\)") as caught:
        inputs.resolve_shapes({"x": ["frames", 8]}, 2, {"frames": 9}, model="m")
    assert "--batch-axis" in caught.value.hint


def test_axes_without_a_name_are_sized_by_their_place():
    images = {"in:0": [0, 3, -1, "?"]}
    sized = inputs.resolve_shapes(images, 2, {"in:0:2": 8, "in:0:3": 9}, model="m")
    assert sized == {"in:0": (2, 3, 8, 9)}
    inputs.check_dims([images], {"in:0:2": 8})
    with pytest.raises(KDExportError, match="axis 2 of input 'in:0' is dynamic and has no value") as caught:
        inputs.resolve_shapes(images, 2, {}, model="m")
    assert "--dim in:0:2=64" in caught.value.hint
    with pytest.raises(KDExportError, match="--dim in:0:0: that axis is the batch"):
        inputs.check_dims([images], {"in:0:0": 8})


@pytest.mark.parametrize("axis", ["batsch", "3", "y:0", "x:9", "x:one"])
def test_a_batch_axis_that_is_not_there(axis):
    with pytest.raises(KDExportError, match=f"--batch-axis {axis}: m has no such axis; its inputs are x") as caught:
        inputs.batch_axes(LSTM, axis, model="m")
    assert "batch, seq_len" in caught.value.hint


def test_real_inputs_are_repeated_along_the_requested_batch(tmp_path):
    np.savez(tmp_path / "in.npz", x=np.arange(6, dtype=np.float32).reshape(3, 2, 1))
    kinds, path = {"x": "tensor(float)"}, str(tmp_path / "in.npz")
    fed = inputs.from_file(path, kinds, {"x": ["seq_len", "batch", 1]}, 4)["x"]
    assert fed[..., 0].tolist() == [[0, 1, 0, 1], [2, 3, 2, 3], [4, 5, 4, 5]]
    assert inputs.from_file(path, kinds, {"x": ["a", "b", 1]}, 1, "b")["x"].shape == (3, 1, 1)


def test_an_axis_without_a_value_names_the_flag_and_the_recipes_key() -> None:
    with pytest.raises(KDExportError) as caught:
        inputs.resolve_shapes({"ids": ("batch", "length")}, 1, {}, model="m")
    assert "--dim length=64" in caught.value.hint
    assert '[bench] dims = { "length" = 64 }' in caught.value.hint


def test_damaged_and_hostile_files_of_inputs_are_told(tmp_path, monkeypatch):
    monkeypatch.setattr(npz_files, "SPARE_BYTES", 1 << 20)
    whole, bomb, wide = tmp_path / "whole.npz", tmp_path / "bomb.npz", tmp_path / "wide.npz"
    np.savez_compressed(whole, x=np.ones((2, 3), np.float32))
    np.savez_compressed(bomb, x=np.zeros((600_000,), np.float32))
    np.savez(wide, x=np.ones(3, np.float32))
    wide.write_bytes(wide.read_bytes().replace(b"(3,), }", b"(9**9,)")[:-4])
    content = whole.read_bytes()
    cut = [content[:length] for length in range(0, len(content), 19)]
    changed = [content[:at] + bytes([content[at] ^ 255]) + content[at + 1 :] for at in range(0, len(content), 19)]
    for number, data in enumerate([*cut, *changed, bomb.read_bytes(), wide.read_bytes()]):
        path = tmp_path / f"{number}.npz"
        path.write_bytes(data)
        told = None
        try:
            made = inputs.from_file(str(path), {"x": "tensor(float)"}, {"x": ["n", 3]}, 2)
        except KDExportError as error:
            told = error
        if told is None:
            assert made["x"].shape == (2, 3)
        else:
            assert told.hint
            assert "allow_pickle" not in told.message
