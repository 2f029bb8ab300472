"""`kdexport bench --pack OUT.zip --device web`: the page that ``serve`` serves, as files for any static web server."""

import hashlib
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path

from kdexport.artifacts import write_atomically, zip_entry
from kdexport.bench.stage import BenchRequest
from kdexport.bench.web import site

README = """A page that measures models in the browser that opens it.

Put this folder on a web server, e.g.

    python3 -m http.server

and open its index.html with the device to measure. At the end the page offers the result as a file:

    kdexport report FILE

Threads and WebGPU need a secure context: https, or localhost. Threads also need two headers on every file:

    Cross-Origin-Opener-Policy: same-origin
    Cross-Origin-Embedder-Policy: require-corp
"""


@dataclass(frozen=True)
class PagePack:
    """What was packed."""

    file: str
    size_bytes: int
    models: tuple[str, ...]
    devices: tuple[str, ...]
    samples: int  # of the data, without their labels: what comes of them is compared, not scored


def pack(request: BenchRequest, out: Path) -> PagePack:
    """Write a page that measures a request's models.

    Raises:
        KDExportError: A model is not what it should be, onnxruntime-web is missing, or ``out`` cannot be written.
    """
    built = site.build(request, "", sends=False)
    # Equal plans have equal sessions: a recording is of the plan that it was made by.
    session = hashlib.sha256(json.dumps(built.document).encode()).hexdigest()[:32]
    expected = {name: check.packed() for name, check in built.checks.items()}
    document = {**built.document, "session": session, "expected": expected}
    texts = {"plan.json": json.dumps(document), "README.txt": README}

    def write(temporary: Path) -> None:
        # A file can be dated before 1980 (an archive's or a package's), which a zip cannot say.
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED, strict_timestamps=False) as archive:
            for name, content in {**texts, **built.files}.items():
                if isinstance(content, Path):
                    archive.write(content, name)
                else:
                    archive.writestr(zip_entry(name), content)

    write_atomically(out, write)
    models = tuple(model.name for model in request.models)
    samples = max((check.samples for check in built.checks.values() if check.score is not None), default=0)
    return PagePack(str(out), out.stat().st_size, models, tuple(document["devices"]), samples)
