"""Damaged and hostile files: each ends in a result or in one message with a hint; in no traceback, no crash, no hang.

    python benchmarks/fuzz.py                            # 5,000 mutations of each kind, about an hour; resumes
    python benchmarks/fuzz.py --kinds npz csv --count 300 --seed 7

A mutation is drawn from (seed, kind, number): bytes flipped, cut, repeated or moved, text and JSON changed by what has
gone wrong elsewhere (deep nesting, huge numbers, NaN, lone surrogates, markup, paths). A process of its own reads one
file after the other; it may take 20 s and 2 GiB more than it began with. A file that ends otherwise is kept in --work.

Must hold: zero faults, with a seed that was not used before.
"""

import argparse
import hashlib
import json
import multiprocessing
import random
import resource
import shutil
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
SECONDS, MIB = 20, 2048
HOSTILE = (
    "", "null", "-1", "1e400", "NaN", "[" * 1500 + "]" * 1500, "9" * 5000, "\\ud800", "\ud800", "\0", "~nobody/x",
    "../" * 40, "[/red]", "\x1b]0;t\x07", "<script>", "a" * 70000, "{", "true", "0", "1e-320", "/dev/zero",
    "sys:exit", "é" * 300,
)  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """How a kind of file is made and read."""

    name: str
    suffix: str
    seeds: Callable[[Path], list[bytes]]
    read: Callable[[Path], object]


def mutated(seeds: list[bytes], draw: random.Random) -> bytes:
    """Return one of the seeds, changed in one to a few places."""
    data = bytearray(draw.choice(seeds))
    for _ in range(draw.choice((1, 1, 1, 2, 4, 16))):
        if not data:
            break
        at, length = draw.randrange(len(data)), draw.choice((1, 2, 8, 64, 1024))
        match draw.randrange(8):
            case 0:
                data = data[:at]
            case 1:
                del data[at : at + length]
            case 2:
                data[at:at] = data[at : at + length] * draw.choice((1, 3))
            case 3:
                data[at : at + length] = bytes(draw.randrange(256) for _ in range(min(length, len(data) - at)))
            case 4:
                data[at] ^= 1 << draw.randrange(8)
            case 5:
                data[at : at + 4] = draw.choice((b"\xff\xff\xff\xff", b"\0\0\0\0", b"\xff\xff\xff\x7f", b"\0\0\0\x80"))
            case 6:
                data = _word_replaced(data, draw)
            case _:
                other = draw.choice(seeds)
                start = draw.randrange(len(other))
                data[at : at + length] = other[start : start + length]
    return bytes(data)


def _word_replaced(data: bytearray, draw: random.Random) -> bytearray:
    """Put something hostile in the place of a word or number of a text."""
    places = [place for place, byte in enumerate(data[:20000]) if byte in b' ,:=\n"[{']
    if not places:
        return data
    start = draw.choice(places) + 1
    end = start
    while end < len(data) and data[end] not in b' ,:=\n"]}':
        end += 1
    return data[:start] + draw.choice(HOSTILE).encode("utf-8", "surrogatepass") + data[end:]


# What is read: each takes the file's place, and everything that it writes goes beside it.


def _recipe(path: Path) -> object:
    from kdexport.recipe import Recipe

    return Recipe.load(path)


def _setting(path: Path) -> object:
    from kdexport.recipe import Recipe

    text = path.read_bytes().decode("utf-8", "surrogateescape")
    return Recipe.load(path.parents[1] / "seed" / "recipe.toml", text.split("\n"))


def _weights(path: Path) -> object:
    from torch import nn

    from kdexport.models.weights import load_weights

    return load_weights(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3)), path)


def _onnx(path: Path) -> object:
    from kdexport.onnx.describe import describe, describe_file, integer_limits

    return describe_file(path), describe(path), integer_limits(path)


def _data(scheme: str, **options: Any) -> Callable[[Path], object]:
    def read(path: Path) -> object:
        from kdexport.data.datasets import load_data
        from kdexport.recipe import Data

        shutil.rmtree(path.parent / "cache", ignore_errors=True)
        given = dict(options)
        if scheme == "csv":
            given["tokenizer"] = str(path.parents[1] / "seed" / "tokenizer" / "tokenizer.json")
        made = load_data(Data(source=f"{scheme}:{path}", **given), 0, path.parent / "cache")
        return made.train.take(slice(0, 2)).inputs

    return read


