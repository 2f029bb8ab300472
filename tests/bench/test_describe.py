import shutil

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from kdexport.bench.stage import plan_for
from kdexport.errors import KDExportError
from kdexport.onnx.describe import describe_file, integer_limits
from kdexport.recipe import Bench

from .conftest import linear, save, value


def test_a_bare_file_says_what_it_is(models):
    found = describe_file(models / "a.onnx")
    assert found.name == "a"
    assert found.parameters == 64 * 10 + 10
    assert found.size_bytes == (models / "a.onnx").stat().st_size
    assert found.opset == 17
    assert found.inputs == {"x": ["batch", 64]}
    assert found.operators == {"Gemm": 1}
    assert found.precision == "fp32"
    assert found.macs is None  # nothing says so: not measured


def test_precision_is_read_off_the_graph(models, tmp_path):
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(models / "a.onnx", tmp_path / "q.onnx")
    assert describe_file(tmp_path / "q.onnx").precision == "int8-dynamic"


def test_token_ids_stay_below_the_tables_rows(models):
    assert integer_limits(models / "ids.onnx") == {"ids": 50}
    assert integer_limits(models / "a.onnx") == {}


def external(folder):
    linear(folder / "m.onnx", features=256, save_as_external_data=True, location="m.data", size_threshold=0)
    return folder / "m.onnx"


def test_external_weights_count_and_must_be_there(tmp_path):
    path = external(tmp_path)
    assert describe_file(path).size_bytes > 256 * 10 * 4
    (tmp_path / "m.data").unlink()
    with pytest.raises(KDExportError, match=r"keeps its weights in m.data, which is not there"):
        describe_file(path)


