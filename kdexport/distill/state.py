"""What changes from step to step and must survive a kill."""

import time
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from kdexport.artifacts import remove, write_atomically
from kdexport.distill.context import Depends
from kdexport.distill.evaluation import BatchAgreement, Seen, sums_dtype
from kdexport.distill.features import FeatureHooks
from kdexport.tasks.base import Task

ADD_UP_AT = 64  # scalars


class LoopState:
    """Where a training stands: steps, the epoch's sums, the best weights so far.

    Args:
        device: Where the sums are kept.
        epochs: Of the training.
        per_epoch: Steps of an epoch.
        task: Says which of two scores is better.
        mixed: Whether samples are mixed: no decision of a training batch is then right or wrong.
    """

    def __init__(self, device: torch.device, epochs: int, per_epoch: int, task: Task, *, mixed: bool = False) -> None:
        self.total_steps, self._per_epoch = epochs * per_epoch, per_epoch
        self.step = 0
        self.best_epoch = 0
        self.best_score: float | None = None
        self.last_score: float | None = None
        self.best_weights: dict[str, Tensor] = {}
        self._device, self._task = device, task
        self._agreement = BatchAgreement(device, per_epoch, task, mixed=mixed)
        self._seconds_before, self._started = 0.0, time.monotonic()
        self.clear_sums()

    def clear_sums(self) -> None:
        """Begin an epoch."""
        self.seen, self._batches = 0, 0
        self._names: tuple[str, ...] = ()
        self._sums = torch.zeros(1, dtype=sums_dtype(self._device), device=self._device)  # the loss, then its terms
        self._waiting: list[Tensor] = []  # of the steps since they were last added up
        self._agreement.clear()

    def count(self, loss: Tensor, parts: dict[str, Tensor], seen: list[Seen], samples: int) -> None:
        """Add up one step without waiting for the device."""
        if self._agreement.looks_at(self.step):
            for part in seen:
                self._agreement.count(part)
        self.step += 1
        self.seen += samples
        self._batches += 1
        if not self._names:
            self._names = tuple(parts)
        self._waiting += (loss, *parts.values())
        if len(self._waiting) >= ADD_UP_AT:
            self._add_up()

    def _add_up(self) -> None:
        """Add what waits to the sums: one operation for many steps, for each costs as much as a small layer."""
        if self._waiting:
            rows = torch.stack(self._waiting).view(-1, 1 + len(self._names))
            self._sums = self._sums + rows.sum(dim=0, dtype=self._sums.dtype)
            self._waiting.clear()

    def means(self, accelerator: Accelerator) -> tuple[float, dict[str, float]]:
        """Return the epoch's mean loss and terms, over all processes."""
        self._add_up()
        mean, *terms = accelerator.reduce(self._sums / max(1, self._batches), "mean").tolist()
        return mean, dict(zip(self._names, terms, strict=True))

    def agreement(self, accelerator: Accelerator) -> dict[str, float | None]:
        """Return how the network did on the epoch's batches, and how near the teacher it was, over all processes."""
        return self._agreement.means(accelerator)

    def judge(self, epoch: int, score: float | None, network: nn.Module) -> None:
        """Keep the weights if no earlier epoch was better; of equals the later, trained longer, is kept."""
        self.last_score, best = score, self.best_score
        if not self.best_weights or score is None or best is None or not self._task.better(best, score):
            self.best_epoch, self.best_score = epoch, score
            self.best_weights = weights_of(network)

    @property
    def finite(self) -> bool:
        """Whether every loss of this epoch was a number; asking waits for the device."""
        self._add_up()
        return bool(torch.isfinite(self._sums[0]))

    def seconds_spent(self) -> float:
        """Return the time in training, earlier sittings included."""
        return self._seconds_before + time.monotonic() - self._started

    def begin_after(self, trained: "Extended") -> None:
        """Stand where a training with other settings ended: its epochs, its best weights, its seconds."""
        self.step = trained.epochs * self._per_epoch
        self.best_epoch, self.best_score, self.best_weights = trained.best
        self.last_score, self._seconds_before = trained.best[1], trained.seconds

    def state(self) -> dict[str, Any]:
        """Return it all in a form that a checkpoint may hold."""
        self._add_up()
        return {
            "step": self.step,
            "per_epoch": self._per_epoch,
            "best": (self.best_epoch, self.best_score, self.best_weights),
            "last": self.last_score,
            "seconds": self.seconds_spent(),
            **self.sums(),
        }

    def sums(self) -> dict[str, Any]:
        """Return what this process has seen of the epoch: of several processes each has its own."""
        self._add_up()
        sums = (self.seen, self._batches, self._names, self._sums)
        return {"sums": sums, "agreement": self._agreement.state()}

    def load(self, state: dict[str, Any]) -> None:
        """Take over a state."""
        self.step = state["step"]
        self.best_epoch, self.best_score, self.best_weights = state["best"]
        self.last_score = state["last"]
        self._seconds_before = state["seconds"]
        self.load_sums(state)

    def load_sums(self, state: dict[str, Any]) -> None:
        """Take over what ``sums`` gave."""
        self.seen, self._batches, self._names, sums = state["sums"]
        self._sums, self._waiting = sums.to(self._device), []
        self._agreement.load(state["agreement"])


@dataclass(frozen=True)
class Extended:
    """What is gone on from with ``--extend``: the last weights of a training with other settings."""

    epochs: int  # whole ones
    weights: dict[str, Tensor]
    best: tuple[int, float | None, dict[str, Tensor]]  # epoch, accuracy, weights
    seconds: float


