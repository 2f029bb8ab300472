"""Accelerate's object for one training: device, mixed precision, processes."""

from datetime import timedelta

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import InitProcessGroupKwargs

PATIENCE = timedelta(hours=12)  # of a process that waits: the first decodes, downloads and scores for all


def accelerator_for(precision: str) -> Accelerator:
    """Return an Accelerator of a recipe's precision: ``fp32``, ``bf16`` or ``fp16``.

    Accelerate keeps one precision per process; a run trains a teacher and a student that may differ, one after the
    other, so what the last one set is put back first. Processes and devices stay as they are.
    """
    AcceleratorState._reset_state(reset_partial_state=False)
    # Asked for by name: on a machine without a GPU, Accelerate joins torchrun's processes only then.
    cpu = not torch.accelerator.is_available()
    waiting = InitProcessGroupKwargs(timeout=PATIENCE)
    return Accelerator(cpu=cpu, mixed_precision="no" if precision == "fp32" else precision, kwargs_handlers=[waiting])
