"""Sentence embeddings from one teacher: kdexport's students, sentence-transformers' layer reduction, model2vec.

The rivals are made in an environment of their own, as their documentation says, then all are ONNX files in ONNX
Runtime: the same sentences of STS-B's test split, one at a time on one thread, every file in turn, each by its own
tokenizer. Spearman's correlation is over the test pairs, the difference to kdexport's student paired over them.

    python -m venv rivals && rivals/bin/pip install sentence-transformers "model2vec[distill]" accelerate datasets
    rivals/bin/python benchmarks/sentence_rivals.py model2vec --teacher DIR --out work
    rivals/bin/python benchmarks/sentence_rivals.py layers --teacher DIR --stsb DIR --out work
    python benchmarks/sentence_rivals.py compare --teacher DIR --stsb DIR --out work --run student=runs/sentences ...
"""

import argparse
import csv
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

LAYERS = (0, 5)  # of six: kdexport's student has these, too
SENTENCES, ROUNDS = 100, 5
LENGTH = 40


def rows(stsb: Path, split: str) -> list[dict[str, str]]:
    """Return the pairs of a split."""
    with (stsb / f"{split}.csv").open(newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def model2vec(options: argparse.Namespace) -> None:
    """Distill static token vectors with model2vec's defaults."""
    from importlib.metadata import version

    from model2vec.distill import distill

    started = time.monotonic()
    made = distill(model_name=str(options.teacher), device="cpu")
    folder = options.out / "model2vec"
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "vectors.npy", np.asarray(made.embedding, dtype=np.float32))
    made.tokenizer.save(str(folder / "tokenizer.json"))
    some = [row["sentence1"] for row in rows(options.stsb, "test")[:50]]
    np.save(folder / "expected.npy", np.asarray(made.encode(some), dtype=np.float32))
    if made.weights is not None or made.token_mapping is not None:
        raise SystemExit("model2vec has made weights or a mapping of tokens, which the ONNX file here lacks")
    told = {"seconds": time.monotonic() - started, "version": version("model2vec"), "unknown": made.unk_token_id}
    (folder / "made.json").write_text(json.dumps(told))


def layers(options: argparse.Namespace) -> None:
    """Reduce the teacher's layers and train on its embeddings, as sentence-transformers' model_distillation.py does.

    It sees as many texts as kdexport's student does, of another draw: a fiftieth of the training pairs, once, in
    batches of 32, with the same learning rate; MSELoss on the teacher's embeddings is that script's loss.
    """
    import sentence_transformers
    import torch
    from datasets import Dataset
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.sentence_transformer.losses import MSELoss

    torch.manual_seed(0)
    teacher = SentenceTransformer(str(options.teacher), device="cpu")
    student = SentenceTransformer(str(options.teacher), device="cpu")
    network = student[0].auto_model
    network.encoder.layer = torch.nn.ModuleList([network.encoder.layer[index] for index in LAYERS])
    network.config.num_hidden_layers = len(LAYERS)
    student.max_seq_length = LENGTH
    pairs = rows(options.stsb, "train")
    chosen = np.random.default_rng(0).permutation(len(pairs))[: round(len(pairs) * options.fraction)]
    texts = [pairs[index][side] for index in chosen for side in ("sentence1", "sentence2")]
    started = time.monotonic()
    data = Dataset.from_dict({"sentence": texts, "label": teacher.encode(texts, batch_size=32).tolist()})
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(options.out / "layers-training"),
        num_train_epochs=1,
        per_device_train_batch_size=32,
        learning_rate=2e-4,
        warmup_ratio=0.1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        seed=0,
    )
    SentenceTransformerTrainer(model=student, args=arguments, train_dataset=data, loss=MSELoss(student)).train()
    folder = options.out / "layers"
    student.save(str(folder))
    some = [row["sentence1"] for row in rows(options.stsb, "test")[:50]]
    np.save(folder / "expected.npy", student.encode(some))
    told = {"seconds": time.monotonic() - started, "version": sentence_transformers.__version__, "texts": len(texts)}
    (folder / "made.json").write_text(json.dumps(told))


