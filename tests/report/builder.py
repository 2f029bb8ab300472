"""Bench results as `kdexport bench` writes them, their figures drawn from a seed."""

import hashlib

import numpy as np

from kdexport.results import (
    Agreement,
    BenchResult,
    ClassScore,
    Evaluation,
    Failure,
    Latency,
    Machine,
    Measurement,
    Memory,
    ModelFile,
    Parity,
    Score,
)

SAMPLES, CLASSES = 360, 10
# name: accuracy, KiB, median ms, parameters
DIGITS = {
    "teacher": (0.992, 1650.0, 0.310, 420_000),
    "student": (0.983, 83.0, 0.062, 19_900),
    "student-plain": (0.972, 83.0, 0.061, 19_900),
    "student.int8": (0.981, 27.0, 0.081, 19_900),
    "student-plain.int8": (0.969, 27.0, 0.080, 19_900),
}


def machine(name: str = "laptop", **changes) -> Machine:
    fields = {
        "name": name,
        "system": "Linux 6.1 x86_64",
        "cpu": "AMD Ryzen 7 5800U",
        "cpu_features": ("avx2",),
        "cores": 2,
        "memory_mib": 7800,
        "container": "cgroup: 2.0 CPUs",
        "governor": "performance",
        "gpus": (),
        "driver": None,
        "python": "3.11.2",
        "versions": {"onnxruntime": "1.22.0", "numpy": "2.2.1"},
        "providers": ("CPUExecutionProvider",),
    }
    return Machine(**(fields | changes))


def evaluation(accuracy: float, seed: int, samples: int = SAMPLES, classes: int = CLASSES) -> Evaluation:
    """Score a made-up classifier: which samples are hard is the same for every model, as in real life."""
    labels = np.arange(samples) % classes
    hardness = np.random.default_rng(7).permutation(samples) / samples
    noise = np.random.default_rng(seed).normal(0, 0.012, samples)
    right = (hardness + noise) < accuracy
    predicted = np.where(right, labels, (labels + 1 + np.random.default_rng(3).integers(0, 3, samples)) % classes)
    confusion = np.zeros((classes, classes), int)
    np.add.at(confusion, (labels, predicted), 1)
    hits, actual, message = np.diag(confusion), confusion.sum(1), confusion.sum(0)
    share = float(right.mean())
    half = 1.96 * float(np.sqrt(share * (1 - share) / samples))
    return Evaluation(
        split="test",
        samples=samples,
        task="classification",
        score=Score("accuracy", share, (share - half, min(1.0, share + half))),
        metrics={"macro_f1": share},
        per_class=tuple(
            ClassScore(
                str(index), int(actual[index]), hits[index] / actual[index], hits[index] / max(message[index], 1), share
            )
            for index in range(classes)
        ),
        confusion=tuple(tuple(int(cell) for cell in row) for row in confusion),
        per_sample=tuple(int(value) for value in right),
        chance=float(actual.max() / samples),
    )


def model(name: str, accuracy: float | None, kib: float, parameters: int, *, seed: int = 0, **changes) -> ModelFile:
    scored = None if accuracy is None else evaluation(accuracy, seed)
    precision = name.rpartition(".")[2] if "." in name else "fp32"
    fields = {
        "name": name,
        "file": f"{name}.onnx",
        "sha256": hashlib.sha256(name.encode()).hexdigest(),
        "precision": precision,
        "size_bytes": int(kib * 1024),
        "parameters": parameters,
        "macs": parameters * 9,
        "opset": 18,
        "inputs": {"input": ["batch", 8, 8, 1]},
        "parity": Parity(2.1e-6, 3.4e-7, 64, 1e-4, True),
        "score": scored.score if scored else None,
        "teacher_agreement": Agreement(0.985, 0.031, 0.978),
        "evaluation": scored,
    }
    return ModelFile(**(fields | changes))


def latency(median: float, seed: int, rounds: int = 12) -> Latency:
    random = np.random.default_rng(seed)
    drift = 1 + 0.02 * np.sin(np.arange(rounds))  # the machine's, the same for all models
    samples = np.concatenate([median * d * random.lognormal(0, 0.06, 80) for d in drift])
    samples[random.integers(0, samples.size, 12)] *= 1.9
    medians = tuple(float(np.median(part)) for part in np.split(samples, rounds))
    p50 = float(np.median(samples))
    return Latency(
        p50=p50,
        p50_ci95=(p50 * 0.99, p50 * 1.012),
        p90=float(np.percentile(samples, 90)),
        p95=float(np.percentile(samples, 95)),
        p99=float(np.percentile(samples, 99)),
        mean=float(samples.mean()),
        std=float(samples.std()),
        samples=samples.size,
        quantiles=tuple(float(value) for value in np.quantile(samples, np.linspace(0, 1, 101))),
        rounds_p50=medians,
        p99_ci95=(float(np.percentile(samples, 98.5)), float(np.percentile(samples, 99.5))),
    )


