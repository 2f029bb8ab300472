"""Device names, and what stands behind them. Nothing is used that was not proved to be there.

ONNX Runtime's execution providers have an entry each in ``ALL``: what its device is called, how it is had, where its
data lie.

A provider that is not here can still be measured if it is a plugin: by its own name, with data in the host's memory.
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata

from kdexport.bench.plan import Device
from kdexport.bench.web.devices import web_device
from kdexport.errors import DeviceError, did_you_mean


@dataclass(frozen=True)
class Provider:
    """One execution provider."""

    device: str  # the name that users give
    name: str  # ONNX Runtime's
    install: str  # what to do where it is missing
    numbered: bool = False  # takes an index: cuda:1
    memory: str = "cpu"  # where inputs and outputs are bound, as OrtValue names it
    nvidia: bool = False
    behind: tuple[str, ...] = ()  # take what it leaves, before the CPU does


GPU_WHEEL = "pip uninstall -y onnxruntime && pip install 'kdexport[gpu]'"
ON_NVIDIA = "on a machine with an NVIDIA driver (see `nvidia-smi`)"

ALL = (
    Provider("cpu", "CPUExecutionProvider", "pip install onnxruntime"),
    Provider("cuda", "CUDAExecutionProvider", f"{GPU_WHEEL} {ON_NVIDIA}", numbered=True, memory="cuda", nvidia=True),
    Provider(
        "tensorrt",
        "TensorrtExecutionProvider",
        f"{GPU_WHEEL} tensorrt {ON_NVIDIA}",
        numbered=True,
        memory="cuda",
        nvidia=True,
        behind=("CUDAExecutionProvider",),
    ),
    Provider(
        "openvino",
        "OpenVINOExecutionProvider",
        "pip uninstall -y onnxruntime && pip install onnxruntime-openvino (built in, on any x86 CPU; on Intel's GPUs "
        "and NPUs also onnxruntime-ep-openvino, beside onnxruntime)",
    ),
    Provider("coreml", "CoreMLExecutionProvider", "CoreML exists on macOS only: there, pip install onnxruntime"),
    Provider(
        "qnn",
        "QNNExecutionProvider",
        "pip uninstall -y onnxruntime && pip install onnxruntime-qnn (Snapdragon machines)",
    ),
    Provider(
        "webgpu", "WebGpuExecutionProvider", "pip install onnxruntime-ep-webgpu (beside onnxruntime 1.23 and later)"
    ),
    Provider(
        "dml",
        "DmlExecutionProvider",
        "DirectML exists on Windows only: there, pip uninstall -y onnxruntime && pip install onnxruntime-directml",
        numbered=True,
    ),
    Provider(
        "migraphx",
        "MIGraphXExecutionProvider",
        "pip uninstall -y onnxruntime && pip install onnxruntime-migraphx (AMD GPUs with ROCm)",
        numbered=True,
    ),
    Provider("xnnpack", "XnnpackExecutionProvider", "build ONNX Runtime with --use_xnnpack; no wheel holds it"),
)


def of_device(device: str) -> Provider | None:
    """Return the provider behind a device's name without its index."""
    return next((provider for provider in ALL if provider.device == device), None)


def by_name(name: str) -> Provider:
    """Return what is known of a provider by ONNX Runtime's name; of a plugin that is not listed, only that."""
    known = next((provider for provider in ALL if provider.name == name), None)
    return known or Provider(name, name, f"see https://onnxruntime.ai/docs/execution-providers for {name}")


def available() -> list[str]:
    """Return the providers that this ONNX Runtime names: built in, or plugged in. Not proved to work."""
    import onnxruntime

    built_in = list(onnxruntime.get_available_providers())
    if not hasattr(onnxruntime, "get_ep_devices"):  # before 1.23
        return built_in
    register(installed_libraries())
    return list(dict.fromkeys([*built_in, *(device.ep_name for device in onnxruntime.get_ep_devices())]))


def find(names: Sequence[str], available: Sequence[str], options: Mapping[str, str]) -> list[Device]:
    """Return the devices behind the names.

    Args:
        names: As the user gives them: ``cpu``, ``cuda:1``, or the name of a plugin provider.
        available: What ``onnxruntime.get_available_providers()`` lists.
        options: Provider options, for every device that isn't the CPU.

    Raises:
        DeviceError: A name is unknown, or this ONNX Runtime lacks its provider.
    """
    found = [_find(name, available, options) for name in names]
    return list({device.name: device for device in found}.values())  # web is web:wasm: once is enough


