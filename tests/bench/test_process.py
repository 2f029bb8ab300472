import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from kdexport.bench.process import Child, ChildError
from kdexport.errors import KDExportError

from .conftest import save, value

HEAVY = ("torch", "onnx", "pydantic", "typer", "rich", "sklearn")


def task(path, **more):
    shapes = {"x": [1, 64]}
    return {
        "path": str(path),
        "provider": "CPUExecutionProvider",
        "provider_options": {},
        "threads": 1,
        "shapes": shapes,
        "batch_size": 1,
        "below": {},
        "file": None,
        **more,
    }


def test_a_worker_loads_prepares_and_measures(models):
    with Child("a", 60) as child:
        loaded, _ = child.ask(do="load", **task(models / "a.onnx"))
        assert loaded["placement"] == {"CPUExecutionProvider": {"Gemm": 1}}
        assert loaded["load_ms"] > 0
        prepared, _ = child.ask(do="prepare", **task(models / "a.onnx"))
        assert prepared["first_run_ms"] > 0
        _, payload = child.ask(do="turn", budget_ns=5_000_000)
        assert len(payload) % 8 == 0
        assert len(payload) > 8 * 30


def test_the_parent_sleeps_while_its_child_runs(models):
    with Child("a", 60) as child:
        child.ask(do="load", **task(models / "a.onnx"))
        child.ask(do="prepare", **task(models / "a.onnx"))
        before = time.process_time()
        child.ask(do="turn", budget_ns=500_000_000)
        assert time.process_time() - before < 0.1


def test_the_peak_is_the_childs_own_not_its_parents(models):
    ballast = bytearray(300 << 20)
    ballast[::4096] = b"x" * len(ballast[::4096])
    with Child("a", 60) as child:
        reply, _ = child.ask(do="memory", runs=2, **task(models / "a.onnx"))
    assert reply["peak_rss"] < 150
    assert reply["model"] < 30


def test_a_killed_worker_is_told_by_its_signal(models):
    with Child("a", 60) as child:
        child.ask(do="load", **task(models / "a.onnx"))
        child.ask(do="prepare", **task(models / "a.onnx"))
        threading.Timer(0.2, os.kill, (child.pid, signal.SIGKILL)).start()
        with pytest.raises(ChildError, match="killed by SIGKILL"):
            child.ask(do="turn", budget_ns=20_000_000_000)


def test_a_worker_that_hangs_is_ended(tmp_path):
    pipe = tmp_path / "never.onnx"
    os.mkfifo(pipe)  # whoever opens it to read waits for ever
    start = time.monotonic()
    with Child("never", 1.0) as child, pytest.raises(ChildError, match=r"no answer within 1 s \(--timeout\)"):
        child.ask(do="load", **task(pipe))
    assert time.monotonic() - start < 10


def test_what_the_user_can_mend_keeps_its_hint(models, tmp_path):
    with Child("a", 60) as child:
        child.ask(do="load", **task(models / "a.onnx"))
        np_file = tmp_path / "in.npz"
        np.savez(np_file, other=np.zeros(3))
        with pytest.raises(KDExportError, match="holds no array 'x'"):
            child.ask(do="prepare", **task(models / "a.onnx", file=str(np_file)))


