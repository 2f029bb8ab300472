"""Sixty networks that this project did not write, exported and proved, and each proved file checked by other means.

    python benchmarks/strangers.py [--only NAME...] [--seconds 300]

torchvision's, timm's, transformers' (from configurations, small) and files after public architectures
(``strangers_nets.py``). Every weight and every running statistic is perturbed, so that nothing is zero or one by
initialization; where all pictures are answered alike after that, the statistics are those of random pictures. Each is
exported with hard samples and, where it takes other sizes, dynamic axes; a network that fixes an axis is refused, and
exported again without it. A file that passes is then run with ONNX Runtime on fresh inputs, at batches and sizes that
the proof has not seen, and with onnx's reference evaluator where that has every operator.

One network at a time, in a process of its own, ended after ``--seconds``. What is in the results already is not done
again: delete its row, or name it with --only.
"""

import argparse
import contextlib
import copy
import json
import multiprocessing
import sys
import tempfile
import time
import traceback
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))
import strangers_nets

from kdexport.errors import KDExportError
from kdexport.export import standalone
from kdexport.export.random_inputs import InputShape, parse_shape
from kdexport.export.target import Form, select_outputs
from kdexport.export.to_onnx import to_onnx
from kdexport.progress import Silent

RESULTS = Path(__file__).with_name("results") / "strangers.json"
ALIKE = 1e-3  # relative to an output's largest value: ten times what the proof allows, on inputs of another kind
SIZES = ("input:2=height", "input:3=width")


@dataclass(frozen=True)
class Stranger:
    """One network: where it comes from, and what it is given."""

    library: str
    name: str
    shapes: tuple[str, ...]
    args: dict[str, Any] = field(default_factory=dict)
    dynamic: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        return f"{self.library}:{self.name}"


def image(
    library: str, names: str, size: int = 64, dynamic: bool = False, outputs: tuple[str, ...] = ()
) -> list[Stranger]:
    axes = SIZES if dynamic else ()
    args = {"num_classes": 10}
    return [Stranger(library, name, (f"3,{size},{size}",), args, axes, outputs) for name in names.split()]


def text(name: str, config: str, *shapes: str, outputs: tuple[str, ...] = ("logits",), **sizes: Any) -> Stranger:
    return Stranger("transformers", name, shapes, {"config": config, **sizes}, outputs=outputs)


SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
TOKENS = {**SMALL, "vocab_size": 200, "max_position_embeddings": 64}
IDS = ("input_ids:16:int64<200", "attention_mask:16:int64")

