import json
import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

from kdexport import results
from kdexport.bench import process
from kdexport.bench.pack import measure_on, pack, result_of
from kdexport.bench.packed import _job, _parse, unpack
from kdexport.bench.plan import Device
from kdexport.bench.runner import Outcome
from kdexport.bench.stage import BenchRequest
from kdexport.data.samples import Dataset, Split
from kdexport.errors import KDExportError
from kdexport.models.preprocessing import Preprocessing
from kdexport.onnx.describe import describe_file
from kdexport.progress import Silent
from kdexport.results import BenchResult

from .conftest import linear

ABSENT = ("torch", "onnx", "pydantic", "typer", "rich", "sklearn", "safetensors", "onnx_ir")


@pytest.fixture
def bare_python(tmp_path, monkeypatch):
    """Make this Python one that has only numpy and onnxruntime: whatever else is imported fails."""
    folder = tmp_path / "absent"
    folder.mkdir()
    for name in ABSENT:
        (folder / f"{name}.py").write_text(f"raise ImportError('{name} is not on the device')")
    (folder / "kdexport.py").write_text("raise ImportError('the installed kdexport is not on the device')")
    monkeypatch.setenv("PYTHONPATH", str(folder))
    return sys.executable


@pytest.fixture
def packed(models, once, tmp_path):
    rng = np.random.default_rng(0)
    test = Split((rng.standard_normal((50, 64)).astype(np.float32),), rng.integers(0, 10, 50))
    data = Dataset("random", ("x",), tuple("0123456789"), test, test, test, Preprocessing("none"), {})
    external = linear(tmp_path / "c.onnx", seed=3, save_as_external_data=True, location="c.data", size_threshold=0)
    files = [describe_file(models / "a.onnx"), describe_file(external)]
    out = tmp_path / "bench.pyz"
    written = pack(BenchRequest(files, once, "packed", dataset=data), out, progress=Silent())
    assert written.samples == 50
    return out, data


def run(python, *arguments):
    return subprocess.run([python, *map(str, arguments)], capture_output=True, text=True, check=False)


def test_a_pack_measures_and_scores_with_numpy_and_onnxruntime_alone(packed, bare_python, tmp_path):
    out, data = packed
    done = run(bare_python, out, "--out", tmp_path / "there.json", "--quiet", "--batch-size", 2)
    assert done.returncode == 0, done.stderr
    result = results.from_json(BenchResult, json.loads((tmp_path / "there.json").read_text()))
    assert [(one.model, one.batch_size) for one in result.measurements] == [("a", 2), ("c", 2)]
    assert [model.accuracy is not None for model in result.models] == [True, True]

    from kdexport.bench.stage import score

    folder = tmp_path
    nothing = Outcome((), (), {})
    cpu = [Device("cpu", "CPUExecutionProvider")]
    here = score([describe_file(folder / "c.onnx")], folder.parent / folder.name, data, nothing, cpu, Silent())
    assert result.models[1].accuracy == here[0].accuracy


def test_a_pack_without_onnxruntime_says_what_to_install(packed, bare_python, tmp_path):
    (tmp_path / "absent" / "onnxruntime.py").write_text("raise ImportError('no such module')")
    done = run(bare_python, packed[0])
    assert done.returncode == 1
    assert "pip install numpy onnxruntime" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("version", [(2, 7, 18), (3, 6, 9), (3, 8, 18)])
def test_a_python_that_is_too_old_is_told_in_one_line_before_anything_is_read(packed, version):
    with zipfile.ZipFile(packed[0]) as archive:
        main = archive.read("__main__.py").decode()
    older = f"import sys; sys.version_info = {version}; sys.version = '{'.'.join(map(str, version))} (old)'"
    done = subprocess.run([sys.executable, "-I", "-c", f"{older}\nexec({main!r})"], capture_output=True, text=True)
    assert done.returncode == 1
    message = f"error: Python 3.9 or newer is needed to run this, and this is Python {'.'.join(map(str, version))}\n"
    assert done.stderr == message


def test_the_device_can_say_how_long_it_measures(packed, tmp_path, monkeypatch):
    with zipfile.ZipFile(packed[0]) as archive:
        archive.extractall(tmp_path / "there")
    monkeypatch.setattr(process, "package_root", process.package_root)
    for arguments, expected in ([], 0.05), (["--max-seconds", "7.5"], 7.5):
        monkeypatch.setattr(sys, "argv", ["p.pyz", *arguments])
        assert _job(tmp_path / "there", _parse()).plan.settings.max_seconds == expected
    monkeypatch.setattr(sys, "argv", ["p.pyz", "--power-command", "watts 5V"])
    assert _job(tmp_path / "there", _parse()).plan.settings.power_command == "watts 5V"
    for wrong in ("0", "-1", "nan", "inf", "soon"):
        monkeypatch.setattr(sys, "argv", ["p.pyz", "--max-seconds", wrong])
        with pytest.raises(SystemExit):
            _parse()


def test_a_pack_on_a_device_that_is_not_there_says_so(packed, bare_python):
    done = run(bare_python, packed[0], "--device", "cuda")
    assert done.returncode == 1
    assert "device 'cuda' is not there" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_pack_holds_no_path_of_this_machine(packed, models):
    with zipfile.ZipFile(packed[0]) as archive:
        manifest = archive.read("manifest.json").decode()
    assert str(models) not in manifest
    assert str(Path.home()) + "/" not in manifest


