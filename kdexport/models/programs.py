"""torch.export programs: a graph with its weights in a file that needs no class, read without running what is in it.

PyTorch's reader trusts a file: it unpickles weights without limits, evaluates expressions of sizes, looks operators up
by any dotted name and compiles the names of inputs into code. ``check`` therefore holds every place of that kind
against what ``torch.export.save`` writes of a network of tensors, before the reader sees the file.
"""

import ast
import contextlib
import inspect
import json
import os
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from kdexport.artifacts import write_atomically
from kdexport.errors import SourceError
from kdexport.models.checkpoints import EXPANSION, SPARE_BYTES

ENTRIES = re.compile(  # of today's archives, below a folder of any name, and of those before PyTorch 2.8
    r"[^/]+/(archive_(format|version)|byteorder|\.data/(version|serialization_id)|models/[^/]+\.json"
    r"|data/(weights/weight_\d+|constants/tensor_\d+|(weights|constants)/[^/]+_config\.json|sample_inputs/[^/]+\.pt)"
    r"|extra/.+)"
    r"|version|serialized_(exported_program\.json|(state_dict|constants|example_inputs)\.(pt|json))|extra_files/.+"
)
OPERATORS = re.compile(
    r"torch\.ops\.(aten|prims|torchvision|quantized|quantized_decomposed|higher_order)\.(?!_?(save|load|from_file))"
    r"[a-z_][a-z0-9]\w*(\.(?!_)\w+)?"
    r"|_operator\.(getitem|add|sub|mul|truediv|floordiv|mod|pow|neg|eq|ne|lt|le|gt|ge|and_|or_|not_|pos|abs)"
    r"|math\.(ceil|floor|trunc|sqrt)|torch\.(sym_\w+|_sym_\w+)"
)
SIZE_FUNCTIONS = {  # of an expression of sizes, as sympy and PyTorch write it
    "Symbol", "Integer", "Rational", "Float", "Add", "Mul", "Pow", "Mod", "Min", "Max", "Abs", "Not", "And", "Or",
    "Xor", "Eq", "Ne", "Lt", "Le", "Gt", "Ge", "floor", "ceiling", "Piecewise", "Equality", "Unequality",
    "LessThan", "GreaterThan", "StrictLessThan", "StrictGreaterThan", "FloorDiv", "CleanDiv", "CeilDiv",
    "ModularIndexing", "Where", "PythonMod", "CeilToInt", "FloorToInt", "IntTrueDiv", "FloatTrueDiv", "FloatPow",
    "PowByNatural", "TruncToInt", "TruncToFloat", "RoundToInt", "RoundDecimal", "ToFloat", "LShift", "RShift",
    "Identity", "abs", "min", "max", "round", "int", "float", "bool",
}  # fmt: skip
POWERS = {"Pow", "FloatPow", "PowByNatural", "LShift"}
SIZE_NAMES = SIZE_FUNCTIONS | {"oo", "int_oo", "true", "false", "nan", "L", "math", "torch"}
# What a guard asks of its inputs, and PyTorch's printer takes from math and torch.
ATTRIBUTES = re.compile(r"size|stride|storage_offset|dim|inf|isnan|floor|ceil|trunc|sqrt|pow|log2?|exp|sym_\w+")
FORCE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"  # PyTorch reads it at each torch.load
PLAIN_NESTS = ("builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict")
SYMBOL = re.compile(r"[a-z]{1,4}\d+")
WORD = re.compile(r"[\w.]{0,300}")
EXPRESSION = (
    *(ast.Expression, ast.Call, ast.Name, ast.Constant, ast.keyword, ast.Tuple, ast.Subscript, ast.Attribute),
    *(ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.operator, ast.unaryop, ast.boolop, ast.cmpop, ast.Load),
)


