"""What a device's page has measured, checked and made into a bench result.

A recording comes from elsewhere: nothing of it is believed before it has the form below, belongs to the plan that was
handed out, and holds figures that a clock can have told. The figures are worked out here, as for every other device.
"""

import dataclasses
import datetime
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from kdexport import __version__, statistics, terminal
from kdexport.bench.plan import Condition, Settings, Target
from kdexport.bench.runner import Series, without_tails
from kdexport.bench.session import fallback, shares
from kdexport.bench.warnings import in_words, page_warnings
from kdexport.bench.web.devices import web_device
from kdexport.bench.web.worker import adapter_name, is_software, placement, reason
from kdexport.errors import KDExportError
from kdexport.results import BenchResult, Browser, Failure, Machine, Measurement, Memory, ModelFile, from_json

FORMAT = "kdexport recording"
MOST_NS = 10**13  # of a call: 3 hours
LINES = 200_000
BROWSERS = (  # mark in the user agent -> name; the first that is there, for most pretend to be others too
    ("SamsungBrowser", "Samsung Internet"), ("EdgA", "Edge"), ("EdgiOS", "Edge"), ("Edg", "Edge"), ("OPR", "Opera"),
    ("FxiOS", "Firefox"), ("Firefox", "Firefox"), ("CriOS", "Chrome"), ("HeadlessChrome", "Chromium"),
    ("Chrome", "Chrome"), ("Version", "Safari"),
)  # fmt: skip


def _printable(text: str) -> str:
    """Return a text that a device has sent as one line without what could steer a terminal."""
    return " ".join("".join(character if character.isprintable() else " " for character in text).split())


Text = Annotated[str, Field(max_length=2000), AfterValidator(_printable)]
Line = Annotated[str, Field(max_length=2000)]  # of a log, as it stands: its spaces say what it is
Name = Annotated[str, Field(min_length=1, max_length=60), AfterValidator(_printable)]
Identity = Annotated[str, Field(pattern=r"^[0-9a-f]{8,64}$")]
Milliseconds = Annotated[float, Field(ge=0, le=MOST_NS / 1e6)]
Mebibytes = Annotated[float, Field(ge=0, le=2**24)]
Nanoseconds = Annotated[int, Field(gt=0, le=MOST_NS)]
Count = Annotated[int, Field(ge=1, le=10**9)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, strict=True)


class Round(_Strict):
    """One model's share of one round, in a fresh worker."""

    load_ms: Milliseconds
    first_run_ms: Milliseconds
    stable: bool
    nan: Annotated[list[Text], Field(max_length=1000)]
    calls_per_sample: Count
    clock_ms: Annotated[float, Field(gt=0, le=1e4)]
    turns: Annotated[list[Annotated[list[Nanoseconds], Field(min_length=1)]], Field(min_length=1)]


class Taken(_Strict):
    """MiB of one model in a worker of its own."""

    wasm_heap: Mebibytes | None
    page: Mebibytes | None


class Recorded(_Strict):
    """One model under one condition."""

    model: Annotated[str, Field(max_length=1000)]
    device: Annotated[str, Field(max_length=60)]
    batch_size: Count
    threads: Count
    failure: Text | None
    memory: Taken | None
    placement_log: Annotated[list[Line], Field(max_length=LINES)]
    rounds: Annotated[list[Round], Field(max_length=10_000)]


class Device(_Strict):
    """What a browser says of itself and of its device."""

    id: Identity
    name: Name
    agent: Annotated[str, Field(max_length=500), AfterValidator(_printable)]
    platform: Text | None
    platform_version: Text | None
    model: Text | None
    cores: Annotated[int, Field(ge=1, le=4096)] | None
    secure: bool
    isolated: bool
    simd: bool
    adapter: dict[Annotated[str, Field(max_length=60)], Text | bool | None] | None


class Recording(_Strict):
    """All that one device has measured so far."""

    format: Literal["kdexport recording"]
    version: Literal[1]
    session: Annotated[str, Field(max_length=100)]
    started: Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z$")]
    complete: bool
    device: Device
    results: Annotated[list[Recorded], Field(max_length=10_000)]