def compare(options: argparse.Namespace) -> None:
    """Measure every file on the same sentences and write the table."""
    import onnxruntime
    import tokenizers

    import kdexport
    from kdexport.statistics import bootstrap_interval
    from kdexport.tasks.rank_correlation import resampled_spearman, spearman

    files = {name: Path(folder) for name, folder in (item.split("=", 1) for item in options.run)}
    entries: dict[str, tuple[Path, Path]] = {
        name: (folder / "student.onnx", folder / "tokenizer.json") for name, folder in files.items()
    }
    for name, folder in files.items():
        small = folder / "student.int8-dynamic.onnx"
        if small.is_file():
            entries[f"{name}, int8"] = (small, folder / "tokenizer.json")
    entries["sentence-transformers, 2 layers"] = _exported(options.out / "layers", options.stsb)
    entries["model2vec"] = _static(options.out / "model2vec", options.stsb)
    test = rows(options.stsb, "test")
    left, right = ([row[side] for row in test] for side in ("sentence1", "sentence2"))
    gold = np.array([float(row["score"]) for row in test])
    timed = [(left + right)[index] for index in np.random.default_rng(0).permutation(2 * len(test))[:SENTENCES]]
    embed: dict[str, Callable[[list[str]], np.ndarray]] = {}
    for name, (model, tokenizer) in entries.items():
        embed[name] = _embedder(model, tokenizer)
    cosines = {}
    for name, function in embed.items():
        one, two = function(left), function(right)
        cosines[name] = (one * two).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(two, axis=1)
    latency = _latency(entries, timed)
    base = next(iter(files))
    reference = resampled_spearman(cosines[base], gold)
    lines = []
    scores = {name: spearman(cosines[name], gold) or 0.0 for name in entries}
    for name, (model, tokenizer) in entries.items():
        own = resampled_spearman(cosines[name], gold)
        gap = bootstrap_interval(np.asarray(reference) - np.asarray(own))
        lines.append({
            "model": name,
            "spearman": scores[name],
            "ci95": bootstrap_interval(own),
            "student_minus_it": None if name == base else scores[base] - scores[name],
            "student_minus_it_ci95": None if name == base else gap,
            "latency_us": latency[name]["session"],
            "with_tokenizer_us": latency[name]["whole"],
            "tokens_per_sentence": latency[name]["tokens"],
            "model_mib": model.stat().st_size / 2**20,
            "tokenizer_mib": tokenizer.stat().st_size / 2**20,
        })  # fmt: skip
    made = {name: json.loads((options.out / name / "made.json").read_text()) for name in ("layers", "model2vec")}
    result = {
        "what": "median over sentences of the fastest of some rounds; batch 1, 1 thread, files in turn",
        "sentences": SENTENCES,
        "rounds": ROUNDS,
        "versions": {
            "kdexport": kdexport.__version__,
            "onnxruntime": onnxruntime.__version__,
            "tokenizers": tokenizers.__version__,
            "sentence-transformers": made["layers"]["version"],
            "model2vec": made["model2vec"]["version"],
        },
        "made": made,
        "models": lines,
    }
    target = Path(__file__).parent / "results" / "sentence_rivals"
    target.with_suffix(".json").write_text(json.dumps(result, indent=2) + "\n")
    target.with_suffix(".md").write_text(_table(result, base))
    print(_table(result, base))


def _table(result: dict[str, Any], base: str) -> str:
    head = f"| model | Spearman (95 % interval) | {base} minus it | ORT, µs | with tokenizer, µs | MiB with tokenizer |"
    lines = [head, "|---|---|---|---|---|---|"]
    for one in result["models"]:
        low, high = one["ci95"]
        gap = ""
        if one["student_minus_it"] is not None:
            least, most = one["student_minus_it_ci95"]
            gap = f"{one['student_minus_it']:+.3f} ({least:+.3f} to {most:+.3f})"
        size = one["model_mib"] + one["tokenizer_mib"]
        lines.append(
            f"| {one['model']} | {one['spearman']:.3f} ({low:.3f} to {high:.3f}) | {gap} | {one['latency_us']:.0f} | "
            f"{one['with_tokenizer_us']:.0f} | {size:.1f} |"
        )
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    return "\n".join(lines) + f"\n\n{result['sentences']} test sentences, {result['what']}; {versions}.\n"


def _embedder(model: Path, tokenizer: Path) -> Callable[[list[str]], np.ndarray]:
    session, encode = _session(model), _encoder(tokenizer)

    def embed(texts: list[str]) -> np.ndarray:
        return np.concatenate([session(encode(text)) for text in texts])

    return embed


def _session(model: Path) -> Callable[[dict[str, np.ndarray]], np.ndarray]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    names = [item.name for item in session.get_inputs()]
    return lambda feed: session.run(None, {name: feed[name] for name in names})[0]


