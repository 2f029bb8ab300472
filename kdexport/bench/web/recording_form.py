"""The form of what a device's page sends: each value's type and limits. Nothing of it is believed before it fits."""

import base64
import binascii
import math
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

if TYPE_CHECKING:
    import numpy as np

FORMAT = "kdexport recording"
MOST_NS = 10**13  # of a call: 3 hours
LINES = 200_000
MOST_OUTPUT = 2**20  # characters of one output of one call


def _printable(text: str) -> str:
    """Return a text that a device has sent as one line without what could steer a terminal."""
    return " ".join("".join(character if character.isprintable() else " " for character in text).split())


Text = Annotated[str, Field(max_length=2000), AfterValidator(_printable)]
Line = Annotated[str, Field(max_length=2000)]  # of a log, as it stands: its spaces say what it is
Name = Annotated[str, Field(min_length=1, max_length=60), AfterValidator(_printable)]
Identity = Annotated[str, Field(pattern=r"^[0-9a-f]{8,64}$")]
Milliseconds = Annotated[float, Field(ge=0, le=MOST_NS / 1e6)]
Mebibytes = Annotated[float, Field(ge=0, le=2**24)]
Nanoseconds = Annotated[int, Field(gt=0, le=MOST_NS)]
Count = Annotated[int, Field(ge=1, le=10**9)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, strict=True)


class Round(_Strict):
    """One model's share of one round, in a fresh worker."""

    load_ms: Milliseconds
    first_run_ms: Milliseconds
    stable: bool
    nan: Annotated[list[Text], Field(max_length=1000)]
    calls_per_sample: Count
    clock_ms: Annotated[float, Field(gt=0, le=1e4)]
    turns: Annotated[list[Annotated[list[Nanoseconds], Field(min_length=1)]], Field(min_length=1)]


class Taken(_Strict):
    """MiB of one model in a worker of its own."""

    wasm_heap: Mebibytes | None
    page: Mebibytes | None


class Output(_Strict):
    """One output of one call: its values as they lie in memory."""

    name: Annotated[str, Field(max_length=1000)]
    type: Annotated[str, Field(pattern="^(float(16|32|64)|u?int(8|16|32|64)|bool)$")]
    dims: Annotated[list[Annotated[int, Field(ge=0, le=2**31)]], Field(max_length=16)]
    data: Annotated[str, Field(max_length=MOST_OUTPUT)]  # base64

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        try:
            size = len(base64.b64decode(self.data, validate=True))
        except (binascii.Error, ValueError):
            raise ValueError("not base64") from None
        if size != math.prod(self.dims) * self._width:
            raise ValueError("not as many values as its shape says")
        return self

    @property
    def _width(self) -> int:
        return 1 if self.type == "bool" else int(self.type.lstrip("uintfloa")) // 8

    def array(self) -> "np.ndarray":
        """Return the values."""
        import numpy as np

        return np.frombuffer(base64.b64decode(self.data), self.type).reshape(self.dims)

    @classmethod
    def of(cls, name: str, array: "np.ndarray[Any, Any]") -> Self:
        """Return an array in this form."""
        data = base64.b64encode(array.tobytes()).decode()
        return cls(name=name, type=array.dtype.name, dims=list(array.shape), data=data)


class Compared(_Strict):
    """What a model gave for the inputs that are compared, or why it gave nothing."""

    failure: Text | None
    calls: Annotated[list[Annotated[list[Output], Field(max_length=1000)]], Field(max_length=1000)]


class Recorded(_Strict):
    """One model under one condition."""

    model: Annotated[str, Field(max_length=1000)]
    device: Annotated[str, Field(max_length=60)]
    batch_size: Count
    threads: Count
    failure: Text | None
    memory: Taken | None
    placement_log: Annotated[list[Line], Field(max_length=LINES)]
    rounds: Annotated[list[Round], Field(max_length=10_000)]
    compared: Compared | None = None


class Device(_Strict):
    """What a browser says of itself and of its device."""

    id: Identity
    name: Name
    agent: Annotated[str, Field(max_length=500), AfterValidator(_printable)]
    platform: Text | None
    platform_version: Text | None
    model: Text | None
    cores: Annotated[int, Field(ge=1, le=4096)] | None
    secure: bool
    isolated: bool
    simd: bool
    adapter: dict[Annotated[str, Field(max_length=60)], Text | bool | None] | None


class Recording(_Strict):
    """All that one device has measured so far."""

    format: Literal["kdexport recording"]
    version: Literal[1]
    session: Annotated[str, Field(max_length=100)]
    started: Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z$")]
    complete: bool
    device: Device
    results: Annotated[list[Recorded], Field(max_length=10_000)]
