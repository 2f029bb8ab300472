"""Which of NVML's GPUs a CUDA device number means. Imports nothing that a bare script would not import.

CUDA numbers only the devices that CUDA_VISIBLE_DEVICES lets through (by index, or by GPU- or MIG- UUID), the fastest
first unless CUDA_DEVICE_ORDER says otherwise; NVML numbers all of them by their place on the PCI bus. The CUDA driver
knows the PCI address behind its own number, so it is asked and nothing is worked out from the environment.
"""

import os
from typing import Any


def nvml_handle(cuda_index: int) -> tuple[Any, Any]:
    """Return NVML, started, and its handle of a CUDA device; of a MIG slice, the handle of the whole GPU.

    Args:
        cuda_index: As ONNX Runtime's ``device_id``.

    Raises:
        Exception: Whatever is missing: pynvml, the driver, the device. The caller then has no figure.
    """
    import pynvml

    nvml: Any = pynvml
    nvml.nvmlInit()
    return nvml, nvml.nvmlDeviceGetHandleByPciBusId(pci_bus_id(cuda_index))


def pci_bus_id(cuda_index: int) -> bytes:
    """Return the PCI address of a CUDA device, e.g. ``b"0000:3B:00.0"``. Makes no CUDA context.

    Raises:
        OSError: There is no CUDA driver, or no such device.
    """
    import ctypes

    driver = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    device, text = ctypes.c_int(), ctypes.create_string_buffer(64)
    for code in (
        driver.cuInit(0),
        driver.cuDeviceGet(ctypes.byref(device), cuda_index),
        driver.cuDeviceGetPCIBusId(text, len(text), device),
    ):
        if code:
            raise OSError(f"the CUDA driver answered {code} for device {cuda_index}")
    return text.value
