"""Every classification family of torchvision, one small member each: exported, proved at 1e-4 on batches of 1, 2 and 7,
and loaded again, with the seconds it took and the operators before and after optimization.

    python benchmarks/export_families.py [NAME...]

Weights are perturbed and batch statistics taken from data first: fresh from initialization some of these networks give
the same answer to everything, and a proof on them is worth nothing. Results of single names are merged into the table.
"""

import json
import platform
import sys
import tempfile
import time
from pathlib import Path

import onnxruntime
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from kdexport.export import network_export
from kdexport.export.target import ExportTarget, Form
from kdexport.models.networks import load_network
from kdexport.models.preprocessing import Preprocessing
from kdexport.onnx import runtimes
from kdexport.onnx.sessions import OnnxSession

RESULTS = Path(__file__).with_name("results")
SAMPLES = 10  # batches of 1, 2 and 7
SIDE = {"inception_v3": 299, "swin_v2_t": 256}  # 224 else
FAMILIES = (
    "alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_v2_s", "googlenet", "inception_v3",
    "maxvit_t", "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small", "regnet_x_400mf", "regnet_y_400mf", "resnet18",
    "resnext50_32x4d", "shufflenet_v2_x0_5", "squeezenet1_1", "swin_t", "swin_v2_t", "vgg11_bn", "vit_b_32",
    "wide_resnet50_2",
)  # fmt: skip


def pictures(count: int, side: int, seed: int) -> Tensor:
    """Smooth random pictures, each with a contrast and a brightness of its own: noise looks alike after pooling."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 3, 7, 7, generator=generator)
    smooth = F.interpolate(coarse, (side, side), mode="bilinear", align_corners=False)
    contrast = torch.rand(count, 1, 1, 1, generator=generator) * 2 + 0.2
    return smooth * contrast + torch.randn(count, 3, 1, 1, generator=generator)


def perturb(network: nn.Module, side: int) -> None:
    """Move every weight by a tenth of its size, zeros by 0.05, and take batch statistics from pictures."""
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        size = float(parameter.detach().square().mean().sqrt())
        step = 0.1 * size if size > 1e-4 else 0.05
        parameter.data += step * torch.randn(parameter.shape, generator=generator)
    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if norms:
        network.eval()
        for norm in norms:
            norm.train()
            norm.momentum = None
            norm.reset_running_stats()
        with torch.no_grad():
            network(pictures(8, side, seed=1))


def one(name: str) -> dict[str, object]:
    torch.manual_seed(0)
    side = SIDE.get(name, 224)
    network = load_network(f"torchvision:{name}", {}, 100)
    perturb(network, side)
    images = pictures(SAMPLES, side, seed=2).numpy()
    subject = ExportTarget(name, network.eval(), Preprocessing("none"), ("image",), (images,), samples_are="random")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{name}.onnx"
        start = time.perf_counter()
        made = network_export.write(subject, Form(18, runtimes.ir_for(18), 1e-4), path)
        seconds = time.perf_counter() - start
        OnnxSession(path)((images[:3],))
    assert made.parity is not None
    return {
        "name": name,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "seconds": round(seconds, 1),
        "operators_before": sum(made.operators_before.values()),
        "operators_after": sum(made.operators.values()),
        "size_bytes": made.size_bytes,
        "max_rel": made.parity.max_rel,
        "argmax_agreement": made.parity.argmax_agreement,
        "batch_sizes": made.parity.batch_sizes,
        "passed": made.parity.passed,
    }


def table(rows: list[dict[str, object]]) -> str:
    lines = [
        "| network | parameters | seconds | operators before | after | max rel | argmax | passed |",
        "|---|---:|---:|---:|---:|---:|---:|---|",
    ]
    lines += [
        f"| {row['name']} | {row['parameters']:,} | {row['seconds']} | {row['operators_before']} | "
        f"{row['operators_after']} | {row['max_rel']:.1e} | {row['argmax_agreement']:.2f} | "
        f"{'yes' if row['passed'] else 'NO: ' + str(row.get('error', ''))} |"
        for row in rows
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    target = RESULTS / "export_families.json"
    for name in sys.argv[1:] or FAMILIES:
        row = one(name)
        known = {row["name"]: row for row in json.loads(target.read_text())["rows"]} if target.exists() else {}
        known[name] = row
        print(table([known[name]]).splitlines()[-1], flush=True)
        document = {
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "onnxruntime": onnxruntime.__version__,
            "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, shared with other work",
            "tolerance": 1e-4,
            "rows": [known[name] for name in FAMILIES if name in known],
        }
        target.parent.mkdir(exist_ok=True)
        target.write_text(json.dumps(document, indent=1) + "\n")
        target.with_suffix(".md").write_text(table(document["rows"]))


if __name__ == "__main__":
    main()