TEXTS = [
    text("BertForSequenceClassification", "BertConfig", *IDS, **TOKENS),
    text("RobertaForSequenceClassification", "RobertaConfig", *IDS, **TOKENS),
    text("ElectraForSequenceClassification", "ElectraConfig", *IDS, embedding_size=16, **TOKENS),
    text("AlbertForSequenceClassification", "AlbertConfig", *IDS, embedding_size=16, **TOKENS),
    text(
        "DistilBertForSequenceClassification", "DistilBertConfig", *IDS, vocab_size=200, dim=32, hidden_dim=64,
        n_layers=2, n_heads=2, max_position_embeddings=64,
    ),
    text("DebertaV2ForSequenceClassification", "DebertaV2Config", *IDS, **TOKENS),
    text("GPT2LMHeadModel", "GPT2Config", *IDS, vocab_size=200, n_embd=32, n_layer=2, n_head=2, n_positions=64),
    text("LlamaForCausalLM", "LlamaConfig", *IDS, **TOKENS),
    text("ViTForImageClassification", "ViTConfig", "pixel_values:3,32,32", image_size=32, patch_size=8, **SMALL),
    text(
        "ConvNextForImageClassification", "ConvNextConfig", "pixel_values:3,64,64", hidden_sizes=[8, 16, 24, 32],
        depths=[1, 1, 1, 1],
    ),
    text(
        "ResNetForImageClassification", "ResNetConfig", "pixel_values:3,64,64", hidden_sizes=[8, 16], depths=[1, 1],
        embedding_size=8,
    ),
    text(
        "SegformerForSemanticSegmentation", "SegformerConfig", "pixel_values:3,64,64", hidden_sizes=[8, 16, 24, 32],
        depths=[1, 1, 1, 1], decoder_hidden_size=16, num_attention_heads=[1, 2, 2, 4],
    ),
    text(
        "Wav2Vec2ForCTC", "Wav2Vec2Config", "input_values:2000", conv_dim=[16, 16], conv_kernel=[10, 3],
        conv_stride=[5, 2], num_feat_extract_layers=2, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4,
        vocab_size=20, **SMALL,
    ),
]  # fmt: skip
FILES = [
    Stranger("file", name, tuple(shapes.split()), dynamic=tuple(axes.split()))
    for name, shapes, axes in (
        ("UNet", "x:3,32,32", "x:2=height x:3=width"),
        ("Fcn", "x:3,32,32", "x:2=height x:3=width"),
        ("Espcn", "x:1,16,16", "x:2=height x:3=width"),
        ("YoloHead", "x:3,32,32", "x:2=height x:3=width"),
        ("Tcn", "x:4,40", "x:2=length"),
        ("Wavenet", "x:1,60", "x:2=length"),
        ("Crnn", "x:1,16,40", "x:3=width"),
        ("PointNet", "cloud:50,3", "cloud:1=points"),
        ("Tagger", "ids:9:int64", "ids:1=length"),
        ("Streaming", "audio:256 h:1,batch,8 c:1,batch,8", ""),
        ("Mixer", "x:3,32,32", ""),
        ("Generator", "z:12", ""),
        ("Vae", "x:20", ""),
        ("SamplingVae", "x:20", ""),
        ("Cosine", "x:20", ""),
        ("BatchStandardized", "x:20", ""),
    )
]
ENTRIES = ("out",)  # of a dict
TIMM_SIZED = "test_resnet test_efficientnet test_convnext test_byobnet lcnet_050 tinynet_e ghostnet_050"
TIMM = "mobilenetv4_conv_small efficientnet_lite0 mobilevit_xxs edgenext_xx_small convnextv2_atto dla46_c repvit_m0_9"
STRANGERS: list[Stranger] = [
    *FILES,
    *TEXTS,
    *image("timm", TIMM_SIZED, dynamic=True),
    *image("timm", f"{TIMM} poolformerv2_s12 efficientvit_b0 resnetv2_18 hardcorenas_a xcit_nano_12_p16_224"),
    *image("timm", "test_vit", 160),
    *image("torchvision", "squeezenet1_1 shufflenet_v2_x0_5 mnasnet0_5 mobilenet_v3_small mobilenet_v2", dynamic=True),
    *image("torchvision", "resnet18 regnet_y_400mf efficientnet_b0 googlenet densenet121 convnext_tiny swin_t"),
    *image("torchvision", "lraspp_mobilenet_v3_large deeplabv3_mobilenet_v3_large", dynamic=True, outputs=ENTRIES),
    *image("torchvision", "alexnet"),
    *image("torchvision", "inception_v3", 80),
]


