"""Do data, cache and bookkeeping ever starve a GPU? kdexport's step against the student's forward and backward alone.

    python benchmarks/engine_gpu.py                 # needs CUDA; about 3 minutes on a fast GPU
    python benchmarks/engine_gpu.py --smoke         # 20 steps an epoch

ResNet-20 at 32x32, batch 512, bf16, flip and shift, taught by ResNet-56: the public stage trains on 49,152 images whose
pixels are drawn with a seed (speed does not depend on what they show), and the median epoch among those that read the
kept answers gives the step's time, everything included. Long enough for kdexport to try memory layouts first; once
without and once with torch.compile.

Beside it, in the same process, the bare step in the form that the run has chosen: the same network and batch, inputs
and labels resident on the GPU, forward under autocast, cross-entropy and backward, nothing else; then with the
optimizer. Bare steps run as the loop's do, without waiting for the device between them.

Must hold: the bare forward and backward is at least 90 % of the run's step, compiled or not.

Without CUDA it says so and ends with 1; nothing is written.
"""

import shutil
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from engine_common import arguments, keep, train
from engine_nets import RESNET
from torch import nn

BATCH, STEPS, EPOCHS, VIEWS = 512, 96, 90, 2
SHARE = 0.9
BLOCKS, PER_BLOCK, WARM = 9, 50, 30  # bare steps: median over blocks


def made_up(path: Path, images: int) -> Path:
    """Write seeded random images and labels."""
    draw = np.random.default_rng(0)
    made = {}
    for split, count in (("train", images), ("val", BATCH), ("test", BATCH)):
        made[f"x_{split}"] = draw.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        made[f"y_{split}"] = np.arange(count) % 10
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **made)
    return path


def teacher_weights(path: Path) -> str:
    """Write a ResNet-56 as it starts: what it answers doesn't matter here."""
    from kdexport.models.networks import load_network
    from kdexport.models.weights import save_weights

    torch.manual_seed(0)
    save_weights(load_network(RESNET, {"depth": 56}, 10), path)
    return str(path)


def run(work: Path, steps: int, epochs: int, *, compiled: bool) -> dict[str, Any]:
    """Train by the public stage and return the milliseconds of a step in each epoch and the form that it took."""
    data = made_up(work / "images.npz", steps * BATCH)
    document = {
        "name": "gpu",
        "seed": 0,
        "data": {"source": f"npz:{data.resolve()}"},
        "teacher": {"model": RESNET, "args": {"depth": 56}, "weights": teacher_weights(work / "teacher.safetensors")},
        "student": {"model": RESNET, "args": {"depth": 20}},
        "distill": {
            "epochs": epochs,
            "compile": compiled,
            "batch_size": BATCH,
            "optimizer": "sgd",
            "lr": 0.01,
            "precision": "bf16",
            "augment": ["flip", "shift"],
            "views": VIEWS,
            "terms": [{"method": "soft_targets", "weight": 0.9, "temperature": 4.0}],
            "baseline": False,
            "keep": "last",
        },
    }
    place = work / "run"
    shutil.rmtree(place, ignore_errors=True)
    made = train(document, place)
    kept = [1e3 * epoch["seconds"] / steps for epoch in made["epochs"] if epoch["teacher_from"] == "cache"]
    filling = [1e3 * epoch["seconds"] / steps for epoch in made["epochs"] if epoch["teacher_from"] == "online"]
    # The first kept epoch of a compiled run may still compile the epoch's other batch size: a median passes it over.
    return {"step_ms": statistics.median(kept), "kept_ms": kept, "filling_ms": filling}


def bare_step_ms(layout: str, *, compiled: bool, optimizer: bool) -> float:
    """Return the milliseconds of a step on resident tensors: the median over blocks of steps that nobody waits for."""
    from kdexport.models.networks import load_network

    device = torch.device("cuda")
    # "as_it_comes": images as they are stored, channels last, and kernels as they are built.
    of_inputs = torch.contiguous_format if layout == "contiguous" else torch.channels_last
    of_kernels = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    torch.manual_seed(0)
    network = load_network(RESNET, {"depth": 20}, 10).to(device).to(memory_format=of_kernels).train()
    inputs = torch.randn(BATCH, 3, 32, 32, device=device).contiguous(memory_format=of_inputs)
    labels = torch.arange(BATCH, device=device) % 10
    called: Callable[..., torch.Tensor] = torch.compile(network, dynamic=False) if compiled else network
    sgd = torch.optim.SGD(network.parameters(), lr=1e-4, momentum=0.9, nesterov=True, fused=True)

    def step() -> None:
        with torch.autocast("cuda", torch.bfloat16):
            logits = called(inputs)
        nn.functional.cross_entropy(logits.float(), labels).backward()
        if optimizer:
            sgd.step()
        sgd.zero_grad()  # to None: gradients are written, not added

    for _ in range(WARM):
        step()
    times = []
    for _ in range(BLOCKS):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(PER_BLOCK):
            step()
        torch.cuda.synchronize()
        times.append(1e3 * (time.perf_counter() - start) / PER_BLOCK)
    return statistics.median(times)


def main() -> int:
    parser = arguments(__doc__, data=False)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("engine_gpu.py needs a CUDA device and a torch built for it: nothing measured", file=sys.stderr)
        return 1
    steps, epochs = (20, 6) if options.smoke else (STEPS, EPOCHS)
    rows = []
    for compiled in (False, True):
        found = run(options.work / "gpu", steps, epochs, compiled=compiled)
        layout = "channels_last"  # what channels_last = "auto" is on a GPU
        bare = bare_step_ms(layout, compiled=compiled, optimizer=False)
        whole = bare_step_ms(layout, compiled=compiled, optimizer=True)
        share = bare / found["step_ms"]
        row = {
            "compiled": compiled,
            "layout": layout,
            "run_step_ms": found["step_ms"],
            "run_images_per_s": 1e3 * BATCH / found["step_ms"],
            "bare_forward_backward_ms": bare,
            "bare_with_optimizer_ms": whole,
            "share_of_forward_and_backward": share,
            "share_with_optimizer": whole / found["step_ms"],
            "holds": share >= SHARE,
            "run_step_ms_by_epoch": {key: found[key] for key in ("filling_ms", "kept_ms")},
        }
        print(
            f"compiled {compiled}, {layout}: {found['step_ms']:.2f} ms a step, {bare:.2f} bare, {share:.1%}", flush=True
        )
        rows.append(row)
    document = {
        "gpu": torch.cuda.get_device_name(),
        "cuda": torch.version.cuda,
        "batch_size": BATCH,
        "steps_per_epoch": steps,
        "epochs": epochs,
        "must_hold": SHARE,
        "holds": all(row["holds"] for row in rows),
        "rows": rows,
    }
    keep(options.out, "engine_gpu", document, smoke=options.smoke)
    return 0


if __name__ == "__main__":
    sys.exit(main())
