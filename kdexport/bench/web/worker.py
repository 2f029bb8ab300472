"""The process that drives one measured page: ``python -m kdexport.bench.web.worker``, in the place of ``bench.worker``.

It answers the same commands in the same words. It has a browser of its own, so that a page is as fresh as a process,
and ends with its parent, the browser with it. It never works while the page is timed: it waits for the page's answer.
"""

import base64
import contextlib
import json
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from kdexport.bench.web import processes
from kdexport.bench.worker import Reply, run_worker
from kdexport.errors import DeviceError

PAGE = Path(__file__).with_name("page")
WAITED = 0.05  # share of a turn that the page waited for a core: beyond, the turn's calls are not the model's alone
ONNX_TYPES = {"float32": "tensor(float)", "float64": "tensor(double)"}  # others are called alike
WEB_TYPES = {name: kind for kind, name in ONNX_TYPES.items()}
# What ONNX Runtime calls them inside, in its log, and onnxruntime-web outside.
PROVIDERS = {"CPUExecutionProvider": "wasm", "WebGpuExecutionProvider": "webgpu", "JsExecutionProvider": "webgpu"}
ALL_PLACED = re.compile(r"All nodes placed on \[(\w+)\]\. Number of nodes: (\d+)")
PLACED = re.compile(r"Node\(s\) placed on \[(\w+)\]\. Number of nodes: (\d+)")
NODE = re.compile(r"(?:^|\]) {2,}(\w+) \(")
NO_OPERATOR = re.compile(r"Could not find an implementation for (\w+)\((\d+)\)")
EXCEPTION = re.compile(r"^WasmException: (\d+)")
NO_TENSOR = re.compile(r"Can't access output tensor data on index (\d+).*non-tensor", re.DOTALL)
CREATE = re.compile(r"^Error: (failed to call OrtRun\(\)|Can't create a session)\. ERROR_CODE: \d+, ERROR_MESSAGE: ")
MEMORY = re.compile(
    r"out of memory|Array buffer allocation failed|memory access out of bounds|cannot enlarge memory",
    re.I,
)