def make(library: str, name: str, args: dict[str, Any]) -> nn.Module:
    """Build one network with every weight and running statistic perturbed, the same each time."""
    torch.manual_seed(zlib.crc32(name.encode()))
    args = dict(args)
    if library == "torchvision":
        from torchvision import models

        extra = {"aux_logits": False, "init_weights": False} if name in ("googlenet", "inception_v3") else {}
        if name.endswith("v3_large"):
            extra = {"weights_backbone": None}
        network = models.get_model(name, weights=None, **args, **extra)
    elif library == "timm":
        import timm

        network = timm.create_model(name, **args)
    elif library == "transformers":
        import transformers

        config = getattr(transformers, args.pop("config"))(**args, num_labels=5, pad_token_id=0)
        network = getattr(transformers, name)(config)
    else:
        network = getattr(strangers_nets, name)(**args)
    with torch.no_grad():
        for parameter in network.parameters():
            scale = float(parameter.std()) if parameter.numel() > 1 else 0.0
            parameter.add_(torch.randn_like(parameter) * max(0.1 * scale, 0.02))
        for key, buffer in network.named_buffers():
            if key.endswith("running_mean"):
                buffer.add_(0.1 * torch.randn_like(buffer))
            elif key.endswith("running_var"):
                buffer.mul_(0.5 + torch.rand_like(buffer))
    network.eval()
    if library in ("timm", "torchvision"):
        settle(network)
    return network


def settle(network: nn.Module) -> None:
    """Give a network that answers all pictures alike the batch statistics of random ones: a signal gets through."""
    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    with torch.no_grad():
        for size in (64, 96):  # Inception takes no smaller one
            pictures = torch.randn(16, 3, size, size)
            with contextlib.suppress(RuntimeError, AssertionError):
                output = torch.utils._pytree.tree_leaves(network(pictures))[0]
                break
        else:
            return  # it takes one size alone, and has a signal
        if not norms or (output.amax(0) - output.amin(0)).max() > 2e-3 * output.abs().max():
            return
        for module in network.modules():
            module.training = module in norms
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the mean over all batches
        network(pictures)
    network.eval()


def attempt(stranger: Stranger, folder: Path) -> dict[str, Any]:
    """Export one network, check its file where it passes, and say what came out."""
    shapes = tuple(parse_shape(text, number) for number, text in enumerate(stranger.shapes))
    row: dict[str, Any] = {"network": stranger.key, "refused_axes": None}
    for dynamic in dict.fromkeys([stranger.dynamic, ()]):
        file = folder / "net.onnx"
        request = standalone.Request(
            f"{Path(__file__).resolve()}:make",
            file,
            args={"library": stranger.library, "name": stranger.name, "args": stranger.args},
            inputs=shapes,
            dynamic=dynamic,
            force=True,
            seed=1,
        )
        form = Form(18, 8, 1e-4, output_names=stranger.outputs or None)
        try:
            (model,) = standalone.export(request, form, Silent()).models
        except KDExportError as error:
            reason = f"{error.message} ({error.hint})"
            if dynamic:
                row["refused_axes"] = reason
                continue
            return {**row, "outcome": "refused", "reason": reason}
        proof = model.parity
        row |= {
            "outcome": "passed",
            "dynamic": list(dynamic),
            "max_rel": proof.max_rel if proof else None,
            "hard_samples": proof.hard_samples if proof else None,
            "other_sizes": proof.other_sizes if proof else None,
            "size_bytes": model.size_bytes,
        }
        return row | check(stranger, shapes, dynamic, file)
    return row


def check(stranger: Stranger, shapes: tuple[InputShape, ...], dynamic: tuple[str, ...], file: Path) -> dict[str, Any]:
    """Run a file that passed on fresh inputs, by code that the proof does not share."""
    network = make(stranger.library, stranger.name, stranger.args)
    if stranger.outputs:
        select_outputs(network, stranger.outputs)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    types = {item.name: item.type for item in session.get_inputs()}
    worst, runs, unjudged, evaluator = 0.0, 0, 0, "not run"
    rng = np.random.default_rng(20)
    for batch, scale, times in ((3, 1.0, 1.0), (1, 3.0, 1.0), (5, 0.0, 1.0), (2, 1.0, 1.75), (2, 1.0, 1.25)):
        if times != 1 and not dynamic:
            continue
        feed = {item.name: fresh(rng, item, types[item.name], batch, scale, times, dynamic) for item in shapes}
        try:
            expected = outputs(network, feed, named=shapes[0].named)
            exact = outputs(copy.deepcopy(network).double(), feed, named=shapes[0].named, double=True)
        except RuntimeError:  # the network itself takes no such size
            continue
        if difference(expected, exact) > ALIKE / 10:  # PyTorch's own rounding is that large: nothing can be told
            unjudged += 1
            continue
        worst = max(worst, difference(expected, session.run(None, feed)))
        runs += 1
        if runs == 1:
            try:
                evaluator = difference(expected, ReferenceEvaluator(onnx.load(file)).run(None, feed))
            except Exception as error:  # noqa: BLE001 what it lacks, it says in many ways
                evaluator = f"not run: {type(error).__name__}"
    wrong = worst > ALIKE or (isinstance(evaluator, float) and evaluator > ALIKE)
    return {
        "outcome": "WRONG" if wrong else "passed",
        "fresh_max_rel": worst,
        "fresh_runs": runs,
        "unjudged_runs": unjudged,
        "evaluator": evaluator,
    }


