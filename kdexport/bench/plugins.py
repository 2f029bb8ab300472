"""Execution providers that are installed as packages of their own, and must be registered with ONNX Runtime.

Such a package is called ``onnxruntime-ep-...`` and its module tells where the library lies: ``get_library_path()``
(https://onnxruntime.ai/docs/execution-providers/plugin-ep-libraries/packaging.html).
"""

import contextlib
import importlib
from collections.abc import Mapping
from importlib import metadata

PREFIX = "onnxruntime-ep-"


def installed_libraries() -> dict[str, str]:
    """Return distribution -> path of its provider library, for each plugin that is installed and can be imported."""
    found = {}
    for distribution in metadata.distributions():
        name = (distribution.metadata["Name"] or "").lower().replace("_", "-")
        if name.startswith(PREFIX):
            try:
                found[name] = str(importlib.import_module(name.replace("-", "_")).get_library_path())
            except Exception:  # noqa: BLE001 - a broken plugin is no device; `doctor` does not list it
                continue
    return found


def register(libraries: Mapping[str, str]) -> None:
    """Register plugin libraries in this process. One that does not load offers no device; its use says so.

    Args:
        libraries: Name to register under -> path.
    """
    import onnxruntime

    for name, path in libraries.items():
        with contextlib.suppress(Exception):  # not loadable here, or registered before
            onnxruntime.register_execution_provider_library(name, path)