def measurement(
    name: str,
    median: float,
    *,
    machine: str = "laptop",
    device: str = "cpu",
    batch: int = 1,
    threads: int = 1,
    seed: int = 0,
    **changes,
) -> Measurement:
    provider = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}.get(device, device)
    figures = latency(median, seed)
    fields = {
        "model": name,
        "machine": machine,
        "device": device,
        "provider": provider,
        "placement": {provider: 1.0},
        "batch_size": batch,
        "threads": threads,
        "latency_ms": figures,
        "throughput_per_s": 1000 * batch / figures.p50,
        "load_ms": 9.1,
        "first_run_ms": median * 4,
        "memory_mib": Memory(58.0 + median * 20, 3.0 + median * 15, None),
    }
    return Measurement(**(fields | changes))


def training(epochs: int = 30) -> tuple[dict, ...]:
    random = np.random.default_rng(5)
    lines = []
    for phase, top, rate in (("teacher", 0.991, 3.0), ("student", 0.981, 7.0), ("student-plain", 0.972, 9.0)):
        for epoch in range(1, epochs + 1):
            accuracy = top - 0.85 * np.exp(-epoch / rate) + random.normal(0, 0.003)
            lines.append(
                {
                    "phase": phase,
                    "epoch": epoch,
                    "seconds": 0.4,
                    "samples_per_s": 3200.0,
                    "lr": 0.002,
                    "loss": float(1.9 * np.exp(-epoch / rate) + 0.05),
                    "terms": {},
                    "val_accuracy": float(min(accuracy, 1.0)),
                    "top1_agreement": None,
                    "teacher_from": "cache",
                }
            )
        lines[-1] |= kept(phase, accuracy)
    return tuple(lines)


def kept(phase: str, accuracy: float) -> dict:
    """What the last epoch's line holds beside: each split's figures, with a teacher's where there was one."""
    taught = phase == "student"
    terms = {"labels": 0.21, **({"soft_targets": 0.34} if taught else {})}
    line: dict = {"kept": True, "val_terms": terms, "test_terms": terms, "terms": terms}
    for split, top1 in (("train", "train_top1_agreement"), ("val", "top1_agreement"), ("test", "test_top1_agreement")):
        line |= {
            f"{split}_accuracy": min(float(accuracy), 1.0),
            f"{split}_teacher_accuracy": 0.991 if taught else None,
            top1: 0.975 if taught else None,
            f"{split}_kl": 0.062 if taught else None,
            f"{split}_logit_correlation": 0.951 if taught else None,
        }
    return line


RECIPE = {
    "name": "digits",
    "seed": 0,
    "data": {"source": "digits"},
    "teacher": {"model": "nets.py:Teacher"},
    "student": {"model": "nets.py:Student"},
    "distill": {
        "epochs": 30,
        "optimizer": "adamw",
        "label_weight": 0.1,
        "terms": [{"method": "soft_targets", "weight": 0.9, "temperature": 4.0}],
    },
    "export": {"bake_preprocessing": True},
    "require": {"max_drop": 0.03, "min_speedup": 3.0, "max_size_mib": 1.0, "max_latency_ms": 2.0},
}


def bench(
    on: Machine | None = None,
    *,
    models: dict[str, tuple[float | None, float, float, int]] | None = None,
    conditions: tuple[tuple[str, int, int], ...] = (("cpu", 1, 1),),
    slowdown: float = 1.0,
    created: str = "2026-11-21T04:00:00+00:00",
    recipe: dict | None = RECIPE,
    failures: tuple[Failure, ...] = (),
    with_training: bool = True,
) -> BenchResult:
    """Build a whole bench result.

    Args:
        on: The machine.
        models: name -> accuracy, KiB, median ms at batch 1, parameters; the first is the baseline.
        conditions: Device, batch size, threads.
        slowdown: Of this machine against the figures in ``models``.
    """
    on = on or machine()
    models = models or DIGITS
    speed = {"cpu": 1.0, "cuda": 0.25}
    return BenchResult(
        name="digits",
        created=created,
        machine=on,
        models=tuple(
            model(name, accuracy, kib, parameters, seed=index)
            for index, (name, (accuracy, kib, _, parameters)) in enumerate(models.items())
        ),
        measurements=tuple(
            measurement(
                name,
                median * slowdown * speed.get(device, 1.0) * batch**0.9 / threads**0.7,
                machine=on.name,
                device=device,
                batch=batch,
                threads=threads,
                seed=index,
            )
            for device, batch, threads in conditions
            for index, (name, (_, _, median, _)) in enumerate(models.items())
        ),
        failures=failures,
        recipe=recipe,
        training=training() if with_training else (),
    )
