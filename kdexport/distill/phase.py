"""One phase of the distill stage: a network that is trained, or taken as it is, and written once.

Its key stands for all that it depends on: while that and its weights are unchanged, it is not trained again.
"""

import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from kdexport import artifacts, processes, references, results
from kdexport.distill.accelerators import accelerator_for
from kdexport.distill.job import Fitted
from kdexport.distill.run import Run, Spec
from kdexport.results import TrainedNetwork
from kdexport.sources.models import Model, count_macs
from kdexport.sources.weights import save_weights


def run_phase(
    run: Run,
    name: str,
    spec: Spec,
    key: str,
    train: Callable[[Model], Fitted] | None,
    *,
    ships_as: str | None = None,
    start: Callable[[], Model] | None = None,
) -> TrainedNetwork:
    """Return a phase's earlier result where it is still true, else train and write the weights.

    Args:
        run: What the phases share.
        name: Of the phase.
        spec: The recipe's table of its network.
        key: Stands for all that the phase depends on.
        train: Trains the network; None where it is taken as it is.
        ships_as: The network's name, and its weights', where it is not the phase's.
        start: Gives the network to begin with, where it isn't a fresh one.
    """
    record = run.directory.checkpoints / name / "done.json"
    network_name = ships_as or name
    weights = run.directory.weights(network_name)
    done = artifacts.read_json(record)
    if done and done.get("key") == key:
        earlier = results.from_json(TrainedNetwork, done["network"])
        # They may lie under the name that they had when quantize_aware was set otherwise.
        for place in (weights, run.directory.root / earlier.weights):
            if not place.exists() or artifacts.sha256(place) != earlier.weights_sha256:
                continue
            run.progress.say(f"{name}: unchanged, not trained again")
            run.log.unchanged(name)
            if place == weights:
                return earlier
            moved = replace(earlier, name=network_name, weights=weights.name)
            if processes.is_main():
                artifacts.write_atomically(weights, partial(shutil.copyfile, place))
                artifacts.write_json(record, {"key": key, "network": results.to_json(moved)})
            return moved
    model = start() if start else run.load(name, spec)
    for line in model.left_out:
        run.progress.warn(f"{name} starts without weights for {line}")
    fitted = train(model) if train else None
    if processes.is_main():
        save_weights(model.network, weights)
    accelerator_for(run.recipe.distill.precision).wait_for_everyone()
    made = TrainedNetwork(
        name=network_name,
        reference=references.relative(spec.model, run.directory.root.resolve()),
        weights=weights.name,
        weights_sha256=artifacts.sha256(weights),
        parameters=sum(parameter.numel() for parameter in model.network.parameters()),
        macs=count_macs(model, run.dataset),
        epochs=fitted.epochs if fitted else 0,
        seconds=fitted.seconds if fitted else None,
        best_epoch=fitted.best_epoch if fitted else None,
        val_accuracy=fitted.val_accuracy if fitted else None,
        activation_ranges=fitted.activation_ranges if fitted else {},
        form=fitted.form if fitted else None,
    )
    if processes.is_main():
        artifacts.write_json(record, {"key": key, "network": results.to_json(made)})
    return made