class WebWorker:
    """A browser with one page that holds one model.

    Args:
        settings: The fields of ``WebSettings``, ``isolated`` ("true" or "false") and ``webgpu``.
    """

    commands: ClassVar[tuple[str, ...]] = ("ready", "load", "prepare", "turn", "memory", "run", "busy")

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._settings = settings
        self._closing = contextlib.ExitStack()
        self._server: Any = None
        self._page: Any = None
        self._browser_pids: list[int] = []
        self._renderer: int | None = None
        self._inputs: dict[str, dict[str, Any]] = {}
        self._told: dict[str, Any] = {}
        self._task: dict[str, Any] = {}

    def cpu_s(self) -> float:
        """Return the CPU seconds of this process and of the browser."""
        return time.process_time() + processes.cpu_seconds(self._browser_pids)

    def close(self) -> None:
        """End the browser and the server."""
        self._closing.close()

    def ready(self, task: Mapping[str, Any]) -> Reply:  # noqa: ARG002 - every command takes its task
        """Start the browser and open the page."""
        from kdexport.bench.web.server import PageServer

        if self._page is not None:
            return {}, b""
        runtime = Path(self._settings["runtime"])
        files = {file.name: file for file in [*PAGE.iterdir(), *runtime.glob("ort*.mjs"), *runtime.glob("ort*.wasm")]}
        self._server = PageServer(files, isolated=self._settings["isolated"] == "true")
        self._closing.callback(self._server.close)
        self._open(software=False)
        if self._settings["webgpu"] and not self._told["gpu"]:
            self._open(software=True)  # no GPU: the browser's own software adapter, which the measurement then says
        if not self._told["simd"]:
            raise DeviceError(
                "this browser's WebAssembly has no SIMD, which onnxruntime-web needs",
                hint="give a newer browser with --browser PATH (Chromium has it since version 91)",
            )
        if self._settings["webgpu"] and not self._told["gpu"]:
            raise DeviceError(
                "this browser offers no WebGPU here, not even in software",
                hint="give another browser with --browser PATH, or measure web:wasm",
            )
        return {}, b""

    def load(self, task: Mapping[str, Any]) -> Reply:
        """Load the model: how long it took."""
        self.ready(task)
        self._task = self._page_task(task)
        reply = self._ask("load", **self._task)
        self._inputs = {item["name"]: item for item in reply["inputs"]}
        self._watch()
        return {
            "load_ms": reply["load_ms"],
            "providers": reply["providers"],
            "placement": {},  # found out beside the memory: the log that tells it slows the loading
            "adapter": self._told["adapter"],
        }, b""

    def prepare(self, task: Mapping[str, Any]) -> Reply:
        """Make the inputs, time the first run, then run until the time per call is stable."""
        reply = self._ask("prepare", inputs=self._offered(self._feeds(task)))
        return self._prepared(reply)

    def busy(self, task: Mapping[str, Any]) -> Reply:
        """Put a loop of known length in the model's place, for a check of the clock."""
        self.ready(task)
        self._watch()
        return self._prepared(self._ask("steady", busy_ms=task["ms"]))

    def turn(self, task: Mapping[str, Any]) -> Reply:
        """Time samples for one turn; int64 nanoseconds per call follow, negative where other work had the core."""
        import numpy as np

        before, start = self._waited(), time.monotonic_ns()
        reply = self._ask("turn", budget_ns=task["budget_ns"])
        waited, spent = self._waited() - before, time.monotonic_ns() - start
        samples = np.array(reply["samples"], np.int64)
        if waited > WAITED * spent * self._threads:
            samples = -samples
        return {"calls_per_sample": reply["calls_per_sample"]}, samples.tobytes()

    def memory(self, task: Mapping[str, Any]) -> Reply:
        """Load and run the model in a browser that has done nothing else; read what it tells, and the placement."""
        loaded, _ = self.load(task)
        reply = self._ask("memory", inputs=self._offered(self._feeds(task)), runs=task["runs"], **self._task)
        return {
            **loaded,
            "peak_rss": None,
            "model": None,
            "device_peak": None,
            "wasm_heap": reply["wasm_heap"],
            "page": reply["page"],
            "placement": placement(reply["log"]),
        }, b""

    def run(self, task: Mapping[str, Any]) -> Reply:
        """Run the model once on the arrays of a file (``feed``, .npz); the outputs' bytes follow, one after another."""
        import numpy as np

        with np.load(task["feed"], allow_pickle=False) as archive:
            feeds = {name: archive[name] for name in archive.files}
        outputs = self._ask("run", inputs=self._offered(feeds))["outputs"]
        payload = [base64.b64decode(item.pop("data")) for item in outputs]
        return {"outputs": outputs}, b"".join(payload)

    @property
    def _threads(self) -> int:
        return int(self._task.get("threads", 1))

    def _prepared(self, reply: dict[str, Any]) -> Reply:
        self._watch()
        clock = {
            "name": self._settings["browser_name"],
            "version": self._settings["browser_version"],
            "clock_ms": reply["step_ms"],
            "calls_per_sample": reply["calls_per_sample"],
            "isolated": self._told["isolated"],
            "adapter": adapter_name(self._told["adapter"]),
            "software": is_software(self._told["adapter"]),
        }
        return {
            **{key: reply[key] for key in ("first_run_ms", "stable", "memory", "nan", "calls_per_sample")},
            "browser": clock,
        }, b""

    def _open(self, *, software: bool) -> None:
        """Start a browser, in the place of one that is there, and ask the page what it has."""
        from playwright.sync_api import sync_playwright

        from kdexport.bench.web import browser

        if self._page is None:
            self._playwright = self._closing.enter_context(sync_playwright())
        else:
            self._page.context.browser.close()
        webgpu = bool(self._settings["webgpu"])
        started = browser.launch(self._playwright, self._settings["browser"], webgpu=webgpu, software=software)
        self._closing.callback(_quietly, started.close)
        self._page = started.new_page()
        self._page.goto(self._server.url)  # until it is loaded, its module with it
        self._told = self._ask("ready", webgpu=webgpu)
        self._watch()

    def _ask(self, do: str, **task: Any) -> dict[str, Any]:
        try:
            reply: dict[str, Any] = self._page.evaluate("task => kdexport.command(task)", {"do": do, **task})
        except Exception as error:  # noqa: BLE001 - playwright's own classes: the page or the browser has ended
            text = str(error).splitlines()[0]
            if "crash" in text.lower() or "closed" in text.lower():
                raise RuntimeError("out of memory: the browser's page crashed, as it does where memory ends") from None
            raise RuntimeError(text) from None
        if "error" in reply:
            raise RuntimeError(reason(reply["error"], self._settings["runtime_version"]))
        return reply

    def _page_task(self, task: Mapping[str, Any]) -> dict[str, Any]:
        """Offer the model and its weights to the page, and return what it is told."""
        from kdexport.bench.session import EMPTY_MODEL
        from kdexport.onnx.describe import external_files, load_graph

        path = Path(task["path"]).absolute()
        external = []
        for position, file in enumerate(external_files(load_graph(path), path)):
            url = self._server.offer(f"weights-{position}.bin", file)
            external.append({"path": file.relative_to(path.parent).as_posix(), "url": url})
        return {
            "provider": task["provider"],
            "threads": task["threads"],
            "model": self._server.offer("model.onnx", path),
            "empty": self._server.offer("empty.onnx", EMPTY_MODEL),
            "external": external,
        }

    def _feeds(self, task: Mapping[str, Any]) -> dict[str, Any]:
        from kdexport.bench import inputs

        kinds = {name: item["kind"] for name, item in self._inputs.items()}
        shapes = {name: item["shape"] for name, item in self._inputs.items()}
        return inputs.feeds(task, kinds, shapes)

    def _offered(self, feeds: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Offer arrays to the page as raw bytes, and return what it needs to make tensors of them."""
        offered = []
        for position, (name, array) in enumerate(feeds.items()):
            kind = self._inputs[name]["kind"]
            short = WEB_TYPES.get(kind, kind.removeprefix("tensor(").removesuffix(")"))
            url = self._server.offer(f"input-{position}.bin", array.tobytes())
            offered.append({"name": name, "type": short, "dims": list(array.shape), "url": url})
        return offered

    def _watch(self) -> None:
        """Look up the browser's processes: they come and go while a page opens, and stay while it is timed."""
        self._browser_pids = processes.descendants(os.getpid())
        self._renderer = processes.renderer(self._browser_pids)

    def _waited(self) -> int:
        if self._renderer is None:
            return 0
        return processes.waited_ns(self._renderer, all_threads=self._threads > 1)


def placement(lines: list[str]) -> dict[str, dict[str, int]]:
    """Return provider -> operator -> nodes, read off the verbose log of ONNX Runtime; empty where it does not tell.

    Where all nodes lie on one provider the log does not list them: their operator is then called ``nodes``.
    """
    found: dict[str, Counter[str]] = {}
    current: Counter[str] | None = None
    for line in lines:
        if match := ALL_PLACED.search(line):
            return {PROVIDERS.get(match[1], match[1]): {"nodes": int(match[2])}}
        if match := PLACED.search(line):
            current = found.setdefault(PROVIDERS.get(match[1], match[1]), Counter())
        elif current is not None and (match := NODE.search(line)):
            current[match[1]] += 1
    return {provider: dict(operators) for provider, operators in found.items() if operators}


def reason(text: str, version: str) -> str:
    """Return in words why a page could not do something.

    Args:
        text: What it threw.
        version: Of onnxruntime-web.
    """
    if found := NO_OPERATOR.search(text):
        return (
            f"onnxruntime-web {version} has no operator {found[1]} of opset {found[2]} for this model's types: "
            "export it without that operator, or measure another runtime"
        )
    if found := NO_TENSOR.search(text):
        return (
            f"its output {found[1]} is a sequence or map, and a page of onnxruntime-web {version} reads tensors alone: "
            "export it without that output (scikit-learn's: zipmap=False)"
        )
    if found := EXCEPTION.match(text):
        return f"out of memory: WASM ended with exception {found[1]}, mostly memory that ran out (4 GiB at most)"
    if "SafeInt" in text and "Integer overflow" in text:
        return "out of memory: a tensor's size is beyond the 4 GiB that WASM can address"
    short = CREATE.sub("", text)
    return f"out of memory: {short}" if MEMORY.search(short) and not short.startswith("out of memory") else short


def adapter_name(adapter: Mapping[str, Any] | None) -> str | None:
    """Return what the browser says of the GPU behind WebGPU; None without WebGPU."""
    if not adapter:
        return None
    words = [str(adapter[key]) for key in ("vendor", "architecture", "device", "description") if adapter.get(key)]
    return " ".join(dict.fromkeys(words)) or "not told"


def is_software(adapter: Mapping[str, Any] | None) -> bool | None:
    """Return whether the adapter is no GPU; None without WebGPU, or where the browser says nothing of it."""
    if not adapter:
        return None
    text = (adapter_name(adapter) or "").lower()
    if adapter.get("fallback") or any(word in text for word in ("swiftshader", "llvmpipe", "lavapipe", "basic render")):
        return True
    return None if text == "not told" else False


def _quietly(close: Any) -> None:
    with contextlib.suppress(Exception):  # it has ended already
        close()


def main() -> None:
    """Drive a page as stdin says; arguments: the parent's process id, the settings as JSON."""
    run_worker(WebWorker(json.loads(sys.argv[2])))


if __name__ == "__main__":
    main()
