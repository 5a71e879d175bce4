"""Changes to files: of their bytes, and of what they say. All chance comes from the generator that is given."""

from __future__ import annotations

import copy
import json
import re
import struct
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

#: No input is longer, in bytes.
LONGEST = 2**18
NUMBERS = (
    -1, 0, 1, 2, 3, 4, 7, 64, 255, 256, 4096, 65535, 65536, 10**6, 10**9, 2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**63 - 1,
    2**63, 2**64, 10**18, 10**30, -(2**31), -(10**9), 0.0, -0.0, 0.5, 1.5, -1.5, 1e-3, 1e-30, 1e-320, 1e9, 1e30, 3e38,
    1e300, float("nan"), float("inf"), -float("inf"),
)  # fmt: skip
WORDS = (
    "", " ", "0", "1", "-1", "nan", "NaN", "inf", "-Infinity", "1e400", "-1e400", "1e30", "0x10", "1_000", "1,5", "1.",
    "٣", "½", "true", "None", "null", "yes", "{1,2}", "{}", "{", "}", "[1]", "[", "]", "()", "..", "../../x", "/", ".",
    "/dev/null", "/dev/zero", "a b", "\x00", "\t", "é", "\udcff", ";", "#", "'", '"', "${HOME}", "${nothing}", "$", "%",
    "@x", "\\", "=", ":=", "(.*)*x", "9" * 5000, "x" * 300, " " * 3000, "-" * 40 + "1",
)  # fmt: skip
_INDEX = re.compile(r"\[[^]]*\]")
_RAW = re.compile(r'"@raw:(.*?)@"')


