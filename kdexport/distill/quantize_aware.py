"""Quantization-aware distillation: what the last stretch of the student's training does differently.

After the distillation the student is taught on, by the same teacher on the same views, while it computes with int8's
rounding (``fake_quantize``). What comes out is one student: its weights ship as they are, in fp32 and in int8.
Layers are not compared here, for the rounded network runs as a captured graph that has none.
"""

import itertools

import torch

from kdexport.distill.batches import Batches
from kdexport.distill.fake_quantize import FakeQuantized
from kdexport.distill.objective import METHODS, Objective
from kdexport.distill.run import Run
from kdexport.recipe import Distill
from kdexport.sources.models import Model

PHASE = "student-qat"  # in the epoch log and for its checkpoints
BEFORE = "student-distilled"  # the weights that it starts from
START_BATCHES = 8  # that the ranges start from


def settings_of(distill: Distill) -> Distill:
    """Return how the stretch is trained: short, at a small learning rate, in fp32, on the terms that compare logits."""
    terms = tuple(term for term in distill.terms if "features" not in METHODS[term.method].needs)
    return distill.model_copy(
        update={
            "epochs": distill.quantize_aware_epochs or max(1, distill.epochs // 4),
            "lr": distill.quantize_aware_lr or distill.lr / 10,
            "warmup_epochs": 0.0,
            "ema_decay": None,
            "patience": None,
            "compile": False,  # the graph is captured already, in the layout that it was captured in
            "channels_last": False,
            "precision": "fp32",  # a rounding error is smaller than what fewer bits lose
            "terms": terms or Distill.model_fields["terms"].default,
        }
    )


def objective_of(run: Run, settings: Distill) -> Objective:
    """Return what the stretch minimizes."""
    return Objective(
        settings.label_weight,
        settings.terms,
        label_smoothing=settings.label_smoothing,
        label_kind=run.label_kind(settings),
    )


def rounded(run: Run, model: Model, batches: Batches, device: torch.device) -> FakeQuantized:
    """Return the student with int8's rounding in place, its ranges started from some training batches.

    Raises:
        KDExportError: It cannot be captured.
    """
    first = itertools.islice(batches.epoch(0), START_BATCHES)
    return FakeQuantized(
        model.network.to(device),
        (model.preprocessing.apply(batch.inputs) for batch in first),
        weight_bits=run.recipe.export.weight_bits,
        length_varies=model.preprocessing.kind == "tokens",
    )
