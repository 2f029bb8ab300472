"""ONNX Runtime's execution providers, each in one entry: what its device is called, how it is had, where its data lie.

A provider that is not here can still be measured if it is a plugin: by its own name, with data in the host's memory.
"""

from dataclasses import dataclass


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
        "pip uninstall -y onnxruntime && pip install onnxruntime-openvino",
    ),
    Provider("coreml", "CoreMLExecutionProvider", "CoreML exists on macOS only: there, pip install onnxruntime"),
    Provider(
        "qnn",
        "QNNExecutionProvider",
        "pip uninstall -y onnxruntime && pip install onnxruntime-qnn (Snapdragon machines)",
    ),
    Provider("webgpu", "WebGpuExecutionProvider", "pip uninstall -y onnxruntime && pip install onnxruntime-webgpu"),
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
