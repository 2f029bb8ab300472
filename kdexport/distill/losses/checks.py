"""What every loss checks before it computes: each fault is said in the user's words, with what to change.

Checks that would make a GPU wait (is a label in range, is a value finite) are left to the data and the trainer.
"""

import torch
from torch import Tensor

from kdexport.errors import KDExportError


def logits_pair(student_logits: Tensor, teacher_logits: Tensor, method: str) -> tuple[Tensor, Tensor]:
    """Return both logits ready to compute with: at least fp32, the teacher's without gradient.

    Raises:
        KDExportError: They are not both [batch, classes] with the same numbers.
    """
    for whose, logits in (("student", student_logits), ("teacher", teacher_logits)):
        if logits.ndim != 2 or logits.shape[0] == 0:
            raise KDExportError(
                f"{method} takes logits [batch, classes], the {whose}'s are {list(logits.shape)}",
                hint=f"let the {whose} return one row of class scores per sample, for at least one sample",
            )
    if student_logits.shape[1] != teacher_logits.shape[1]:
        raise KDExportError(
            f"{method}: the student scores {student_logits.shape[1]} classes, the teacher {teacher_logits.shape[1]}",
            hint="give both networks the same number of classes, or use a feature method such as similarity",
        )
    same_batch(student_logits, teacher_logits, method)
    return at_least_fp32(student_logits), teacher_side(teacher_logits, student_logits)


def same_batch(student: Tensor, teacher: Tensor, method: str) -> None:
    """Raise unless both hold as many samples."""
    if student.shape[0] != teacher.shape[0]:
        raise KDExportError(
            f"{method}: the student saw {student.shape[0]} samples, the teacher {teacher.shape[0]}",
            hint="feed both networks the same batch",
        )


def at_least_fp32(values: Tensor) -> Tensor:
    """Return fp16 and bf16 as fp32; wider types stay. Exponents and squares of half types overflow."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def teacher_side(teacher: Tensor, student: Tensor) -> Tensor:
    """Return what the teacher gave as a constant of at least fp32.

    Raises:
        KDExportError: It was made under ``torch.inference_mode`` and the student's gradient is wanted: autograd
            cannot save such a tensor, and its own message does not say which one it was.
    """
    if teacher.is_inference() and student.requires_grad and torch.is_grad_enabled():
        raise KDExportError(
            "the teacher's output was made under torch.inference_mode, so no gradient can pass beside it",
            hint="run the teacher under torch.no_grad(), or hand over teacher_output.clone()",
        )
    return at_least_fp32(teacher.detach())


def positive_temperature(temperature: float, method: str) -> None:
    """Raise unless the temperature is above 0."""
    if not temperature > 0:
        raise KDExportError(
            f"{method}: the temperature is {temperature:g}, it must be above 0",
            hint="1 leaves the outputs as they are; 2 to 8 are usual",
        )


def several_samples(batch: Tensor, method: str, least: int = 2) -> None:
    """Raise where a method that compares samples with each other gets too few of them."""
    if batch.shape[0] < least:
        raise KDExportError(
            f"{method} compares the samples of a batch with each other, and this batch holds {batch.shape[0]}",
            hint=f"use a batch_size of at least {least} and drop a smaller last batch",
        )
