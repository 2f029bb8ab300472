"""onnxruntime-web on this machine: fetched once by npm, kept in the user's cache, its files checked before each use.

What is fetched is what the user's npm finds under the package's name; no address stands here.
"""

import hashlib
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

from kdexport.artifacts import sha256
from kdexport.errors import DeviceError, KDExportError

PACKAGE = "onnxruntime-web"
VERSION = "1.30.0"
# Of the package as it was published. A version that is published cannot be replaced by another of that name.
SHA256 = {"1.30.0": "d2228df7e4616bc3348bf504ee888f3bec43789a273f0a63f3e68d203ce3bf71"}
FILES = (  # of its dist/: the page's two entries and the WASM behind each
    "ort.wasm.min.mjs",
    "ort-wasm-simd-threaded.mjs",
    "ort-wasm-simd-threaded.wasm",
    "ort.webgpu.min.mjs",
    "ort-wasm-simd-threaded.asyncify.mjs",
    "ort-wasm-simd-threaded.asyncify.wasm",
)
HASHES = "sha256.json"
NPM_SECONDS = 600
LARGEST_FILE = 2**27
WASM_BYTES = 2**32  # all that 32-bit WASM can address, the runtime and what it works with included


@dataclass(frozen=True)
class Runtime:
    """The files of one version of onnxruntime-web."""

    folder: Path
    version: str


def cache_folder(version: str = VERSION) -> Path:
    """Return where a version is kept: in the user's cache."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "kdexport" / f"{PACKAGE}-{version}"


def cached(version: str = VERSION) -> Runtime | None:
    """Return the version that is in the cache, whole and unchanged, or None."""
    folder = cache_folder(version)
    try:
        hashes = json.loads((folder / HASHES).read_text(encoding="utf-8"))
        whole = set(hashes) == set(FILES) and all(sha256(folder / name) == hashes[name] for name in FILES)
    except (OSError, ValueError, TypeError, RecursionError):
        return None
    return Runtime(folder, version) if whole else None


def find(folder: Path | None = None) -> Runtime:
    """Return the runtime: from a folder, else from the cache, else by npm.

    Args:
        folder: An unpacked package, or its ``dist`` (``--web-runtime``).

    Raises:
        KDExportError: The folder lacks files, or npm is not there or does not bring the package.
    """
    return _given(folder) if folder is not None else cached() or _fetched()


def check_size(model: str, path: Path) -> None:
    """Refuse a model that WASM cannot address.

    Raises:
        KDExportError: Its file and weights are larger than that.
    """
    from kdexport.onnx.describe import external_files, load_graph

    size = path.stat().st_size + sum(file.stat().st_size for file in external_files(load_graph(path), path))
    if size >= WASM_BYTES:
        raise KDExportError(
            f"{model} is too large for a browser: its weights take {size / 2**30:.1f} GiB, and WASM can hold 4 GiB",
            hint="quantize it (kdexport export --quantize int8), or measure a smaller one",
        )


def _given(folder: Path) -> Runtime:
    dist = folder / "dist" if (folder / "dist").is_dir() else folder
    missing = [name for name in FILES if not (dist / name).is_file()]
    if missing:
        raise KDExportError(
            f"--web-runtime {folder} holds no {missing[0]}",
            hint=f"unpack what `npm pack {PACKAGE}@{VERSION}` writes, and give its folder 'package' or 'package/dist'",
        )
    return Runtime(dist, _version_of(dist))


def _version_of(dist: Path) -> str:
    """Return the version that package.json states; for bare files what tells them apart."""
    for file in (dist / "package.json", dist.parent / "package.json"):
        try:
            document = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            continue
        if isinstance(document, dict) and document.get("name") == PACKAGE:
            return str(document.get("version"))
    return f"sha256:{sha256(dist / FILES[2])[:12]}"


def _fetched() -> Runtime:
    npm = shutil.which("npm")
    if npm is None:
        raise DeviceError(
            f"{PACKAGE} {VERSION} is not in the cache, and npm, which brings it, is not on PATH",
            hint=f"install npm, or unpack `npm pack {PACKAGE}@{VERSION}` from elsewhere and give --web-runtime DIR",
        )
    target = cache_folder()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as temporary:
            archive = _packed(npm, Path(temporary))
            unpacked = Path(temporary) / "files"
            _unpack(archive, unpacked)
            found = cached()
            if found is not None:  # another process has put it there meanwhile, and may be serving it
                return found
            shutil.rmtree(target, ignore_errors=True)  # one that is not whole
            unpacked.rename(target)
    except OSError as error:
        found = cached()  # as above, a moment later
        if found is None:
            raise KDExportError(
                f"{PACKAGE} cannot be kept in {target.parent}: {error.strerror or error}",
                hint="make room or give another place with XDG_CACHE_HOME",
            ) from None
        return found
    return Runtime(target, VERSION)


def _packed(npm: str, folder: Path) -> Path:
    """Let npm write the package into a folder."""
    command = [npm, "pack", f"{PACKAGE}@{VERSION}", "--silent"]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=NPM_SECONDS, check=False)
        said = done.stderr or done.stdout
    except subprocess.TimeoutExpired:
        said = f"no answer within {NPM_SECONDS} s"
    archives = list(folder.glob("*.tgz"))
    if not archives:
        last = next((line.strip() for line in reversed(said.splitlines()) if line.strip()), "it says nothing")
        raise DeviceError(
            f"npm does not bring {PACKAGE} {VERSION}: {last}",
            hint=f"try `npm pack {PACKAGE}@{VERSION}` by hand, or give an unpacked one with --web-runtime DIR",
        )
    digest = hashlib.sha256(archives[0].read_bytes()).hexdigest()
    if digest != SHA256[VERSION]:
        raise KDExportError(
            f"what npm brought as {PACKAGE} {VERSION} is not what was published (sha256 {digest[:16]}...)",
            hint="ask whoever runs your npm mirror, or give a copy that you trust with --web-runtime DIR",
        )
    return archives[0]


def _unpack(archive: Path, folder: Path) -> None:
    """Take the few files that a page needs, and write down their hashes."""
    folder.mkdir()
    hashes = {}
    with tarfile.open(archive) as package:
        for name in FILES:
            stream = package.extractfile(f"package/dist/{name}")
            if stream is None:
                raise KDExportError(f"{PACKAGE} {VERSION} holds no {name}", hint="give another with --web-runtime DIR")
            content = stream.read(LARGEST_FILE)
            (folder / name).write_bytes(content)
            hashes[name] = hashlib.sha256(content).hexdigest()
    (folder / "package.json").write_text(json.dumps({"name": PACKAGE, "version": VERSION}), encoding="utf-8")
    (folder / HASHES).write_text(json.dumps(hashes), encoding="utf-8")