def _pictures(scheme: str, place: str) -> Callable[[Path], object]:
    """Read a folder of whole pictures among which the file is one."""

    def read(path: Path) -> object:
        folder = path.parents[1] / "seed" / scheme
        shutil.copyfile(path, folder / place)
        return _data(scheme, image_size=(8, 8))(folder)

    return read


def _benches(path: Path) -> object:
    from kdexport.report.reading import read_benches, read_report
    from kdexport.report.stage import report, write_report

    write_report(report(read_benches(str(path))), path.parent / "report")
    return read_report(path)


def _finished_run(name: str) -> Callable[[Path], object]:
    """Give the same ``kdexport run`` again where one file of the finished run is damaged."""

    def read(path: Path) -> object:
        import kdexport
        from kdexport.artifacts import RunDirectory, read_epochs
        from kdexport.recipe import Recipe

        seed, run = path.parents[2] / "run", path.parent / "run"
        if not run.is_dir():
            shutil.copytree(seed, run)
        shutil.copyfile(path, run / name)
        if name == "metrics.jsonl":
            return [line["phase"] for line in read_epochs(run / name)]
        return kdexport.distill(Recipe.load(seed / "recipe.toml"), RunDirectory(run))

    return read


def _tiny_run(folder: Path) -> Path:
    """Make a run of digits, once."""
    import kdexport
    from kdexport.artifacts import RunDirectory
    from kdexport.recipe import Recipe

    run = folder.parents[1] / "run"  # one for all kinds
    if not (run / "report.json").is_file():
        source = Path(__file__).parents[1] / "models" / "digits" / "recipe.toml"
        short = ["teacher.train.epochs=1", "distill.epochs=1", "bench.max_seconds=0.1", "bench.min_seconds=0.05"]
        recipe = Recipe.load(source, [*short, "require={}", "export.quantize=[]", "distill.baseline=false"])
        kdexport.run(recipe, out=run)
        RunDirectory(run)
    return run


def _of_run(name: str) -> Callable[[Path], list[bytes]]:
    return lambda folder: [next(_tiny_run(folder).glob(name)).read_bytes()]


def _recipes(folder: Path) -> list[bytes]:
    found = [path.read_bytes() for path in sorted(Path(__file__).parents[1].glob("models/*/recipe.toml"))]
    (folder / "recipe.toml").write_bytes(found[0])
    return found


def _settings(folder: Path) -> list[bytes]:
    _recipes(folder)
    return [
        b'distill.epochs=3\ndistill.terms=[{method="soft_targets",temperature=2.0}]',
        b"data.source=npz:x.npz\nteacher.args={width=3}\nbench.batch_sizes=[1,4]",
        b"terms.0.temperature=2\nrequire.max_drop=0.01\nexport.quantize=[]",
    ]


def _checkpoints(folder: Path) -> list[bytes]:
    import torch
    from safetensors.torch import save
    from torch import nn

    state = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3)).state_dict()
    made = [save(state)]
    for document, options in (
        ({"state_dict": state, "epoch": 3, "args": {"lr": 0.1}}, {}),
        ({"module." + name: value for name, value in state.items()}, {"_use_new_zipfile_serialization": False}),
        (state, {}),
    ):
        torch.save(document, folder / "seed.pt", **options)
        made.append((folder / "seed.pt").read_bytes())
    return made


def _arrays(folder: Path) -> list[bytes]:
    import numpy as np

    draw, made = np.random.default_rng(0), []
    arrays = {
        "x_train": draw.integers(0, 255, (12, 4, 4, 3), dtype=np.uint8), "y_train": np.arange(12) % 3,
        "x_test": draw.integers(0, 255, (6, 4, 4, 3), dtype=np.uint8), "y_test": np.arange(6) % 3,
    }  # fmt: skip
    for write in (np.savez, np.savez_compressed):
        write(folder / "seed.npz", **arrays)
        made.append((folder / "seed.npz").read_bytes())
    return made


def _texts(folder: Path) -> list[bytes]:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {word: number for number, word in enumerate(("[UNK]", "[PAD]", "a", "film", "times", "stars"))}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    (folder / "tokenizer").mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer" / "tokenizer.json"))
    rows = "".join(f'"a film, {number} times","{number} ""stars""",{number % 2}\n' for number in range(40))
    return [f"text,more,label\n{rows}".encode(), f"text;more;label\n{rows}".replace('",', '";').encode()]


