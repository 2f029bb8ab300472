"""kdexport's own files that ``fuzz.py`` damages: graphs with metadata, a run's and a search's files, packs, uploads."""

import json
import shutil
import socket
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from fuzz_kinds import Kind

SESSION = "s1"


def _onnx(path: Path) -> object:
    from kdexport.models.fitted_data import as_files_say
    from kdexport.onnx.describe import describe, describe_file, integer_limits
    from kdexport.recipe import Data

    as_files_say(Data(source="table:x.csv"), None, [path])
    return describe_file(path), describe(path), integer_limits(path)


def _scored(path: Path) -> object:
    """Load a graph and run it on data, as ``kdexport evaluate`` does."""
    from kdexport.data.datasets import load_data
    from kdexport.models.predictors import load_predictor
    from kdexport.recipe import Data, Student

    data = load_data(Data(source="digits"), 0, path.parent / "cache")
    return load_predictor(Student(model=str(path)), data).predict(tuple(item[:3] for item in data.test.inputs))


def _saved_weights(path: Path) -> object:
    """Read weights that a run has written: also what they say of a pruned network and of its output."""
    from torch import nn

    from kdexport.models.pruned import carve, plan_in
    from kdexport.models.weights import load_weights, postprocessing_in

    network = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    postprocessing_in(path)
    plan = plan_in(path)
    if plan is not None:
        carve(network, plan, path.name)
    return load_weights(network, path)


def _weights_with_metadata(folder: Path) -> list[bytes]:  # noqa: ARG001
    from safetensors.torch import save
    from torch import nn

    from kdexport.models.pruned import METADATA, Plan
    from kdexport.models.weights import POSTPROCESSING
    from kdexport.results import Pruned, PrunedLayer, to_json
    from kdexport.tasks.postprocessing import Postprocessing

    whole = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3)).state_dict()
    state = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 3)).state_dict()
    shapes: dict[str, tuple[int, ...]] = {name: tuple(value.shape) for name, value in state.items()}
    layers = (PrunedLayer("0", "Linear", (16, 8), (12, 8)), PrunedLayer("2", "Linear", (3, 16), (3, 12)))
    summary = Pruned("magnitude", 4, 0.7, 0.7, 0.25, 195, 147, 176, 132, layers)
    plan = to_json(Plan({}, shapes, {"0": {"out_features": 12}, "2": {"in_features": 12}}, summary))
    scale = Postprocessing("scale", mean=(0.5, 1.0, 2.0), std=(1.0, 2.0, 3.0))
    texts = [{METADATA: json.dumps(plan)}, {POSTPROCESSING: json.dumps(to_json(scale))}]
    return [save(state, {**texts[0], **texts[1]}), save(whole, texts[1])]


def _benches(path: Path) -> object:
    from kdexport.cli.report import _of_page
    from kdexport.report.reading import read_benches, read_report
    from kdexport.report.stage import report, write_report

    write_report(report(read_benches(str(path), _of_page)), path.parent / "report")
    return read_report(path) if "recording" not in path.parents[1].name else None


def _finished_run(name: str, reads: Callable[[Path], object]) -> Kind:
    """One file of a finished run is damaged: what reads it, and now and then the whole ``kdexport run`` again."""

    def damaged(path: Path) -> Path:
        run = path.parent / "run"
        if not run.is_dir():
            shutil.copytree(path.parents[2] / "run", run)
        shutil.copyfile(path, run / name)
        return run

    def whole(path: Path) -> object:
        import kdexport
        from kdexport.recipe import Recipe

        run = damaged(path)
        return kdexport.run(Recipe.load(path.parents[2] / "run" / "recipe.toml"), out=run)

    suffix = Path(name).suffix
    form = "json" if suffix == ".json" else "bytes"
    label = Path(name).stem
    return Kind(label, suffix, _of_run(name), lambda path: reads(damaged(path)), form, whole)


def _metrics(run: Path) -> object:
    from kdexport.artifacts import read_epochs

    return [line["phase"] for line in read_epochs(run / "metrics.jsonl")]


def _distilled(run: Path) -> object:
    from kdexport.artifacts import RunDirectory
    from kdexport.cli.export_request import distilled_in
    from kdexport.results import DistillResult
    from kdexport.stage_cache import done

    record = run / "distill.json"
    return done(record, str((_document(record) or {}).get("key")), DistillResult), distilled_in(RunDirectory(run))


