"""What decoding once saves: the data's share of a training step, and how memory grows with the data.

    python benchmarks/sources_cache.py CIFAR10_JPG_FOLDER [--memory]

Writes benchmarks/results/sources_cache.json. CIFAR10_JPG_FOLDER holds train/CLASS/*.jpg and test/CLASS/*.jpg.

Data time: 10,000 real JPEGs, batches of 128 with shift and flip, the second epoch's median beside the median step of a
ResNet-20 (forward, backward, SGD). Compared with what a user would do instead: torchvision's ImageFolder, a picture at
a time. Reading: 128 random rows of 3 KiB as kdexport reads them, from a memory map, and from one whose pages are let go
each time so that they do not count as memory. Memory: peak resident memory (VmHWM) of a whole `kdexport distill` in a
fresh process, at 10,000 and at 50,000 images; the networks are tiny so that the data would show.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # as kdexport's command line sets it

BATCH = 128
STEPS = 12  # of the network, timed
RESULT = Path(__file__).parent / "results" / "sources_cache.json"
NETS = """
from torch import nn

def tiny(width=4, num_classes=10):
    return nn.Sequential(nn.Conv2d(3, width, 8, stride=8), nn.ReLU(), nn.Flatten(), nn.Linear(16 * width, num_classes))
"""


def subset(source: Path, target: Path, train: int, test: int) -> Path:
    """Link the first pictures of each class into a folder of their own."""
    for split, count in (("train", train), ("test", test)):
        for folder in sorted((source / split).iterdir()):
            (target / split / folder.name).mkdir(parents=True)
            for picture in sorted(folder.iterdir())[: count // 10]:
                (target / split / folder.name / picture.name).symlink_to(picture)
    return target


def data_time(folder: Path, cache: Path) -> dict[str, float]:
    import numpy as np
    import torch

    from kdexport.data.augment import Augmentation
    from kdexport.data.datasets import load_data
    from kdexport.distill.batches import Batches
    from kdexport.models.networks import load_network
    from kdexport.recipe import Data

    start = time.perf_counter()
    data = load_data(Data(source=f"imagefolder:{folder}", val_fraction=0.001), 0, cache)
    decode_s = time.perf_counter() - start
    batches = Batches(
        data.train,
        batch_size=BATCH,
        seed=0,
        augmentation=Augmentation(["shift", "flip"], 0),
        views=200,
        device=torch.device("cpu"),
    )
    epochs = []
    for epoch in range(3):
        times, start = [], time.perf_counter()
        for _ in batches.epoch(epoch):
            times.append((time.perf_counter() - start) * 1e3)
            start = time.perf_counter()
        epochs.append(float(np.median(times)))

    nets = Path(__file__).parents[1] / "models" / "cifar100_resnet56_resnet20" / "nets.py"
    network = load_network(f"{nets}:resnet", {"depth": 20}, 10).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    steps = []
    for batch in batches.epoch(9):
        start = time.perf_counter()
        loss = torch.nn.functional.cross_entropy(network(*data.preprocessing.apply(batch.inputs)), batch.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        steps.append((time.perf_counter() - start) * 1e3)
        if len(steps) == STEPS:
            break
    step_ms = float(np.median(steps[3:]))
    return {
        "images": len(data.train) + len(data.val) + len(data.test),
        "decode_s": decode_s,
        "data_ms_per_batch_second_epoch": epochs[1],
        "resnet20_step_ms": step_ms,
        "data_share_of_step": epochs[1] / step_ms,
        "torchvision_image_folder_ms_per_batch": image_folder_time(folder),
    }


def reading(file: Path, shape: tuple[int, ...]) -> dict[str, float]:
    """Milliseconds for a batch of random rows: as kdexport reads them, from a memory map, and from one kept small."""
    import mmap

    import numpy as np

    from kdexport.data.samples import open_rows

    rows = open_rows(file, shape)
    with file.open("rb") as handle:
        mapping = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
    mapped = np.frombuffer(mapping, np.uint8).reshape(shape)

    def released(chosen: "np.ndarray") -> None:
        _ = mapped[chosen]
        mapping.madvise(mmap.MADV_DONTNEED)

    ways = {"rows": lambda chosen: rows[chosen], "map": lambda chosen: mapped[chosen], "map_released": released}
    found = {}
    for name, read in ways.items():  # one after the other: each leaves the map as the next must not find it
        generator = np.random.default_rng(0)
        times = []
        for _ in range(300):
            chosen = generator.choice(shape[0], BATCH)
            start = time.perf_counter()
            read(chosen)
            times.append((time.perf_counter() - start) * 1e3)
        found[f"{name}_ms"] = float(np.median(times))
    return found


def image_folder_time(folder: Path, batches: int = 10) -> float:
    """Milliseconds per batch of the usual way: decode and augment picture by picture, in this process."""
    import torch
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    usual = [transforms.RandomCrop(32, 4), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
    loader = torch.utils.data.DataLoader(
        ImageFolder(str(folder / "train"), transforms.Compose(usual)), batch_size=BATCH, shuffle=True
    )
    start = time.perf_counter()
    for number, _ in enumerate(loader, start=1):
        if number == batches:
            break
    return (time.perf_counter() - start) / batches * 1e3


def peak_memory(folder: Path, work: Path) -> dict[str, float]:
    """Run a whole distillation in a fresh process and return its peak, MiB, and its seconds."""
    (work / "nets.py").write_text(NETS)
    arguments = [
        *("distill", "--quiet", "--data", f"imagefolder:{folder}", "--out", str(work / "run")),
        *("--teacher", f"{work / 'nets.py'}:tiny", "--teacher-arg", "width=8", "--teacher-epochs", "1"),
        *("--student", f"{work / 'nets.py'}:tiny", "--epochs", "2", "--views", "1", "--augment", "flip"),
        *("--batch-size", str(BATCH), "--no-baseline", "--name", "memory"),
    ]
    code = (
        f"import sys; sys.argv = ['kdexport', *{arguments!r}]\n"
        "from kdexport.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        "print([line for line in open('/proc/self/status') if line.startswith('VmHWM')][0].split()[1])\n"
    )
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {"peak_rss_mib": int(done.stdout.split()[-1]) / 1024, "seconds": time.perf_counter() - start}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--memory", action="store_true", help="only this part; the other keeps its earlier figures")
    parser.add_argument("--data-time", action="store_true")
    arguments = parser.parse_args()
    both = arguments.memory == arguments.data_time
    result = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    with tempfile.TemporaryDirectory() as place:
        work = Path(place)
        small = subset(arguments.folder.resolve(), work / "small", 8000, 2000)
        if both or arguments.data_time:
            result["data_time"] = data_time(small, work / "cache")
            result["reading_a_batch"] = reading(work / "cache" / "images.u8", (10000, 32, 32, 3))
        if both or arguments.memory:
            found = {}
            for name, folder in (
                ("10000", small),
                ("50000", subset(arguments.folder.resolve(), work / "large", 40000, 10000)),
            ):
                (work / name).mkdir()
                found[name] = peak_memory(folder, work / name)
            found["growth_mib"] = found["50000"]["peak_rss_mib"] - found["10000"]["peak_rss_mib"]
            result["memory"] = found
    result["cores"] = len(os.sched_getaffinity(0))
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
