"""How much memory 50,000 images cost on top of the networks: peak of the whole `kdexport distill` process.

    tar xf cifar10-jpg.tar.xz
    python benchmarks/engine_memory.py --data cifar10-jpg               # about 10 minutes on 2 free cores
    python benchmarks/engine_memory.py --data cifar10-jpg --smoke

The same distillation twice, in fresh processes, on one thread: of 50,000 training images, and of 320 ("networks
only": the same networks, batch, optimizer, libraries). Both decode the pictures, fill the teacher cache (two views),
read it in a third epoch, score and write checkpoints. Peak: VmHWM of the process itself, read in it at its end.

Sources: `imagefolder:` (decoded once into a file that is read by index), and `npz:`, which lies in memory whole.

Must hold: the imagefolder run of 50,000 stays below networks only plus 300 MiB.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from engine_common import arguments, keep, pictures
from engine_nets import SMALL_RESNET

ALLOWED_MIB = 300
CODE = """
import sys
from kdexport.cli import main
sys.argv = ["kdexport", *sys.argv[1:]]
try:
    main()
except SystemExit as end:
    if end.code:
        raise
print([line for line in open("/proc/self/status") if line.startswith("VmHWM")][0].split()[1])
"""


def linked(source: Path, target: Path, train: int, test: int) -> Path:
    """Link the first pictures of each class into a folder of their own."""
    for split, count in (("train", train), ("test", test)):
        for folder in sorted(path for path in (source / split).iterdir() if path.is_dir()):
            (target / split / folder.name).mkdir(parents=True)
            for picture in sorted(folder.iterdir())[: count // 10]:
                (target / split / folder.name / picture.name).symlink_to(picture)
    return target


def peak(data: str, place: Path) -> dict[str, Any]:
    """Distill in a fresh process and return its peak and its seconds."""
    options = [
        *("distill", "--quiet", "--data", data, "--out", str(place), "--name", "memory", "--no-baseline"),
        *("--teacher", SMALL_RESNET, "--teacher-arg", "width=16", "--teacher-arg", "blocks=1", "--teacher-epochs", "1"),
        *("--student", SMALL_RESNET, "--student-arg", "width=8", "--student-arg", "blocks=1"),
        *("--epochs", "3", "--views", "2", "--augment", "flip", "--augment", "shift", "--batch-size", "128"),
    ]
    start = time.perf_counter()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", CODE, *options], capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        raise SystemExit(f"kdexport distill ended with {done.returncode}:\n{done.stderr[-3000:]}")
    return {"peak_mib": int(done.stdout.split()[-1]) / 1024, "seconds": time.perf_counter() - start}


def main() -> None:
    options = arguments(__doc__).parse_args()
    many, few = (1000, 320) if options.smoke else (50_000, 320)
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        work, source = Path(folder), options.data.resolve()
        for name, count in (("networks only", few), ("images", many)):
            place = linked(source, work / name, count, min(count // 5, 10_000))
            found[f"imagefolder, {name}"] = peak(f"imagefolder:{place}", work / f"run {name}")
            print(name, found[f"imagefolder, {name}"], flush=True)
        for name, count in (("networks only", few), ("images", many)):
            file = pictures(
                source, work / f"{name}.npz", train=count * 9 // 10, test=min(count // 5, 10_000), val=count // 10
            )
            found[f"npz, {name}"] = peak(f"npz:{file}", work / f"npz {name}")
            print(name, found[f"npz, {name}"], flush=True)
    growth = {
        source: found[f"{source}, images"]["peak_mib"] - found[f"{source}, networks only"]["peak_mib"]
        for source in ("imagefolder", "npz")
    }
    document = {
        "images": many,
        "networks_only_images": few,
        "runs": found,
        "over_networks_mib": growth,
        "must_hold": f"imagefolder: at most {ALLOWED_MIB} MiB over the networks' own",
        "holds": growth["imagefolder"] <= ALLOWED_MIB,
    }
    keep(options.out, "engine_memory", document, smoke=options.smoke)


if __name__ == "__main__":
    main()
