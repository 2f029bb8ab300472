"""kdexport's distill stage against torchdistill's DistillationBox, ResNet-56 to ResNet-20 on 32x32 images.

    pip install torchdistill
    python benchmarks/engine_vs_torchdistill.py --data cifar10-jpg          # about 15 minutes on 2 free cores
    python benchmarks/engine_vs_torchdistill.py --data cifar10-jpg --smoke

torchdistill is configured and driven as its own CIFAR-10 example does (configs/sample/cifar10/kd/resnet20_from_
densenet_bc_k12_depth100-final_run.yaml and examples/torchvision/image_classification.py): RandomCrop, flip, ToTensor
and Normalize, RandomSampler, batch 64, KDLoss with temperature 4 and alpha 0.9, SGD at 0.1 with MultiStepLR, its metric
logger. Where this departs from the example, it is to torchdistill's advantage or for the comparison's sake: images lie
in memory; 0 or 2 workers, whichever is faster, in place of 16 on two cores; no pinned memory without a GPU; the teacher
is put into evaluation mode first (the example leaves its batch normalization in training mode, which is slower);
momentum is Nesterov's on both sides; the example's scoring after each epoch is left out.

Must hold: at least 2 times faster once the cache is full, accuracies equal within noise. See engine_vs_plain_loop.py
for what "steady", "whole training" and "whole call" are.
"""

import logging
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from engine_common import arguments, keep
from engine_pairs import RESNET_PAIR, InMemory, Pair, saved
from engine_race import HEAD, prepared, race, row

MUST_HOLD = 2.0


def config(pair: Pair, workers: int, epochs: int) -> dict[str, Any]:
    """Return the ``train`` part of the example's configuration, as its YAML is read."""
    whole = {"student_module_path": ".", "student_module_io": "output"}
    whole |= {"teacher_module_path": ".", "teacher_module_io": "output"}
    loss = {**whole, "temperature": pair.temperature, "alpha": pair.label_weight, "reduction": "batchmean"}
    network = {"forward_proc": "forward_batch_only", "sequential": [], "frozen_modules": []}
    return {
        "log_freq": 100,
        "num_epochs": epochs,
        "train_data_loader": {
            "dataset_id": "cifar10/train",
            "sampler": {"class_or_func": torch.utils.data.RandomSampler, "kwargs": None},
            "kwargs": {
                "batch_size": pair.batch_size,
                "num_workers": workers,
                **({"persistent_workers": True, "multiprocessing_context": "fork"} if workers else {}),
                "drop_last": False,
            },
            "cache_output": None,
        },
        "teacher": {**network, "wrapper": "DataParallel", "requires_grad": False},
        "student": {**network, "adaptations": None, "wrapper": "DistributedDataParallel", "requires_grad": True},
        "optimizer": {
            "key": "SGD",
            "kwargs": {"lr": pair.lr, "momentum": 0.9, "nesterov": True, "weight_decay": pair.weight_decay},
        },
        "scheduler": {
            "key": "MultiStepLR",
            "kwargs": {"milestones": [int(share * epochs) for share in pair.milestones], "gamma": 0.1},
        },
        "criterion": {
            "key": "WeightedSumLoss",
            "kwargs": {"sub_terms": {"kd": {"criterion": {"key": "KDLoss", "kwargs": loss}, "weight": 1.0}}},
        },
    }


def torchdistill_run(
    pair: Pair, data: Path, teacher_weights: str, seed: int, workers: int, place: Path, epochs: int | None = None
) -> dict[str, Any]:
    """Train with its box, its loss and its metric logger; the arguments and the result are ``plain_loop``'s."""
    from torchdistill.core.distillation import get_distillation_box
    from torchdistill.misc.log import MetricLogger, SmoothedValue

    logging.disable(logging.INFO)
    teacher, student = pair.networks(teacher_weights, seed)
    epochs, device = epochs or pair.epochs, torch.device("cpu")
    settings = config(pair, workers, epochs)
    box = get_distillation_box(
        teacher, student, {"cifar10/train": InMemory(data, pair)}, settings, device, None, False, 1
    )
    seconds = []
    for epoch in range(epochs):
        start = time.perf_counter()
        box.pre_epoch_process(epoch=epoch)
        meters = MetricLogger(delimiter="  ")
        meters.add_meter("lr", SmoothedValue(window_size=1, fmt="{value}"))
        meters.add_meter("img/s", SmoothedValue(window_size=10, fmt="{value}"))
        for images, labels, more in meters.log_every(box.train_data_loader, settings["log_freq"], f"Epoch: [{epoch}]"):
            began = time.time()
            loss = box.forward_process(images.to(device), labels.to(device), more)
            box.post_forward_process(loss=loss)
            meters.update(loss=loss.item(), lr=box.optimizer.param_groups[0]["lr"])
            meters.meters["img/s"].update(len(images) / (time.time() - began))
            if not torch.isfinite(loss):
                raise ValueError(f"torchdistill's loss is {loss.item()}")
        box.post_epoch_process()
        seconds.append(time.perf_counter() - start)
    return {"epoch_seconds": seconds, "seconds": sum(seconds), "weights": saved(student, place)}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    pair, data, teacher = prepared(RESNET_PAIR, options.data, options.work, options.smoke)
    rounds = 1 if options.smoke else options.rounds
    found = race(pair, torchdistill_run, data, teacher, options.work / "torchdistill", rounds)
    found |= {"must_hold": MUST_HOLD, "holds": found["steady"]["times_faster"] >= MUST_HOLD}
    document = {"torchdistill": version("torchdistill"), "threads": 2, **found}
    table = f"{HEAD}\n{row(found, MUST_HOLD)}\n"
    keep(options.out, "engine_vs_torchdistill", document, smoke=options.smoke, table=table)


if __name__ == "__main__":
    main()
