"""Files of strangers: none runs code, none writes outside its folder, none speaks to the terminal.

    python benchmarks/untrusted.py [--only NAME...]

Each attack is a file of a few kilobytes with a payload that makes a file of a known name, opened by the command that a
user would type. A process of its own carries the command out; afterwards nothing but the command's own output may be
new in the folder, no payload may have run, and no escape code may have reached the terminal. "Refused" means exit
code 1 with a message and a hint; "read" that the file was taken, and its words were shown as text.

Must hold: every attack is refused or read, none ran.
"""

import argparse
import io
import json
import os
import pickle
import shutil
import sys
import tempfile
import time
import traceback
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
RAN = "the-payload-ran"
CODE = f"open({RAN!r}, 'w')"
SECONDS = 120
TITLE = "\x1b]0;title\x07[link=http://x]a[/link][/red]<script>alert(1)</script>"
NET = "from torch import nn\n\n\nclass Net(nn.Sequential):\n    def __init__(self):\n        super().__init__(nn.Flatten(), nn.Linear(64, 10))\n"  # noqa: E501


class Payload:
    """Unpickling it calls a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


def payloads() -> dict[str, Any]:
    """Return what runs code as it is unpickled, by several ways."""
    import importlib
    import runpy
    import subprocess

    import torch

    inner = io.BytesIO()
    torch.save(Payload(os.system, f"touch {RAN}"), inner)
    return {
        "os.system": Payload(os.system, f"touch {RAN}"),
        "eval": Payload(eval, CODE),
        "exec": Payload(exec, CODE),
        "subprocess": Payload(subprocess.Popen, ["touch", RAN]),
        "getattr of a module beside it": Payload(getattr, Payload(importlib.import_module, "evil"), "__doc__"),
        "runpy": Payload(runpy.run_path, "evil.py"),
        "import of a module beside it": Payload(importlib.import_module, "evil"),
        "pickle within": Payload(pickle.loads, pickle.dumps(Payload(os.system, f"touch {RAN}"))),
        "storage within": Payload(torch.storage._load_from_bytes, inner.getvalue()),
        "torch.hub": Payload(torch.hub.load, "here", "evil", "local"),
        "in the state of a dictionary": {"state_dict": {}, "optimizer": Payload(eval, CODE)},
    }


WEIGHTS = ("evaluate", "nets.py:Net", "--data", "digits", "--weights")


def attacks() -> dict[str, Callable[[Path], tuple[str, ...]]]:
    """Return each attack: a function that writes its files into the working folder and returns the command."""
    import numpy as np
    import torch

    made: dict[str, Callable[[Path], tuple[str, ...]]] = {}

    def checkpoint(suffix: str, what: Any, **options: Any) -> Callable[[Path], tuple[str, ...]]:
        def make(folder: Path) -> tuple[str, ...]:
            torch.save(what, folder / f"w{suffix}", **options)
            return (*WEIGHTS, f"w{suffix}")

        return make

    def bare(what: Any, protocol: int) -> Callable[[Path], tuple[str, ...]]:
        def make(folder: Path) -> tuple[str, ...]:
            (folder / "w.pt").write_bytes(pickle.dumps(what, protocol))
            return (*WEIGHTS, "w.pt")

        return make

    for name, what in payloads().items():
        made[f"checkpoint, {name}"] = checkpoint(".pt", what)
        made[f"legacy checkpoint, {name}"] = checkpoint(".pth", what, _use_new_zipfile_serialization=False)
        made[f"bare pickle, {name}"] = bare(what, 2)
    made["bare pickle of protocol 5"] = bare(payloads()["eval"], 5)
    made["checkpoint called .ckpt"] = checkpoint(".ckpt", payloads()["eval"])
    made["checkpoint called .safetensors"] = checkpoint(".safetensors", payloads()["eval"])

    def program(folder: Path) -> tuple[str, ...]:
        exported = torch.export.export(torch.nn.Linear(4, 3), (torch.zeros(2, 4),))
        torch.export.save(exported, folder / "whole.pt2")
        with zipfile.ZipFile(folder / "whole.pt2") as source, zipfile.ZipFile(folder / "net.pt2", "w") as target:
            for entry in source.namelist():
                content = source.read(entry)
                if entry.endswith("weights_config.json"):
                    content = content.replace(b'"use_pickle": false', b'"use_pickle": true', 1)
                target.writestr(entry, pickle.dumps(Payload(eval, CODE)) if entry.endswith("weight_0") else content)
        (folder / "whole.pt2").unlink()
        return ("export", "net.pt2", "--onnx", "--out", "out.onnx", "--input-shape", "4")

    made["torch.export program, pickled weights"] = program

    def script(folder: Path) -> tuple[str, ...]:
        torch.jit.script(torch.nn.Linear(4, 3)).save(str(folder / "w.pt"))
        return (*WEIGHTS, "w.pt")

    made["TorchScript program as weights"] = script

    def objects(write: Callable[..., Any]) -> Callable[[Path], tuple[str, ...]]:
        def make(folder: Path) -> tuple[str, ...]:
            write(folder / "d.npz", x_train=np.array([Payload(eval, CODE)], object), y_train=np.zeros(1))
            return ("evaluate", "nets.py:Net", "--data", "npz:d.npz")

        return make

    made["npz, objects"] = objects(np.savez)
    made["npz, objects, compressed"] = objects(np.savez_compressed)

    def npz_names(folder: Path) -> tuple[str, ...]:
        with zipfile.ZipFile(folder / "d.npz", "w") as archive:
            for name in ("x_train.npy", "y_train.npy", f"../../{RAN}", f"/tmp/{RAN}"):
                stream = io.BytesIO()
                np.save(stream, np.zeros((1, 8, 8)))
                archive.writestr(name, stream.getvalue())
        return ("evaluate", "nets.py:Net", "--data", "npz:d.npz")

    made["npz, entries outside"] = npz_names

    def real_inputs(folder: Path) -> tuple[str, ...]:
        _model(folder / "m.onnx")
        np.savez(folder / "in.npz", x=np.array([Payload(eval, CODE)], object))
        return ("bench", "m.onnx", "--input", "in.npz", "--max-seconds", "0.1", "--rounds", "1")

    made["inputs of a bench, objects"] = real_inputs

    def tensor_names(folder: Path) -> tuple[str, ...]:
        from safetensors.torch import save_file

        save_file({TITLE: torch.zeros(1), "../x": torch.zeros(1)}, folder / "w.safetensors", {"format": TITLE})
        return (*WEIGHTS, "w.safetensors")

    made["safetensors, names that are escapes and paths"] = tensor_names

    def external(location: str) -> Callable[[Path], tuple[str, ...]]:
        def make(folder: Path) -> tuple[str, ...]:
            (folder / "link").symlink_to("/etc/passwd")
            (folder / "loop").symlink_to("loop")
            _model(folder / "m.onnx", location=location)
            return ("bench", "m.onnx", "--max-seconds", "0.1", "--rounds", "1")

        return make

    for location in ("/etc/passwd", "../../../../etc/passwd", "link", "loop", "/dev/zero", "a\0b", "a/../../x"):
        made[f"ONNX weights at {location!r}"] = external(location)

    def words(*command: str) -> Callable[[Path], tuple[str, ...]]:
        def make(folder: Path) -> tuple[str, ...]:
            labels = json.dumps([TITLE] * 4)
            _model(folder / "m.onnx", {"kdexport.labels": labels, "kdexport.license": TITLE, "custom_op_library": RAN})
            return command

        return make

    made["ONNX metadata, describe"] = words("export", "--describe", "m.onnx")
    made["ONNX metadata, bench"] = words("bench", "m.onnx", "--max-seconds", "0.1", "--rounds", "1", "--out", "b.json")

    def operator(folder: Path) -> tuple[str, ...]:
        (folder / "evil.so").write_bytes(b"\x7fELF")
        _model(folder / "m.onnx", {"custom_op_library": "evil.so", "ort.custom_ops": "./evil.so"}, domain="evil.so")
        return ("bench", "m.onnx", "--max-seconds", "0.1", "--rounds", "1")

    made["ONNX, a custom operator and its library"] = operator

    def recipe(**changes: str) -> Callable[[Path], tuple[str, ...]]:
        def make(folder: Path) -> tuple[str, ...]:
            lines = {"name": "r", "source": "digits", "model": "nets.py:Net", "weights": "absent.pt"} | changes
            (folder / "r.toml").write_text(
                f'name = "{lines["name"]}"\n[data]\nsource = "{lines["source"]}"\n[teacher]\nmodel = "{lines["model"]}"'
                f'\nweights = "{lines["weights"]}"\n[student]\nmodel = "nets.py:Net"\n'
            )
            return ("run", "r.toml")

        return make

    made["recipe, a name that is a path"] = recipe(name=f"../../{RAN}")
    made["recipe, weights outside"] = recipe(weights="../../../../../../etc/passwd")
    made["recipe, data outside"] = recipe(source="npz:/etc/passwd")
    made["recipe, a device as data"] = recipe(source="npz:/dev/zero")

    def out_name(folder: Path) -> tuple[str, ...]:
        (folder / "m").mkdir()
        name = f"""m/a'''"{{0}}"');{CODE.replace("'", '"')};('.onnx"""
        return ("export", "nets.py:Net", "--onnx", "--input-shape", "64", "--out", name.replace("/", "_", 0))

    made["an --out name that is code for infer.py"] = out_name

    def remote(host: str) -> Callable[[Path], tuple[str, ...]]:
        def make(folder: Path) -> tuple[str, ...]:
            _model(folder / "m.onnx")
            return ("bench", "m.onnx", f"--remote={host}", "--max-seconds", "0.1")

        return make

    for host in (f"-oProxyCommand=touch {RAN}", f"-F{RAN}", f"a -oProxyCommand={RAN}", f"$(touch {RAN})@x", "a\nb", ""):
        made[f"--remote {host!r}"] = remote(host)

    def results(folder: Path) -> tuple[str, ...]:
        names = {"name": TITLE, "schema": 2, "models": [], "measurements": [], "failures": []}
        (folder / "bench.json").write_text(json.dumps(names))
        return ("report", "bench.json")

    made["bench.json, names that are escapes"] = results

    def picture(folder: Path) -> tuple[str, ...]:
        from PIL import Image

        for name in ("a", TITLE.replace("/", "_")):
            for number in range(3):
                place = folder / "d" / "train" / name
                place.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (8, 8), (number * 40, 9, 9)).save(place / f"{number}.png")
        return ("evaluate", "nets.py:Net", "--data", "imagefolder:d")

    made["image folder, classes that are escapes"] = picture
    return made


def _model(path: Path, metadata: dict[str, str] | None = None, location: str = "", domain: str = "") -> None:
    from onnx import TensorProto, helper

    weights = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4])
    if location:
        weights.data_location = TensorProto.EXTERNAL
        entry = weights.external_data.add()
        entry.key, entry.value = "location", location
    else:
        weights.float_data.extend([1.0] * 4)
    values = [helper.make_tensor_value_info(one, TensorProto.FLOAT, ["batch", 4]) for one in ("x", "y")]
    node = helper.make_node("Add", ["x", "w"], ["y"], domain=domain)
    graph = helper.make_graph([node], TITLE, values[:1], values[1:], [weights])
    opsets = [helper.make_opsetid("", 18)] + ([helper.make_opsetid(domain, 1)] if domain else [])
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9, producer_name=TITLE)
    helper.set_model_props(model, metadata or {})
    path.write_bytes(model.SerializeToString())


def carried_out(arguments: tuple[str, ...], folder: Path) -> tuple[int | None, str]:
    """Carry a command out in a child that has everything imported; return its exit code (None: killed) and words."""
    said = folder / "said"
    child = os.fork()
    if child == 0:
        code = 70
        try:
            os.chdir(folder)
            os.setsid()
            handle = os.open(said, os.O_WRONLY | os.O_CREAT)
            for stream in (1, 2):
                os.dup2(handle, stream)
            sys.stdout, sys.stderr = (open(number, "w", closefd=False) for number in (1, 2))  # noqa: SIM115
            sys.argv = ["kdexport", *arguments]
            from kdexport import cli

            cli.main()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
        except BaseException:  # noqa: BLE001 - a traceback is what is looked for
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status), said.read_text(errors="replace")
        time.sleep(0.05)
    os.killpg(child, 9)
    os.waitpid(child, 0)
    return None, said.read_text(errors="replace")


def tried(make: Callable[[Path], tuple[str, ...]]) -> tuple[str, str]:
    """Return how an attack ended, and the message."""
    with tempfile.TemporaryDirectory() as outer:
        folder = Path(outer) / "a" / "b" / "work"
        folder.mkdir(parents=True)
        (folder / "nets.py").write_text(NET)
        (folder / "evil.py").write_text(CODE + "\n")
        (folder / "hubconf.py").write_text(CODE + "\n")
        code, words = carried_out(make(folder), folder)
        for program in folder.rglob("infer.py"):  # what was written to be run, is: it asks for inputs and ends
            os.system(f"cd '{program.parent}' && '{sys.executable}' infer.py >/dev/null 2>&1")
        outside = [path for path in Path(outer).rglob("*") if folder not in (path, *path.parents) and path.is_file()]
        pages = [path.read_text(errors="replace") for path in folder.rglob("*.html")]
        if outside or list(Path(outer).rglob(RAN)) or Path(f"/tmp/{RAN}").exists():
            ended = "RAN"
        elif "Traceback" in words or code not in (0, 1, 2, 3):
            ended = f"FAULT, exit code {code}"
        elif "\x1b]" in words or any("<script>alert(1)" in page for page in pages):
            ended = "SPOKE"
        else:
            ended = "read" if code == 0 else "refused" if "hint: " in words or code == 2 else "NO HINT"
        message = next((line for line in words.splitlines() if line.startswith("error: ")), "")
        shutil.rmtree(folder, ignore_errors=True)
    return ended, message.removeprefix("error: ").replace(str(folder), ".")[:160]


def main() -> int:
    """Try every attack; write ``results/untrusted.md``."""
    import onnxruntime  # noqa: F401 - before the children
    import torch  # noqa: F401

    import kdexport.cli  # noqa: F401

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="Names, or parts of them.")
    parser.add_argument("--out", type=Path, default=RESULTS / "untrusted.md")
    options = parser.parse_args()
    rows = []
    for name, make in attacks().items():
        if not options.only or any(part in name for part in options.only):
            ended, message = tried(make)
            rows.append((name, ended, message))
            print(f"{ended:10} {name}: {message}", flush=True)
    bad = [row for row in rows if row[1] not in ("read", "refused")]
    if not options.only:
        lines = [
            f"# {len(rows)} files of strangers, {len(bad)} ran, spoke or failed",
            "",
            "| attack | ended | message |",
        ]
        lines += ["|---|---|---|"]
        cells = [[cell.replace("|", "/").replace("\x1b", "ESC") for cell in row] for row in rows]
        lines += [f"| `{name}` | {ended} | {message} |" for name, ended, message in cells]
        options.out.write_text("\n".join(line.replace("\0", "NUL") for line in lines) + "\n")
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
