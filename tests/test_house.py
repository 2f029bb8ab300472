"""The house's rules: who may import whom, and what the light parts never load."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "kdexport"
STAGES = ("distill", "export", "bench", "report")
# Each layer may import itself and what stands below it.
LAYERS = (
    ("cli", "__main__", "__init__"),
    ("api",),
    ("search",),
    ("pipeline",),
    STAGES,
    ("models", "data", "onnx"),
    ("stage_cache", "machine"),
    ("scoring",),
    ("tasks",),
    ("recipe", "terms", "precisions", "references", "objects", "statistics"),
    ("artifacts", "figures", "terminal", "results", "progress", "memory", "cgroup", "errors"),
)
RANK = {part: rank for rank, layer in enumerate(LAYERS) for part in layer}
HEAVY = ("torch", "onnx", "onnxruntime", "torchvision", "sklearn")


def imports_of(path: Path) -> set[str]:
    """Names of the kdexport parts that a file imports, at whatever depth in its functions; types aside."""
    tree = ast.parse(path.read_text())
    typing_only = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    found = set()
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "kdexport":
            parts = node.module.split(".")
            found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("kdexport.")}
    return found


def part_of(path: Path) -> str:
    """First folder, or the file's own name."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_one_way(path: Path) -> None:
    part = part_of(path)
    for other in imports_of(path) & set(RANK):
        if other == part:
            continue
        assert RANK[other] >= RANK[part], f"{part} imports {other}, which stands above it"
        assert not (part in STAGES and other in STAGES), f"the stage {part} imports the stage {other}"


def test_no_two_modules_need_each_other() -> None:
    """Wherever the import stands: in a function and for types alone, too. ``kdexport`` itself is loaded in any case."""
    files = {
        ".".join(("kdexport", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): path
        for path in PACKAGE.rglob("*.py")
        if path.parent != PACKAGE or path.stem != "__init__"
    }
    needs = {
        name: {
            other
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.ImportFrom) and node.module
            for inside in [f"{node.module}.{alias.name}" for alias in node.names]
            if (other := inside if inside in files else node.module) in files
        }
        for name, path in files.items()
    }
    # Taken away, floor by floor, are those that need nothing that is left: a circle stays.
    while free := {name for name, others in needs.items() if not others & needs.keys()}:
        needs = {name: others for name, others in needs.items() if name not in free}
    assert not needs


def test_every_part_has_its_place_in_the_layers() -> None:
    parts = {part_of(path) for path in PACKAGE.rglob("*.py")} - {"_models"}
    assert parts - set(RANK) == set()


def loaded_by(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["distill", "--help"], ["bench", "--help"]])
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    code = f"""
import contextlib, io
sys.argv = ["kdexport", *{arguments!r}]
from kdexport.cli import main
with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
    main()
"""
    assert loaded_by(code) & set(HEAVY) == set()


def test_an_onnx_file_is_described_without_torch(tmp_path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper

    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", value[:1], value[1:])
    onnx.save(helper.make_model(graph), tmp_path / "net.onnx")
    code = f"""
import contextlib, io
sys.argv = ["kdexport", "export", "--describe", {str(tmp_path / "net.onnx")!r}]
from kdexport.cli import main
with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()) as shown:
    main()
assert "Relu 1" in shown.getvalue(), shown.getvalue()
"""
    assert loaded_by(code) & {"torch", "onnxruntime", "torchvision", "sklearn"} == set()


def test_the_package_loads_nothing_heavy() -> None:
    assert loaded_by("import kdexport") & {*HEAVY, "typer", "rich", "pydantic"} == set()


def test_an_onnx_file_is_scored_without_torch(tmp_path: Path) -> None:
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    nodes = [helper.make_node("Flatten", ["x"], ["y"]), helper.make_node("MatMul", ["y", "w"], ["logits"])]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 1, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 2])],
        [numpy_helper.from_array(np.eye(64, 2, dtype=np.float32), "w")],
    )
    opset = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), tmp_path / "net.onnx")
    images = np.random.default_rng(0).integers(0, 256, (40, 9, 9, 1), dtype=np.uint8)
    np.savez(tmp_path / "d.npz", x_train=images, y_train=np.arange(40) % 2)
    code = f"""
import contextlib, io
sys.argv = ["kdexport", "evaluate", {str(tmp_path / "net.onnx")!r}, "--data", {f"npz:{tmp_path / 'd.npz'}"!r}, "--json",
            "--set", "student.preprocessing.size=[8,8]", "--quiet"]
from kdexport.cli import main
with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()) as out:
    main()
assert '"samples": 8' in out.getvalue(), out.getvalue()
"""
    assert loaded_by(code) & {"torch", "torchvision", "onnx", "sklearn"} == set()


def test_the_measured_process_holds_nothing_but_numpy_and_onnxruntime() -> None:
    assert loaded_by("import kdexport.bench.worker") & {"torch", "typer", "rich", "pydantic", "onnx"} == set()
