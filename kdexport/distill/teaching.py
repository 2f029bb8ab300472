"""Who teaches: the teacher, several that speak as one, or the student's earlier generation."""

from collections.abc import Sequence

import torch

from kdexport.distill.accelerators import accelerator_for
from kdexport.distill.ensemble import Ensemble
from kdexport.distill.inference import lay_out_for_inference
from kdexport.distill.run import Run, Spec, network_key
from kdexport.distill.teacher import Teacher
from kdexport.recipe import Colleague
from kdexport.results import TeacherVote, TrainedNetwork
from kdexport.sources.preprocessing import Preprocessing, as_tensor

Teaching = Sequence[tuple[TrainedNetwork, Spec]]  # who teaches, with the recipe's table of each


def as_one(run: Run, teaching: Teaching, device: torch.device) -> Teacher:
    """Return whoever teaches as one teacher."""
    models = [run.load_trained(made, spec) for made, spec in teaching]
    for model in models:
        if not model.preprocessing.contiguous:
            few = [as_tensor(array).to(device) for array in run.dataset.train.take(slice(0, 2)).inputs]
            lay_out_for_inference(model.network.to(device), model.preprocessing.apply(few))
    if len(models) == 1:
        return Teacher(models[0].network, models[0].preprocessing, device)
    weights = [spec.weight for _, spec in teaching if isinstance(spec, Colleague)]
    members = [(model.network, model.preprocessing) for model in models]
    return Teacher(Ensemble(members, weights, run.recipe.teacher.combine), Preprocessing(), device)


def votes(run: Run, teaching: Teaching) -> tuple[TeacherVote, ...]:
    """Return how good each of several teachers is, and say how far they agree."""
    device = accelerator_for(run.recipe.distill.precision).device
    ensemble = as_one(run, teaching, device).network
    found = ensemble.votes(run.dataset.val, device) if isinstance(ensemble, Ensemble) else ()
    for vote in found:
        run.progress.say(f"{vote.name}: agrees with all teachers together on {vote.agreement.top1:.1%} of the samples")
    return found


def identity(run: Run, teaching: Teaching) -> list[object]:
    """Return what stands for those who teach."""
    made_from: list[object] = [[made.weights_sha256, network_key(taught_as)] for made, taught_as in teaching]
    if len(teaching) > 1:
        weights = [taught_as.weight for _, taught_as in teaching if isinstance(taught_as, Colleague)]
        made_from += [weights, run.recipe.teacher.combine]
    return made_from
