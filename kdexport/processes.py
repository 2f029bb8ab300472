"""Which of several processes this is, before torch is there to ask: torchrun and accelerate launch both set these."""

import os


def rank() -> int:
    """Return this process's number among all, 0 where it is alone."""
    return int(os.environ.get("RANK", "0"))


def is_main() -> bool:
    """Whether this process writes the files that all share."""
    return rank() == 0
