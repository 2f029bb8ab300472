"""What a device's page has measured, checked and made into a bench result.

A recording comes from elsewhere: nothing of it is believed before it has the form below, belongs to the plan that was
handed out, and holds figures that a clock can have told. The figures are worked out here, as for every other device.
"""

import dataclasses
import datetime
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from kdexport import statistics
from kdexport.bench.plan import Condition, Settings, Target
from kdexport.bench.runner import Series
from kdexport.bench.session import fallback
from kdexport.bench.warnings import in_words, page_warnings
from kdexport.bench.web import outputs
from kdexport.bench.web.devices import web_device
from kdexport.bench.web.outputs import Check
from kdexport.bench.web.page_machine import browser_of, machine_of
from kdexport.bench.web.recording_form import FORMAT, Compared, Device, Recorded, Recording
from kdexport.bench.web.worker import adapter_name, is_software, placement, reason
from kdexport.errors import KDExportError
from kdexport.results import BenchResult, Failure, Machine, Measurement, Memory, ModelFile, from_json, to_json

SPOOFED_MS = 10.0  # a clock so coarse is Firefox's against fingerprinting, which says 2, 4 or 8 cores of every machine
UNSTEADY = 1.25  # upper over lower quartile of a model's calls within a round: 1.1 on a quiet device
PLAN, PLAN_VERSIONS = "kdexport plan", (1, 2)  # 1 held no outputs to compare


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
        if not isinstance(plan, dict) or plan["format"] != PLAN or plan["version"] not in PLAN_VERSIONS:
            raise ValueError
        if not isinstance(plan["name"], str) or not isinstance(plan["runtime_version"], str):
            raise ValueError
        recording = read(json.dumps(rest), plan)
        bench = from_json(BenchResult, to_json(bench_of(recording, plan, created=recording.started)))
        tried = {one.model for one in bench.measurements} | {one.model for one in bench.failures}
        if not tried <= {model.name for model in bench.models}:
            raise ValueError
        return bench
    except (ValidationError, ValueError, KeyError, TypeError, AttributeError, StopIteration):
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
    checks: Mapping[str, Check] | None = None,
) -> BenchResult:
    """Work out the figures of a recording.

    Args:
        recording: As ``read`` has checked it.
        plan: What was handed out.
        created: When it was measured (ISO 8601); now where it is not given.
        name: What the machine is called, where its own name is taken.
        stopped: Why the device did not come to an end, where it did not: what it lacks is then a failure for it.
        checks: What the outputs of each model are held against; None takes what the plan holds.
    """
    settings = Settings(**plan["settings"])
    machine = machine_of(recording.device, name or recording.device.name, plan["runtime_version"])
    if any(part.clock_ms > SPOOFED_MS for one in recording.results for part in one.rounds):
        machine = dataclasses.replace(machine, cores=None)
    measurements: list[Measurement] = []
    failures: list[Failure] = []
    for one in recording.results:
        made = _measured(one, recording.device, machine, plan, settings, stopped)
        if isinstance(made, Measurement) and one.compared is not None:
            made = _compared(made, one.compared, plan, (checks or {}).get(one.model))
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
    elsewhere = fallback(condition.device.provider, placed)
    failure = one.failure and in_words(reason(one.failure, plan["runtime_version"]), one.batch_size)
    if not failure and elsewhere and not settings.allow_fallback:
        failure = f"it does not run whole on '{one.device}': {elsewhere}; --allow-fallback measures it as it is"
    if not failure and not one.rounds:
        failure = stopped or "it was not measured"
    if failure:
        return Failure(one.model, one.device, one.batch_size, one.threads, failure)
    series = _series(one, device, placed)
    measured = series.measured(machine.name, condition)
    disturbed = _unsteady(series.rounds)
    told = page_warnings(series, measured.latency_ms, settings, condition, disturbed)
    stop = [f"{stopped}: this holds what was measured until then"] if stopped else []
    return dataclasses.replace(measured, disturbed=disturbed, warnings=(*stop, *plan["warnings"][one.model], *told))


def _unsteady(rounds: list[np.ndarray]) -> str | None:
    """Return in words that a device did not keep its speed within rounds; None where it did.

    A page is not told what else its device does. But a call that is the model's alone takes about as long each time:
    where the middle half of them does not, a median falls on one speed or another by chance, and so does a ratio.
    """
    ratio = float(np.median([np.quantile(samples, 0.75) / np.quantile(samples, 0.25) for samples in rounds]))
    if ratio <= UNSTEADY:
        return None
    return (
        f"within a round the upper quartile of its calls is {ratio:.3g} times the lower one: the device did other "
        "work, or changed its speed"
    )


def _compared(measured: Measurement, given: Compared, plan: Mapping[str, Any], check: Check | None) -> Measurement:
    """Return a measurement with what its outputs were found to be."""
    model = next(model for model in plan["model_files"] if model["name"] == measured.model)
    asked = next(model for model in plan["models"] if model["name"] == measured.model)
    packed = plan.get("expected", {}).get(measured.model)
    parity, score, wrong = outputs.compared(
        given.calls, check, packed, model["precision"], chooses=bool(asked.get("chooses"))
    )
    if given.failure:
        wrong = f"its outputs on this device are not compared: {given.failure}"
    warnings = (*((wrong,) if wrong else ()), *measured.warnings)
    return dataclasses.replace(measured, parity=parity, score=score, warnings=warnings)


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
        bound_in="cpu",
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
        browser={
            "name": agent,
            "version": version,
            "clock_ms": max(part.clock_ms for part in one.rounds),
            "isolated": device.isolated,
            "adapter": adapter_name(adapter),
            "software": is_software(adapter),
        },
    )


def is_recording(document: Mapping[str, Any]) -> bool:
    """Return whether a JSON document is a recording that a page has offered as a file."""
    return document.get("format") == FORMAT


def file_beside(path: Path, number: int) -> Path:
    """Return where the result of the *number*-th device goes: the path itself, then ``NAME-2.json``, ..."""
    return path if number == 1 else path.with_name(f"{path.stem}-{number}{path.suffix}")