def _trained(run: Path) -> object:
    """Ask whether the student is trained, as the phase does that would train it."""
    from kdexport.results import TrainedNetwork
    from kdexport.stage_cache import done, is_done

    record = run / "checkpoints/student/done.json"
    key = str((_document(record) or {}).get("key"))
    return is_done(record, key), done(record, key, TrainedNetwork)


def _exported(run: Path) -> object:
    """Take the models that an export.json names: to measure them, and to know what is exported already."""
    from kdexport.artifacts import RunDirectory
    from kdexport.bench.stage import plan_for
    from kdexport.cli.bench_request import _models
    from kdexport.export.stage import _earlier
    from kdexport.recipe import Bench

    _earlier(RunDirectory(run))
    return plan_for(_models(run), Bench(), folder=run)


def _document(path: Path) -> dict[str, Any] | None:
    from kdexport.artifacts import read_json

    return read_json(path)


def _tiny_run(folder: Path) -> Path:
    """Make a run of digits, once for all kinds."""
    import kdexport
    from kdexport.recipe import Recipe

    run = folder.parents[1] / "run"
    if not (run / "report.json").is_file():
        source = Path(__file__).parents[1] / "models" / "digits" / "recipe.toml"
        short = ["teacher.train.epochs=1", "distill.epochs=1", "bench.max_seconds=0.1", "bench.min_seconds=0.05"]
        kdexport.run(
            Recipe.load(source, [*short, "require={}", "export.quantize=[]", "distill.baseline=false"]), out=run
        )
    return run


def _of_run(name: str) -> Callable[[Path], list[bytes]]:
    return lambda folder: [next(_tiny_run(folder).glob(name)).read_bytes()]


def _graphs(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(_tiny_run(folder).glob("*.onnx"))]


# A search's files.


def _search(folder: Path) -> Path:
    """Make a search of two candidates of digits, once."""
    import kdexport
    from kdexport.recipe import Recipe

    made = folder.parents[1] / "search"
    if not (made / "search.json").is_file():
        source = Path(__file__).parents[1] / "models" / "digits" / "recipe.toml"
        short = [
            "teacher.train.epochs=1", "distill.epochs=1", "require={}", "export.quantize=[]",
            f'search={{budget={{drop=0.9}},trials=2,space=[{{model="{source.with_name("nets.py")}:Student",args={{width=[8,16]}}}}]}}',
        ]  # fmt: skip
        kdexport.search(Recipe.load(source, short), out=made)
    return made


def _study(path: Path) -> object:
    from kdexport.recipe import Recipe
    from kdexport.search.candidates import measured_of
    from kdexport.search.study import Study, storage_faults

    folder = path.parent / "study"
    folder.mkdir(exist_ok=True)
    for own in (path.parents[2] / "search" / name for name in ("recipe.toml", ".search")):
        shutil.copyfile(own, folder / own.name)
    shutil.copyfile(path, folder / "study.db")
    recipe = Recipe.load(path.parents[2] / "search" / "recipe.toml")
    with storage_faults():
        entries = Study(recipe, folder, _study_key(path.parents[2] / "search"), maximize=True).entries()
    return [measured_of(entry) for entry in entries if entry.measured]


@cache
def _study_key(search: Path) -> dict[str, str]:
    from kdexport.recipe import Recipe
    from kdexport.search.context import study_key

    return study_key(Recipe.load(search / "recipe.toml"))


def _finals(path: Path) -> object:
    from types import SimpleNamespace

    from kdexport.search.final import FINALS, _known_finals

    folder = path.parent / "finals"
    folder.mkdir(exist_ok=True)
    shutil.copyfile(path, folder / FINALS)
    return _known_finals(SimpleNamespace(root=folder), [SimpleNamespace(number=number) for number in range(2)])  # type: ignore[arg-type, list-item]


# What comes from other machines: results of packs, packs themselves, recordings of pages, requests to a page's server.


def _fetched(path: Path) -> object:
    from kdexport.bench.pack import result_of
    from kdexport.report.stage import report
    from kdexport.results import dumps

    dumps(result := result_of(path.read_text(encoding="utf-8", errors="replace"), "pi@board", 0))
    return report((result,))


def _pack(path: Path) -> object:
    """Unpack and plan, as a pack does when it is run; measuring itself is ``bench``'s."""
    from kdexport.bench import packed
    from kdexport.data.npz_files import read_arrays

    place = path.parent / "unpacked"
    shutil.rmtree(place, ignore_errors=True)
    packed.unpack(path, place)
    job = packed._job(place, packed._parse([]))
    feeds = {str(digest) for digest in job.manifest["feeds"].values()}
    return [packed.samples_in(read_arrays(place / "data" / f"{digest}.npz"), "classification") for digest in feeds]


