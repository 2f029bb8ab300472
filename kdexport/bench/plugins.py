"""Execution providers that are installed as packages of their own, and must be registered with ONNX Runtime.

Such a package is called ``onnxruntime-ep-...`` and its module tells where the library lies: ``get_library_path()``
(https://onnxruntime.ai/docs/execution-providers/plugin-ep-libraries/packaging.html).
"""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata

PREFIX = "onnxruntime-ep-"

_registered: dict[str, str] = {}  # name -> path: what this process holds; a second time would be an error


@dataclass(frozen=True)
class Plugin:
    """An installed plugin package."""

    name: str  # of the distribution
    version: str
    library: str | None  # path of its provider library; None where its module does not tell
    fault: str | None  # why not


def installed() -> list[Plugin]:
    """Return every plugin package that is installed, broken ones too."""
    found: dict[str, Plugin] = {}
    for distribution in metadata.distributions():
        name = (distribution.metadata["Name"] or "").lower().replace("_", "-")
        if not name.startswith(PREFIX) or name in found:
            continue
        library = fault = None
        try:
            library = str(importlib.import_module(name.replace("-", "_")).get_library_path())
        except Exception as error:  # noqa: BLE001 - whatever a broken package raises is the finding
            fault = f"{type(error).__name__}: {error}"
        found[name] = Plugin(name, distribution.version, library, fault)
    return list(found.values())


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
