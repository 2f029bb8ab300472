"""Why a model could not be measured, in words instead of the runtime's."""

import re

OPSET = re.compile(r"Opset (\d+) is under development.*?till opset (\d+)", re.DOTALL)
IR = re.compile(r"Unsupported model IR version: (\d+), max supported IR version: (\d+)")
MEMORY = re.compile(
    r"MemoryError|bad_alloc|Failed to allocate memory|out of memory|BFCArena|Available memory of", re.IGNORECASE
)
KILLED = re.compile(r"killed by SIGKILL")
NOISE = (
    re.compile(r"\[ONNXRuntimeError\] : \d+ : [A-Z_]+ : "),
    re.compile(r"Load model from .*? failed:\s*"),
    re.compile(r"(Status Message: )?\S*/onnxruntime\S*:\d+ .*?\) (?=[A-Za-z])", re.DOTALL),  # C++ file and signature
    re.compile(r"^(Fail|RuntimeError|RuntimeException|InvalidArgument|InvalidGraph|NotImplemented): "),
)
MAX_CHARACTERS = 300


def in_words(text: str, batch_size: int | None) -> str:
    """Return the reason of a failure in one line.

    Args:
        text: What the worker or ONNX Runtime said.
        batch_size: What it was working on; None while loading.
    """
    if found := OPSET.search(text):
        return (
            f"it needs opset {found[1]}, and this ONNX Runtime knows opsets up to {found[2]}: "
            f"export it with --opset {found[2]}, or pip install -U onnxruntime"
        )
    if found := IR.search(text):
        return (
            f"it needs ONNX IR version {found[1]}, and this ONNX Runtime knows versions up to {found[2]}: "
            "pip install -U onnxruntime, or save it with an older onnx"
        )
    short = text
    for pattern in NOISE:
        short = pattern.sub("", short)
    short = " ".join(short.split())
    if len(short) > MAX_CHARACTERS:
        short = short[:MAX_CHARACTERS] + "..."
    if MEMORY.search(text) or (KILLED.search(text) and batch_size is not None):
        what = "the model" if batch_size is None else f"batch size {batch_size}"
        return f"{what} does not fit in memory ({short})"
    return short