def _packs(folder: Path) -> list[bytes]:
    from kdexport.bench.pack import pack
    from kdexport.progress import Silent

    pack(_request(folder), folder / "bench.pyz", progress=Silent())
    small = folder / "small.pyz"  # without the code: what is in it is run, not read
    with zipfile.ZipFile(folder / "bench.pyz") as whole, zipfile.ZipFile(small, "w", zipfile.ZIP_DEFLATED) as made:
        for entry in whole.infolist():
            if not entry.filename.startswith(("kdexport/", "__main__")):
                made.writestr(entry, whole.read(entry))
    return [small.read_bytes()]


def _request(folder: Path) -> Any:
    from kdexport.bench.stage import BenchRequest
    from kdexport.bench.web import runtime
    from kdexport.data.datasets import load_data
    from kdexport.onnx.describe import describe_file
    from kdexport.recipe import Bench, Data

    held = folder / "runtime"
    held.mkdir(parents=True, exist_ok=True)
    for name in runtime.FILES:
        (held / name).write_bytes(name.encode())
    (held / "package.json").write_text('{"name": "onnxruntime-web", "version": "1.2.3"}')
    models = [describe_file(path) for path in sorted(_tiny_run(folder).glob("*.onnx"))]
    data = load_data(Data(source="digits"), 0, folder / "cache")
    settings = Bench(web_runtime=str(held), batch_sizes=(1, 3))
    return BenchRequest(models, settings, "two", dataset=data, recipe={"name": "two"})


@cache
def _site(folder: Path) -> Any:
    from kdexport.bench.web import site

    return site.build(_request(folder), SESSION, sends=True)


def _recordings(folder: Path) -> list[bytes]:
    plan = _site(folder).document
    part = {
        "load_ms": 3.0, "first_run_ms": 1.5, "stable": True, "nan": [], "calls_per_sample": 4, "clock_ms": 0.1,
        "turns": [[1_000_000 + 1000 * number for number in range(8)] for _ in range(2)],
    }  # fmt: skip
    log = ["All nodes placed on [CPUExecutionProvider]. Number of nodes: 1"]
    results = [
        {
            "model": model["name"], "device": plan["devices"][0], "batch_size": batch, "threads": 1, "failure": None,
            "memory": {"wasm_heap": 16.0, "page": None}, "placement_log": log, "rounds": [part] * 3,
        }
        for model in plan["models"] for batch in (1, 3)
    ]  # fmt: skip
    device = {
        "id": "0123456789abcdef01234567", "name": "My phone", "platform": "Android", "platform_version": "14.0.0",
        "agent": "Mozilla/5.0 (Linux; Android 10; K) AppleWebKit/537.36 Chrome/141.0.0.0 Mobile Safari/537.36",
        "model": "Pixel 7", "cores": 8, "secure": False, "isolated": False, "simd": True, "adapter": None,
    }  # fmt: skip
    whole = {
        "format": "kdexport recording", "version": 1, "session": SESSION, "started": "2026-11-26T04:00:00.000Z",
        "complete": True, "device": device, "results": results,
    }  # fmt: skip
    failed = {**results[1], "failure": "Error: out of memory", "rounds": []}
    return [json.dumps(one).encode() for one in (whole, {**whole, "complete": False, "results": [results[0], failed]})]


def _recording_files(folder: Path) -> list[bytes]:
    plan = _site(folder).document
    return [json.dumps({**json.loads(one), "plan": plan}).encode() for one in _recordings(folder)]


def _upload(path: Path) -> object:
    """Send a body to what receives it; what was taken becomes a result, as soon as its device is done or silent."""
    from kdexport.bench.web.serve import Devices
    from kdexport.errors import KDExportError
    from kdexport.progress import Silent
    from kdexport.results import dumps

    devices = Devices(_site(path.parents[1] / "seed").document, Silent())
    status, answer = devices.receive(path.read_bytes())
    json.dumps(answer).encode()
    if status != 200:
        raise KDExportError(answer["error"], hint=str(status))
    results: list[Any] = []
    devices.wait(0.0, 1, lambda result, _: results.append(result), lambda: 0.0)
    return [dumps(result) for result in results]


