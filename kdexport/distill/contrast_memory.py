"""CRD's memory: what both networks last made of every training sample, as directions in a common space."""

import math

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from kdexport.distill.features import Adapter, Shape, as_vectors, channels_of
from kdexport.distill.losses.features import Keys


class ContrastMemory(Adapter):
    """Two learned projections and, for each, one remembered row per training sample.

    As in the authors' code of Tian 2020: rows start at random, follow their samples with momentum, and the constant Z
    is taken from the first batch and kept. Negatives are drawn from all samples alike, whatever their class.
    Processes that share a batch remember each other's part of it.

    Args:
        student: Shape of the student's feature.
        teacher: Shape of the teacher's.
        samples: How many training samples there are.
        width: Of the common space.
        negatives: How many samples a batch is set against; at most all.
        momentum: How much of a row stays when its sample is seen again.
        temperature: The loss's, which Z goes with.
    """

    student_bank: Tensor
    teacher_bank: Tensor
    log_normalizers: Tensor

    def __init__(
        self,
        student: Shape,
        teacher: Shape,
        *,
        samples: int,
        width: int,
        negatives: int,
        momentum: float,
        temperature: float,
    ) -> None:
        super().__init__(student, teacher, samples=samples)
        self.student_head = nn.Linear(channels_of(student), width)
        self.teacher_head = nn.Linear(channels_of(teacher), width)
        self._samples, self._negatives = samples, min(negatives, samples)
        self._momentum, self._temperature = momentum, temperature
        for name in ("student_bank", "teacher_bank"):
            self.register_buffer(name, F.normalize(torch.randn(samples, width), dim=1))
        self.register_buffer("log_normalizers", torch.full((2,), math.nan))  # student's side, teacher's side

    def forward(
        self, student: Tensor, teacher: Tensor, indices: Tensor
    ) -> tuple[Tensor, Tensor, Keys, Keys, Tensor, int]:
        """Return what ``losses.crd`` takes, then remember this batch.

        Args:
            student: [batch, ...], the student's feature.
            teacher: [batch, ...], the teacher's.
            indices: int64 [batch], which training samples these are.
        """
        ours = F.normalize(self.student_head(as_vectors(student)), dim=1)
        theirs = F.normalize(self.teacher_head(as_vectors(teacher)), dim=1)
        # Drawn on the CPU, so that a seed means the same on every device.
        drawn = torch.randint(self._samples, (self._negatives,)).to(indices.device)
        with torch.no_grad():
            if self.log_normalizers.isnan().any():
                sides = self._log_z(ours, self.teacher_bank[drawn]), self._log_z(theirs, self.student_bank[drawn])
                self.log_normalizers.copy_(_mean_of_all(torch.stack(sides)))
            student_keys = Keys(self.teacher_bank[indices], self.teacher_bank[drawn], self.log_normalizers[0].clone())
            teacher_keys = Keys(self.student_bank[indices], self.student_bank[drawn], self.log_normalizers[1].clone())
            everyones = _of_all(indices, ours, theirs)
            for bank, seen in ((self.student_bank, everyones[1]), (self.teacher_bank, everyones[2])):
                mixed = bank[everyones[0]] * self._momentum + seen * (1 - self._momentum)
                bank[everyones[0]] = F.normalize(mixed, dim=1)
        return ours, theirs, student_keys, teacher_keys, drawn[None] == indices[:, None], self._samples

    def _log_z(self, embedding: Tensor, keys: Tensor) -> Tensor:
        """Return log of the mean of exp(similarity / temperature), times the number of samples."""
        scores = embedding @ keys.T / self._temperature
        return scores.flatten().logsumexp(dim=0) - math.log(scores.numel()) + math.log(self._samples)


def _alone() -> bool:
    return not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1


def _mean_of_all(values: Tensor) -> Tensor:
    """Return the mean over all processes."""
    if _alone():
        return values
    dist.all_reduce(values)
    return values / dist.get_world_size()


def _of_all(indices: Tensor, ours: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return what every process has seen in this step, in the order of the processes.

    Args:
        indices: int64 [batch]; one process may have a sample more than another.
        ours: [batch, width].
        theirs: [batch, width].
    """
    if _alone():
        return indices, ours, theirs
    most = torch.tensor(len(indices), device=indices.device)
    dist.all_reduce(most, dist.ReduceOp.MAX)
    missing = int(most) - len(indices)
    places = _gathered(F.pad(indices, (0, missing), value=-1))
    rows = _gathered(F.pad(torch.cat([ours, theirs], dim=1), (0, 0, 0, missing)))[places >= 0]
    width = ours.shape[1]
    return places[places >= 0], rows[:, :width], rows[:, width:]


def _gathered(values: Tensor) -> Tensor:
    parts = [torch.empty_like(values) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, values.contiguous())
    return torch.cat(parts)