def _encoder(tokenizer: Path) -> Callable[[str], dict[str, np.ndarray]]:
    from tokenizers import Tokenizer

    made = Tokenizer.from_file(str(tokenizer))
    made.no_padding()
    made.enable_truncation(LENGTH)
    told = tokenizer.with_name("made.json")
    made_by = json.loads(told.read_text()) if told.is_file() else {}
    static, unknown = "unknown" in made_by, made_by.get("unknown")

    def encode(text: str) -> dict[str, np.ndarray]:
        ids = made.encode(text, add_special_tokens=not static).ids
        if static:  # as StaticModel.tokenize does
            ids = [number for number in ids if number != unknown] or [0]
        array = np.array([ids], dtype=np.int64)
        return {"input_ids": array, "attention_mask": np.ones_like(array)}

    return encode


def _latency(entries: dict[str, tuple[Path, Path]], texts: list[str]) -> dict[str, dict[str, float]]:
    runs = {name: (_session(model), _encoder(tokenizer)) for name, (model, tokenizer) in entries.items()}
    best = {name: np.full((2, len(texts)), np.inf) for name in runs}
    tokens = {
        name: float(np.mean([encode(text)["input_ids"].size for text in texts])) for name, (_, encode) in runs.items()
    }
    for _ in range(ROUNDS):
        for place, text in enumerate(texts):
            for name, (session, encode) in runs.items():
                started = time.perf_counter_ns()
                feed = encode(text)
                ready = time.perf_counter_ns()
                session(feed)
                ended = time.perf_counter_ns()
                best[name][0, place] = min(best[name][0, place], ended - ready)
                best[name][1, place] = min(best[name][1, place], ended - started)
    return {
        name: {
            "session": float(np.median(own[0])) / 1e3,
            "whole": float(np.median(own[1])) / 1e3,
            "tokens": tokens[name],
        }
        for name, own in best.items()
    }


def _exported(folder: Path, stsb: Path) -> tuple[Path, Path]:
    """Return an ONNX file and the tokenizer of a sentence-transformers folder, written by kdexport's exporter."""
    import torch

    from kdexport.models.hub import load_embedder

    out = folder
    if not (out / "model.onnx").is_file():
        network = load_embedder(str(folder), {})[0].eval()
        _write(network, out / "model.onnx", torch.ones((2, 7), dtype=torch.int64))
    tokenizer = folder / "tokenizer.json"
    _check(out / "model.onnx", tokenizer, folder / "expected.npy", stsb)
    return out / "model.onnx", tokenizer


def _static(folder: Path, stsb: Path) -> tuple[Path, Path]:
    """Return model2vec's vectors as an ONNX file: rows of a table, their mean, normalized."""
    import torch
    from torch import Tensor, nn

    class Static(nn.Module):
        def __init__(self, table: Tensor) -> None:
            super().__init__()
            self.table = nn.Embedding.from_pretrained(table)

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            mask = attention_mask.unsqueeze(-1).to(torch.float32)
            mean = (self.table(input_ids) * mask).sum(1) / mask.sum(1).clamp(min=1.0)
            return nn.functional.normalize(mean, dim=1)

    if not (folder / "model.onnx").is_file():
        table = torch.from_numpy(np.load(folder / "vectors.npy"))
        _write(Static(table).eval(), folder / "model.onnx", torch.ones((2, 7), dtype=torch.int64))
    _check(folder / "model.onnx", folder / "tokenizer.json", folder / "expected.npy", stsb)
    return folder / "model.onnx", folder / "tokenizer.json"


def _write(network: Any, path: Path, ids: Any) -> None:
    import onnx_ir

    from kdexport.export.to_onnx import to_onnx

    axes = {0: "batch", 1: "length"}
    names = ("input_ids", "attention_mask")
    exported = to_onnx(network, (ids, ids.clone()), input_names=names, dynamic=[axes, axes])
    onnx_ir.save(exported.model, path)


def _check(model: Path, tokenizer: Path, expected: Path, stsb: Path) -> None:
    """Hold that a rival's file computes what the rival's own library does."""
    if not expected.is_file():
        return
    wanted = np.load(expected)
    found = _embedder(model, tokenizer)([row["sentence1"] for row in rows(stsb, "test")[: len(wanted)]])
    worst = float(np.abs(found - wanted / np.linalg.norm(wanted, axis=1, keepdims=True)).max())
    if worst > 2e-3:  # model2vec's own vectors are float16
        raise SystemExit(f"{model} differs from its library by {worst:.2g}")


def main() -> None:
    """Run one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = {"model2vec": model2vec, "layers": layers, "compare": compare}
    parser.add_argument("part", choices=parts)
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--stsb", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--fraction", type=float, default=0.02)
    parser.add_argument("--run", action="append", default=[], metavar="NAME=DIR")
    options = parser.parse_args()
    parts[options.part](options)


if __name__ == "__main__":
    main()