def _requested(path: Path) -> object:
    """Send the bytes of a request to a page's server over a socket; it answers, and goes on to answer others."""
    from kdexport.errors import KDExportError

    server, faults = _server(path.parents[1] / "seed")
    answer = _answer(
        server.port,
        path.read_bytes().replace(b"TOKEN", server._token.encode()).replace(b":PORT", f":{server.port}".encode()),
    )
    if faults:
        raise faults.pop()
    alive = _answer(
        server.port,
        f"GET /{server._token}/ HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nConnection: close\r\n\r\n".encode(),
    )
    if not alive.startswith(b"HTTP/1.1 200"):
        raise RuntimeError(f"the server does not go on: {alive[:60]!r}")
    if not answer.startswith(b"HTTP/1.1 2"):
        raise KDExportError(answer[:60].decode("latin-1") or "no answer", hint="refused")
    return answer


def _answer(port: int, request: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=15) as line:
        try:
            line.sendall(request)
            line.shutdown(socket.SHUT_WR)
            return b"".join(iter(lambda: line.recv(65536), b""))
        except OSError:  # it was cut off
            return b""


@cache
def _server(folder: Path) -> Any:
    from kdexport.bench.web.connections import LimitedServer
    from kdexport.bench.web.serve import Devices
    from kdexport.bench.web.server import PageServer
    from kdexport.progress import Silent

    faults: list[BaseException] = []

    def handle_error(self: Any, request: Any, client_address: Any) -> None:  # noqa: ARG001
        import sys

        if isinstance(fault := sys.exc_info()[1], BaseException):
            faults.append(fault)

    LimitedServer.handle_error = handle_error  # type: ignore[method-assign]
    site = _site(folder)
    receivers = {"recording": Devices(site.document, Silent()).receive}
    files = {**site.files, "plan.json": json.dumps(site.document).encode()}
    return PageServer(files, isolated=False, receivers=receivers), faults


def _requests(folder: Path) -> list[bytes]:
    body = _recordings(folder)[0]
    head = b"POST /TOKEN/recording HTTP/1.1\r\nHost: 127.0.0.1:PORT\r\n"
    head += b"Content-Type: application/json\r\nConnection: close\r\n"
    return [
        head + b"Content-Length: %d\r\n\r\n" % len(body) + body,
        b"GET /TOKEN/plan.json HTTP/1.1\r\nHost: 127.0.0.1:PORT\r\nConnection: close\r\n\r\n",
    ]


def _runtime(path: Path) -> object:
    """Read what says whether the kept onnxruntime-web is whole, and which version a given one is."""
    import os

    from kdexport.bench.web import runtime

    os.environ["XDG_CACHE_HOME"] = str(path.parent / "cache")
    folder = runtime.cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    for name in runtime.FILES:
        (folder / name).write_bytes(name.encode())
    for name in (runtime.HASHES, "package.json"):
        shutil.copyfile(path, folder / name)
    return runtime.cached(), runtime.find(folder)


def _runtimes(folder: Path) -> list[bytes]:  # noqa: ARG001
    import hashlib

    from kdexport.bench.web import runtime

    hashes = {name: hashlib.sha256(name.encode()).hexdigest() for name in runtime.FILES}
    return [json.dumps(one).encode() for one in (hashes, {"name": "onnxruntime-web", "version": "1.2.3"})]


KINDS = (
    Kind("onnx", ".onnx", _graphs, _onnx, "onnx"),
    Kind("metadata", ".safetensors", _weights_with_metadata, _saved_weights, "safetensors"),
    Kind("bench", ".json", _of_run("bench.json"), _benches, "json"),
    Kind("report", ".json", _of_run("report.json"), _benches, "json"),
    _finished_run("metrics.jsonl", _metrics),
    _finished_run("distill.json", _distilled),
    _finished_run("export.json", _exported),
    _finished_run("checkpoints/student/done.json", _trained),
    Kind("study", ".db", lambda folder: [(_search(folder) / "study.db").read_bytes()], _study, "sqlite"),
    Kind("finals", ".json", lambda folder: [(_search(folder) / "finals.json").read_bytes()], _finals, "json"),
    Kind("fetched", ".json", _of_run("bench.json"), _fetched, "json"),
    Kind("pack", ".pyz", _packs, _pack, "zip"),
    Kind("recording", ".json", _recording_files, _benches, "json"),
    Kind("upload", ".json", _recordings, _upload, "json"),
    Kind("request", ".txt", _requests, _requested, "request"),
    Kind("runtime", ".json", _runtimes, _runtime, "json"),
)