class Program(nn.Module):
    """A torch.export program: a graph with its weights, in the mode that it was exported in."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        if not path.is_file():
            raise SourceError(
                f"there is no file {path}", hint="check the path; in a recipe it is relative to the recipe"
            )
        check(path)
        try:
            with warnings.catch_warnings(), _weights_only():
                warnings.filterwarnings("ignore", message="The given buffer is not writable")  # torch before 2.12
                program = torch.export.load(path)
                self.program = program.module()
        except Exception as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise SourceError(
                f"{path} is no torch.export program: {reason}",
                hint="write it with torch.export.save(torch.export.export(network, inputs), path)",
            ) from error
        self._batch = _fixed_batch(program)
        self.input_names = tuple(str(name) for name in program.graph_signature.user_inputs)

    def train(self, mode: bool = True) -> Self:
        """Change nothing: the graph has its mode built in."""
        self.training = mode
        return self

    def forward(self, *inputs: Tensor) -> Any:
        """Return what the program gives; one exported for a fixed batch size is run as often as it takes."""
        if self._batch is None or len(inputs[0]) == self._batch:
            return self.program(*inputs)
        outputs = []
        for start in range(0, len(inputs[0]), self._batch):
            parts = [item[start : start + self._batch] for item in inputs]
            lacking = self._batch - len(parts[0])
            filled = [torch.cat([item, item[-1:].expand(lacking, *item.shape[1:])]) for item in parts]
            outputs.append(self.program(*filled)[: len(parts[0])])
        return torch.cat(outputs)


def check(path: Path) -> None:
    """Hold that nothing in a program runs while it is read.

    Raises:
        SourceError: It is no such archive, or holds what is more than tensors and a graph of PyTorch's operators.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            claimed = sum(entry.file_size for entry in entries)
            names = [entry.filename for entry in entries]
            if claimed > EXPANSION * path.stat().st_size + SPARE_BYTES or len(set(names)) < len(names):
                raise _refused(path, "entries that do not go with its size")
            for name in names:
                if not name.endswith("/") and not ENTRIES.fullmatch(name):
                    raise _refused(path, f"{name[-80:]!r}")
            for name in names:
                if name.endswith(".json") and "/extra" not in f"/{name}":
                    _check_document(json.loads(archive.read(name)), path)
    except SourceError:
        raise
    except Exception as error:  # zipfile, zlib and json have a dozen kinds for a damaged file
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise SourceError(
            f"{path} is no torch.export program: {reason}",
            hint="write it with torch.export.save(torch.export.export(network, inputs), path)",
        ) from error


def _check_document(document: Any, path: Path) -> None:
    waiting = [document]
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting += value
        elif isinstance(value, dict):
            waiting += value.values()
            if value.get("use_pickle"):
                raise _refused(path, "weights that are pickled whole")
            if "target" in value and "inputs" in value and not OPERATORS.fullmatch(str(value["target"])):
                raise _refused(path, f"the operator {str(value['target'])[:80]!r}")
            names = [value.get("name"), *(value.get("forward_arg_names") or ())]
            if not all(name is None or WORD.fullmatch(str(name).lstrip("*")) for name in names):
                raise _refused(path, "names that are none")
            guards = value.get("guards_code")
            expressions = list(guards) if isinstance(guards, list) else []
            expressions += [value["expr_str"]] if "expr_str" in value else []
            for text in expressions:
                if not _is_expression_of_sizes(str(text)):
                    raise _refused(path, f"the expression {str(text)[:80]!r}")
            for spec in (value.get("in_spec"), value.get("out_spec")):
                if isinstance(spec, str) and not _is_plain_spec(spec):
                    raise _refused(path, "inputs or outputs of classes that are imported by name")