def several(rng: Random, *changes: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """One to four of the changes, one after the other."""
    chosen = [rng.choice(changes) for _ in range(rng.choice((1, 1, 1, 2, 3, 4)))]

    def change(value: Any) -> Any:
        for each in chosen:
            value = each(value)
        return value

    return change


def changed_bytes(rng: Random, content: bytes) -> bytes:
    """Some bytes flipped, overwritten, cut out, doubled, moved or added; or the end cut off."""
    data = bytearray(content[:LONGEST])
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        size = len(data)
        # Headers stand at the beginning of most files.
        at = rng.randrange(min(size, rng.choice((16, 128, 512, 4096, LONGEST))) or 1)
        length = rng.choice((1, 2, 4, 8, 16, 100, 1000))
        kind = rng.randrange(8)
        if kind == 0 and size:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1 and size:
            data[at] = rng.randrange(256)
        elif kind == 2:
            del data[at:]
        elif kind == 3:
            del data[at : at + length]
        elif kind == 4:
            data[at:at] = data[at : at + length] * rng.choice((1, 1, 2, 50))
        elif kind == 5:
            data[at:at] = rng.choice((b"\0", b"\xff", b" ", b"\n", bytes([rng.randrange(256)]))) * length
        elif kind == 6:
            data[at : at + length] = data[(start := rng.randrange(size or 1)) : start + length]
        else:
            width, order = rng.choice("bhiq"), rng.choice("<>")
            value = rng.choice([n for n in NUMBERS if isinstance(n, int)])
            packed = struct.pack(f"{order}{width.upper()}", value % 2 ** (8 * struct.calcsize(width)))
            if rng.random() < 0.3:
                packed = struct.pack(f"{order}{rng.choice('fd')}", rng.choice((-1.0, 1e30, float("nan"), float("inf"))))
            data[at : at + len(packed)] = packed
    return bytes(data[:LONGEST])


def any_value(rng: Random, near: Any = None) -> Any:
    """A value that may fit nowhere, or one near another."""
    kind = rng.randrange(10)
    if kind < 4:
        return rng.choice(NUMBERS)
    if kind < 6:
        return rng.choice(WORDS)
    if kind == 6:
        return rng.choice((None, True, False, [], {}, [[]], {"": {}}, [1, "a"], [1] * 2000))
    if kind == 7:
        depth = rng.choice((1, 5, 40, 2000))
        return f"@raw:{'[' * depth}1{']' * depth}@"
    if kind == 8:
        return rng.choice(("@raw:1e400@", "@raw:-1e400@", "@raw:" + "9" * 5000 + "@", "@raw:{\\x@", "@raw:01@"))
    if isinstance(near, bool) or not isinstance(near, (int, float, str)):
        return str(near) if rng.random() < 0.5 else [near]
    if isinstance(near, str):
        coded = near.encode("utf-8", "surrogatepass").hex()
        return rng.choice((near * 2, near[:-1], near.upper(), near + "\n", [near], coded))
    return rng.choice((-near, near + 1, near * 2, near * 10**6, str(near), [near], float(near), near / 3))


def changed_tree(rng: Random, tree: Any) -> Any:
    """A copy of nested dictionaries and lists with one place changed: replaced, removed, renamed, doubled, nested."""
    root = [copy.deepcopy(tree)]
    owner, key = root, 0
    while isinstance(owner[key], (dict, list)) and owner[key] and rng.random() < 0.85:
        owner = owner[key]
        key = rng.choice(list(owner)) if isinstance(owner, dict) else rng.randrange(len(owner))
    kind, value = rng.randrange(10), owner[key]
    if kind < 5:
        owner[key] = any_value(rng, value)
    elif kind == 5 and owner is not root:
        del owner[key]
    elif kind == 6 and isinstance(owner, dict):
        owner[rng.choice((*WORDS, f"{key}x", f"{key}".upper()))] = owner.pop(key)
    elif kind == 7 and isinstance(owner, dict):
        owner[rng.choice(WORDS)] = any_value(rng, value)
    elif kind == 8 and isinstance(owner, list):
        owner[key:key] = [value] * rng.choice((1, 2, 2 if isinstance(value, (dict, list)) else 500))
    else:
        owner[key] = rng.choice(([value], {"": value}, [value, value], copy.deepcopy(tree)))
    return root[0]


def json_text(tree: Any) -> str:
    """JSON, with what `any_value` has of numbers and nesting that Python would not write."""
    text = json.dumps(tree, default=str)
    return _RAW.sub(lambda found: found[1], text) if "@raw" in text else text


def changed_json(rng: Random, tree: Any) -> bytes:
    """A JSON document changed in one to four places."""
    return json_text(several(rng, lambda t: changed_tree(rng, t))(tree)).encode("utf-8", "surrogatepass")


def changed_lines(rng: Random, text: str, sign: str, values: Sequence[str] = ()) -> str:
    """Lines ``key sign value`` with values, keys, indices and places changed, lines dropped, doubled and added."""
    lines = text.split("\n")
    for _ in range(rng.choice((1, 1, 1, 2, 3, 5))):
        at = rng.randrange(len(lines))
        key, found, value = lines[at].partition(sign)
        kind = rng.randrange(13)
        if kind < 5:
            lines[at] = f"{key}{sign} {_any_text(rng, value.strip(), values)}"
        elif kind == 5:
            del lines[at]
        elif kind == 6:
            lines[at:at] = [lines[at]] * rng.choice((1, 1, 3, 300))
        elif kind == 7:
            lines.insert(rng.randrange(len(lines)), lines.pop(at))
        elif kind == 8:
            index = rng.choice(("[1]", "[2]", "[0]", "[-1]", "[99999999999]", "[x]", "[", "]", "[1][2]"))
            lines[at] = f"{_INDEX.sub('', key)}{index}{found}{value}"
        elif kind == 9:
            lines[at] = f"{key}{rng.choice(('', '=', ':', ':=', sign * 2, ' '))}{value}"
        elif kind == 10:
            other = rng.choice(lines).partition(sign)
            lines[at] = f"{other[0]}{found}{value}"
        elif kind == 11:
            more = ("", " " * 5000, ";", sign, f"x {sign} 1", "\\", "\x00", "!" * 3000, "[" * 3000)
            lines.insert(at, rng.choice(more))
        else:
            lines[at] += rng.choice(("\\", "\r", " ", ";", "\x00", '"', "}", "x" * 70_000))
        if not lines:
            break
    return "\n".join(lines or [""])


def _any_text(rng: Random, value: str, values: Sequence[str]) -> str:
    if values and rng.random() < 0.3:
        return rng.choice(values)
    numbers = re.findall(r"-?[0-9]{1,18}\.?[0-9]{0,18}", value)
    if numbers and rng.random() < 0.5:
        number = rng.choice(numbers)
        other = str(any_value(rng, float(number) if "." in number else int(number)))[:9000]
        return value.replace(number, re.sub(r"^@raw:|@$", "", other), rng.choice((1, -1)))[:LONGEST]
    return str(any_value(rng, value)) if rng.random() < 0.5 else rng.choice(WORDS)


def encoded(text: str) -> bytes:
    """Bytes of a text of `WORDS`, which may hold what is no character."""
    return text.encode("utf-8", "surrogateescape")[:LONGEST]


def changed_weights(
    rng: Random, content: bytes, key: str = "", seal: Callable[[dict[str, Any], bytes], None] | None = None
) -> bytes:
    """A safetensors file with its header, or the JSON document that it has under ``key``, changed.

    ``seal`` puts a matching checksum into the header.
    """
    length = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    metadata = header.get("__metadata__", {})
    if key and rng.random() < 0.75:
        metadata[key] = changed_json(rng, json.loads(metadata[key])).decode("utf-8", "replace")
    else:
        header = several(rng, lambda t: changed_tree(rng, t))(header)
    if rng.random() < 0.2 and data:
        data = changed_bytes(rng, data)
    if seal is not None and isinstance(header, dict) and rng.random() < 0.9:
        seal(header, data)
    text = json_text(header).encode("utf-8", "surrogatepass")
    told = len(text) if rng.random() < 0.95 else rng.choice((0, 1, 2**32, 2**63, len(text) + 1, len(text) - 1))
    return told.to_bytes(8, "little") + text + data