def _table(folder: Path) -> list[bytes]:  # noqa: ARG001
    return [b"a,b,target\n" + b"".join(b"%d,%.3f,%.2f\n" % (k, k / 7, k * 1.5) for k in range(60))]


def _parquet(folder: Path) -> list[bytes]:
    import pandas

    frame = pandas.DataFrame({"a": range(60), "b": [k / 7 for k in range(60)], "target": [k * 1.5 for k in range(60)]})
    frame.to_parquet(folder / "seed.parquet")
    return [(folder / "seed.parquet").read_bytes()]


def _folders(folder: Path, masks: bool) -> list[bytes]:
    import io

    import numpy as np
    from PIL import Image

    draw, made = np.random.default_rng(0), []
    for split, count in (("train", 12), ("test", 6)):
        for number in range(count):
            picture = Image.fromarray(draw.integers(0, 255, (16, 16, 3), dtype=np.uint8))
            part = ("masks", split, "images") if masks else ("imagefolder", split, "cat" if number % 2 else "dog")
            place = folder.joinpath(*part)
            place.mkdir(parents=True, exist_ok=True)
            picture.save(place / f"{number}.png")
            if masks:
                beside = folder / "masks" / split / "masks"
                beside.mkdir(exist_ok=True)
                Image.fromarray(draw.integers(0, 3, (16, 16), dtype=np.uint8)).save(beside / f"{number}.png")
    for form in ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP"):
        held = io.BytesIO()
        source = Image.fromarray(draw.integers(0, 3, (16, 16), dtype=np.uint8)) if masks else picture
        source.save(held, form)
        made.append(held.getvalue())
    return made[:1] if masks else made


def _graphs(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(_tiny_run(folder).glob("*.onnx"))]


_TABLE: dict[str, Any] = {"label_columns": ("target",)}
KINDS = {
    kind.name: kind
    for kind in (
        Kind("recipe", ".toml", _recipes, _recipe),
        Kind("set", ".txt", _settings, _setting),
        Kind("checkpoint", ".pt", lambda folder: _checkpoints(folder)[1:], _weights),
        Kind("safetensors", ".safetensors", lambda folder: _checkpoints(folder)[:1], _weights),
        Kind("onnx", ".onnx", _graphs, _onnx),
        Kind("npz", ".npz", _arrays, _data("npz")),
        Kind("csv", ".csv", _texts, _data("csv")),
        Kind("table", ".csv", _table, _data("table", **_TABLE)),
        Kind("parquet", ".parquet", _parquet, _data("table", **_TABLE)),
        Kind("picture", ".png", lambda folder: _folders(folder, False), _pictures("imagefolder", "train/cat/1.png")),
        Kind("mask", ".png", lambda folder: _folders(folder, True), _pictures("masks", "train/masks/1.png")),
        Kind("bench", ".json", _of_run("bench.json"), _benches),
        Kind("report", ".json", _of_run("report.json"), _benches),
        Kind("metrics", ".jsonl", _of_run("metrics.jsonl"), _finished_run("metrics.jsonl")),
        Kind("distill", ".json", _of_run("distill.json"), _finished_run("distill.json")),
        Kind("done", ".json", _of_run("checkpoints/student/done.json"), _finished_run("checkpoints/student/done.json")),
    )
}


def work(name: str, seed: int, numbers: list[int], folder: Path, parent: Connection) -> None:
    """Read one mutation after the other and send how each ended."""
    from kdexport.errors import KDExportError

    kind = KINDS[name]
    warnings.simplefilter("ignore")
    sys.stdout = sys.stderr = open("/dev/null", "w")  # noqa: SIM115, PTH123 - for as long as the process lives
    (folder / "seed").mkdir(parents=True, exist_ok=True)
    (folder / "one").mkdir(exist_ok=True)
    seeds = kind.seeds(folder / "seed")
    for one in seeds[:1]:
        (folder / "one" / f"file{kind.suffix}").write_bytes(one)
        kind.read(folder / "one" / f"file{kind.suffix}")  # what is whole is read; and imports are not counted
    began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    parent.send(None)
    for number in numbers:
        draw = random.Random(f"{seed}/{kind.name}/{number}")
        path = folder / "one" / f"file{kind.suffix}"
        path.write_bytes(mutated(seeds, draw))
        ended = "read"
        try:
            kind.read(path)
        except KDExportError as error:
            ended = "refused" if error.message and error.hint else "no hint"
        except (Exception, SystemExit) as error:  # noqa: BLE001 - that is what is looked for
            last = traceback.extract_tb(error.__traceback__)[-1]
            ours = [one for one in traceback.extract_tb(error.__traceback__) if "kdexport" in one.filename][-1:]
            at = " ".join(f"{Path(one.filename).name}:{one.lineno}" for one in (*ours, last))
            ended = f"{type(error).__name__} at {at}"
        if ended not in ("read", "refused"):
            shutil.copyfile(path, folder.parent / "faults" / f"{name}-{seed}-{number}{kind.suffix}")
        if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - began > MIB * 1024:
            ended = "memory"
        parent.send((number, ended))
        if ended == "memory":
            return


