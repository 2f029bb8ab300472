"""How ``fuzz.py`` damages a file: anywhere in its bytes, or in one field, so that the rest of it is still of its form.

A reader that stops at a broken checksum never sees what stands behind it: archives, tables and graphs are therefore
taken apart, changed in a field, and put together again whole.
"""

import io
import json
import random
import sqlite3
import struct
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

HOSTILE = (
    "", "null", "-1", "1e400", "NaN", "[" * 1500 + "]" * 1500, "9" * 5000, "\\ud800", "\ud800", "\0", "~nobody/x",
    "../" * 40, "[/red]", "\x1b]0;t\x07", "<script>", "a" * 70000, "{", "true", "0", "1e-320", "/dev/zero",
    "sys:exit", "é" * 300,
)  # fmt: skip
DEEP, HUGE, DIGITS = "@deep@", "@huge@", "@digits@"  # written as what no json.dumps writes
WRITTEN = {DEEP: "[" * 1500 + "]" * 1500, HUGE: "1e400", DIGITS: "9" * 5000}
VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2**31, 2**63, -(2**63), 10**30, 0.5, -0.0, 1e-320, float("nan"), float("inf"), DEEP,
    HUGE, DIGITS, "", " ", "0", "NaN", "\0", "\ud800", "\x1b]0;t\x07", "[/red]", "../../../etc/passwd", "/dev/zero",
    "~nobody/x", "a" * 70000, "é" * 300, [], {}, [[]], [None], {"": {}}, [0] * 3000, {str(n): n for n in range(300)},
)  # fmt: skip


def mutated(seeds: list[bytes], draw: random.Random, form: str = "bytes") -> bytes:
    """Return one of the seeds, changed in one place or a few: in its bytes, or in fields of its form."""
    if form != "bytes" and draw.random() < 0.7:
        data = draw.choice(seeds)
        for _ in range(draw.choice((1, 1, 1, 2, 5))):
            try:
                data = FIELDS[form](data, draw)
            except Exception:  # noqa: BLE001 - it is not of its form any more
                break
        return data
    return in_bytes(seeds, draw)


def in_bytes(seeds: list[bytes], draw: random.Random) -> bytes:
    """Return one of the seeds with bytes flipped, cut, repeated or moved, or a word replaced."""
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
                start = draw.randrange(max(1, len(other)))
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


def in_json(data: bytes, draw: random.Random) -> bytes:
    """Change one value of a JSON document, also within texts that are JSON themselves."""
    return _written(_changed(json.loads(data), draw))


def _written(document: Any) -> bytes:
    text = json.dumps(document)
    for placeholder, written in WRITTEN.items():
        text = text.replace(json.dumps(placeholder), written)
    return text.encode()


