"""Run the benchmarks that need no GPU, one after the other, and say which failed.

    python benchmarks/run_all.py --list
    python benchmarks/run_all.py --data cifar10-jpg [--only NAME...]

Each writes its own file in ``results/``. They are not run at the same time: they measure time.
"""

import argparse
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
DATA = "DATA"  # stands for --data's folder


@dataclass(frozen=True)
class Benchmark:
    """One script with its arguments; minutes on two free cores, about."""

    name: str
    minutes: float
    arguments: tuple[str, ...] = ()
    gpu: bool = False
    more: str = ""  # what else it needs, so that it runs by itself alone

    @property
    def needs(self) -> str:
        """What it does not find by itself."""
        if self.more or self.gpu:
            return self.more or "a GPU"
        return "--data" if any(DATA in argument for argument in self.arguments) else ""


BENCHMARKS = (
    Benchmark("startup", 1),
    Benchmark("report_join", 1),
    Benchmark("bench_sleep", 0.2),
    Benchmark("bench_memory", 0.5),
    Benchmark("bench_pack", 1),
    Benchmark("bench_boards", 20, more="Pythons and roots of other systems, see its docstring"),
    Benchmark("bench_overhead", 1),
    Benchmark("profile_sums", 10),
    Benchmark("bench_openvino", 3, more="an environment with onnxruntime-openvino, see its docstring"),
    Benchmark("bench_busy", 11),
    Benchmark("at_once", 3),
    Benchmark("bench_self", 15),
    Benchmark("web_clock", 5, more="Chromium, playwright and onnxruntime-web"),
    Benchmark("serve_phone", 4, more="Chromium, playwright, axe-playwright-python, segno and onnxruntime-web"),
    Benchmark("serve_engines", 6, more="firefox-esr, webkit2gtk-driver, xvfb and onnxruntime-web"),
    Benchmark("sentence_rivals", 10, more="an environment of the rivals', see its docstring"),
    Benchmark("kill_anywhere", 40),
    Benchmark("damaged_run", 50),
    Benchmark("engine_long", 8),
    Benchmark("engine_processes", 5, ("--data", DATA)),
    Benchmark("engine_cached_vs_uncached", 10, ("--data", DATA)),
    Benchmark("engine_memory", 10, ("--data", DATA)),
    Benchmark("engine_vs_plain_loop", 15, ("--data", DATA)),
    Benchmark("engine_vs_torchdistill", 15, ("--data", DATA)),
    Benchmark("sources_cache", 5, (DATA,)),
    Benchmark("pair_seeds", 90, (str(HERE.parent / "models" / "digits" / "recipe.toml"),)),
    Benchmark("methods_cifar10", 60, ("--data", DATA)),
    Benchmark("export_int8_cifar", 10, (f"imagefolder:{DATA}",)),
    Benchmark("export_families", 40),
    Benchmark("export_segmentation", 10),
    Benchmark("auto_precision", 40),
    Benchmark("pruning_families", 15, (DATA,)),
    Benchmark("export_runtimes", 20),
    Benchmark("search_digits", 8),
    Benchmark("search_kill", 10),
    Benchmark("search_rank", 5),
    Benchmark("search_share", 4, more="the recordings of models/spoken_digits"),
    Benchmark("search_rivals", 130, more="--data and --recordings: two hours"),
    Benchmark("strangers", 120),
    Benchmark("fuzz", 120),
    Benchmark("lowest_versions", 90, more="uv and 6 GB of disk, see its docstring"),
    Benchmark("untrusted", 2),
    Benchmark("surroundings", 60, more="root and mount namespaces: it mounts small disks"),
    Benchmark("limits", 12, more="root, to make a control group"),
    Benchmark("supply_chain", 15, more="Linux, root, strace and unshare, see its docstring"),
    Benchmark("bench_gpu", 5, gpu=True),
    Benchmark("engine_gpu", 3, gpu=True),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="Show them and run nothing.")
    parser.add_argument("--data", help="CIFAR-10 as JPEG files; without it those that need it are left out.")
    parser.add_argument("--only", nargs="+", choices=[item.name for item in BENCHMARKS], metavar="NAME")
    asked = parser.parse_args()
    chosen = [item for item in BENCHMARKS if asked.only is None or item.name in asked.only]
    if asked.list:
        for item in chosen:
            print(f"{item.name:28} about {item.minutes:g} min{f', needs {item.needs}' if item.needs else ''}")
        return 0
    failed = []
    for item in chosen:
        if item.more or (item.gpu and asked.only is None) or (item.needs == "--data" and asked.data is None):
            print(f"{item.name}: left out, needs {item.needs}")
            continue
        arguments = [argument.replace(DATA, asked.data or "") for argument in item.arguments]
        started = time.monotonic()
        code = subprocess.run([sys.executable, str(HERE / f"{item.name}.py"), *arguments], check=False).returncode
        print(f"{item.name}: {'done' if code == 0 else f'exit code {code}'}, {time.monotonic() - started:.0f} s")
        failed += [item.name] if code else []
    print(f"failed: {', '.join(failed)}" if failed else "none failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
