"""`kdexport bench --serve`: a page for any device that can open it, and what the devices send back.

    check and gather (site) -> serve behind a token (server) -> keep what each device sends (Devices) -> bench results

A device sends all that it has measured after each round, so that one that falls silent loses nothing: what it lacks is
then told as failed.
"""

import dataclasses
import json
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from kdexport import figures
from kdexport.bench.stage import BenchRequest
from kdexport.bench.web import recording, site
from kdexport.bench.web.address import addresses, is_loopback
from kdexport.bench.web.outputs import Check, summary
from kdexport.bench.web.page_machine import system_of
from kdexport.bench.web.recording_form import Recorded, Recording
from kdexport.bench.web.server import PageServer
from kdexport.errors import KDExportError
from kdexport.progress import Progress
from kdexport.results import BenchResult

MOST_DEVICES = 64
LOOK_SECONDS = 0.5
ANSWER_SECONDS = 1.0  # that the last answer may take to leave

Finished = Callable[[BenchResult, int], None]


@dataclass(frozen=True)
class Address:
    """Where a page is to be opened."""

    urls: tuple[str, ...]  # the likeliest first
    port: int
    local: bool  # reached from this machine alone
    fingerprint: str | None  # SHA-256 of the certificate, with https
    samples: bool = False  # whether the page is handed samples of the data


@dataclass
class _Heard:
    """One device, as it was last heard."""

    recording: Recording
    name: str
    last: float
    done: bool = False


class Devices:
    """What devices have sent so far; safe to use from several threads.

    Args:
        plan: What was handed out.
        progress: Where to say who came and how it goes.
        clock: Seconds.
        checks: What the outputs of each model are held against.
    """

    def __init__(
        self,
        plan: dict[str, Any],
        progress: Progress,
        clock: Callable[[], float] = time.monotonic,
        checks: Mapping[str, Check] | None = None,
    ) -> None:
        self._plan = plan
        self._checks = checks or {}
        self._progress = progress
        self._clock = clock
        self._heard: dict[str, _Heard] = {}
        self._changed = threading.Condition()
        self._closed = False

    def receive(self, body: bytes) -> tuple[int, dict[str, Any]]:
        """Take one recording; returns the status and the answer. What is not in order changes nothing."""
        try:
            found = recording.read(body, self._plan)
        except KDExportError as error:
            return (409 if "another session" in error.message else 400), {"error": error.message}
        with self._changed:
            return self._keep(found)

    def _keep(self, found: Recording) -> tuple[int, dict[str, Any]]:
        known = self._heard.get(found.device.id)
        if self._closed and not (known and known.done):
            return 404, {"error": "the measuring has ended"}
        if known is None:
            if len(self._heard) >= MOST_DEVICES:
                return 429, {"error": f"{MOST_DEVICES} devices are more than one command measures"}
            known = self._heard[found.device.id] = _Heard(found, self._free_name(found.device.name), self._clock())
            self._progress.message(f"{known.name}: started ({system_of(found.device)})")
        if known.done:  # sent twice, because the first answer was lost
            return 200, {"kept": True}
        if _rounds(found) < _rounds(known.recording):
            return 409, {"error": "less than what this device has sent before"}
        self._tell(known, found)
        known.recording, known.last, known.done = found, self._clock(), found.complete
        self._changed.notify_all()
        return 200, {"kept": True}

    def _tell(self, known: _Heard, found: Recording) -> None:
        before = {_key(one) for one in known.recording.results if one.failure}
        for one in found.results:
            if one.failure and _key(one) not in before:
                self._progress.warn(f"{known.name}: {one.model} on {one.device} failed")
        count = _rounds(found)
        if found.complete:
            self._progress.message(f"{known.name}: done")
        elif count > _rounds(known.recording):
            least = self._plan["settings"]["rounds"] * len([one for one in found.results if not one.failure])
            self._progress.message(f"{known.name}: {count} of at least {least} rounds")

    def _free_name(self, name: str) -> str:
        """Return a name that no other device here has: a report joins machines by name."""
        taken = {one.name for one in self._heard.values()}
        names = [name, *(f"{name}-{number}" for number in range(2, MOST_DEVICES + 2))]
        return next(free for free in names if free not in taken)

    def wait(self, timeout_s: float, expect: int, finished: Finished, seen: Callable[[], float]) -> None:
        """Sleep until all devices that came are done, and as many as expected came; a silent one is given up.

        One that is heard again after it was given up is waited for again, as long as others are.

        Args:
            timeout_s: Longest silence: of one device, and of all before the first comes.
            expect: Devices to wait for, at least.
            finished: Called with each result as soon as it is one, and with the device's number, from 1.
            seen: When the page was last asked for anything.

        Raises:
            KDExportError: None came.
        """
        over: dict[str, float] = {}  # device -> when it was last heard before it was done or given up
        begun = self._clock()
        silence = f"nothing was heard from it for {figures.duration(timeout_s)}"
        try:
            while True:
                with self._changed:
                    self._changed.wait(LOOK_SECONDS)
                    now = self._clock()
                    heard = dict(self._heard)
                for identity, one in heard.items():
                    if (one.done or now - one.last > timeout_s) and over.get(identity) != one.last:
                        over[identity] = one.last
                        finished(self._result(one, silence), list(heard).index(identity) + 1)
                at_work = [key for key, one in heard.items() if over.get(key) != one.last]
                last = max([begun, seen(), *(one.last for one in heard.values())])
                if not at_work and (len(over) >= expect or now - last > timeout_s):
                    break
        except KeyboardInterrupt:  # what is there is kept
            if not self._heard:
                raise
            for number, (identity, one) in enumerate(self._heard.items(), 1):
                if over.get(identity) != one.last:
                    finished(self._result(one, "it was interrupted before this device was done"), number)
        finally:
            with self._changed:
                self._closed = True
        if not self._heard:
            raise KDExportError(
                f"no device has measured within {figures.duration(timeout_s)}",
                hint="is it in the same network, and does a firewall let it in? --host says on which address to "
                "listen, --timeout how long to wait",
            )

    def _result(self, one: _Heard, stopped: str) -> BenchResult:
        if not one.done:
            self._progress.warn(f"{one.name}: {stopped}")
        made = recording.bench_of(
            one.recording, self._plan, name=one.name, stopped=None if one.done else stopped, checks=self._checks
        )
        for found in made.measurements:
            if found.parity is not None:
                line = summary(found.model, found.device, found.parity, found.score, self._checks[found.model])
                self._progress.message(f"{one.name}: {line}")
        return made


