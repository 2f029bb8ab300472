"""`kdexport bench --serve` on a terminal: where the page is to be opened, and each device's result as it arrives."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdexport.cli.console import Console
from kdexport.errors import KDExportError

if TYPE_CHECKING:
    from kdexport.bench.stage import BenchRequest
    from kdexport.bench.web.serve import Address
    from kdexport.results import BenchResult

NAME = "bench.web.json"


@dataclass(frozen=True)
class Served:
    """What came from devices: a result for each, and the file that it was written to."""

    files: tuple[str, ...]
    results: "tuple[BenchResult, ...]"


def check_flags(given: dict[str, Any], *, serve: bool, pack: Path | None, remote: str | None) -> None:
    """Refuse flags that do not go together.

    Raises:
        KDExportError: They do not.
    """
    for flag, value in given.items():
        if value and not serve:
            raise KDExportError(f"{flag} is of --serve, which is not given", hint="add --serve")
    if serve and (pack is not None or remote is not None):
        other = "--pack" if pack is not None else "--remote"
        raise KDExportError(f"--serve and {other} measure in different places", hint=f"give --serve or {other}")


def serve(
    request: "BenchRequest",
    target: Path,
    console: Console,
    *,
    host: str,
    port: int,
    https: bool,
    expect: int,
) -> Served:
    """Serve until the devices are done; each result is written and shown as it arrives.

    Raises:
        KDExportError: As ``kdexport.bench.web.serve.serve``; or a device could not measure something.
    """
    from kdexport import results
    from kdexport.artifacts import write_text
    from kdexport.bench.web import serve as page
    from kdexport.bench.web.recording import file_beside
    from kdexport.cli.bench_tables import measured

    settings, progress = request.settings, console.progress
    for what, asked in (
        ("--profile", settings.profile),
        ("--streams", max(settings.streams) > 1),
        ("--power-command", settings.power_command),
    ):
        if asked:
            progress.warn(f"{what} says nothing to a page: it measures latency and memory")
    files: dict[int, Path] = {}

    def finished(result: "BenchResult", number: int) -> None:
        files[number] = file_beside(target, number)
        write_text(files[number], results.dumps(result))
        if result.measurements and not console.json:
            console.result(result, measured(result, console.width))
        progress.message(f"{result.machine.name}: written to {files[number]}")

    def announce(address: "Address") -> None:
        sys.stderr.write(announcement(address, color=sys.stderr.isatty(), encoding=sys.stderr.encoding))
        sys.stderr.flush()

    made = page.serve(
        request, host=host, port=port, https=https, expect=expect, announce=announce, finished=finished,
        progress=progress,
    )  # fmt: skip
    served = Served(tuple(str(files[number]) for number in sorted(files)), made)
    if console.json:
        console.result(served, "")
    return served


def announcement(address: "Address", *, color: bool, encoding: str | None) -> str:
    """Return what to open, as an address and as a QR code, and what that gives the devices."""
    from kdexport.bench.web.address import qr_code

    first, *others = address.urls
    lines = ["Open this address on the device to measure, and tap Start:", "", f"  {first}"]
    lines += [f"  {url}" for url in others]
    code = qr_code(first, color=color) if "utf" in (encoding or "").lower() else None
    if code is not None:
        lines += ["", *(f"  {line}" for line in code.splitlines())]
    lines += [""]
    if code is None:
        lines += ["(no QR code: pip install 'kdexport[web]' brings what draws it)"]
    if address.local:
        lines += [
            f"Only this machine reaches it. An Android phone on a cable does too, with threads and WebGPU, {_adb()}:",
            f"  adb reverse tcp:{address.port} tcp:{address.port}",
            "Devices of the network do with --host 0.0.0.0, and have threads and WebGPU with --https.",
        ]
    elif address.fingerprint is None:
        lines += ["Plain http: WebAssembly with one thread. --https gives threads and WebGPU."]
    if address.fingerprint is not None:
        lines += [
            "The browser warns once, for nobody has signed this certificate. Its SHA-256:",
            f"  {address.fingerprint[:47]}",
            f"  {address.fingerprint[48:]}",
        ]
    lent = "the models, and samples of the data without their labels," if address.samples else "the models"
    lines += [
        f"Whoever has the address can load {lent} and send a result. Ctrl-C ends it, and keeps what is here.",
        "",
    ]
    return "\n".join(lines)


def _adb() -> str:
    """Return what the phone needs for a cable: without it adb says no more than "no devices/emulators found"."""
    import shutil

    missing = "" if shutil.which("adb") else ", and adb is installed here (Android's platform-tools; apt install adb)"
    return f"once\nits developer options allow USB debugging and it was allowed for this computer{missing}"


def failures(served: Served) -> KDExportError | None:
    """Return what devices could not measure as one fault; None where all is there."""
    lines = [
        f"  {result.machine.name}: {one.model} on {one.device}"
        + (f", batch {one.batch_size}" if one.batch_size is not None else "")
        + f": {one.reason}"
        for result in served.results
        for one in result.failures
    ]
    if not lines:
        return None
    count = "one measurement" if len(lines) == 1 else f"{len(lines)} measurements"
    return KDExportError(
        "\n".join([f"{count} could not be made:", *lines]),
        hint="what could be measured is in the files; fix this and measure again",
    )
