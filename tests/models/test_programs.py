"""torch.export programs of strangers: what would run while PyTorch reads them is refused, and nothing runs."""

import io
import json
import os
import pickle
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from kdexport.errors import SourceError
from kdexport.models.programs import Program, check

SENTINEL = "kdexport-was-run"  # in the working directory, which a test has for itself
CODE = f"__import__('pathlib').Path('{SENTINEL}').touch()"


class Runs:
    """Unpickling it makes the file."""

    def __reduce__(self):
        return os.system, (f"touch {SENTINEL}",)


class Sizes(nn.Module):
    """Sizes that follow from others, a list of outputs, integers."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        pooled = x.reshape(x.shape[0], -1, 2).mean(-1)
        return self.linear(pooled[:, :4]) + ids.sum() + pooled.shape[1] ** 2 + x.shape[1] // 2


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("programs") / "net.pt2"
    dims = ({0: torch.export.Dim("batch"), 1: 2 * torch.export.Dim("pairs", min=4, max=64)}, {0: torch.export.Dim("n")})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = torch.export.export(Sizes().eval(), (torch.ones(3, 12), torch.arange(5)), dynamic_shapes=dims)
        torch.export.save(made, path)
    return path


def changed(program: Path, path: Path, change) -> Path:
    """Copy a program entry by entry: ``change`` gets each name and its bytes, and returns the bytes."""
    with zipfile.ZipFile(program) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            target.writestr(name, change(name, source.read(name)))
    return path


def test_a_program_with_sizes_of_its_own_is_read(program: Path) -> None:
    inputs = torch.arange(48.0).reshape(3, 16), torch.arange(2)
    module = torch.export.load(program).module()
    assert torch.equal(Program(program)(*inputs), module(*inputs))


def in_json(edit):
    def change(name: str, content: bytes) -> bytes:
        if not name.endswith("models/model.json"):
            return content
        document = json.loads(content)
        edit(document)
        return json.dumps(document).encode()

    return change


def expression(text: str):
    """Put a text where PyTorch evaluates an expression of sizes."""
    return lambda name, content: (
        content.replace(b'"expr_str": "', b'"expr_str": "' + text.encode() + b" + ", 1)
        if name.endswith("model.json")
        else content
    )


def node(**values):
    return in_json(lambda document: document["graph_module"]["graph"]["nodes"][0].update(values))


def call(**values):
    return in_json(lambda document: document["graph_module"]["module_call_graph"][0]["signature"].update(values))


def pickled_weights(name: str, content: bytes) -> bytes:
    if name.endswith("weights_config.json"):
        return content.replace(b'"use_pickle": false', b'"use_pickle": true', 1)
    return pickled() if name.endswith("weight_0") else content


def pickled() -> bytes:
    stream = io.BytesIO()
    torch.save(Runs(), stream)
    return stream.getvalue()


ENUM = json.dumps(
    [1, {"type": "builtins.dict", "context": '{"__enum__": 1, "fqn": "antigravity:x"}', "children_spec": []}]
)
HOSTILE = {
    "weights": pickled_weights,
    "sample inputs": lambda name, content: pickled() if "sample_inputs" in name else content,
    "size": expression(CODE.replace('"', "")),
    "size by attribute": expression("Symbol('s1').__class__.__mro__"),
    "size by eval": expression("eval('1')"),
    "size that takes hours": expression("9**9**9"),
    "size by Pow": expression("Pow(9,Pow(9,9))"),
    "size by Pow's names": expression("Pow(base=9,exp=999999999)"),
    "size by Integer": expression("Pow(9,Integer(9)**9**9)"),
    "size in a list": expression("[Symbol('s1') for s1 in ()]"),
    "operator": node(target="torch.os.system"),
    "operator of a library": node(target="torch.ops.load_library.load"),
    "operator that writes": node(target="torch.ops.aten.save.default"),
    "operator of operator": node(target="_operator.methodcaller"),
    "operator by attribute": node(target="torch.ops.aten.__class__.mro"),
    "extension": node(target="#pickle:loads"),
    "node's name": node(name=f"x = {CODE}; y"),
    "argument": call(forward_arg_names=[f"x={CODE}"]),
    "default of an argument": call(forward_arg_names=["x", f"y, *, z={CODE}"]),
    "guard": in_json(lambda document: document.update(guards_code=[CODE])),
    "guard by lambda": in_json(lambda document: document.update(guards_code=["(lambda: 1)()"])),
    "nest by import": call(in_spec=ENUM),
    "nest of another class": call(out_spec=ENUM.replace("builtins.dict", "collections.defaultdict")),
}  # fmt: skip


@pytest.mark.parametrize("kind", HOSTILE)
def test_what_would_run_is_refused(kind: str, program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = changed(program, tmp_path / "net.pt2", HOSTILE[kind])
    assert path.read_bytes() != program.read_bytes()
    with pytest.raises(SourceError) as raised:
        Program(path)
    assert raised.value.hint
    assert [item.name for item in tmp_path.iterdir()] == ["net.pt2"]


@pytest.mark.parametrize(
    "entry",
    ["net/data/constants/opaque_obj_0", "net/data/constants/custom_obj_0", "net/data/aotinductor/model/a.so",
     "net/data/weights/../../../x", "/etc/x", "net/models/model.json"],
)  # fmt: skip
def test_what_is_more_than_a_graph_and_weights_is_refused(entry: str, program: Path, tmp_path: Path) -> None:
    path = changed(program, tmp_path / "net.pt2", lambda _, content: content)
    with warnings.catch_warnings(), zipfile.ZipFile(path, "a") as archive:
        warnings.simplefilter("ignore")  # a name given twice is meant
        archive.writestr(entry, pickle.dumps(1))
    with pytest.raises(SourceError, match="nothing in it was run"):
        check(path)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"{}", b"\x80\x02.", b"PK\x05\x06" + bytes(18)])
def test_what_is_no_program_is_said(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "net.pt2").write_bytes(content)
    with pytest.raises(SourceError, match="is no torch"):
        Program(tmp_path / "net.pt2")