def weights_of(network: nn.Module) -> dict[str, Tensor]:
    """Return a copy of the state dict, on the CPU."""
    module = network.module if isinstance(network, AveragedModel) else network
    return {name: value.detach().cpu().clone() for name, value in module.state_dict().items()}


def snapshot(
    network: nn.Module,
    optimizer: Any,
    average: AveragedModel | None,
    loop: LoopState,
    accelerator: Accelerator,
    hooks: FeatureHooks | None = None,
    heads: nn.Module | None = None,
) -> dict[str, Any]:
    """Return what a checkpoint holds; several processes add each one's ``LoopState.sums``."""
    return {
        "network": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "average": None if average is None else average.state_dict(),
        "hooks": None if hooks is None else hooks.state_dict(),
        "heads": None if heads is None else heads.state_dict(),
        "scaler": None if accelerator.scaler is None else accelerator.scaler.state_dict(),
        "loop": loop.state(),
        "random": torch.get_rng_state(),
        "random_device": _device_random_state(accelerator.device),
    }


def restore(
    saved: dict[str, Any],
    network: nn.Module,
    optimizer: Any,
    average: AveragedModel | None,
    loop: LoopState,
    accelerator: Accelerator,
    hooks: FeatureHooks | None = None,
    heads: nn.Module | None = None,
) -> None:
    """Put everything back as a checkpoint found it."""
    network.load_state_dict(saved["network"])
    optimizer.load_state_dict(saved["optimizer"])
    if average is not None:
        average.load_state_dict(saved["average"])
    if hooks is not None:
        hooks.load_state_dict(saved["hooks"])
    if heads is not None:
        heads.load_state_dict(saved["heads"])
    if accelerator.scaler is not None and saved["scaler"] is not None:
        accelerator.scaler.load_state_dict(saved["scaler"])
    loop.load(saved["loop"])
    torch.set_rng_state(saved["random"])
    state = saved["random_device"].get(accelerator.device.type)
    if state is not None and accelerator.device.type == "cuda":
        torch.cuda.set_rng_state(state, accelerator.device)
    elif state is not None:
        torch.mps.set_rng_state(state)


def _device_random_state(device: torch.device) -> dict[str, Tensor]:
    """Return the state of the device that trains, under its kind: a training may go on elsewhere."""
    if device.type == "cuda":
        return {"cuda": torch.cuda.get_rng_state(device)}
    return {"mps": torch.mps.get_rng_state()} if device.type == "mps" else {}


KEPT = 2


class Checkpoints:
    """The checkpoints of one phase ("teacher", "student", "student-plain").

    Args:
        folder: Their place; made when the first is written.
        key: Hash of all that the phase depends on; a checkpoint with another key is not this training's. It stays
            until this training has written its own.
        identity: See ``Depends``.
        settings: See ``Depends``.
    """

    def __init__(
        self, folder: Path, key: str, identity: str = "", settings: Mapping[str, Any] = MappingProxyType({})
    ) -> None:
        self._folder, self._depends = folder, Depends(key, identity, dict(settings))
        self.extended: Extended | None = None  # what the training begins with, where there is no state of its own
        self._own: list[Path] = []  # newest last
        self.damaged: list[Path] = []  # that were passed over, newest first
        self.written_at = time.monotonic()

    def save(self, step: int, state: dict[str, Any]) -> Path:
        """Write the state after so many optimizer steps, then drop all but the last two of this training."""
        path = self._folder / f"step-{step:09d}.pt"
        write_atomically(path, lambda temporary: _write({**asdict(self._depends), "state": state}, temporary))
        self._own = [*(own for own in self._own if own != path), path][-KEPT:]
        for old in set(self._folder.glob("step-*.pt")) - set(self._own):
            remove(old)
        self.written_at = time.monotonic()
        return path

    def latest(self) -> dict[str, Any] | None:
        """Return the newest whole state of this training, or None."""
        self.damaged.clear()
        own = [(path, found[1]) for path, found in self._whole() if found[0].key == self._depends.key]
        self._own = [path for path, _ in reversed(own)]
        return own[0][1] if own else None

    def earlier(self) -> tuple[Depends, dict[str, Any]] | None:
        """Return the newest whole state of a training with other settings, and what that depended on."""
        return next((found for _, found in self._whole() if found[0].key != self._depends.key), None)

    @property
    def newest(self) -> Path | None:
        """The newest file of this training, for messages."""
        return self._own[-1] if self._own else None

    def clear(self) -> None:
        """Remove them: the phase is done, its weights are written."""
        for path in self._folder.glob("step-*.pt"):
            remove(path)

    def _whole(self) -> Iterator[tuple[Path, tuple[Depends, dict[str, Any]]]]:
        for path in sorted(self._folder.glob("step-*.pt"), reverse=True):
            try:
                with zipfile.ZipFile(path) as archive:
                    if archive.testzip() is not None:  # torch's reader does not compare the checksums that it writes
                        raise zipfile.BadZipFile
                found = torch.load(path, map_location="cpu", weights_only=True)
                depends = Depends(found["key"], found.get("identity", ""), found.get("settings", {}))
                state: dict[str, Any] = found["state"]
            except Exception:  # noqa: BLE001 a damaged file may make the reader raise anything
                self.damaged.append(path)
            else:
                yield path, (depends, state)


def _write(document: dict[str, Any], path: Path) -> None:
    try:
        torch.save(document, path)
    except RuntimeError as error:  # what torch's writer makes of a full disk
        raise OSError(f"the disk is full or does not take more ({error})") from error
