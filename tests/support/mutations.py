"""Seeded damage of files: of their bytes, of JSON and YAML by structure, of safetensors headers."""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from random import Random
from typing import Any

import yaml

HALF = "\ud800"
HOSTILE_TEXTS = (
    "",
    " ",
    "a" * 5000,
    "9" * 5000,
    HALF,
    "\0",
    "\n",
    "\x1b[31m",
    "../x",
    "/etc/passwd",
    "..",
    "{layer}",
    "{stack}.{layer}.{any}",
    "{any}" * 8,
    "__metadata__",
    "<b>[x](http://x)</b>",
    "2024-13-45",
    "=",
    "*",
    "nan",
    "quant_method",
    "model.layers.0",
    "F32",
    "٣",
    "𝟗",
    "%s%n",
)
NUMBERS = (
    *(0, -1, 1, 2, 3, 7, 255, 2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64),
    *(-(2**63), 10**30, 10**300, 0.0, -0.0, 0.5, 1e-320, 1e308, float("nan")),
    *(float("inf"), float("-inf")),
)
OTHERS: tuple[Any, ...] = (None, True, False, [], {}, [[]], [{}], {"": None}, [None], ["a", "a"])


def damaged_bytes(rng: Random, content: bytes) -> bytes:
    """Another content: bits flipped, parts cut out, repeated, overwritten or put in."""
    data = bytearray(content)
    place = rng.randrange(len(data) + 1)
    length = min(rng.choice((1, 1, 2, 7, 64, 4096)), len(data))
    match rng.randrange(7):
        case 0 | 1:
            for _ in range(rng.choice((1, 1, 3, 30))):
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        case 2:
            del data[place:]
        case 3:
            del data[place : place + length]
        case 4:
            data[place:place] = rng.randbytes(length)
        case 5:
            data[place:place] = data[place : place + length]
        case 6:
            data[place : place + length] = bytes(length)
    return bytes(data)


def damaged_value(rng: Random, value: Any) -> Any:
    """A copy of a JSON value with one thing in it replaced, removed, renamed or repeated."""
    root = [deepcopy(value)]
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        _damage(rng, *_place(rng, root))
    return root[0]


def json_text(rng: Random, value: Any) -> bytes:
    """JSON as no writer would write it: half characters, keys twice, depths, long numbers."""
    text = json.dumps(value, ensure_ascii=rng.random() < 0.7)
    match rng.randrange(12):
        case 0:
            text = _within(rng, text, "[" * rng.choice((40, 100, 5000, 200_000)))
        case 1:
            text = _within(rng, text, "9" * rng.choice((41, 400, 5000)))
        case 2 if "{" in text:
            text = text.replace("{", '{"a": 1, "a": 2, ', 1)
        case 3:
            deep = rng.choice((30, 60, 200, 900))
            text = text.replace("null", "[" * deep + "]" * deep, 1)
    return text.encode("utf-8", "surrogatepass")


def damaged_json(rng: Random, content: bytes) -> bytes:
    """Of a JSON file: by its bytes or its structure."""
    if rng.random() < 0.25:
        return damaged_bytes(rng, content)
    return json_text(rng, damaged_value(rng, json.loads(content)))


LAUGHS = "".join(
    f"{name}: &{name} [{', '.join([below] * 9)}]\n"
    for below, name in (("x", "a"), ("*a", "b"), ("*b", "c"), ("*c", "d"), ("*d", "e"), ("*e", "f"))
)
BOMBS = (
    LAUGHS,
    "rules: &a [*a]\n",
    "stages: &s {codec: chain, stages: [*s, *s]}\n",
    "x: &x {y: 1}\nz: {<<: [*x, *x, *x]}\n",
    "[" * 5000,
    "- " * 5000,
    "{a: " * 500,
    "? " * 500,
    "x: 2024-13-45\n",
    "x: !!int abc\n",
    "x: !!float '.'\n",
    "x: !!bool maybe\n",
    "x: !!timestamp soon\n",
    "x: !!binary '!'\n",
    "x: !!python/object/apply:os.system [echo]\n",
    'x: "\\ud800"\n',
    'x: "\\Uffffffff"\n',
    f"x: {'9' * 5000}\n",
    f"x: 0x{'f' * 5000}\n",
    "x: .nan\n",
    "x: -.inf\n",
    "1: 2\n",
    "2024-01-01: 2024-01-01\n",
    "null: ~\n",
    "[a, b]: c\n",
    "{a: b}: c\n",
    "%YAML 9.9\n---\na\n",
    "--- a\n--- b\n",
    "*nobody\n",
    "&a &b c\n",
    "\ufeff",
    "\t- x",
)


