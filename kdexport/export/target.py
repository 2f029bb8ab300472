"""What is exported, and in which form: the two things that every writer of a file is given."""

from dataclasses import dataclass

from torch import nn

from kdexport.models.preprocessing import Preprocessing
from kdexport.onnx.sessions import Arrays


@dataclass(frozen=True)
class ExportTarget:
    """A network with what is needed to prove its file."""

    name: str  # "teacher", "student", ...
    network: nn.Module  # eval, fp32, on the CPU
    preprocessing: Preprocessing
    input_names: tuple[str, ...]
    samples: Arrays  # raw, one array per input, first axis samples
    samples_are: str = "real"  # or "random", where no data were given
    class_names: tuple[str, ...] = ()
    parameters: int | None = None
    macs: int | None = None
    recipe: str | None = None  # hash of what it was trained by
    license: str | None = None  # of the weights, SPDX or in words
    accuracy: float | None = None  # of the network in PyTorch, on the validation split


@dataclass(frozen=True)
class Form:
    """What the file is to look like."""

    opset: int
    ir: int
    tolerance: float
    bake: bool = False  # uint8 NHWC in
    any_image_size: bool = False  # with bake: resized inside
    softmax: bool = False
    top_k: int = 0
    output_names: tuple[str, ...] | None = None  # None: logits, or output_0, ... where there are several
    dynamic: tuple[dict[int, str], ...] | None = None  # per input, axis -> name; None: the first, and a text's length
    static: bool = False  # no dynamic axis; the batch is 1