def fresh(
    rng: np.random.Generator,
    item: InputShape,
    kind: str,
    batch: int,
    scale: float,
    times: float,
    dynamic: tuple[str, ...],
) -> np.ndarray:
    """Return inputs that no proof has seen."""
    dims = list(item.dims)
    for axis in (int(text.partition(":")[2].partition("=")[0]) for text in dynamic):
        dims[axis - 1] = max(1, int(dims[axis - 1] * times))
    dims.insert(item.batch_axis, batch)
    if "int" not in kind:
        return (scale * rng.normal(size=dims)).astype(np.float32)
    values = rng.integers(0, item.limit or 2, dims)
    if "mask" in item.name:  # a text of some length
        values = (np.arange(dims[1]) < rng.integers(1, dims[1] + 1, (batch, 1))).astype(np.int64)
    return values


def outputs(network: nn.Module, feed: dict[str, np.ndarray], *, named: bool, double: bool = False) -> list[np.ndarray]:
    """Return what PyTorch gives, as a flat list."""
    tensors = {name: torch.from_numpy(array) for name, array in feed.items()}
    if double:
        tensors = {name: item.double() if item.is_floating_point() else item for name, item in tensors.items()}
    with torch.no_grad():
        output = network(**tensors) if named else network(*tensors.values())
    leaves = torch.utils._pytree.tree_leaves(output)
    return [leaf.numpy() for leaf in leaves if isinstance(leaf, Tensor)]


def difference(expected: list[np.ndarray], actual: list[np.ndarray]) -> float:
    """Return the largest difference relative to each output's largest value; infinite where shapes or NaN differ."""
    worst = 0.0
    for one, other in zip(expected, actual, strict=True):
        if one.shape != other.shape or not np.array_equal(np.isfinite(one), np.isfinite(other)):
            return float("inf")
        mine, theirs = np.nan_to_num(one.astype(np.float64)), np.nan_to_num(other.astype(np.float64))
        worst = max(worst, float(np.abs(mine - theirs).max() / max(np.abs(mine).max(), 1e-12)))
    return worst


def in_child(stranger: Stranger, seconds: float) -> dict[str, Any]:
    """Attempt a network in a process of its own: one that crashes or hangs costs the others nothing."""
    context = multiprocessing.get_context("fork")  # torch is loaded once
    queue: Any = context.Queue()
    started = time.perf_counter()
    child = context.Process(target=_attempt_into, args=(queue, stranger))
    child.start()
    row = {"network": stranger.key, "outcome": "failed", "reason": f"no answer in {seconds:.0f} s"}
    while time.perf_counter() - started < seconds:
        if not queue.empty():
            row = queue.get()
            break
        if not child.is_alive():
            row["reason"] = f"the process ended with {child.exitcode}"
            break
        time.sleep(0.2)
    if child.is_alive():
        child.join(2)
        child.kill()
    return {**row, "seconds": round(time.perf_counter() - started, 1)}


