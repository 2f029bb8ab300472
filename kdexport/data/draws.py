"""Random numbers that can be asked for again: a counter-based hash in place of a generator's state."""

import hashlib

import numpy as np
from numpy.typing import NDArray


def uniform(seed: int, stream: str, indices: NDArray[np.uint64], view: int, draws: int) -> NDArray[np.float32]:
    """Return numbers in [0, 1), ``[batch, draws]``, a pure function of (seed, stream, index, view, draw).

    Each counter goes through SplitMix64's finalizer (Steele, Lea and Flood, OOPSLA 2014) once per part of its key.
    """
    salt = np.uint64(int.from_bytes(hashlib.sha256(f"{seed}/{stream}/{view}".encode()).digest()[:8], "little"))
    keys = _mix(_mix(indices ^ salt)[:, None] + np.arange(1, draws + 1, dtype=np.uint64) * _GOLDEN)
    return ((keys >> np.uint64(40)).astype(np.float32)) / np.float32(1 << 24)


_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    with np.errstate(over="ignore"):  # arithmetic modulo 2^64 is the point
        values = values + _GOLDEN
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return values ^ (values >> np.uint64(31))