def _changed(document: Any, draw: random.Random) -> Any:
    """Change one value, chosen evenly among all that the document holds."""
    places = list(_places(document))
    if not places:
        return draw.choice(VALUES)
    holder, key = draw.choice(places)
    value = holder[key]
    match draw.randrange(10):
        case 0:
            del holder[key]
        case 1 if isinstance(holder, dict):
            holder[draw.choice((f"{key}x", "", "__class__", "\ud800", "schema"))] = holder.pop(key)
        case 2:
            other, place = draw.choice(places)
            holder[key], other[place] = other[place], value
        case 3:
            holder[key] = draw.choice(([value], {"a": value}, {key: value} if isinstance(key, str) else [[value]]))
        case 4 if isinstance(value, int | float) and not isinstance(value, bool):
            holder[key] = draw.choice((-value, value * 10**12, value + 1, value / 3, str(value), 1 - value))
        case 4 if isinstance(value, str):
            holder[key] = draw.choice((value[: len(value) // 2], value * 2, value.upper(), [value], len(value)))
        case 5 if isinstance(holder, list):
            holder[key:key] = [value] * draw.choice((1, 2, 50))
        case 6 | 7 if isinstance(value, str) and value[:1] in ("{", "["):
            try:
                holder[key] = _written(_changed(json.loads(value), draw)).decode()
            except ValueError:
                holder[key] = draw.choice(VALUES)
        case _:
            holder[key] = draw.choice(VALUES)
    return document


def _places(value: Any) -> Any:
    """Yield the holder and key of every value; of long lists the first few."""
    items = value.items() if isinstance(value, dict) else enumerate(value[:40]) if isinstance(value, list) else ()
    for key, item in list(items):
        yield value, key
        yield from _places(item)


def in_zip(data: bytes, draw: random.Random) -> bytes:
    """Change one entry of an archive, or its name; checksums are right again."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    name = draw.choice(list(entries))
    match draw.randrange(8):
        case 0:
            del entries[name]
        case 1:
            entries[draw.choice((f"../{name}", f"/tmp/{name}", f"{name}x", name.replace("train", "test"), "é"))] = (
                entries.pop(name)
            )
        case 2:
            other = draw.choice(list(entries))
            entries[name], entries[other] = entries[other], entries[name]
        case 3 | 4 if name.endswith(".json"):
            entries[name] = in_json(entries[name], draw)
        case 5 if name.endswith(".npy"):
            entries[name] = _npy_header(entries[name], draw)
        case _:
            entries[name] = in_bytes([entries[name] or b"\0"], draw)
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for entry, content in entries.items():
            archive.writestr(entry, content)
    return made.getvalue()


def _npy_header(data: bytes, draw: random.Random) -> bytes:
    """Let an array claim another type, order or shape than it has."""
    (length,) = struct.unpack("<H", data[8:10])
    header = data[10 : 10 + length].decode("latin-1")
    old, new = draw.choice(
        (
            ("'<i8'", draw.choice(("'|O'", "'<U9'", "'<f2'", "'<c16'", "'|V8'", "'<M8[ns]'", "[('a', '<i8')]", "3"))),
            ("'|u1'", draw.choice(("'|O'", "'|b1'", "'<f8'", "'|S4'", "'<i2'", "'|i1'"))),
            ("False", draw.choice(("True", "None", "'x'"))),
            ("(", draw.choice(("(0, ", "(-1, ", "(1000000000, ", f"({2**62}, ", "(2, ", "()[", "(1.5, "))),
            ("'shape'", draw.choice(("'shap'", "'descr'"))),
        )
    )
    changed = header.rstrip().replace(old, new, 1)
    changed = (changed + " " * (-(len(changed) + 11) % 64) + "\n")[:65000]
    return data[:8] + struct.pack("<H", len(changed)) + changed.encode("latin-1") + data[10 + length :]


def in_safetensors(data: bytes, draw: random.Random) -> bytes:
    """Change one value of the header, whose length is right again."""
    (length,) = struct.unpack("<Q", data[:8])
    header = _written(_changed(json.loads(data[8 : 8 + length]), draw))
    return struct.pack("<Q", len(header)) + header + data[8 + length :]


def in_onnx(data: bytes, draw: random.Random) -> bytes:
    """Change one field of a graph: a name, a type, a shape, an attribute, an entry of its metadata."""
    import onnx
    from google.protobuf.message import DecodeError, EncodeError
    from onnx import helper

    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
        graph = model.graph
        values = [*graph.input, *graph.output, *graph.value_info]
        match draw.randrange(12):
            case 0 | 1 | 2 if model.metadata_props:
                entry = draw.choice(list(model.metadata_props))
                text = entry.value
                entry.value = (
                    _written(_changed({"": text}, draw)).decode()[5:-1]
                    if draw.random() < 0.3
                    else in_json(text.encode(), draw).decode()
                    if text[:1] in ("{", "[")
                    else str(draw.choice(HOSTILE[:8] + HOSTILE[10:]))
                )
            case 3 | 4:
                dims = draw.choice(values).type.tensor_type.shape.dim
                if dims:
                    dim = draw.choice(list(dims))
                    dim.dim_value = draw.choice((0, -1, 1, 10**12, 2**62, 3))
                else:
                    dims.add().dim_param = "n"
            case 5:
                draw.choice(values).type.tensor_type.elem_type = draw.randrange(-1, 30)
            case 6:
                node = draw.choice(list(graph.node))
                node.op_type = draw.choice(("Loop", "If", "Scan", "Cast", "Reshape", "Sequence", "", "é", "Relu"))
            case 7:
                node = draw.choice(list(graph.node))
                names = draw.choice([list_ for list_ in (node.input, node.output) if list_])
                names[draw.randrange(len(names))] = draw.choice(("", "x", node.output[0], "[/red]", "a" * 70000))
            case 8 if graph.initializer:
                tensor = draw.choice(list(graph.initializer))
                tensor.dims[:] = draw.choice(([], [0], [-1], [10**12], [2**31, 2**31], [1] * 300))
            case 9 if graph.initializer:
                tensor = draw.choice(list(graph.initializer))
                tensor.data_type = draw.randrange(0, 30)
            case 10:
                node = draw.choice(list(graph.node))
                value = draw.choice((-1, 2**62, "x", [0] * 9, [1e30], [-(2**63)]))
                node.attribute.append(helper.make_attribute(draw.choice(("axis", "perm", "axes", "to", "body")), value))
            case _:
                where = draw.randrange(6)
                if where == 0:
                    model.ir_version = draw.choice((0, -1, 2**31, 99))
                elif where == 1 and model.opset_import:
                    model.opset_import[0].version = draw.choice((0, -1, 1, 99, 2**40))
                elif where == 2:
                    del graph.input[:]
                elif where == 3:
                    del graph.output[:]
                elif where == 4:
                    graph.node.extend([graph.node[0]])
                else:
                    draw.choice(values).name = draw.choice(("", "x", "[/red]", "\x1b]0;t\x07", "a/b"))
        return model.SerializeToString()
    except (DecodeError, EncodeError, TypeError, UnicodeError) as error:
        raise ValueError(error) from None


def in_sqlite(data: bytes, draw: random.Random) -> bytes:
    """Change one cell of a database, or empty a table."""
    with tempfile.NamedTemporaryFile(suffix=".db") as file:
        Path(file.name).write_bytes(data)
        base = sqlite3.connect(file.name)
        try:
            tables = [name for (name,) in base.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            table = draw.choice([name for name in tables if base.execute(f"SELECT count(*) FROM {name}").fetchone()[0]])
            column = draw.choice([row[1] for row in base.execute(f"PRAGMA table_info({table})")])
            row, value = draw.choice(base.execute(f"SELECT rowid, {column} FROM {table}").fetchall())
            kind = draw.randrange(12)
            if kind == 0:
                base.execute(f"DELETE FROM {table}")
            elif kind == 1:
                base.execute(f"DROP TABLE {table}")
            else:
                text = isinstance(value, str) and value[:1] in ("{", "[", '"')
                made = in_json(value.encode(), draw).decode() if text else draw.choice(HOSTILE[:8] + HOSTILE[9:])
                base.execute(f"UPDATE OR REPLACE {table} SET {column} = ? WHERE rowid = ?", (made, row))
            base.commit()
        except sqlite3.Error as error:
            raise ValueError(error) from None
        finally:
            base.close()
        return Path(file.name).read_bytes()


def in_request(data: bytes, draw: random.Random) -> bytes:
    """Change the first line, a header or the body of an HTTP request; the length is right again, mostly."""
    head, _, body = data.partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    match draw.randrange(7):
        case 0:
            lines[0] = draw.choice((b"GET / HTTP/9.9", b"POST", b"\0", b"OPTIONS * HTTP/1.1", b"GET " + b"/" * 70000))
        case 1:
            at = draw.randrange(1, len(lines))
            lines[at] = lines[at].split(b":")[0] + b": " + draw.choice(HOSTILE).encode("utf-8", "surrogatepass")
        case 2:
            del lines[draw.randrange(1, len(lines))]
        case 3:
            lines.append(
                draw.choice(
                    (b"Transfer-Encoding: chunked", b"Content-Length: -1", b"X" * 70000, b"Expect: 100-continue")
                )
            )
        case 4:
            lines[1:1] = [b"X-%d: a" % number for number in range(300)]
        case 5 if b" " in lines[0]:
            lines[0] = lines[0].replace(
                b" /", b" /" + draw.choice((b"../", b"%2e%2e/", b"//", b"?", b"\xff", b"#", b"a@b:")), 1
            )
        case _ if body:
            body = in_json(body, draw)
            lines = [line for line in lines if not line.lower().startswith(b"content-length")]
            lines.append(b"Content-Length: %d" % len(body))
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


FIELDS: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "json": in_json, "zip": in_zip, "safetensors": in_safetensors, "onnx": in_onnx, "sqlite": in_sqlite,
    "request": in_request,
}  # fmt: skip