def damaged_yaml(rng: Random, content: bytes) -> bytes:
    """Of a YAML file: by its bytes, its structure, or with what YAML alone can say."""
    choice = rng.randrange(5)
    if choice == 0:
        return damaged_bytes(rng, content)
    if choice == 1:
        bomb = rng.choice(BOMBS).encode("utf-8", "surrogatepass")
        return rng.choice((bomb, content + b"\n" + bomb, bomb + content))
    value = damaged_value(rng, yaml.safe_load(content))
    if choice == 2:
        return json_text(rng, value)
    text: str = yaml.safe_dump(value, allow_unicode=True, sort_keys=False)
    if choice == 3:
        words = text.split(" ")
        words[rng.randrange(len(words))] = rng.choice(("*a", "&a", "!!int", "2024-13-45", "|", "{"))
        text = " ".join(words)
    return text.encode("utf-8", "surrogatepass")


def damaged_weights(rng: Random, content: bytes) -> bytes:
    """Of a safetensors file: by its bytes, or by its header, with a length that fits."""
    if rng.random() < 0.4:
        return damaged_bytes(rng, content)
    length = int.from_bytes(content[:8], "little")
    header = json_text(rng, damaged_value(rng, json.loads(content[8 : 8 + length])))
    stated = len(header) if rng.random() < 0.9 else rng.choice(NUMBERS[:14])
    return (int(stated) % 2**64).to_bytes(8, "little") + header + content[8 + length :]


Damage = Callable[[Random, bytes], bytes]


def _place(rng: Random, root: list[Any]) -> tuple[Any, Any]:
    """A container in a value and a key in it, the deep ones as likely as the others."""
    container: Any = root
    key: Any = 0
    while True:
        child = container[key]
        if not isinstance(child, dict | list) or not child or rng.random() < 0.2:
            return container, key
        container = child
        key = rng.choice(list(child)) if isinstance(child, dict) else rng.randrange(len(child))


def _damage(rng: Random, container: Any, key: Any) -> None:
    value = container[key]
    match rng.randrange(10):
        case 0 | 1:
            container[key] = rng.choice(HOSTILE_TEXTS)
        case 2 | 3:
            container[key] = rng.choice(NUMBERS)
        case 4:
            container[key] = deepcopy(rng.choice(OTHERS))
        case 5 if isinstance(container, dict):
            container[rng.choice(HOSTILE_TEXTS)] = container.pop(key)
        case 5 | 6:
            del container[key]
            if not isinstance(container, dict) and not container:
                container.append(None)
        case 7 if isinstance(container, dict):
            container[rng.choice(HOSTILE_TEXTS)] = deepcopy(value)
        case 7:
            container.insert(key, deepcopy(value))
        case 8 if isinstance(value, int | float):
            container[key] = rng.choice((value + 1, value - 1, -value, value * 2, float(value)))
        case 8 if isinstance(value, str) and value:
            cut = rng.randrange(len(value))
            container[key] = rng.choice((value[:cut], value[cut:] + value, value.upper(), [value]))
        case 8 | 9:
            container[key] = rng.choice(([value], {"a": value}, [value, value], str(value)))


def _within(rng: Random, text: str, piece: str) -> str:
    place = rng.randrange(len(text) + 1)
    return text[:place] + piece + text[place:]