def run(kind: Kind, seed: int, count: int, folder: Path) -> Counter[str]:
    """Try a kind; what is done is not done again."""
    record = folder / f"{kind.name}-{seed}.jsonl"
    (folder / "faults").mkdir(parents=True, exist_ok=True)
    done = {} if not record.is_file() else dict(json.loads(line) for line in record.read_text().splitlines())
    context = multiprocessing.get_context("spawn")
    place = folder / kind.name
    with record.open("a", buffering=1) as log:

        def note(number: int, ended: str) -> None:
            done[number] = ended
            log.write(json.dumps([number, ended]) + "\n")
            kept = folder / "faults" / f"{kind.name}-{seed}-{number}{kind.suffix}"
            if ended not in ("read", "refused") and not kept.exists():  # it hangs, or ended the process
                shutil.copyfile(place / "one" / f"file{kind.suffix}", kept)

        while left := [number for number in range(count) if number not in done]:
            ours, theirs = context.Pipe()
            process = context.Process(target=work, args=(kind.name, seed, left, place, theirs))
            process.start()
            theirs.close()
            try:
                if not ours.poll(300):
                    raise SystemExit(f"{kind.name}: the whole file is not read")
                ours.recv()
                for number in left:
                    if not ours.poll(SECONDS):
                        note(number, f"longer than {SECONDS} s")
                        break
                    note(*ours.recv())
            except EOFError:  # the process is dead: by this one, unless it could not read the whole file
                process.join()
                if not any(number in done for number in left) and process.exitcode == 1:
                    raise SystemExit(f"{kind.name}: the whole file is not read") from None
                if (first := next((number for number in left if number not in done), None)) is not None:
                    note(first, f"ended the process: {process.exitcode}") if done.get(first - 1) != "memory" else None
            process.kill()
            process.join()
    return Counter(done[number] for number in range(count))


def main() -> int:
    """Try every kind, write ``results/fuzz.json`` and ``fuzz.md``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS), metavar="KIND")
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("runs/fuzz"))
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    rows: dict[str, dict[str, int]] = {}
    for name in options.kinds:
        started = time.perf_counter()
        rows[name] = dict(run(KINDS[name], options.seed, options.count, options.work.resolve()).most_common())
        print(f"{name}: {rows[name]} in {time.perf_counter() - started:.0f} s", flush=True)
        write(options, rows)
    return int(any(set(row) - {"read", "refused"} for row in rows.values()))


def write(options: argparse.Namespace, rows: dict[str, dict[str, int]]) -> None:
    """Write the table; kinds of another call with the same seed and count stay."""
    path = options.out / "fuzz.json"
    known = json.loads(path.read_text()) if path.is_file() else {}
    same = known.get("seed") == options.seed and known.get("count") == options.count
    rows = {**(known["kinds"] if same else {}), **rows}
    code = hashlib.sha256(b"".join(p.read_bytes() for p in sorted(Path(__file__).parents[1].glob("kdexport/**/*.py"))))
    document = {"seed": options.seed, "count": options.count, "code": code.hexdigest()[:12], "kinds": rows}
    path.write_text(json.dumps(document, indent=2) + "\n")
    lines = [f"# {options.count} mutations of each kind, seed {options.seed}", "", "| kind | read | refused | faults |"]
    lines += ["|---|---:|---:|---|"]
    for name, row in rows.items():
        faults = "; ".join(f"{key}: {number}" for key, number in row.items() if key not in ("read", "refused")) or "0"
        lines.append(f"| {name} | {row.get('read', 0)} | {row.get('refused', 0)} | {faults} |")
    (options.out / "fuzz.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    sys.exit(main())
