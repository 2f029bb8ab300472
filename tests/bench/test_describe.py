import shutil

import numpy as np
import onnx
import pytest

from kdexport.bench.describe import describe_file, integer_limits
from kdexport.errors import KDExportError

from .conftest import linear


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