@pytest.fixture
def fake_ssh(tmp_path, monkeypatch):
    """Put an ssh and an scp first on PATH that stay on this machine."""
    folder = tmp_path / "bin"
    folder.mkdir()
    skip = '#!/bin/sh\nwhile [ "$1" != "--" ]; do shift; done; shift\n'
    (folder / "ssh").write_text(skip + 'shift; exec sh -c "$*"\n')
    (folder / "scp").write_text(skip + 'exec cp "$1" "${2#*:}"\n')
    for name in ("ssh", "scp"):
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


def remote(models, once, python):
    files = [describe_file(models / "a.onnx")]
    return measure_on("me@there", BenchRequest(files, once, "far"), python=python, progress=Silent())


def test_another_machine_is_measured_by_ssh(models, once, fake_ssh, bare_python):
    result = remote(models, once, bare_python)
    assert result.name == "far"
    assert result.measurements[0].model == "a"


def test_a_run_there_without_a_result_is_told(models, once, fake_ssh):
    with pytest.raises(KDExportError, match="ended with code 127 and no result") as caught:
        remote(models, once, "/no/python")
    assert "--remote-python" in caught.value.hint


def test_a_host_that_cannot_be_reached_is_told(models, once, fake_ssh):
    (fake_ssh / "scp").write_text("#!/bin/sh\necho 'Could not resolve hostname' >&2; exit 255\n")
    with pytest.raises(KDExportError, match="me@there could not be reached: Could not resolve hostname"):
        remote(models, once, "python3")


@pytest.mark.parametrize("host", ["-oProxyCommand=x", "", "a b"])
def test_what_is_no_host_never_reaches_ssh(models, once, host):
    with pytest.raises(KDExportError, match="is not a host"):
        measure_on(host, BenchRequest([], once, "x"), python="python3", progress=Silent())


def test_what_runs_there_is_cleaned_up_under_a_shell_that_owns_status(models, once, fake_ssh, tmp_path):
    """As zsh does: ``status`` is read-only there."""
    skip = '#!/bin/sh\nwhile [ "$1" != "--" ]; do shift; done; shift 2\n'
    (fake_ssh / "ssh").write_text(skip + 'readonly status=0\neval "$*"\n')
    (fake_ssh / "scp").write_text(
        skip.replace("shift 2", "shift") + f'echo "${{2#*:}}" > "{tmp_path}/there"\ncp "$1" "${{2#*:}}"\n'
    )
    python = tmp_path / "my python"
    python.write_text('#!/bin/sh\n[ -s "$1" ] && exit 7\n')
    python.chmod(0o755)
    with pytest.raises(KDExportError, match="ended with code 7 and no result"):
        remote(models, once, f"'{python}'")
    assert not Path((tmp_path / "there").read_text().strip()).exists()


def test_a_pack_of_old_and_linked_files_can_be_run(models, once, tmp_path, monkeypatch):
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshot"
    blobs.mkdir()
    snapshot.mkdir()
    linear(snapshot / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    for number, name in enumerate(("m.onnx", "m.data")):
        os.utime(snapshot / name, (0, 0))  # 1970: a zip begins in 1980
        (snapshot / name).rename(blobs / str(number))
        (snapshot / name).symlink_to(blobs / str(number))
    monkeypatch.setattr("zipfile.time.localtime", lambda _=0: time.gmtime(0))  # so does the clock of a board
    out = tmp_path / "p.pyz"
    pack(BenchRequest([describe_file(snapshot / "m.onnx")], once, "x"), out, progress=Silent())
    assert os.access(out, os.X_OK)
    with zipfile.ZipFile(out) as archive:
        assert {"models/0/m.onnx", "models/0/m.data"} <= set(archive.namelist())


def test_a_damaged_pack_is_told(packed, tmp_path):
    content = packed[0].read_bytes()
    with zipfile.ZipFile(packed[0]) as archive:
        start = archive.getinfo("models/0/a.onnx").header_offset
    (tmp_path / "bad.pyz").write_bytes(content[: start + 80] + bytes(8) + content[start + 88 :])
    for name, path in ("bad.pyz", tmp_path / "bad.pyz"), ("none.pyz", tmp_path / "none.pyz"):
        with pytest.raises(KDExportError, match=f"^{name} cannot be unpacked: ") as caught:
            unpack(path, tmp_path / "there")
        assert "copy it here again" in caught.value.hint


@pytest.mark.parametrize("text", ["{", "[" * 5000, "[]", '{"plan": {"targets": 3}}', '{"plan": null}', '"\\ud800'])
def test_a_manifest_that_is_none_is_told(text, tmp_path, monkeypatch):
    monkeypatch.setattr(process, "package_root", process.package_root)
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(KDExportError, match="manifest is not what kdexport writes"):
        _job(tmp_path, _parse([]))


@pytest.mark.parametrize(("devices", "feeds"), [([3], {}), (["cpu"], {"a": "x" * 5000}), (["cpu"], {"a": 7})])
def test_a_manifest_whose_names_are_none_is_told(devices, feeds, tmp_path, monkeypatch):
    monkeypatch.setattr(process, "package_root", process.package_root)
    plan = {
        "settings": {}, "targets": [], "devices": devices, "batch_sizes": [1], "threads": [1], "provider_options": {},
    }  # fmt: skip
    (tmp_path / "manifest.json").write_text(json.dumps({"plan": plan, "feeds": feeds}))
    with pytest.raises(KDExportError, match="has no name"):
        _job(tmp_path, _parse([]))


@pytest.mark.parametrize(
    "text", ["", "{", "[" * 5000, '{"models": NaN}', '{"name": ' + "9" * 5000 + "}", "null", "\ufffd"]
)
def test_what_another_machine_sends_and_is_no_result_is_told(text):
    with pytest.raises(KDExportError, match="the benchmark on pi ended with code 3 and no result"):
        result_of(text, "pi", 3)
