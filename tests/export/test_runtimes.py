"""The table of runtimes, held against the one that is installed."""

import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from kdexport.errors import KDExportError
from kdexport.onnx import runtimes


def loads(opset, ir):
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir)
    try:
        onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    except Exception:  # noqa: BLE001
        return False
    return True


def test_the_installed_runtime_reads_what_the_table_says():
    installed = tuple(int(part) for part in onnxruntime.__version__.split(".")[:2])
    reads = runtimes.RUNTIMES[max(known for known in runtimes.RUNTIMES if known <= installed)]
    assert loads(reads.opset, reads.ir)


def test_a_file_is_written_so_that_the_requested_runtime_reads_it():
    for release, reads in runtimes.RUNTIMES.items():
        wanted = runtimes.for_runtime(f"{release[0]}.{release[1]}.2")
        assert wanted.opset <= reads.opset
        assert wanted.ir <= reads.ir


def test_the_oldest_runtime_is_the_converse():
    assert runtimes.oldest_runtime(18, 8, {}) == "1.14"
    assert runtimes.oldest_runtime(18, 10, {}) == "1.18"  # the IR version alone rules the older ones out
    assert runtimes.oldest_runtime(17, 8, {"MatMulNBits": 3}) == "1.17"
    assert runtimes.oldest_runtime(99, 8, {}) is None


def test_ir_versions_are_those_that_onnx_gives_its_opsets():
    known = {opset: ir for _, ir, opset, *_ in onnx.helper.VERSION_TABLE}
    assert {opset: known[opset] for opset in runtimes.IR_OF_OPSET} == runtimes.IR_OF_OPSET


@pytest.mark.parametrize("version", ["1.9", "0.5.0", "newest", ""])
def test_a_runtime_that_is_too_old_or_none_is_an_error(version):
    with pytest.raises(KDExportError, match="no file can be written"):
        runtimes.for_runtime(version)
