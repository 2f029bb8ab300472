"""Do data, cache and bookkeeping ever starve a GPU? kdexport's step against the student's forward and backward alone.

    python benchmarks/engine_gpu.py                 # needs CUDA; about 3 minutes on a fast GPU
    python benchmarks/engine_gpu.py --smoke         # 20 steps an epoch

ResNet-20 at 32x32, batch 512, bf16, flip and shift, taught by ResNet-56: the public stage trains on 49,152 images whose
pixels are drawn with a seed (speed does not depend on what they show), and the median epoch among those that read the
kept answers gives the step's time, everything included. Beside it, in the same process, the bare step: the same network
and batch, inputs and labels resident on the GPU, forward under autocast, cross-entropy and backward, nothing else; then
with the optimizer. Bare steps run as the loop's do, without waiting for the device between them. They are measured in
every memory format and, unless --no-compile, compiled; the fastest is what the run is held against, which is the harder
way to count.

Must hold: the bare forward and backward is at least 90 % of the run's step.

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

BATCH, STEPS, EPOCHS, VIEWS = 512, 96, 10, 2
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
    from kdexport.sources.networks import load_network
    from kdexport.sources.weights import save_weights

    torch.manual_seed(0)
    save_weights(load_network(RESNET, {"depth": 56}, 10), path)
    return str(path)


def run_step_ms(work: Path, steps: int) -> dict[str, Any]:
    """Train by the public stage and return the milliseconds of a step in each epoch, kept answers and live ones."""
    data = made_up(work / "images.npz", steps * BATCH)
    document = {
        "name": "gpu",
        "seed": 0,
        "data": {"source": f"npz:{data.resolve()}"},
        "teacher": {"model": RESNET, "args": {"depth": 56}, "weights": teacher_weights(work / "teacher.safetensors")},
        "student": {"model": RESNET, "args": {"depth": 20}},
        "distill": {
            "epochs": EPOCHS,
            "batch_size": BATCH,
            "optimizer": "sgd",
            "lr": 0.01,
            "precision": "bf16",
            "augment": ["flip", "shift"],
            "views": VIEWS,
            "baseline": False,
            "keep": "last",
        },
    }
    place = work / "run"
    shutil.rmtree(place, ignore_errors=True)
    epochs = train(document, place)["epochs"]
    of = {"cache": [], "online": []}
    for epoch in epochs:
        of[epoch["teacher_from"]].append(1e3 * epoch["seconds"] / steps)
    return {"kept": of["cache"], "filling": of["online"]}


def bare_step_ms(*, channels_last: bool, compiled: bool, optimizer: bool) -> float:
    """Return the milliseconds of a step on resident tensors: the median over blocks of steps that nobody waits for."""
    from kdexport.sources.networks import load_network

    device, layout = torch.device("cuda"), torch.channels_last if channels_last else torch.contiguous_format
    torch.manual_seed(0)
    network = load_network(RESNET, {"depth": 20}, 10).to(device, memory_format=layout).train()
    inputs = torch.randn(BATCH, 3, 32, 32, device=device).contiguous(memory_format=layout)
    labels = torch.arange(BATCH, device=device) % 10
    called: Callable[..., torch.Tensor] = torch.compile(network) if compiled else network
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
    parser.add_argument("--no-compile", action="store_true", help="leave compiled bare steps out")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print(
            "engine_gpu.py needs a CUDA device and a torch built for it; there is none: nothing measured",
            file=sys.stderr,
        )
        return 1
    steps = 20 if options.smoke else STEPS
    forms = [
        (last, compiled)
        for compiled in (False, True)
        for last in (False, True)
        if not (compiled and options.no_compile)
    ]
    bare = {}
    for last, compiled in forms:
        name = f"{'compiled' if compiled else 'eager'}, {'channels last' if last else 'contiguous'}"
        bare[name] = {
            part: bare_step_ms(channels_last=last, compiled=compiled, optimizer=optimizer)
            for part, optimizer in (("forward_backward_ms", False), ("with_optimizer_ms", True))
        }
        print(name, bare[name], flush=True)
    run = run_step_ms(options.work / "gpu", steps)
    step_ms = statistics.median(run["kept"])
    fastest = min(bare, key=lambda name: bare[name]["forward_backward_ms"])
    share = bare[fastest]["forward_backward_ms"] / step_ms
    document = {
        "gpu": torch.cuda.get_device_name(),
        "cuda": torch.version.cuda,
        "batch_size": BATCH,
        "steps_per_epoch": steps,
        "run_step_ms": step_ms,
        "run_images_per_s": 1e3 * BATCH / step_ms,
        "run_step_ms_by_epoch": run,
        "bare": bare,
        "fastest_bare": fastest,
        "share_of_forward_and_backward": share,
        "share_of_each": {name: found["forward_backward_ms"] / step_ms for name, found in bare.items()},
        "must_hold": SHARE,
        "holds": share >= SHARE,
    }
    keep(options.out, "engine_gpu", document, smoke=options.smoke)
    return 0


if __name__ == "__main__":
    sys.exit(main())