def _attempt_into(queue: Any, stranger: Stranger) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        try:
            row = attempt(stranger, Path(folder))
        except Exception as error:  # noqa: BLE001 a fault of kdexport's or of this script: told as that
            place = traceback.extract_tb(error.__traceback__)[-1]
            said = f"{type(error).__name__}: {error} ({Path(place.filename).name}, line {place.lineno})"
            row = {"network": stranger.key, "outcome": "failed", "reason": said[:300]}
    queue.put(row)


def warm() -> None:
    """Load here, once, what every child needs: most of a small network's time is the exporter's own start.

    With one thread, and without a session of ONNX Runtime's: a child inherits no pool of threads that it has not.
    """
    torch.set_num_threads(1)
    to_onnx(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU()), (torch.rand(2, 1, 4, 4),), input_names=("x",))


def table(rows: list[dict[str, Any]]) -> str:
    """Return the results as Markdown."""
    counts = {
        outcome: sum(row["outcome"] == outcome for row in rows) for outcome in ("passed", "refused", "failed", "WRONG")
    }
    versions = f"torch {torch.__version__}, onnx {onnx.__version__}, onnxruntime {onnxruntime.__version__}"
    evaluated = sum(isinstance(row.get("evaluator"), float) for row in rows)
    lines = [
        "# Networks that this project did not write",
        "",
        f"`python benchmarks/strangers.py`, {versions}. {len(rows)} of {len(STRANGERS)} networks: "
        f"{counts['passed']} passed, {counts['refused']} refused with a reason, {counts['failed']} failed, "
        f"{counts['WRONG']} wrong. Every file that passed was run on fresh inputs with "
        f"ONNX Runtime, {evaluated} with onnx's reference evaluator too.",
        "",
        "| network | outcome | proof | hard samples | other sizes | fresh inputs | evaluator | s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        shown = [row["network"], row["outcome"]]
        shown += [f"{row['max_rel']:.1e}" if row.get("max_rel") is not None else ""]
        shown += [str(row.get(key, "") if row.get(key) is not None else "") for key in ("hard_samples", "other_sizes")]
        fresh_runs = f"{row['fresh_max_rel']:.1e} in {row['fresh_runs']}" if "fresh_runs" in row else ""
        unjudged = row.get("unjudged_runs", 0)
        shown += [fresh_runs + (f", {unjudged} left out: PyTorch's own rounding" if unjudged else "")]
        evaluator = row.get("evaluator", "")
        shown += [f"{evaluator:.1e}" if isinstance(evaluator, float) else str(evaluator), str(row["seconds"])]
        lines.append(f"| {' | '.join(shown)} |")
    reasons = [(row["network"], row.get("reason") or row.get("refused_axes")) for row in rows]
    lines += ["", "## Refused and failed, and axes that are fixed", ""]
    lines += [f"- {network}: {' '.join(reason.split())}" for network, reason in reasons if reason]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[], help="Networks to do, or to do again.")
    parser.add_argument("--seconds", type=float, default=300.0, help="For one network.")
    arguments = parser.parse_args()
    rows = {row["network"]: row for row in json.loads(RESULTS.read_text())} if RESULTS.is_file() else {}
    warm()
    for number, stranger in enumerate(STRANGERS, 1):
        if not ({stranger.key, stranger.name} & set(arguments.only) if arguments.only else stranger.key not in rows):
            continue
        row = rows[stranger.key] = in_child(stranger, arguments.seconds)
        print(
            f"{number:2} of {len(STRANGERS)} {stranger.key}: {row['outcome']} {row.get('reason') or ''}"[:200],
            flush=True,
        )
        ordered = [rows[item.key] for item in STRANGERS if item.key in rows]
        RESULTS.write_text(json.dumps(ordered, indent=1) + "\n")
        RESULTS.with_suffix(".md").write_text(table(ordered))


if __name__ == "__main__":
    main()
