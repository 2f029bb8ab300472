"""What a browser needs to be measured in, and what comes out of its page: without a browser."""

import io
import json
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from kdexport.bench import devices
from kdexport.bench.plan import Plan, Settings, Target, WebSettings
from kdexport.bench.warnings import in_words
from kdexport.bench.web import browser, processes, runtime, worker
from kdexport.bench.web.devices import is_web, resolve, threads_on, web_device
from kdexport.errors import DeviceError, KDExportError

PAGE = Path(worker.__file__).with_name("page")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def package(path: Path, left_out: str = "") -> str:
    """Write what npm would; returns its sha256."""
    with tarfile.open(path, "w:gz") as archive:
        for name in runtime.FILES:
            if name != left_out:
                entry = tarfile.TarInfo(f"package/dist/{name}")
                entry.size = len(name)
                archive.addfile(entry, io.BytesIO(name.encode()))
        evil = tarfile.TarInfo("../../evil")
        evil.size = 1
        archive.addfile(evil, io.BytesIO(b"x"))
    return runtime.sha256(path)


def npm(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "npm").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_npm_brings_the_runtime_once_and_a_changed_file_is_noticed(tmp_path, cache, monkeypatch) -> None:
    digest = package(tmp_path / "web.tgz")
    monkeypatch.setitem(runtime.SHA256, runtime.VERSION, digest)
    npm(tmp_path / "bin", f'echo "$@" >> {tmp_path}/calls; cp {tmp_path}/web.tgz .', monkeypatch)
    found = runtime.find()
    assert found.folder.is_relative_to(cache)
    assert {file.name for file in found.folder.iterdir()} == {*runtime.FILES, runtime.HASHES, "package.json"}
    assert runtime.find() == runtime.cached() == runtime.find(found.folder) == found
    assert (tmp_path / "calls").read_text() == f"pack onnxruntime-web@{runtime.VERSION} --silent\n"
    assert not list(tmp_path.rglob("evil"))
    (found.folder / runtime.FILES[0]).write_text("changed")
    assert runtime.cached() is None
    assert runtime.find() == found
    assert (found.folder / runtime.FILES[0]).read_text() == runtime.FILES[0]


def test_what_npm_brings_is_refused_where_it_is_another(tmp_path, cache, monkeypatch) -> None:
    package(tmp_path / "web.tgz")
    npm(tmp_path / "bin", f"cp {tmp_path}/web.tgz .", monkeypatch)
    with pytest.raises(KDExportError, match="is not what was published"):
        runtime.find()
    assert runtime.cached() is None
    assert not list(cache.rglob("*.wasm"))


def test_npm_that_fails_or_is_absent_is_said(tmp_path, cache, monkeypatch) -> None:
    npm(tmp_path / "bin", "echo 'npm error code ENOTFOUND' >&2; exit 1", monkeypatch)
    with pytest.raises(DeviceError, match=r"npm does not bring .* ENOTFOUND"):
        runtime.find()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DeviceError, match="npm, which brings it, is not on PATH") as fault:
        runtime.find()
    assert "--web-runtime DIR" in fault.value.hint


def test_a_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    dist = tmp_path / "package" / "dist"
    dist.mkdir(parents=True)
    for name in runtime.FILES[:-1]:
        (dist / name).write_bytes(b"x")
    with pytest.raises(KDExportError, match=rf"holds no {runtime.FILES[-1]}"):
        runtime.find(tmp_path / "package")
    (dist / runtime.FILES[-1]).write_bytes(b"x")
    assert runtime.find(dist).version.startswith("sha256:")
    (tmp_path / "package" / "package.json").write_text('{"name": "onnxruntime-web", "version": "1.2.3"}')
    assert runtime.find(tmp_path / "package") == runtime.Runtime(dist, "1.2.3")


