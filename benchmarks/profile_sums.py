"""Whether a profile's operators sum to the latency that was measured without a profiler.

    python benchmarks/profile_sums.py [--only NAME ...] [--tries 3]

Ten networks of torchvision and two transformers built from their configurations, no weights downloaded, through
`kdexport export` and `kdexport bench --profile`. ``sum`` is that of the profile's own processes, before its scaling to
p50: it is p50 only if the profiler's cost was taken out rightly, and if both measurements saw the same machine. On a
busy one they may not: a measurement beyond 5 % is made again, ``--tries`` times in all, and ``attempts`` tells it.
Must hold: within 5 % for all twelve.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import torchvision
from bench_common import RESULTS, OtherLoad, keep

from kdexport.bench.stage import bench
from kdexport.onnx.describe import describe_file
from kdexport.progress import Silent
from kdexport.recipe import Bench
from kdexport.report.operators import by_layer, by_type
from kdexport.results import Measurement

TORCHVISION = (
    "resnet18", "mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large", "squeezenet1_1", "mnasnet0_5",
    "efficientnet_b0", "regnet_y_400mf", "densenet121", "googlenet",
)  # fmt: skip
WITHIN = 0.05
FILE = RESULTS / "profile_sums.json"


class Encoder(torch.nn.Module):
    """A transformer of the transformers library with its first output alone."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        import transformers

        sizes = {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 512}
        torch.manual_seed(0)
        if kind == "bert":
            self.body = transformers.BertModel(transformers.BertConfig(vocab_size=1000, **sizes))
        else:
            self.body = transformers.ViTModel(transformers.ViTConfig(image_size=96, patch_size=16, **sizes))
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x).last_hidden_state


def write(name: str, folder: Path) -> Path:
    """Export a network with kdexport, or with torch alone where a proof of an untrained one is vain."""
    path = folder / f"{name}.onnx"
    sample = torch.randn(1, 3, 224, 224)
    if name in TORCHVISION:
        arguments = ["export", f"torchvision:{name}", "--input-shape", "3,224,224", "--onnx", "--out", str(path)]
        done = subprocess.run([sys.executable, "-m", "kdexport", *arguments, "--quiet"], check=False)
        if done.returncode == 0:
            return path
        network = torchvision.models.get_model(name, weights=None).eval()
    else:
        kind = name.partition("-")[0]
        sample = torch.randint(0, 1000, (1, 64)) if kind == "bert" else torch.randn(1, 3, 96, 96)
        network = Encoder(kind)
    torch.onnx.export(network, (sample,), dynamo=True, verbose=False).save(str(path))
    return path


def measured(path: Path, tries: int) -> tuple[Measurement, int]:
    settings = Bench(profile=True, min_seconds=0.3, max_seconds=5.0)
    for attempt in range(1, tries + 1):  # noqa: B007 - how many it took
        (one,) = bench([describe_file(path)], settings, name=path.stem, progress=Silent()).measurements
        sum_ms = one.profile.sum_ms if one.profile else 0.0
        if abs(sum_ms / one.latency_ms.p50 - 1) <= WITHIN:
            break
    return one, attempt


def row(name: str, one: Measurement, attempts: int) -> dict[str, object]:
    assert one.profile is not None
    whole = sum(operator.ms for operator in one.profile.operators) + one.profile.between_ms
    return {
        "network": name,
        "p50_ms": round(one.latency_ms.p50, 4),
        "p50_ci95": None if one.latency_ms.p50_ci95 is None else [round(end, 4) for end in one.latency_ms.p50_ci95],
        "sum_ms": round(one.profile.sum_ms, 4),
        "sum_over_p50": round(one.profile.sum_ms / one.latency_ms.p50, 4),
        "scaled_sum_over_p50": round(whole / one.latency_ms.p50, 6),
        "under_the_profiler_over_p50": round(one.profile.profiled_ms / one.latency_ms.p50, 4),
        "profiler_us_per_operator": round(one.profile.profiler_us, 2),
        "operators": len(one.profile.operators),
        "with_a_layer": sum(bool(operator.layer) for operator in one.profile.operators),
        "costliest_type": by_type(one.profile)[0].name,
        "costliest_layer": by_layer(one.profile)[0].name,
        "disturbed": one.disturbed,
        "attempts": attempts,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", nargs="*", default=[*TORCHVISION, "bert-config", "vit-config"])
    parser.add_argument("--tries", type=int, default=3)
    flags = parser.parse_args()
    kept = json.loads(FILE.read_text(encoding="utf-8"))["rows"] if FILE.is_file() else []
    rows = [one for one in kept if one["network"] not in flags.only]  # of an earlier call that named others
    with tempfile.TemporaryDirectory() as folder, OtherLoad() as load:
        for name in flags.only:
            rows.append(row(name, *measured(write(name, Path(folder)), flags.tries)))
            print(rows[-1], flush=True)
    off = [abs(float(str(one["sum_over_p50"])) - 1) for one in rows]
    keep(
        "profile_sums",
        {"within_5_percent": sum(one <= WITHIN for one in off), "networks": len(rows), "worst": max(off), "rows": rows},
        load,
    )


if __name__ == "__main__":
    main()
