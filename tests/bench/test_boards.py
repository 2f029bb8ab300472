"""What a pack carries is Python 3.9, the oldest that a board is likely to have (Debian 11, JetPack 6 has 3.10).

`benchmarks/bench_boards.py` runs packs under real ones; this finds what was written too new before that.
"""

import ast
import tomllib

import pytest

from kdexport.bench.importable import check_importable, reason
from kdexport.bench.pack import MAIN, PACKAGE, code_files
from kdexport.errors import KDExportError

NEW_ARGUMENTS = {  # by what is called; "" for whatever is
    "zip": {"strict"}, "field": {"kw_only"}, "dataclass": {"kw_only", "slots"},
    "": {"ignore_cleanup_errors", "root_dir"},
}  # fmt: skip
NEW_NAMES = {  # of the standard library since 3.10; modules and what is imported from them or read off them
    "UTC", "StrEnum", "ExceptionGroup", "aiter", "anext", "assert_never", "batched", "bit_count", "dataclass_transform",
    "file_digest", "hardlink_to", "is_junction", "override", "pairwise", "tomllib", "EnumType",
    "Concatenate", "LiteralString", "Never", "NotRequired", "ParamSpec", "Required", "Self", "TypeAlias", "TypeGuard",
    "TypeVarTuple", "Unpack", "reveal_type", "add_note", "stdlib_module_names", "orig_argv", "process_cpu_count",
}  # fmt: skip
TYPES = {"str", "int", "float", "bool", "bytes", "list", "tuple", "dict", "set", "None", "Path", "Sequence", "Mapping"}


def too_new(source):
    """Return what Python 3.9 does not take of a module that ruff has passed, which knows the grammar."""
    tree = ast.parse(source, feature_version=(3, 9))
    for_types = {id(part) for node in ast.walk(tree) for part in _never_evaluated(node)}
    found = []
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.Match | ast.TryStar):
            found.append(type(node).__name__)
        elif isinstance(node, ast.Call):
            called = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
            new = NEW_ARGUMENTS.get(called, set()) | NEW_ARGUMENTS[""]
            found += [f"{called}({one.arg}=)" for one in node.keywords if one.arg in new]
        elif isinstance(node, ast.ImportFrom):
            found += [alias.name for alias in node.names if {alias.name, node.module} & NEW_NAMES]
        elif isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name in NEW_NAMES]
        elif isinstance(node, ast.Attribute) and node.attr in NEW_NAMES:
            found.append(node.attr)
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
            sides = {ast.unparse(side).split("[")[0] for side in (node.left, node.right)}
            found += [ast.unparse(node)] if sides & TYPES else []
    return found


def _never_evaluated(node):
    """Yield what stands only for a type checker: annotations (with the future import) and what it alone imports."""
    parts = []
    if isinstance(node, ast.arg | ast.AnnAssign):
        parts = [node.annotation]
    elif isinstance(node, ast.FunctionDef):
        parts = [node.returns]
    elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        parts = node.body
    for part in filter(None, parts):
        yield from ast.walk(part)


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("from datetime import UTC", ["UTC"]),
        ("import datetime\nx = datetime.UTC", ["UTC"]),
        ("list(zip(a, b, strict=True))", ["zip(strict=)"]),
        ("isinstance(x, int | str)", ["int | str"]),
        ("Shape = Sequence[int | None]", ["int | None"]),
        ("match x:\n    case 1: pass", SyntaxError),
        ("with (open(a) as b, open(c) as d): pass", []),  # 3.9's parser takes it, undocumented
        ("def f(x: int | None) -> str | None: return {1} | {2}", []),
        ("if TYPE_CHECKING:\n    from typing import Self", []),
    ],
)
def test_what_is_too_new_is_found(source, found):
    if found is SyntaxError:
        with pytest.raises(SyntaxError):
            too_new(source)
    else:
        assert too_new(source) == found


def test_what_a_pack_carries_is_python_3_9():
    sources = {str(file.relative_to(PACKAGE)): file.read_text(encoding="utf-8") for file in code_files()}
    new = {name: found for name, source in sources.items() if (found := too_new(source))}
    assert new == {}, "write it as Python 3.9 takes it: these modules run on boards"
    assert too_new(MAIN) == []


def test_ruff_takes_what_a_pack_carries_as_python_3_9():
    """Its FA102 then wants the future import wherever an annotation would be evaluated."""
    root = PACKAGE.parent
    if not (root / "pyproject.toml").is_file():
        pytest.skip("an installed kdexport has no pyproject.toml")
    ruff = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["ruff"]
    assert "FA102" in ruff["lint"]["select"]
    older = {file for pattern in ruff["per-file-target-version"] for file in _expanded(root, pattern)}
    assert set(code_files()) - older == set(), "list it in pyproject.toml, under per-file-target-version"


def _expanded(root, pattern):
    head, brace, rest = pattern.partition("{")
    if not brace:
        return list(root.glob(pattern))
    names, _, tail = rest.partition("}")
    return [root / f"{head}{name}{tail}" for name in names.split(",")]


@pytest.mark.parametrize(
    ("stderr", "code", "why", "hint"),
    [
        ("ModuleNotFoundError: No module named 'onnxruntime'\n", 1, "No module named", "pip install numpy onnxruntime"),
        ("AttributeError: _ARRAY_API not found\nImportError\n", 1, "_ARRAY_API not found", "'numpy<2'"),
        ("RuntimeError: module compiled against ABI version 0x1000009\n", 1, "0x1000009", "pip install -U numpy"),
        (
            "ImportError: /lib/libstdc++.so.6: version `GLIBCXX_3.4.29' not found (required by x.so)\n",
            1, "GLIBCXX_3.4.29", "a newer system than this",
        ),
        ("ImportError: /lib/libm.so.6: version `GLIBC_2.27' not found\n", 1, "GLIBC_2.27", "an older onnxruntime"),
        ("", -4, "SIGILL", "instructions that this processor lacks"),
        (
            "Error in cpuinfo: failed to parse the list of possible processors in /sys\nterminate called\n"
            "  what():  Failed to initialize CPU info.\n",
            -6, "SIGABRT; Error in cpuinfo: failed to parse", "mount /sys",
        ),
        ("Fatal Python error: Segmentation fault\n", -11, "SIGSEGV", "another Python or processor"),
        ("ImportError: x.so: wrong ELF class: ELFCLASS32\n", 1, "ELFCLASS32", "another Python or processor"),
        ("", 3, "it ended with code 3", "another Python or processor"),
    ],
)  # fmt: skip
def test_an_import_that_fails_on_a_board_is_told_with_what_helps(stderr, code, why, hint):
    told, helps = reason(stderr, code)
    assert why in told
    assert hint in helps


@pytest.mark.parametrize(
    ("module", "message"),
    [
        ("__version__ = '1.16.3'", r"onnxruntime 1\.16\.3 is too old: 1\.17 or newer"),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGILL)", "onnxruntime .*cannot be imported: SIGILL"),
    ],
)
def test_a_runtime_that_is_too_old_or_ends_python_is_refused(module, message, tmp_path, monkeypatch):
    (tmp_path / "onnxruntime.py").write_text(module)
    (tmp_path / "numpy.py").write_text("")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(KDExportError, match=message):
        check_importable()
