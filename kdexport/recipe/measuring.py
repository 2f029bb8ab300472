"""[export], [bench] and [require]: which files are written, how they are measured, what must hold."""

from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field

from kdexport.precisions import checked
from kdexport.recipe.section import DAY, Count, Section


class Export(Section):
    """[export]: the ONNX files to write."""

    OLD_NAMES: ClassVar[dict[str, str]] = {"max_accuracy_drop": "max_drop", "licence": "license"}

    opset: int = Field(18, ge=17, le=26, description="ONNX operator set of the files.")
    quantize: Annotated[tuple[str, ...], AfterValidator(checked)] = Field(
        (),
        description=(
            "Smaller variants to write beside the fp32 file: fp16, int8, int8-dynamic, int4; and auto, which gives "
            "each operator the precision that makes the file fast on the first of [bench]'s devices, threads and "
            "batch_sizes, within max_drop. By default none."
        ),
    )
    also_outputs: tuple[str, ...] = Field(
        (),
        description=(
            "Further outputs of the student that its files hold, behind the one that is scored: keys, fields or "
            "indices as in student.output. Left out: none."
        ),
    )
    bake_preprocessing: bool = Field(
        True,
        description=(
            "Whether resizing and normalization are part of the graph, so that uint8 images in NHWC layout go in."
        ),
    )
    any_image_size: bool = Field(
        False, description="Whether images of any size go in and are resized in the graph; needs bake_preprocessing."
    )
    softmax: bool = Field(False, description="Whether probabilities come out in place of logits.")
    top_k: int = Field(
        0, ge=0, description="Number of best classes that come out as well, with their scores; 0 means none."
    )
    license: str | None = Field(
        None, description="License of the weights, which is written into the files. Left out: none is written."
    )
    parity_tolerance: float = Field(
        1e-4,
        gt=0,
        description=("Largest relative difference between PyTorch's and ONNX Runtime's outputs that passes as equal."),
    )
    calibration: Literal["auto", "minmax", "entropy", "percentile"] = Field(
        "auto",
        description=(
            "How the ranges of int8 activations are found; auto tries all and takes the best on the validation split."
        ),
    )
    calibration_samples: int = Field(256, ge=1, description="Number of training samples that the ranges are found on.")
    weight_bits: Literal[7, 8] = Field(
        7, description="Bits of an int8 weight; 8 is finer, and overflows on x86 processors without VNNI."
    )
    max_drop: float | None = Field(
        None,
        ge=0,
        description=(
            "Largest loss of a variant's score on the validation split, as a share; operators return to "
            "fp32 until it holds. Left out: none does."
        ),
    )
    max_output_error: float | None = Field(
        None,
        gt=0,
        description=(
            "Largest RMS difference of a variant's outputs from the fp32 file's, as a share of their RMS, "
            "where there is no accuracy; operators return to fp32 until it holds. Left out: none does."
        ),
    )


