"""What will be measured, decided before anything runs: plain data that a packed benchmark can carry."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from kdexport.onnx.layers import GraphNode


@dataclass(frozen=True)
class WebSettings:
    """The browser and the runtime of web devices: as the user names them, then as ``web.devices.resolve`` has them."""

    browser: str | None = None  # path
    runtime: str | None = None  # folder
    browser_name: str | None = None
    browser_version: str | None = None
    runtime_version: str | None = None  # None: not looked for yet


@dataclass(frozen=True)
class Settings:
    """How to measure. The recipe's [bench] and the command line both end up here."""

    precision: float = 0.02  # half-width of the median's 95 % interval, as a share of the median
    min_seconds: float = 1.0  # of measured time per model, device, batch size and thread count
    max_seconds: float = 20.0  # by the clock, start and warm-up included; the fewest rounds are made even so
    rounds: int = 5  # fewest fresh processes per model
    min_runs: int = 30
    timeout_s: float = 300.0  # longest silence of a child
    allow_fallback: bool = False
    streams: tuple[int, ...] = (1,)  # concurrent callers of one session, for throughput
    power_command: str | None = None  # prints watts
    dims: Mapping[str, int] = field(default_factory=dict)  # dynamic axis -> size
    web: WebSettings = WebSettings()
    profile: bool = False  # the time of each operator too
    batch_axis: str | None = None  # which axis holds the samples; None: as bench.inputs.batch_axes finds it


@dataclass(frozen=True)
class Target:
    """One model as the children need it."""

    name: str
    path: str
    inputs: Mapping[str, list[str | int]]
    below: Mapping[str, int] = field(default_factory=dict)  # integer input -> the smallest value that is out of range
    file: str | None = None  # .npz with real inputs
    warnings: tuple[str, ...] = ()  # of what is fed
    nodes: tuple[GraphNode, ...] = ()  # of the file, where a profile is asked for: which layer each is of


@dataclass(frozen=True)
class Device:
    """A device as the user names it, and what ONNX Runtime calls it."""

    name: str  # "cpu", "cuda:1"
    provider: str  # "CUDAExecutionProvider"
    options: Mapping[str, str] = field(default_factory=dict)
    libraries: Mapping[str, str] = field(default_factory=dict)  # plugins to register first: name -> path


@dataclass(frozen=True)
class Condition:
    """One device and thread count: what a group of children that are alive together shares."""

    device: Device
    threads: int
    batch_sizes: tuple[int, ...]


@dataclass(frozen=True)
class Plan:
    """All that is to be measured. Devices stand by name: what is behind them shows on the machine that measures."""

    targets: tuple[Target, ...]
    settings: Settings
    devices: tuple[str, ...] = ("cpu",)
    batch_sizes: tuple[int, ...] = (1,)
    threads: tuple[int, ...] = (1,)
    provider_options: Mapping[str, str] = field(default_factory=dict)