def test_a_model_beyond_what_wasm_can_address_is_refused(tmp_path, models, monkeypatch) -> None:
    monkeypatch.setattr(runtime, "WASM_BYTES", 1000)
    with pytest.raises(KDExportError, match="a is too large for a browser"):
        runtime.check_size("a", models / "a.onnx")


def test_no_address_of_a_registry_is_written_anywhere() -> None:
    for file in (*Path(runtime.__file__).parent.rglob("*.*"), Path(__file__).parents[3] / "pyproject.toml"):
        if file.suffix in (".py", ".js", ".html", ".toml"):
            assert not any(word in file.read_text() for word in ("npm" + "js", "jsdelivr", "unpkg")), file


def test_a_browser_is_found_by_what_it_says_of_itself(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(browser, "NAMES", ("chromium-x", "edge-x"))
    monkeypatch.setattr(browser, "APPLICATIONS", ())
    with pytest.raises(DeviceError, match="no browser was found"):
        browser.find()
    for name, said in (("chromium-x", "no such library"), ("edge-x", "Microsoft Edge 130.0.1 unknown")):
        (tmp_path / name).write_text(f"#!/bin/sh\necho '{said}'\n")
        (tmp_path / name).chmod(0o755)
    assert browser.find() == browser.Browser(tmp_path / "edge-x", "Microsoft Edge", "130.0.1")
    assert browser.find("edge-x") == browser.find(str(tmp_path / "edge-x"))
    with pytest.raises(DeviceError, match="there is no such program"):
        browser.find(str(tmp_path / "nothing"))
    with pytest.raises(DeviceError, match="does not say that it is Chromium"):
        browser.find("true")


def test_playwright_is_asked_for_by_name(monkeypatch) -> None:
    monkeypatch.setattr(browser.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(DeviceError, match="playwright, which is not installed") as fault:
        browser.check_playwright()
    assert "kdexport[web]" in fault.value.hint


def test_devices_of_a_browser_have_names_and_threads() -> None:
    wasm, threads, gpu = devices.find(["web", "web:wasm-threads", "web:wasm", "web:webgpu"], [], {})
    assert (wasm.name, wasm.provider, gpu.provider) == ("web:wasm", "wasm", "webgpu")
    assert (wasm.options["isolated"], threads.options["isolated"]) == ("false", "true")
    assert all(map(is_web, (wasm, threads, gpu)))
    assert (threads_on(wasm, (1, 2)), threads_on(gpu, (4,)), threads_on(threads, (1, 2, 3))) == ((1,), (1,), (2, 3))
    assert threads_on(threads, (1,))[0] in (2, 3, 4)
    with pytest.raises(DeviceError, match="a browser takes no provider options: a"):
        devices.find(["web"], [], {"a": "b"})
    with pytest.raises(DeviceError) as fault:
        web_device("web:webgp")
    assert "did you mean 'web:webgpu'?" in fault.value.hint
    with pytest.raises(DeviceError, match="there is no device called 'wbe'") as fault:
        devices.find(["wbe"], [], {})
    assert "did you mean 'web'?" in fault.value.hint


def test_a_plan_without_a_browser_is_left_as_it_is_and_one_with_is_resolved(
    tmp_path, models, cache, monkeypatch
) -> None:
    target = Target("a", str(models / "a.onnx"), {"x": ["batch", 64]})
    plan = Plan((target,), Settings(), ("cpu",))
    assert resolve(plan, devices.find(("cpu",), ["CPUExecutionProvider"], {})) is plan
    (tmp_path / "chromium").write_text("#!/bin/sh\necho Chromium 1.2\n")
    (tmp_path / "chromium").chmod(0o755)
    for name in runtime.FILES:
        (tmp_path / name).write_bytes(b"x")
    web = WebSettings(str(tmp_path / "chromium"), str(tmp_path))
    found = resolve(Plan((target,), Settings(web=web), ("web",)), [web_device("web")]).settings.web
    assert (found.browser_name, found.browser_version, found.runtime) == ("Chromium", "1.2", str(tmp_path))


LOG = [
    "[V:onnxruntime:, session_state.cc:1377 VerifyEachNodeIsAssignedToAnEp] Node placements",
    "[V:onnxruntime:, session_state.cc:1380 VerifyEachNodeIsAssignedToAnEp]  Node(s) placed on "
    "[WebGpuExecutionProvider]. Number of nodes: 2",
    "[V:onnxruntime:, session_state.cc:1384 VerifyEachNodeIsAssignedToAnEp]   Conv (conv1)",
    "[V:onnxruntime:, session_state.cc:1384 VerifyEachNodeIsAssignedToAnEp]   Conv (conv 2)",
    "[V:onnxruntime:, session_state.cc:1380 VerifyEachNodeIsAssignedToAnEp]  Node(s) placed on "
    "[CPUExecutionProvider]. Number of nodes: 1",
    "[V:onnxruntime:, session_state.cc:1384 VerifyEachNodeIsAssignedToAnEp]   NonZero (n)",
    "[V:onnxruntime:, session_state.cc:186 CreateGraphInfo] SaveMLValueNameIndexMapping",
]


def test_placement_is_read_off_the_log_or_not_known() -> None:
    assert worker.placement(LOG) == {"webgpu": {"Conv": 2}, "wasm": {"NonZero": 1}}
    whole = ["x] Node placements", "x]  All nodes placed on [CPUExecutionProvider]. Number of nodes: 7"]
    assert worker.placement(whole) == {"wasm": {"nodes": 7}}
    assert worker.placement([]) == worker.placement(["Session successfully initialized."]) == {}


def test_what_a_page_throws_is_said_in_words() -> None:
    create = "Error: Can't create a session. ERROR_CODE: 9, ERROR_MESSAGE: "
    text = f"{create}Could not find an implementation for NonMaxSuppression(11) node with name 'n'"
    assert "onnxruntime-web 1.2 has no operator NonMaxSuppression of opset 11" in worker.reason(text, "1.2")
    assert worker.reason("WasmException: 6524176", "1").startswith("out of memory: WASM ended with exception 6524176")
    overflow = "/x/safeint.h:17 static void SafeIntExceptionHandler<E>::SafeIntOnOverflow() Integer overflow\n"
    run = f"Error: failed to call OrtRun(). ERROR_CODE: 1, ERROR_MESSAGE: {overflow}"
    assert in_words(worker.reason(run, "1"), 2).startswith(
        "batch size 2 does not fit in memory (out of memory: a tensor"
    )
    sequence = "Can't access output tensor data on index 1. ERROR_CODE: 9, ERROR_MESSAGE: Reading data from non-tensor"
    assert "its output 1 is a sequence or map" in worker.reason(f"Error: {sequence} typed value", "1.2")
    assert worker.reason("RangeError: Array buffer allocation failed", "1").startswith("out of memory")
    assert worker.reason(f"{create}Got invalid dimensions", "1") == "Got invalid dimensions"


def test_a_software_adapter_is_known_as_one() -> None:
    swift = {"vendor": "google", "architecture": "swiftshader", "device": "", "description": "", "fallback": False}
    assert (worker.adapter_name(swift), worker.is_software(swift)) == ("google swiftshader", True)
    assert worker.is_software({"vendor": "intel", "architecture": "xe", "fallback": True}) is True
    assert worker.is_software({"vendor": "apple", "architecture": "metal-3", "fallback": False}) is False
    hidden = dict.fromkeys(("vendor", "architecture", "device", "description"), "")
    assert (worker.adapter_name(hidden), worker.is_software(hidden)) == ("not told", None)
    assert worker.adapter_name(None) is worker.is_software(None) is None


def test_processes_are_counted_with_those_that_they_started(tmp_path: Path) -> None:
    tick = os.sysconf("SC_CLK_TCK")
    for pid, parent, kind in (
        (1, 0, ""),
        (2, 1, "--type=zygote"),
        (3, 2, "--type=renderer"),
        (4, 2, "--type=renderer"),
    ):
        folder = tmp_path / str(pid)
        (folder / "task" / str(pid)).mkdir(parents=True)
        (folder / "task" / "99").mkdir()
        fields = ["S", str(parent), *["0"] * 9, str(pid * tick), "0", "0", "0"]
        (folder / "stat").write_text(f"{pid} (a ) b) {' '.join(fields)}\n")
        (folder / "cmdline").write_bytes(f"chromium\0{kind}\0".encode())
        (folder / "task" / str(pid) / "schedstat").write_text("1 20 3\n")
        (folder / "task" / "99" / "schedstat").write_text("1 5 3\n")
    assert sorted(processes.descendants(1, tmp_path)) == [2, 3, 4]
    assert processes.cpu_seconds([2, 3, 77], tmp_path) == 5.0
    assert processes.renderer([2, 3, 4], tmp_path) == 4
    assert processes.waited_ns(4, all_threads=False, proc=tmp_path) == 20
    assert processes.waited_ns(4, all_threads=True, proc=tmp_path) == 25
    assert processes.waited_ns(77, all_threads=False, proc=tmp_path) == 0


CLOCK = """
globalThis.navigator ??= {};
let now = 0;
const step = Number(process.argv[2]), call = Number(process.argv[3]);
performance.now = () => { now += 0.0003; return Math.floor(now / step) * step; };
await import(process.argv[1]);
const ask = (task) => globalThis.kdexport.command(task);
const run = async () => { now += call; };
const ready = await ask({ do: "ready" });
const warm = await ask({ do: "steady", run });
const turns = [];
for (let turn = 0; turn < 20; turn += 1) turns.push(...(await ask({ do: "turn", budget_ns: 2e7 })).samples);
console.log(JSON.stringify({ step: ready.step_ms, warm, turns }));
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="no node on PATH, which runs the page's own clock code here")
@pytest.mark.parametrize(
    ("step", "call"), [(0.1, 0.0137), (0.1, 0.37), (0.1, 6.3), (0.005, 0.02), (1.0, 0.05), (16.7, 3.0)]
)
def test_a_coarse_clock_measures_a_known_call_to_two_percent(step: float, call: float) -> None:
    done = subprocess.run(
        ["node", "--input-type=module", "-e", CLOCK, (PAGE / "measure.js").as_uri(), str(step), str(call)],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    found = json.loads(done.stdout)
    assert found["step"] == pytest.approx(step, rel=0.01)
    calls = found["warm"]["calls_per_sample"]
    assert calls * call >= 50 * step * 0.97
    assert calls == 1 or calls * call <= 55 * step + call
    assert found["warm"]["stable"]
    assert found["turns"]
    for sample in found["turns"]:
        assert sample == pytest.approx(call * 1e6, rel=0.021)


def test_a_run_whose_browser_is_absent_ends_before_it_trains(tmp_path: Path) -> None:
    from kdexport import pipeline
    from kdexport.progress import Silent
    from kdexport.recipe import Recipe

    recipe = Recipe.load(Path(__file__).parents[3] / "models" / "digits" / "recipe.toml")
    recipe = recipe.model_copy(
        update={"bench": recipe.bench.model_copy(update={"devices": ("web",), "browser": "nope"})}
    )
    with pytest.raises(DeviceError, match="--browser nope: there is no such program"):
        pipeline.run(recipe, out=tmp_path / "run", progress=Silent())
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_what_says_of_the_runtime_is_damaged(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = runtime.cache_folder()
    folder.mkdir(parents=True)
    for name in runtime.FILES:
        (folder / name).write_bytes(b"x")
    for text in ("[" * 5000, "3", "{"):
        (folder / runtime.HASHES).write_text(text)
        (folder / "package.json").write_text(text)
        assert runtime.cached() is None
        assert runtime.find(folder).version.startswith("sha256:")