def test_a_worker_ends_with_its_parent():
    code = (
        "from kdexport.bench.process import Child\n"
        "import os\n"
        "child = Child('a', 60); child.ready(); print(child.pid, flush=True); os._exit(9)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    pid = int(done.stdout)
    for _ in range(100):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        # A zombie whose new parent never waits still has an entry; it has ended all the same.
        if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
            return
        time.sleep(0.05)
    pytest.fail("the worker outlived its parent")


def test_the_worker_imports_nothing_heavy(models):
    code = (
        "import sys, io, json\n"
        "from kdexport.bench import worker\n"
        f"task = {task(models / 'a.onnx')!r}\n"
        "lines = [json.dumps({'do': do, **task}).encode() for do in ('load', 'prepare')]\n"
        "out = io.BytesIO(); worker.serve(io.BytesIO(b'\\n'.join(lines) + b'\\n'), out)\n"
        "assert b'error' not in out.getvalue(), out.getvalue()\n"
        "print(' '.join(sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(HEAVY) & set(done.stdout.split())


ENDLESS_PARENT = """
import sys
from kdexport.bench.process import Child
child = Child("m", 600)
task = {"path": sys.argv[1], "provider": "CPUExecutionProvider", "provider_options": {}, "threads": 1,
        "shapes": {"x": [1]}, "batch_size": 1, "below": {}, "file": None}
child.ask(do="load", **task)
child.send(do="prepare", **task)
print(child.pid, flush=True)
child.answer()
"""


def endless(path):
    """A loop of 10^18 turns."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["going"], ["still"]), helper.make_node("Relu", ["x_in"], ["x_out"])],
        "body",
        [
            value("i", TensorProto.INT64, []),
            value("going", TensorProto.BOOL, []),
            value("x_in", TensorProto.FLOAT, [1]),
        ],
        [value("still", TensorProto.BOOL, []), value("x_out", TensorProto.FLOAT, [1])],
    )
    turns = {"turns": np.array(10**18), "going_in": np.array(True)}
    loop = helper.make_node("Loop", ["turns", "going_in", "x"], ["y"], body=body)
    return save(path, [loop], [value("x", TensorProto.FLOAT, [1])], [value("y", TensorProto.FLOAT, [1])], turns)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_worker_in_a_model_that_never_returns_ends_with_its_parent(tmp_path, how):
    command = [sys.executable, "-c", ENDLESS_PARENT, str(endless(tmp_path / "endless.onnx"))]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    worker = int(parent.stdout.readline())
    time.sleep(0.2)
    parent.send_signal(how)
    parent.wait()
    parent.stdout.close()
    for _ in range(100):
        state = Path(f"/proc/{worker}/stat")
        if not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.05)
    os.kill(worker, signal.SIGKILL)
    pytest.fail("it lives on")


def test_outputs_that_are_nothing_but_nan_or_infinity_are_named(tmp_path):
    nodes = [
        helper.make_node("Sub", ["x", "x"], ["zero"]),
        helper.make_node("Div", ["zero", "zero"], ["lost"]),
        helper.make_node("Log", ["zero"], ["infinite"]),
        helper.make_node("Relu", ["x"], ["kept"]),
    ]
    outputs = [value(name, TensorProto.FLOAT, ["n", 64]) for name in ("lost", "infinite", "kept")]
    path = save(tmp_path / "m.onnx", nodes, [value("x", TensorProto.FLOAT, ["n", 64])], outputs)
    with Child("m", 60) as child:
        child.ask(do="load", **task(path))
        assert child.ask(do="prepare", **task(path))[0]["nan"] == ["lost", "infinite"]


def test_outputs_whose_size_changes_from_run_to_run_are_measured(tmp_path):
    nodes = [
        helper.make_node("RandomUniformLike", ["x"], ["r"]),
        helper.make_node("Greater", ["r", "half"], ["g"]),
        helper.make_node("NonZero", ["g"], ["y"]),
    ]
    inputs, outputs = [value("x", TensorProto.FLOAT, ["n", 64])], [value("y", TensorProto.INT64, None)]
    path = save(tmp_path / "m.onnx", nodes, inputs, outputs, {"half": np.float32(0.5)})
    with Child("m", 60) as child:
        child.ask(do="memory", runs=3, **task(path))
        child.ask(do="prepare", **task(path))
        _, payload = child.ask(do="turn", budget_ns=5_000_000)
        assert len(payload) > 8


def test_no_process_lets_onnx_runtime_send_anything(models):
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"  # set before onnxruntime was imported here
    with Child("a", 60) as child:
        child.ask(do="ready")
        assert b"ORT_DISABLE_TELEMETRY=1" in Path(f"/proc/{child.pid}/environ").read_bytes().split(b"\0")
