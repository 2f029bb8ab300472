"""Files timed against each other in short, and where."""

from pathlib import Path

import pytest
from onnx import TensorProto, helper, save

from kdexport.bench.comparison import Comparison
from kdexport.errors import DeviceError
from kdexport.recipe import Bench


def file(path: Path, count: int) -> Path:
    """Write a chain of Erf operators, each over 20,000 numbers."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 20_000]) for name in ("v0", f"v{count}")]
    nodes = [helper.make_node("Erf", [f"v{at}"], [f"v{at + 1}"], name=f"erf{at}") for at in range(count)]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)
    return path


def test_a_file_of_eight_times_the_work_takes_eight_times_as_long(tmp_path: Path) -> None:
    comparison = Comparison(Bench(devices=("cpu", "web:wasm"), threads=(1, 2), batch_sizes=(2, 8)))
    on = comparison.on
    assert (on.device, on.threads, on.batch_size) == ("cpu", 1, 2)
    files = {"short": file(tmp_path / "a.onnx", 2), "long": file(tmp_path / "b.onnx", 16)}
    turns, failures = comparison.turns(files, rounds=1, seconds=0.2)
    assert not failures
    assert {name: len(rounds) for name, rounds in turns.items()} == {"short": 1, "long": 1}
    ratios = sorted(b / a for a, b in zip(turns["short"][0], turns["long"][0], strict=False))
    assert 6 < ratios[len(ratios) // 2] < 10
    profile = comparison.profile(files["short"], 1.0)
    assert profile is not None
    assert sorted(one.name for one in profile.operators) == ["erf0", "erf1"]


def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(DeviceError, match="gpu9"):
        Comparison(Bench(devices=("gpu9",)))