def read(text: str | bytes, plan: Mapping[str, Any]) -> Recording:
    """Return a recording that fits a plan.

    Args:
        text: JSON.
        plan: The ``document`` of a ``site.Site``.

    Raises:
        KDExportError: It is not of this form, or of another session, or of what the plan does not hold.
    """
    again = "open the page anew and measure again"
    try:
        found = Recording.model_validate_json(text)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in fault["loc"]) or "it"
        raise KDExportError(f"the recording is not of its form: {where}: {fault['msg']}", hint=again) from None
    if found.session != plan["session"]:
        raise KDExportError(
            "the recording is of another session than the one that is served", hint="open the address anew"
        )
    models = {model["name"] for model in plan["models"]}
    seen = set()
    for one in found.results:
        key = (one.model, one.device, one.batch_size, one.threads)
        known = one.model in models and one.device in plan["devices"] and one.batch_size in plan["batch_sizes"]
        if not known or key in seen or (one.threads > 1 and one.device != "web:wasm-threads"):
            raise KDExportError("the recording holds what the plan does not", hint=again)
        seen.add(key)
        if found.complete and not one.failure and len(one.rounds) < 1:
            raise KDExportError("the recording says that it is complete, and is not", hint=again)
    return found


def from_file(document: Mapping[str, Any]) -> BenchResult:
    """Return the bench result of a recording that a page has offered as a file: it holds its plan.

    Raises:
        KDExportError: It is damaged, or of another version.
    """
    import json

    plan = document.get("plan")
    rest = {key: value for key, value in document.items() if key != "plan"}
    try:
        if not isinstance(plan, dict) or (plan["format"], plan["version"]) != ("kdexport plan", 1):
            raise ValueError
        recording = read(json.dumps(rest), plan)
        return bench_of(recording, plan, created=recording.started)
    except (ValidationError, ValueError, KeyError, TypeError):
        raise KDExportError(
            "the plan in the recording is not as kdexport writes it", hint="save the result again from the page"
        ) from None


def bench_of(
    recording: Recording,
    plan: Mapping[str, Any],
    *,
    created: str | None = None,
    name: str | None = None,
    stopped: str | None = None,
) -> BenchResult:
    """Work out the figures of a recording.

    Args:
        recording: As ``read`` has checked it.
        plan: What was handed out.
        created: When it was measured (ISO 8601); now where it is not given.
        name: What the machine is called, where its own name is taken.
        stopped: Why the device did not come to an end, where it did not: what it lacks is then a failure for it.
    """
    settings = Settings(**plan["settings"])
    machine = _machine(recording.device, name or recording.device.name, plan["runtime_version"])
    measurements: list[Measurement] = []
    failures: list[Failure] = []
    for one in recording.results:
        made = _measured(one, recording.device, machine, plan, settings, stopped)
        (measurements if isinstance(made, Measurement) else failures).append(made)  # type: ignore[arg-type]
        if isinstance(made, Measurement) and stopped and len(one.rounds) < settings.rounds:
            why = f"{stopped}, after {len(one.rounds)} of at least {settings.rounds} rounds"
            failures.append(Failure(one.model, one.device, one.batch_size, one.threads, why))
    if not recording.results:
        why = stopped or "nothing was measured"
        failures += [
            Failure(model["name"], device, None, None, why) for device in plan["devices"] for model in plan["models"]
        ]
    return BenchResult(
        name=plan["name"],
        created=created or datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        machine=machine,
        models=tuple(
            from_json(ModelFile, {key: value for key, value in model.items() if key not in ModelFile.DERIVED})
            for model in plan["model_files"]
        ),
        measurements=tuple(measurements),
        failures=tuple(failures),
    )


def _measured(
    one: Recorded, device: Device, machine: Machine, plan: Mapping[str, Any], settings: Settings, stopped: str | None
) -> Measurement | Failure:
    condition = Condition(web_device(one.device), one.threads, (one.batch_size,))
    placed = placement(one.placement_log)
    provider = condition.device.provider
    elsewhere = fallback(provider, placed)
    failure = one.failure and in_words(reason(one.failure, plan["runtime_version"]), one.batch_size)
    if not failure and elsewhere and not settings.allow_fallback:
        failure = f"it does not run whole on '{one.device}': {elsewhere}; --allow-fallback measures it as it is"
    if not failure and not one.rounds:
        failure = stopped or "it was not measured"
    if failure:
        return Failure(one.model, one.device, one.batch_size, one.threads, failure)
    series = _series(one, device, placed)
    latency = statistics.latency(series.rounds, series.turns)
    if series.calls_per_sample > 1:
        latency = without_tails(latency)
    return Measurement(
        model=one.model,
        machine=machine.name,
        device=one.device,
        provider=provider,
        placement=shares(placed),
        batch_size=one.batch_size,
        threads=one.threads,
        latency_ms=latency,
        throughput_per_s=one.batch_size * series.runs * series.calls_per_sample / series.seconds,
        load_ms=float(np.median(series.load_ms)),
        first_run_ms=float(np.median(series.first_run_ms)),
        memory_mib=series.memory,
        warnings=(
            *([f"{stopped}: this holds what was measured until then"] if stopped else []),
            *plan["warnings"][one.model],
            *page_warnings(series, latency, settings, condition),
        ),
        memory_of_inputs="cpu",
        browser=None if series.browser is None else Browser(**series.browser),
    )