@pytest.mark.parametrize("elsewhere", ["../m.data", "/etc/hostname"])
def test_external_weights_outside_the_folder_are_refused(tmp_path, elsewhere):
    folder = tmp_path / "inner"
    folder.mkdir()
    path = external(folder)
    shutil.copy(folder / "m.data", tmp_path / "m.data")
    model = onnx.load(str(path), load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = elsewhere
    path.write_bytes(model.SerializeToString())
    with pytest.raises(KDExportError, match="outside its own folder"):
        describe_file(path)


def test_what_is_not_onnx_is_told(models, tmp_path):
    whole = (models / "a.onnx").read_bytes()
    for name, content in (("cut", whole[: len(whole) // 2]), ("text", b"import torch\n"), ("empty", b"")):
        path = tmp_path / f"{name}.onnx"
        path.write_bytes(content)
        with pytest.raises(KDExportError, match=r"not ONNX|no ONNX graph"):
            describe_file(path)
    with pytest.raises(KDExportError, match="there is no file"):
        describe_file(tmp_path / "absent.onnx")


def test_weights_in_half_precision_make_an_fp16_file(tmp_path):
    path = linear(tmp_path / "m.onnx")
    model = onnx.load(str(path))
    for tensor in model.graph.initializer:
        half = onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor).astype(np.float16), tensor.name)
        tensor.CopyFrom(half)
    onnx.save(model, str(path))
    assert describe_file(path).precision == "fp16"


def test_a_model_in_the_cache_of_the_hub_is_links_to_blobs(tmp_path):
    """snapshots/x/m.onnx -> ../../blobs/1, m.data likewise: the data lie beside the link, not beside its target."""
    from kdexport.bench.session import open_session

    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "x"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    external(snapshot)
    for number, name in enumerate(("m.onnx", "m.data")):
        (snapshot / name).rename(blobs / str(number))
        (snapshot / name).symlink_to(f"../../blobs/{number}")
    found = describe_file(snapshot / "m.onnx")
    assert found.name == "m"
    assert found.size_bytes > 256 * 10 * 4
    (target,) = plan_for([found], Bench()).targets
    assert target.path == str(snapshot / "m.onnx")
    open_session(target.path, "CPUExecutionProvider", {}, 1)  # the runtime follows the links too


def test_a_link_to_data_elsewhere_is_refused(tmp_path):
    folder = tmp_path / "inner"
    folder.mkdir()
    path = external(folder)
    (folder / "m.data").rename(tmp_path / "m.data")
    (folder / "m.data").symlink_to("../m.data")
    with pytest.raises(KDExportError, match="outside its own folder"):
        describe_file(path)


def outside(name: str) -> onnx.TensorProto:
    tensor = onnx.TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="../elsewhere")
    return tensor


@pytest.mark.parametrize("where", ["body", "attribute", "function", "sparse"])
def test_external_weights_are_found_wherever_they_hide(tmp_path, where):
    path = linear(tmp_path / "m.onnx")
    model = onnx.load(str(path))
    constant = helper.make_node("Constant", [], ["c"], value=outside("c"))
    if where == "body":
        body = helper.make_graph([helper.make_node("Identity", ["w"], ["z"])], "body", [], [], [outside("w")])
        model.graph.node.append(helper.make_node("If", ["x"], ["z"], then_branch=body, else_branch=body))
    elif where == "attribute":
        model.graph.node.append(constant)
    elif where == "function":
        model.functions.append(helper.make_function("d", "f", [], ["c"], [constant], [helper.make_opsetid("", 17)]))
    else:
        model.graph.sparse_initializer.append(onnx.SparseTensorProto(values=outside("s"), dims=[4]))
    path.write_bytes(model.SerializeToString())
    with pytest.raises(KDExportError, match="outside its own folder"):
        describe_file(path)


@pytest.mark.parametrize("suffix", ["json", "txt", "onnxtxt", "textproto"])
def test_the_name_of_a_file_does_not_choose_how_it_is_read(tmp_path, suffix):
    path = tmp_path / f"bench.{suffix}"
    path.write_text('{"models": []}')
    with pytest.raises(KDExportError, match=r"not ONNX|no ONNX graph"):
        describe_file(path)


def test_external_weights_that_are_cut_off_or_renamed_are_told_with_what_helps(tmp_path):
    path = external(tmp_path)
    whole = (tmp_path / "m.data").read_bytes()
    (tmp_path / "m.data").write_bytes(whole[:1000])
    with pytest.raises(KDExportError, match=r"m\.data, which is cut off: it holds 1,000 of [\d,]+ bytes"):
        describe_file(path)
    (tmp_path / "m.data").write_bytes(whole)
    path.rename(tmp_path / "net.onnx")
    (tmp_path / "m.data").rename(tmp_path / "net.onnx.data")
    with pytest.raises(KDExportError, match="which is not there") as caught:
        describe_file(tmp_path / "net.onnx")
    assert "rename that file to m.data" in caught.value.hint


def whole_numbers(path, nodes, names, kind=TensorProto.INT64):
    inputs = [value(name, kind, ["batch", 4]) for name in names]
    table = {"table": np.ones((50, 4), np.float32)}
    return save(path, nodes, inputs, [value("y", TensorProto.FLOAT, None)], table)


def test_integer_inputs_that_nothing_bounds_are_named_with_the_way_to_give_them(tmp_path):
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"]),
        helper.make_node("Cast", ["steps"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Cast", ["attention_mask"], ["float_mask"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["float", "float_mask"], ["sum"]),
        helper.make_node("Add", ["rows", "sum"], ["y"]),
    ]
    path = whole_numbers(tmp_path / "m.onnx", nodes, ["ids", "steps", "attention_mask"])
    assert integer_limits(path) == {"ids": 50, "steps": None}
    (target,) = plan_for([describe_file(path)], Bench()).targets
    assert target.below == {"ids": 50}
    (warning,) = target.warnings
    assert warning.startswith("integer input 'steps' holds 1 everywhere")
    assert "--input FILE.npz" in warning
    np.savez(tmp_path / "in.npz", ids=np.zeros((1, 4), np.int64))
    assert plan_for([describe_file(path)], Bench(), inputs_file=tmp_path / "in.npz").targets[0].warnings == ()


@pytest.mark.parametrize("how", ["Constant", "Cast", "DequantizeLinear"])
def test_token_ids_are_bounded_by_tables_in_other_forms(tmp_path, how):
    made = {
        "Constant": [
            helper.make_node("Constant", [], ["t"], value=onnx.numpy_helper.from_array(np.ones((30, 4), np.float32)))
        ],
        "Cast": [helper.make_node("Cast", ["table"], ["t"], to=TensorProto.FLOAT16)],
        "DequantizeLinear": [
            helper.make_node("QuantizeLinear", ["one", "one"], ["unused"]),
            helper.make_node("DequantizeLinear", ["table", "one"], ["t"]),
        ],
    }[how]
    path = whole_numbers(tmp_path / "m.onnx", [*made, helper.make_node("Gather", ["t", "ids"], ["y"])], ["ids"])
    assert integer_limits(path) == {"ids": 30 if how == "Constant" else 50}


def test_dimensions_below_one_are_dynamic(tmp_path):
    path = linear(tmp_path / "m.onnx")
    model = onnx.load(str(path))
    for size in (0, -1):
        model.graph.input[0].type.tensor_type.shape.dim[0].Clear()
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = size
        path.write_bytes(model.SerializeToString())
        assert describe_file(path).inputs == {"x": ["?", 64]}
        plan_for([describe_file(path)], Bench(batch_sizes=(3,)))