def _is_expression_of_sizes(text: str) -> bool:
    """Whether a text that PyTorch evaluates as Python computes with sizes alone."""
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    for node in ast.walk(tree):
        if not isinstance(node, EXPRESSION):
            return False
        if isinstance(node, ast.Name) and node.id not in SIZE_NAMES and not SYMBOL.fullmatch(node.id):
            return False
        if isinstance(node, ast.Attribute) and not ATTRIBUTES.fullmatch(node.attr):
            return False
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and not WORD.fullmatch(node.value):
            return False
        if isinstance(node, ast.Constant) and isinstance(node.value, int) and abs(node.value) >= 2**63:
            return False
        if not _is_small_power(node):
            return False
        called = node.func if isinstance(node, ast.Call) else None
        if isinstance(called, ast.Name) and called.id not in SIZE_FUNCTIONS:
            return False
        if called is not None and not isinstance(called, ast.Name | ast.Attribute):
            return False
    return True


def _is_small_power(node: ast.AST) -> bool:
    """Whether a node raises to no power whose digits alone would take hours; True where it raises to none."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow | ast.LShift):
        return _is_small(node.right)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in POWERS:
        return len(node.args) == 2 and not node.keywords and _is_small(node.args[1])
    return True


def _is_small(exponent: ast.expr) -> bool:
    match exponent:
        case ast.Call(func=ast.Name(id="Integer"), args=[inner]) | ast.UnaryOp(operand=inner):
            return _is_small(inner)
        case ast.Constant(value=int() | float() as value):
            return value <= 64
    return False


def _is_plain_spec(spec: str) -> bool:
    """Whether the nests of inputs or outputs are tuples, lists and dictionaries of words."""
    waiting = [json.loads(spec)]
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting += value
        elif isinstance(value, dict):
            waiting += [value.get("children_spec")]
            context = value.get("context")
            words = json.loads(context) if isinstance(context, str) else []
            if value.get("type") not in (None, *PLAIN_NESTS) or not _are_words(words):
                return False
    return True


def _are_words(context: Any) -> bool:
    words = context if isinstance(context, list) else [] if context is None else [context]
    return all(isinstance(word, int) or (isinstance(word, str) and WORD.fullmatch(word)) for word in words)


def _refused(path: Path, what: str) -> SourceError:
    return SourceError(
        f"{path} holds more than a graph of PyTorch's operators and its weights ({what}) and was not loaded: nothing "
        "in it was run",
        hint="where you trust it, load it in a file of your own and name that: file.py:Name",
    )


@contextlib.contextmanager
def _weights_only() -> Iterator[None]:
    """Let no ``torch.load`` of PyTorch's own unpickle more than weights."""
    before = os.environ.get(FORCE)
    os.environ[FORCE] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[FORCE]
        else:
            os.environ[FORCE] = before


def save_program(network: nn.Module, inputs: tuple[Tensor, ...], axes: Mapping[int, str], path: Path) -> None:
    """Write a network as a torch.export program, which needs no class to be loaded; whole or not at all.

    Args:
        network: In evaluation mode.
        inputs: A batch of two.
        axes: Of every input, those that may vary, by name: the batch, and a text's length.
        path: Ends in ``.pt2``.

    Raises:
        SourceError: torch.export cannot capture it.
    """
    dims = {axis: torch.export.Dim(name) for axis, name in axes.items()}
    signature = inspect.signature(network.forward)
    try:
        shapes = dict(signature.bind(*[dims for _ in inputs]).arguments)
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.export.export(network, inputs, dynamic_shapes=shapes)
    except Exception as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise SourceError(
            f"torch.export cannot capture the network: {reason}", hint="write that part of its forward otherwise"
        ) from error
    write_atomically(path, lambda temporary: torch.export.save(program, temporary))


def _fixed_batch(program: "torch.export.ExportedProgram") -> int | None:
    """Return the batch size that a program was exported for, or None where it takes any."""
    names = set(program.graph_signature.user_inputs)
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in names and isinstance(node.meta.get("val"), Tensor):
            size = node.meta["val"].shape[0] if node.meta["val"].ndim else None
            return size if isinstance(size, int) else None
    return None