def _series(one: Recorded, device: Device, placed: dict[str, dict[str, int]]) -> Series:
    """Return the record that the runner keeps of a model, as a device has filled it."""
    calls = max(part.calls_per_sample for part in one.rounds)
    adapter = device.adapter if one.device == "web:webgpu" else None
    agent, version = browser_of(device.agent)
    turns = [[np.array(turn, np.int64) for turn in part.turns] for part in one.rounds]
    rounds = [np.concatenate(own) for own in turns]
    return Series(
        Target(one.model, "", {}),
        one.batch_size,
        rounds=rounds,
        turns=[[float(np.median(turn)) for turn in own] for own in turns],
        load_ms=[part.load_ms for part in one.rounds],
        first_run_ms=[part.first_run_ms for part in one.rounds],
        placement=placed,
        settled=[part.stable for part in one.rounds],
        not_a_number=tuple(one.rounds[-1].nan),
        memory=Memory(
            None,
            None,
            None,
            wasm_heap=one.memory.wasm_heap if one.memory else None,
            page=one.memory.page if one.memory else None,
        ),
        precision=statistics.precision(rounds),
        calls_per_sample=calls,
        browser=dataclasses.asdict(
            Browser(
                name=agent,
                version=version,
                clock_ms=max(part.clock_ms for part in one.rounds),
                calls_per_sample=calls,
                isolated=device.isolated,
                adapter=adapter_name(adapter),
                software=is_software(adapter),
            )
        ),
    )


def _machine(device: Device, name: str, runtime_version: str) -> Machine:
    """Return the fingerprint: what a page is told, which is little."""
    agent, version = browser_of(device.agent)
    software = is_software(device.adapter)
    told = adapter_name(device.adapter)
    versions = {"onnxruntime-web": runtime_version, "kdexport": __version__}
    if agent is not None:
        versions[agent] = version or "unknown"
    return Machine(
        name=terminal.printable(name),
        system=system_of(device),
        cpu=device.model or "not told by its browser",
        cpu_features=(),
        cores=device.cores,
        memory_mib=None,
        container=None,
        governor=None,
        gpus=(told,) if told not in (None, "not told") and not software else (),
        driver=None,
        python=None,
        versions=versions,
        providers=("wasm", "webgpu") if device.adapter else ("wasm",),
    )


def browser_of(agent: str) -> tuple[str | None, str | None]:
    """Return name and version of the browser behind a user agent; None where none is known."""
    for mark, name in BROWSERS:
        if found := re.search(rf"\b{mark}/(\d[\d.]*)", agent):
            return name, found[1]
    return None, None


def system_of(device: Device) -> str:
    """Return the system as the browser tells it: by name and version where it does, else from the user agent."""
    agent = device.agent
    if found := re.search(r"(iPhone|iPad).*? OS (\d+(?:_\d+)*)", agent):
        return f"iOS {found[2].replace('_', '.')} ({found[1]})"
    if device.platform:
        return f"{device.platform} {device.platform_version or ''}".strip()
    if found := re.search(r"Android (\d[\d.]*)(?:; ([^;)]+))?", agent):
        # Chrome says "Android 10; K" of every device: that is no version.
        return "Android" if found[2] == "K" else f"Android {found[1]}" + (f" ({found[2]})" if found[2] else "")
    found = re.search(r"\(([^)]*)\)", agent)
    return found[1] if found else "not told"


def is_recording(document: Mapping[str, Any]) -> bool:
    """Return whether a JSON document is a recording that a page has offered as a file."""
    return document.get("format") == FORMAT


def file_beside(path: Path, number: int) -> Path:
    """Return where the result of the *number*-th device goes: the path itself, then ``NAME-2.json``, ..."""
    return path if number == 1 else path.with_name(f"{path.stem}-{number}{path.suffix}")
