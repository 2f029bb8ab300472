"""Commands that only read ONNX files and results import no PyTorch in the parent: half a gigabyte, and seconds."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

IN_TURN = """
import contextlib, json, sys
from kdexport.cli import main
for arguments in json.loads(sys.argv.pop()):
    sys.argv = ["kdexport", *arguments]
    try:
        main()
    except SystemExit as done:
        print(arguments[0], done.code, "torch" in sys.modules, file=sys.stderr)
"""


def test_reading_onnx_files_and_results_takes_no_torch(tmp_path):
    rng = np.random.default_rng(0)
    labels = np.arange(30) % 3
    weight = numpy_helper.from_array(np.eye(8, 3, dtype=np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])],
        [weight],
    )
    model, data, bench = tmp_path / "m.onnx", tmp_path / "d.npz", tmp_path / "bench.json"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), model)
    rows = 5 * np.eye(8)[labels]
    arrays = {f"x_{part}": (rows + rng.normal(size=(30, 8))).astype(np.float32) for part in ("train", "val", "test")}
    np.savez(data, **arrays, **{f"y_{part}": labels for part in ("train", "val", "test")})
    quick = ["--max-seconds", "0.05", "--min-seconds", "0.01", "--rounds", "3", "--precision", "1"]
    commands = [
        ["bench", "--help"],
        ["bench", model, "--data", f"npz:{data}", *quick, "--out", bench],
        ["evaluate", model, "--data", f"npz:{data}"],
        ["report", bench, "--out", tmp_path / "report"],
        ["export", "--describe", model],
        ["doctor"],
    ]
    listed = json.dumps([[str(word) for word in command] for command in commands])
    done = subprocess.run([sys.executable, "-c", IN_TURN, listed], capture_output=True, text=True, cwd=tmp_path)
    told = [line for line in done.stderr.splitlines() if line.endswith(("True", "False"))]
    assert told[:-1] == [f"{command[0]} 0 False" for command in commands[:-1]], done.stderr
    assert told[-1] in ("doctor 0 False", "doctor 1 False")  # it may find a fault here
    scored = json.loads(bench.read_text())["models"][0]
    assert scored["accuracy"] > 0.9


LOADING = """
import kdexport.progress
def load(module, progress):
    print(module, "torch" in sys.modules, "onnxruntime" in sys.modules, file=sys.stderr)
    raise SystemExit(0)
kdexport.progress.load = load
"""


def test_what_takes_seconds_to_load_is_told_before_it_is_loaded(tmp_path):
    recipe = Path(__file__).parents[2] / "models" / "digits" / "recipe.toml"
    network = recipe.parent / "nets.py"
    commands = [
        ["run", recipe, "--out", tmp_path / "a"],
        ["distill", recipe, "--out", tmp_path / "b"],
        ["distill", recipe, "--show-layers", "--out", tmp_path / "c"],
        ["evaluate", f"{network}:Student", "--data", "digits"],
        ["export", f"{network}:Student", "--onnx", "--data", "digits"],
    ]
    listed = json.dumps([[str(word) for word in command] for command in commands])
    code = IN_TURN.replace("from kdexport.cli", LOADING + "from kdexport.cli", 1)
    done = subprocess.run([sys.executable, "-c", code, listed], capture_output=True, text=True, cwd=tmp_path)
    told = [line for line in done.stderr.splitlines() if line.startswith("torch ")]
    assert told == ["torch False False"] * len(commands), done.stderr
