"""`kdexport doctor`: what is installed, which devices really take a model, and the command that fixes each fault.

Nothing is believed from a list: on each provider that ONNX Runtime names, a model of one node is run in a child
process, and where that node lay is read off the runtime.
"""

import importlib.util
import platform
import re
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from kdexport import figures
from kdexport.bench import devices
from kdexport.bench.devices import available, by_name
from kdexport.bench.process import Child, ChildError
from kdexport.bench.warnings import in_words
from kdexport.errors import KDExportError
from kdexport.machine import driver_cuda, fingerprint, nvidia_gpus
from kdexport.results import Machine

PROBE_SECONDS = 60.0
Status = Literal["ok", "fault", "note"]

# distribution -> what it is needed for; those that kdexport cannot do without come first
NEEDED = ("torch", "torchvision", "onnx", "onnxscript", "numpy", "safetensors", "accelerate")
OPTIONAL = {
    "timm": ("timm: models", "pip install 'kdexport[timm]'"),
    "transformers": ("hf: models and text", "pip install 'kdexport[text]'"),
    "datasets": ("hf: data", "pip install 'kdexport[text]'"),
    "nvidia-ml-py": ("energy and memory of NVIDIA GPUs", "pip install nvidia-ml-py"),
}


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: str
    status: Status
    message: str
    fix: str | None = None  # a command, or what to do


@dataclass(frozen=True)
class Diagnosis:
    """Everything that was looked at."""

    machine: Machine | None  # None where onnxruntime cannot be imported
    checks: tuple[Check, ...]

    @property
    def faults(self) -> tuple[Check, ...]:
        """The checks that found a fault."""
        return tuple(check for check in self.checks if check.status == "fault")


def diagnose() -> Diagnosis:
    """Look at everything."""
    checks = [_python(), *_packages(), *_wheels(runtime_distributions())]
    machine = None
    if importlib.util.find_spec("onnxruntime") is not None:
        try:
            machine = fingerprint()
        except Exception as error:  # noqa: BLE001 - whatever a broken installation raises is the finding
            checks.append(
                Check(
                    "onnxruntime", "fault", f"cannot be imported: {error}", "pip install --force-reinstall onnxruntime"
                )
            )
    if machine is not None:
        checks += [*_machine(machine), *_cuda(), *_plugins(), *(_provider(name) for name in available())]
    checks += _web()
    return Diagnosis(machine, tuple(checks))


def runtime_distributions() -> dict[str, str]:
    """Return every distribution that installs the module ``onnxruntime``, with its version."""
    found = {}
    for distribution in metadata.distributions():
        name = (distribution.metadata["Name"] or "").lower().replace("_", "-")
        if name in ("onnxruntime", "ort-nightly", "ort-nightly-gpu") or name.startswith("onnxruntime-"):
            # onnxruntime-extensions, onnxruntime-genai and plugins have modules of their own
            if name.startswith(("onnxruntime-extensions", "onnxruntime-genai", "onnxruntime-ep-")):
                continue
            found[name] = distribution.version
    return found


def _python() -> Check:
    return Check("python", "ok", f"{platform.python_version()}, {platform.system()} {platform.machine()}")


def _packages() -> Iterable[Check]:
    for name in NEEDED:
        version = _version(name)
        if version is None:
            yield Check(name, "fault", "not installed", "pip install 'kdexport[cpu]'")
        else:
            yield Check(name, "ok", version)
    for name, (purpose, command) in OPTIONAL.items():
        version = _version(name)
        if version is None:
            yield Check(name, "note", f"not installed; for {purpose}", command)
        else:
            yield Check(name, "ok", version)


def _wheels(found: dict[str, str]) -> Iterable[Check]:
    if not found:
        yield Check("onnxruntime", "fault", "not installed", "pip install 'kdexport[cpu]'  (NVIDIA: 'kdexport[gpu]')")
    elif len(found) > 1:
        names = " ".join(sorted(found))
        keep = next((name for name in sorted(found) if name != "onnxruntime"), "onnxruntime")
        yield Check(
            "onnxruntime",
            "fault",
            f"{len(found)} wheels own the same module and overwrite each other: {names}",
            f"pip uninstall -y {names} && pip install {keep}",
        )
    else:
        name, version = next(iter(found.items()))
        yield Check("onnxruntime", "ok", f"{version} ({name})")


def _machine(machine: Machine) -> Iterable[Check]:
    features = f"; {', '.join(machine.cpu_features)}" if machine.cpu_features else ""
    limits = f"; {machine.container}" if machine.container else ""
    yield Check("cpu", "ok", f"{machine.cpu}, {machine.cores} cores{features}{limits}")
    if machine.governor not in (None, "performance"):
        yield Check(
            "governor",
            "note",
            f"'{machine.governor}': the clock follows the load, and so do latencies",
            "sudo cpupower frequency-set -g performance",
        )


