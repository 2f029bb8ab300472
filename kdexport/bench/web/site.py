"""All that a device's own page needs: the plan as JSON, and the files that it names. Served, or packed as a folder.

The page measures by itself (``page/plan.js``); what it gives back is a ``recording``.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdexport.bench import inputs
from kdexport.bench.inputs import resolve_shapes
from kdexport.bench.plan import Plan, Target
from kdexport.bench.session import EMPTY_MODEL
from kdexport.bench.stage import BenchRequest, plan_for
from kdexport.bench.web import outputs, runtime
from kdexport.bench.web.devices import BACKENDS, web_device
from kdexport.bench.web.outputs import Check
from kdexport.errors import KDExportError
from kdexport.onnx.describe import describe, external_files, load_graph
from kdexport.results import to_json

PAGE = Path(__file__).with_name("page")
PAGE_FILES = {
    "index.html": "device.html",
    "device.css": "device.css",
    "device.js": "device.js",
    "plan.js": "plan.js",
    "measure.js": "measure.js",
    "worker.js": "worker.js",
}
FORMAT, VERSION = "kdexport plan", 2  # device.js has the same: a browser may keep the scripts of an older page
SCRIPT = "text/javascript"
BINARY = "application/octet-stream"
# What onnxruntime-web is for each provider: its module, the code between it and its WASM, the WASM.
RUNTIME = {
    "wasm": ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm"),
    "webgpu": ("ort.webgpu.min.mjs", "ort-wasm-simd-threaded.asyncify.mjs", "ort-wasm-simd-threaded.asyncify.wasm"),
}
MOST_BYTES = 2**31  # that a page fetches: beyond, a phone's browser gives up

Content = Path | bytes


@dataclass(frozen=True)
class Site:
    """A page with its plan and its files."""

    plan: Plan
    document: dict[str, Any]  # plan.json
    files: Mapping[str, Content]  # by name; all that ``document`` names, and the page
    checks: Mapping[str, Check] = field(default_factory=dict)  # model -> what its outputs are held against

    @property
    def size_bytes(self) -> int:
        """All files together."""
        return sum(map(_size, self.files.values()))


def devices_of(names: Sequence[str]) -> tuple[tuple[str, ...], bool]:
    """Return the web devices that a page is to measure, and whether they were named: else it takes what it has.

    Raises:
        KDExportError: One is no web device.
    """
    named = tuple(dict.fromkeys(web_device(name).name for name in names if name.partition(":")[0] == "web"))
    others = [name for name in names if name.partition(":")[0] != "web" and name != "cpu"]
    if others:
        raise KDExportError(
            f"a page measures in its browser, not on '{others[0]}'",
            hint=f"give --device web or one of {', '.join(BACKENDS)}, or leave --device out",
        )
    return named or tuple(BACKENDS), bool(named)


def build(request: BenchRequest, session: str, *, sends: bool) -> Site:
    """Gather what a page needs to measure a request's models.

    Args:
        request: What to measure; of its devices those of a browser count.
        session: Stands in the recordings, so that they are not taken for another's.
        sends: Whether the page sends its recording to where it came from, or offers it as a file.

    Raises:
        KDExportError: A model, device or shape is not what it should be, or onnxruntime-web is not there.
    """
    names, required = devices_of(request.settings.devices)
    settings = request.settings.model_copy(update={"devices": names})
    plan = plan_for(request.models, settings, folder=request.folder, dims=request.dims, inputs_file=request.inputs_file)
    for target in plan.targets:
        runtime.check_size(target.name, Path(target.path))
    held = runtime.find(None if settings.web_runtime is None else Path(settings.web_runtime))
    files: dict[str, Content] = {"empty.onnx": EMPTY_MODEL}
    types = {"empty.onnx": BINARY}
    providers = dict.fromkeys(web_device(name).provider for name in names)
    for provider in providers:
        for name in RUNTIME[provider]:
            files[name] = held.folder / name
            types[name] = BINARY if name.endswith(".wasm") else SCRIPT
    models = []
    checks: dict[str, Check] = {}
    warnings = {target.name: list(target.warnings) for target in plan.targets}
    feeds = [{batch: _feed(target, plan, batch) for batch in plan.batch_sizes} for target in plan.targets]
    first = [
        (model, Path(target.path), fed[plan.batch_sizes[0]])
        for model, target, fed in zip(request.models, plan.targets, feeds, strict=True)
    ]
    found = outputs.checks(first, request.dataset)
    for position, (model, target, fed) in enumerate(zip(request.models, plan.targets, feeds, strict=True)):
        compared, told = found[model.name]
        warnings[model.name] += [told] if told else []
        own = _model_files(target, position)
        described = describe(Path(target.path)).inputs
        offered = {str(batch): _offer(feed, described, own) for batch, feed in fed.items()}
        if compared is not None:
            checks[model.name] = compared
        models.append(
            {
                "name": model.name,
                "size_bytes": model.size_bytes,
                "url": f"models/{position}/model.onnx",
                "external": _external(target, position),
                "inputs": offered,
                "chooses": compared is not None and compared.chooses,
                "compared": [] if compared is None else [_offer(feed, described, own) for feed in compared.feeds],
            }
        )
        files |= own
        types |= dict.fromkeys(own, BINARY)
    size = sum(map(_size, files.values()))
    if size > MOST_BYTES:
        raise KDExportError(
            f"a page would have to load {size / 2**30:.1f} GiB, more than a phone's browser holds",
            hint="measure fewer or smaller models at a time, or a smaller batch",
        )
    document = {
        "format": FORMAT,
        "version": VERSION,
        "session": session,
        "name": request.name,
        "sends": sends,
        "required": required,
        "devices": list(names),
        "batch_sizes": list(plan.batch_sizes),
        "threads": list(plan.threads),
        "settings": {
            "precision": plan.settings.precision,
            "min_seconds": plan.settings.min_seconds,
            "max_seconds": plan.settings.max_seconds,
            "rounds": plan.settings.rounds,
            "min_runs": plan.settings.min_runs,
            "timeout_s": plan.settings.timeout_s,
            "allow_fallback": plan.settings.allow_fallback,
        },
        "runtime_version": held.version,
        "runtime": {
            provider: dict(zip(("module", "glue", "wasm"), RUNTIME[provider], strict=True)) for provider in providers
        },
        "empty": "empty.onnx",
        "models": models,
        "files": {name: {"type": kind, "bytes": _size(files[name])} for name, kind in types.items()},
        # What a bench.json says of the files; no recipe: a page may lie where others read it.
        "model_files": [to_json(model) | {"file": Path(model.file).name} for model in request.models],
        "warnings": warnings,
    }
    return Site(plan, document, files | {name: PAGE / source for name, source in PAGE_FILES.items()}, checks)


def _model_files(target: Target, position: int) -> dict[str, Content]:
    path = Path(target.path)
    found: dict[str, Content] = {f"models/{position}/model.onnx": path}
    for number, file in enumerate(external_files(load_graph(path), path)):
        found[f"models/{position}/weights-{number}.bin"] = file
    return found


def _external(target: Target, position: int) -> list[dict[str, str]]:
    path = Path(target.path)
    return [
        {"path": file.relative_to(path.parent).as_posix(), "url": f"models/{position}/weights-{number}.bin"}
        for number, file in enumerate(external_files(load_graph(path), path))
    ]


def _feed(target: Target, plan: Plan, batch: int) -> dict[str, Any]:
    """Return what a model is fed at a batch size: the same as on every other device."""
    described = describe(Path(target.path)).inputs
    kinds = {name: f"tensor({described[name]['type']})" for name in target.inputs}
    shapes = {name: described[name]["shape"] for name in target.inputs}
    settings = plan.settings
    resolved = {}
    if not target.file:
        axis = settings.batch_axis
        resolved = resolve_shapes(target.inputs, batch, settings.dims, model=target.name, batch_axis=axis)
    task = {
        "file": target.file, "shapes": resolved, "below": dict(target.below), "batch_size": batch,
        "batch_axis": settings.batch_axis,
    }  # fmt: skip
    return inputs.feeds(task, kinds, shapes)


def _offer(
    feed: Mapping[str, Any], described: Mapping[str, Mapping[str, Any]], files: dict[str, Content]
) -> list[dict[str, Any]]:
    """Put a feed's bytes among the files; returns what a page needs to make tensors of them."""
    items = []
    for name, array in feed.items():
        content = array.tobytes()
        url = f"inputs/{hashlib.sha256(content).hexdigest()[:20]}.bin"
        files[url] = content
        short = {"float": "float32", "double": "float64"}.get(described[name]["type"], described[name]["type"])
        items.append({"name": name, "type": short, "dims": list(array.shape), "url": url})
    return items


def _size(content: Content) -> int:
    return len(content) if isinstance(content, bytes) else content.stat().st_size
