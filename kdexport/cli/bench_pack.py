"""`kdexport bench --pack` on a terminal: what is written, and how it is run elsewhere."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kdexport import figures
from kdexport.cli.console import Console
from kdexport.errors import KDExportError

if TYPE_CHECKING:
    from kdexport.bench.stage import BenchRequest


def pack(request: "BenchRequest", out: Path, console: Console) -> None:
    """Write what another device measures with: a page for a browser, else a Python program.

    Raises:
        KDExportError: It cannot be packed, or not under this name.
    """
    from kdexport.bench import pack as program

    if any(name.partition(":")[0] == "web" for name in request.settings.devices):
        from kdexport.bench.web import page_pack

        if out.suffix != ".zip":
            raise KDExportError(
                f"--pack {out}: the page of a web device is packed as a .zip", hint=f"--pack {out.with_suffix('.zip')}"
            )
        page = page_pack.pack(request, out)
        shown = f"{out}  {figures.size(page.size_bytes)}, {_models(page.models)} on {', '.join(page.devices)}\n"
        if page.samples:
            shown += (
                f"It holds {page.samples} samples of the data without their labels: outputs are compared, not scored.\n"
            )
        shown += (
            "Unpack it on a web server, open its page on the device, and give what it saves to: kdexport report FILE"
        )
        console.result(page, shown)
        return
    written = program.pack(request, out, progress=console.progress)
    shown = f"{out}  {figures.size(written.size_bytes)}, {_models(request.models)}\n"
    shown += f"Run it where Python >= 3.9, numpy and onnxruntime >= 1.17 are: python {out.name} --out bench.json"
    console.result(written, shown)


def _models(models: Sequence[object]) -> str:
    return f"{len(models)} model" + ("" if len(models) == 1 else "s")