class Bench(Section):
    """[bench]: what to measure on."""

    devices: tuple[str, ...] = Field(
        ("cpu",),
        min_length=1,
        description=(
            "Devices to measure on: cpu, cuda, cuda:1, tensorrt, openvino, web:wasm, web:wasm-threads, web:webgpu, "
            "...; one that is not there is an error."
        ),
    )
    batch_sizes: tuple[Count, ...] = Field(
        (1,), min_length=1, description="Samples per call, each of which is measured."
    )
    threads: tuple[Count, ...] = Field(
        (1,), min_length=1, description="Threads within one operator, each number of which is measured."
    )
    precision: float = Field(
        0.02,
        gt=0,
        description="Half-width of the median's 95 % interval at which measuring ends, as a share of the median.",
    )
    min_seconds: float = Field(
        1.0,
        gt=0,
        le=DAY,
        description="Least seconds that are measured per model, device, batch size and number of threads.",
    )
    max_seconds: float = Field(
        20.0,
        gt=0,
        le=DAY,
        description=(
            "Most seconds by the clock per model, device, batch size and number of threads, unless the "
            "fewest rounds take longer."
        ),
    )
    rounds: Count = Field(5, description="Fewest fresh processes per model: one process alone is never believed.")
    allow_fallback: bool = Field(
        False,
        description=(
            "Whether a model is measured even where operators fall back to the CPU; by default that is an error."
        ),
    )
    streams: tuple[Count, ...] = Field(
        (1,),
        description=("Numbers of concurrent callers of one session, for throughput beside the latency of one caller."),
    )
    profile: bool = Field(
        False,
        description=(
            "Whether the time of each operator is measured too, by type and by layer, without the profiler's own cost."
        ),
    )
    provider_options: dict[str, str] = Field(
        {}, description="Options of the execution provider, for every device but the CPU."
    )
    browser: str | None = Field(
        None, description="Browser of web devices: its path. Left out: Chromium, Chrome or Edge on PATH."
    )
    web_runtime: str | None = Field(
        None,
        description=(
            "Folder of an unpacked onnxruntime-web, for web devices. By default npm fetches it once, for the cache."
        ),
    )
    dims: dict[str, Count] = Field(
        {}, description="Sizes of dynamic axes beside the batch, by name, e.g. { length = 64 }; texts need none."
    )
    batch_axis: str | None = Field(
        None,
        description=(
            "Axis of the inputs that holds the samples, by its name or position. Left out: the dynamic "
            "one that is called batch, batch_size, N, ..., else the first."
        ),
    )
    power_command: str | None = Field(
        None,
        description="A command that prints watts, for energy per call. Left out: RAPL, NVML, a Jetson's rails.",
    )
    timeout_s: float = Field(
        300.0,
        gt=0,
        le=DAY,
        description="Seconds of silence after which a process is ended and its model counts as failed.",
    )


class Require(Section):
    """[require]: what the model to ship must hold."""

    OLD_NAMES: ClassVar[dict[str, str]] = {"max_accuracy_drop": "max_drop", "min_accuracy": "min_score"}

    max_drop: float | None = Field(
        None,
        ge=0,
        description=(
            "Largest loss of the task's score against the teacher, in the score's own unit: 0.01 is one "
            "point of accuracy. Left out: no limit."
        ),
    )
    min_score: float | None = Field(
        None, description="Least score of the task; where a lower score is better, the largest. Left out: no limit."
    )
    min_speedup: float | None = Field(
        None,
        gt=0,
        description="Least speed-up against the teacher: the ratio of the median latencies. Left out: no limit.",
    )
    max_size_mib: float | None = Field(None, gt=0, description="Largest size of the file, in MiB. Left out: no limit.")
    max_latency_ms: float | None = Field(
        None, gt=0, description="Largest latency of a call, in milliseconds, at latency_percentile. Left out: no limit."
    )
    latency_percentile: Literal[50, 90, 95, 99] = Field(
        50, description="Percentile of the latency that max_latency_ms limits; 50 is the median."
    )
    max_memory_mib: float | None = Field(
        None, gt=0, description="Largest peak memory of the whole process, in MiB. Left out: no limit."
    )
    parity: bool = Field(False, description="Whether the file must have been proved equal to the PyTorch model.")
    undecided: Literal["pass", "fail"] = Field(
        "pass", description="What a limit within the 95 % interval of a figure counts as."
    )
    prefer: Literal["latency", "size", "accuracy"] = Field(
        "latency",
        description=(
            "Which of several models that hold all requirements is picked: the fastest, the smallest or "
            "the most accurate."
        ),
    )
    batch_size: int | None = Field(
        None,
        ge=1,
        description="Batch size at which speed and memory are judged. Left out: the smallest that was measured.",
    )
    threads: int | None = Field(
        None,
        ge=1,
        description=(
            "Number of threads at which speed and memory are judged. Left out: the smallest that was measured."
        ),
    )