def _find(name: str, available: Sequence[str], options: Mapping[str, str]) -> Device:
    kind, colon, index = name.partition(":")
    if kind == "web":
        if options:
            raise DeviceError(
                f"a browser takes no provider options: {', '.join(options)}",
                hint=f"leave --provider-option out, or measure '{name}' by itself",
            )
        return web_device(name)
    provider = of_device(kind)
    if provider is None and name in available:  # a plugin provider by its own name
        return Device(name, name, options, installed_libraries())
    if provider is None:
        listed = {known.name for known in ALL}
        known = [*(known.device for known in ALL), "web", *(other for other in available if other not in listed)]
        near = "did you mean 'cuda'? (others: tensorrt, webgpu, coreml)" if kind == "gpu" else did_you_mean(kind, known)
        near = f"did you mean '{by_name(kind).device}'?" if kind in listed else near
        raise DeviceError(
            f"there is no device called '{name}'", hint=(near or "there are: " + ", ".join(known)).strip()
        )
    if colon and not (provider.numbered and index.isdecimal()):
        form = f"{kind}:0" if provider.numbered else kind
        raise DeviceError(f"'{name}' is not the name of a device", hint=f"write it as {form}")
    if provider.name not in available:
        idle = [plugin for plugin in installed() if provider.name in plugin.providers]
        if idle:
            raise DeviceError(
                f"device '{name}' is not there: {idle[0].name} {idle[0].version} is installed, and offers no device "
                "on this machine",
                hint="it finds no hardware of its own, or no driver: see `kdexport doctor`"
                + ("" if provider.install.startswith(f"pip install {idle[0].name}") else f"; or {provider.install}"),
            )
        raise DeviceError(
            f"device '{name}' is not there: this ONNX Runtime has no {provider.name} "
            f"(it has {', '.join(available)}){_no_gpu() if provider.nvidia else ''}",
            hint=provider.install,
        )
    chosen = dict(options) if kind != "cpu" else {}
    if provider.numbered:
        chosen.setdefault("device_id", index or "0")
    return Device(name, provider.name, chosen, installed_libraries() if kind != "cpu" else {})


def _no_gpu() -> str:
    from kdexport.machine import nvidia_gpus

    gpus, _ = nvidia_gpus()
    return "" if gpus else ", and no NVIDIA GPU or driver was found on this machine"


PREFIX = "onnxruntime-ep-"

_registered: dict[str, str] = {}  # name -> path: what this process holds; a second time would be an error


@dataclass(frozen=True)
class Plugin:
    """An installed plugin package."""

    name: str  # of the distribution
    version: str
    library: str | None  # path of its provider library; None where its module does not tell
    fault: str | None  # why not
    providers: tuple[str, ...] = ()  # ONNX Runtime's names of what it brings, where its module tells


def installed() -> list[Plugin]:
    """Return every plugin package that is installed, broken ones too."""
    return [_plugin(name, version) for name, version in _packages(tuple(sys.path)).items()]


def _plugin(name: str, version: str) -> Plugin:
    library = fault = None
    providers: tuple[str, ...] = ()
    try:
        module = importlib.import_module(name.replace("-", "_"))
        library = str(module.get_library_path())
        providers = tuple(map(str, module.get_ep_names())) if hasattr(module, "get_ep_names") else ()
    except Exception as error:  # noqa: BLE001 - whatever a broken package raises is the finding
        fault = f"{type(error).__name__}: {error}"
    return Plugin(name, version, library, fault, providers)


def offers_nothing(plugin: Plugin) -> bool:
    """Return whether a plugin whose library is registered finds no hardware here that it could run on."""
    import onnxruntime

    found = {device.ep_name for device in onnxruntime.get_ep_devices()}
    return bool(plugin.providers) and not found & set(plugin.providers)


@functools.lru_cache(maxsize=1)
def _packages(path: tuple[str, ...]) -> dict[str, str]:
    """Return the version of each plugin package on a path: to read what all packages are called takes 0.1 s."""
    found: dict[str, str] = {}
    for distribution in metadata.distributions(path=list(path)):
        name = (distribution.metadata["Name"] or "").lower().replace("_", "-")
        if name.startswith(PREFIX):
            found.setdefault(name, distribution.version)
    return found


def installed_libraries() -> dict[str, str]:
    """Return distribution -> path of its provider library. A broken plugin is no device; `doctor` says why."""
    return {plugin.name: plugin.library for plugin in installed() if plugin.library is not None}


def register(libraries: Mapping[str, str]) -> dict[str, str]:
    """Register plugin libraries in this process. One that does not load offers no device.

    Args:
        libraries: Name to register under -> path.

    Returns:
        Name -> why, for those that could not be.
    """
    import onnxruntime

    faults = {}
    for name, path in libraries.items():
        if _registered.get(name) == path:
            continue
        if not hasattr(onnxruntime, "register_execution_provider_library"):  # before 1.23
            faults[name] = f"ONNX Runtime {onnxruntime.__version__} takes no plugins"
            continue
        try:
            onnxruntime.register_execution_provider_library(name, path)
        except Exception as error:  # noqa: BLE001 - ONNX Runtime has a class of its own for each of a dozen faults
            faults[name] = str(error)
        else:
            _registered[name] = path
    return faults