def _key(one: Recorded) -> tuple[str, str, int, int]:
    return one.model, one.device, one.batch_size, one.threads


def _rounds(found: Recording) -> int:
    return sum(len(one.rounds) for one in found.results)


def serve(
    request: BenchRequest,
    *,
    host: str,
    port: int,
    https: bool,
    expect: int,
    announce: Callable[[Address], None],
    finished: Finished,
    progress: Progress,
) -> tuple[BenchResult, ...]:
    """Serve a page that measures a request's models, until the devices that open it are done.

    Args:
        request: What to measure.
        host: The address to listen on; 127.0.0.1 is reached from this machine alone.
        port: Where; 0 takes one that is free.
        https: Whether to make a certificate, for the secure context that threads and WebGPU need.
        expect: Devices to wait for, at least.
        announce: Called once the page can be opened.
        finished: Called with each device's result as soon as it is there, and with its number, from 1. Again with the
            same number where a device that was given up goes on.
        progress: Where to say who came and how it goes.

    Returns:
        A result for each device; what a device did not do stands in its failures.

    Raises:
        KDExportError: Something is not what it should be, the port is in use, or no device came.
    """
    built = site.build(request, secrets.token_hex(16), sends=True)
    document = built.document
    devices = Devices(document, progress, checks=built.checks)
    tls, fingerprint = None, None
    where = addresses(host)
    if https:
        from kdexport.bench.web import certificate

        tls, fingerprint = certificate.context_for(list(dict.fromkeys([*where, "localhost", "127.0.0.1", "::1"])))
    files = {**built.files, "plan.json": json.dumps(document).encode()}
    server = PageServer(
        files,
        isolated="web:wasm-threads" in document["devices"],
        host=host,
        port=port,
        receivers={"recording": devices.receive},
        tls=tls,
    )
    try:
        urls = tuple(server.url_at(one) for one in where)
        samples = any(check.score is not None for check in built.checks.values())
        announce(Address(urls, server.port, all(map(is_loopback, where)), fingerprint, samples))

        results: dict[int, BenchResult] = {}

        def arrived(result: BenchResult, number: int) -> None:
            results[number] = dataclasses.replace(result, recipe=request.recipe, training=tuple(request.training))
            finished(results[number], number)

        devices.wait(request.settings.timeout_s, expect, arrived, lambda: server.last_request)
        time.sleep(ANSWER_SECONDS)
        return tuple(results[number] for number in sorted(results))
    finally:
        server.close()
