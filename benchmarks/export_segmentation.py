"""Segmentation networks of several designs and resolutions: exported, proved at 1e-4, and their masks compared.

    python benchmarks/export_segmentation.py [NAME...]

torchvision's as they are (a dict of maps, resized in the graph), narrow where their arguments allow it, and networks of
one's own with what segmentation needs beside convolutions: bilinear and nearest resizing, transposed convolutions,
pixel shuffle, pyramid pooling, dilation, attention over positions. Weights are perturbed and batch statistics taken
from data first, as in export_families.py. A mask is the argmax of the graph's output in ONNX Runtime; the share of its
pixels that PyTorch's has too is to be 0.999 at least.
"""

import json
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import onnxruntime
import segmentation_nets as nets
import torch
import torchvision
from export_families import pictures
from torch import nn

from kdexport.export import network_export
from kdexport.export.target import ExportTarget, Form
from kdexport.models.networks import load_network
from kdexport.models.outputs import Output, install
from kdexport.models.preprocessing import Preprocessing
from kdexport.onnx import runtimes
from kdexport.onnx.sessions import OnnxSession
from kdexport.tasks.postprocessing import Postprocessing

RESULTS = Path(__file__).with_name("results")
SAMPLES, CLASSES = 10, 11  # batches of 1, 2 and 7
Size = tuple[int, int]


def library(name: str) -> Callable[[], nn.Module]:
    return lambda: load_network(f"torchvision:{name}", {}, CLASSES)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[Size, ...]]] = {
    "lraspp_mobilenet_v3_large": (library("lraspp_mobilenet_v3_large"), ((96, 128), (65, 97))),
    "deeplabv3_mobilenet_v3_large": (library("deeplabv3_mobilenet_v3_large"), ((96, 128), (64, 64))),
    "deeplabv3_resnet50": (library("deeplabv3_resnet50"), ((64, 64),)),
    "fcn_resnet50": (library("fcn_resnet50"), ((64, 96),)),
    "unet": (nets.UNet, ((96, 128), (50, 70))),
    "unet_transposed": (nets.TransposedUNet, ((64, 96), (128, 128))),
    "pspnet": (nets.PSPNet, ((96, 96), (60, 84))),
    "fpn": (nets.FPN, ((96, 128), (61, 83))),
    "espnet": (nets.PixelShuffleNet, ((96, 128), (64, 48))),
    "dilated": (nets.Dilated, ((72, 96),)),
    "bisenet": (nets.BiSeNet, ((96, 128), (64, 64))),
    "segformer": (nets.SegFormer, ((64, 96), (96, 96))),
}


def perturb(network: nn.Module, size: Size) -> None:
    """Move every weight by a tenth of its size, zeros by 0.05, and take batch statistics from pictures."""
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        scale = float(parameter.detach().square().mean().sqrt())
        step = 0.1 * scale if scale > 1e-4 else 0.05
        parameter.data += step * torch.randn(parameter.shape, generator=generator)
    network.eval()
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.train()
        norm.momentum = None
        norm.reset_running_stats()
    with torch.no_grad():
        network(images(8, size, seed=1))
    network.eval()


def images(count: int, size: Size, seed: int) -> torch.Tensor:
    return pictures(count, max(size), seed)[:, :, : size[0], : size[1]].contiguous()


def one(name: str, size: Size) -> dict[str, object]:
    torch.manual_seed(0)
    network = NETWORKS[name][0]()
    perturb(network, size)
    install(network, Output(None, Postprocessing("resize", size=size), name))
    given = images(SAMPLES, size, seed=2).numpy()
    subject = ExportTarget(name, network.eval(), Preprocessing("none"), ("image",), (given,), samples_are="random")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{name}.onnx"
        start = time.perf_counter()
        made = network_export.write(subject, Form(18, runtimes.ir_for(18), 1e-4), path)
        seconds = time.perf_counter() - start
        (found,) = OnnxSession(path)((given,))
    with torch.no_grad():
        expected = network(torch.from_numpy(given)).numpy()
    assert made.parity is not None
    masks = float((found.argmax(axis=1) == expected.argmax(axis=1)).mean())
    return {
        "name": name,
        "size": list(size),
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "seconds": round(seconds, 1),
        "operators": sum(made.operators.values()),
        "max_rel": made.parity.max_rel,
        "masks": masks,
        "passed": made.parity.passed and masks >= 0.999,
    }


def table(rows: list[dict[str, object]]) -> str:
    lines = [
        "| network | height x width | parameters | seconds | operators | max rel | pixels of the same class | passed |",
        "|---|---|---:|---:|---:|---:|---:|---|",
    ]
    lines += [
        f"| {row['name']} | {row['size'][0]} x {row['size'][1]} | {row['parameters']:,} | {row['seconds']} | "
        f"{row['operators']} | {row['max_rel']:.1e} | {100 * row['masks']:.3f} % | {'yes' if row['passed'] else 'NO'} |"
        for row in rows
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    target = RESULTS / "export_segmentation.json"
    known = {}
    if target.exists():
        known = {(row["name"], *row["size"]): row for row in json.loads(target.read_text())["rows"]}
    for name in sys.argv[1:] or NETWORKS:
        for size in NETWORKS[name][1]:
            known[name, *size] = one(name, size)
            print(table([known[name, *size]]).splitlines()[-1], flush=True)
            rows = [known[name, *size] for name in NETWORKS for size in NETWORKS[name][1] if (name, *size) in known]
            document = {
                "torch": torch.__version__,
                "torchvision": torchvision.__version__,
                "onnxruntime": onnxruntime.__version__,
                "machine": f"{platform.machine()}, shared with other work",
                "tolerance": 1e-4,
                "rows": rows,
            }
            target.write_text(json.dumps(document, indent=1) + "\n")
            target.with_suffix(".md").write_text(table(rows))


if __name__ == "__main__":
    main()