def _cuda() -> Iterable[Check]:
    """Compare the CUDA that ONNX Runtime and torch were built for with what the driver can run."""
    import onnxruntime

    gpus, driver = nvidia_gpus()
    built = getattr(onnxruntime, "cuda_version", "") or ""
    torch = torch_cuda()
    runs = driver_cuda()
    if not gpus:
        if built:
            yield Check(
                "gpu",
                "fault",
                f"ONNX Runtime is built for CUDA {built}, but there is no NVIDIA GPU or driver",
                "install the NVIDIA driver (`nvidia-smi` must list the GPU), or: "
                "pip uninstall -y onnxruntime-gpu && pip install onnxruntime",
            )
        else:
            yield Check("gpu", "note", "no NVIDIA GPU or driver; devices: cpu")
        return
    yield Check("gpu", "ok", f"{'; '.join(gpus)}; driver {driver}" + (f", CUDA up to {runs}" if runs else ""))
    if not built:
        yield Check("cuda", "note", "this ONNX Runtime has no CUDA in it", by_name("CUDAExecutionProvider").install)
        return
    message = (
        f"ONNX Runtime is built for CUDA {built}, torch for {torch or 'none'}, the driver runs up to {runs or '?'}"
    )
    if runs and _major(built) > _major(runs):
        yield Check(
            "cuda", "fault", message, f"update the NVIDIA driver, or pip install an onnxruntime-gpu for CUDA {runs}"
        )
    elif torch and _major(torch) != _major(built):
        yield Check(
            "cuda",
            "note",
            message + ": two CUDA versions in one process; bench's workers load only ONNX Runtime's",
            "pip install 'onnxruntime-gpu[cuda,cudnn]'  (brings the libraries that it was built for)",
        )
    else:
        yield Check("cuda", "ok", message)


def _plugins() -> Iterable[Check]:
    """Say of each plugin package whether its library loads: one that does not offers no device, and no word of it."""
    for plugin in devices.installed():
        if plugin.library is None:
            message = f"{plugin.version} is installed, but does not tell where its library is: {plugin.fault}"
            yield Check(plugin.name, "fault", message, f"pip install --force-reinstall {plugin.name}")
        elif fault := devices.register({plugin.name: plugin.library}).get(plugin.name):
            message = (
                f"{plugin.version} is installed, but ONNX Runtime does not take its library: {in_words(fault, None)}"
            )
            yield Check(plugin.name, "fault", message, f"pip install -U {plugin.name} {_runtime()}")
        elif devices.offers_nothing(plugin):
            message = (
                f"{plugin.version}, its library loads, and offers no device here: no hardware that "
                f"{figures.joined_names(plugin.providers)} runs on, or no driver of it"
            )
            yield Check(plugin.name, "note", message, "install the driver of its hardware, or leave the package out")
        else:
            yield Check(plugin.name, "ok", f"{plugin.version}, its library loads")


def _web() -> Iterable[Check]:
    """Say whether a browser can be measured in: the browser, what drives it, the runtime that it needs."""
    from kdexport.bench.web import browser, runtime

    name = "device web"
    try:
        found = browser.find()
    except KDExportError as error:
        yield Check(name, "note", error.message, error.hint)
        return
    version = f"{found.name} {found.version or ''}".strip()
    try:
        browser.check_playwright()
    except KDExportError as error:
        yield Check(name, "note", f"{version}; {error.message}", error.hint)
        return
    held = runtime.cached()
    if held is not None:
        yield Check(name, "ok", f"{version}; {runtime.PACKAGE} {held.version} is in the cache")
        return
    if shutil.which("npm") is not None:
        yield Check(name, "ok", f"{version}; {runtime.PACKAGE} {runtime.VERSION} will be fetched by npm at first use")
    else:
        message = f"{version}; {runtime.PACKAGE} {runtime.VERSION} is not in the cache, and npm is not on PATH"
        yield Check(name, "note", message, "install npm, or give --web-runtime DIR")


def torch_cuda() -> str | None:
    """Return the CUDA version that torch was built for without importing torch; None for a CPU build or no torch."""
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None:
        return None
    try:
        text = (Path(found.origin).parent / "version.py").read_text(encoding="utf-8")
    except OSError:
        return None
    match = re.search(r"^cuda\s*(?::[^=]*)?=\s*'([\d.]+)'", text, re.MULTILINE)
    return match[1] if match else None


def _provider(provider: str) -> Check:
    """Run a model of one node and say where it lay."""
    import onnxruntime

    known = by_name(provider)
    fix = known.install
    name = f"device {known.device}" if known in devices.ALL else provider
    try:
        placed = probe(provider)
    except (ChildError, KDExportError) as error:
        return Check(name, "fault", in_words(str(error), None), fix)
    if provider in placed:
        return Check(name, "ok", f"a model ran whole on {provider}")
    if provider == "AzureExecutionProvider":
        return Check(name, "note", "sends models to a web service; takes no nodes here")
    if not placed and not hasattr(onnxruntime.InferenceSession, "get_provider_graph_assignment_info"):
        message = f"a model ran; where is not provable before ONNX Runtime 1.24, and this is {onnxruntime.__version__}"
        return Check(name, "note", message, f"pip install -U {_runtime()}")
    where = ", ".join(placed) or "nowhere that the runtime can name"
    if set(known.behind) & set(placed):  # onnxruntime-gpu lists TensorRT wherever it is installed, the library or not
        return Check(name, "note", f"listed, but its own library is not found: the model ran on {where}", fix)
    return Check(name, "fault", f"listed, but the model ran on {where}", fix)


def probe(provider: str) -> Sequence[str]:
    """Run the smallest model in a child and return the providers that its node was given to; none where none can tell.

    Raises:
        ChildError: The child died, hung or could not load it.
    """
    with Child(provider, PROBE_SECONDS) as child:
        task = {
            "path": "",
            "provider": provider,
            "provider_options": {},
            "libraries": devices.installed_libraries(),
            "threads": 1,
            "shapes": {"x": [1]},
            "batch_size": 1,
            "below": {},
            "file": None,
        }
        reply, _ = child.ask(do="load", **task)
        child.ask(do="prepare", **task)
        return list(reply["placement"])


def _runtime() -> str:
    """Return the distribution that ONNX Runtime came with."""
    return next(iter(runtime_distributions()), "onnxruntime")


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _major(version: str) -> int:
    head = version.partition(".")[0]
    return int(head) if head.isdigit() else 0
