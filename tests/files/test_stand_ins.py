"""Files that are not what their names say: the cause is named, and what to do."""

from __future__ import annotations

import gzip
import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support.messages import raises_saying

from ders_core.errors import CheckpointError
from ders_core.files.header import read_header
from ders_core.files.model_files import INDEX
from ders_core.files.stand_ins import stand_in
from ders_core.files.store import TensorStore

POINTER = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n"
)
PAGE = b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head><body></body></html>\n"

CASES: dict[str, tuple[bytes, list[str]]] = {
    "pointer": (POINTER, ["git-lfs", "git lfs pull"]),
    "page": (PAGE, ["web page", "download it again"]),
    "late page": (b"\n  <html lang='en'>" + PAGE, ["web page"]),
    "xml": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', ["web page"]),
    "answer": (b"Entry not found", ["Entry not found", "download it again"]),
    "denied": (b'{"error":"Repository not found"}', ["Repository not found"]),
    "zeros": (b"\0" * 4096, ["zeros", "download it again"]),
    "gguf": (b"GGUF\x03\0\0\0\0\0\0\0", ["GGUF"]),
    "gzip": (gzip.compress(b"weights"), ["gzip"]),
    "pickle": (pickle.dumps({"a": [1]}, protocol=2), ["pickle"]),
}


@pytest.mark.parametrize("name", CASES)
def test_a_shard_that_is_none(name: str, tmp_path: Path) -> None:
    content, facts = CASES[name]
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with raises_saying(CheckpointError, path.name, *facts):
        read_header(path)


def test_pytorchs_own_file_under_the_name(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    torch.save({"a": torch.zeros(3)}, path)
    with raises_saying(CheckpointError, path.name, "PyTorch", "save_pretrained"):
        read_header(path)


@pytest.mark.parametrize("name", ["pointer", "page", "answer", "zeros", "gzip"])
@pytest.mark.parametrize("file", ["config.json", INDEX])
def test_a_description_that_is_none(
    name: str, file: str, mixtral_sharded_dir: Path, copy_of: Callable[[Path], Path]
) -> None:
    content, facts = CASES[name]
    directory = copy_of(mixtral_sharded_dir)
    (directory / file).write_bytes(content)
    with raises_saying(CheckpointError, directory / file, *facts):
        TensorStore.open(directory)


def test_broken_json_stays_broken_json(mixtral_dir: Path, copy_of: Callable[[Path], Path]) -> None:
    directory = copy_of(mixtral_dir)
    (directory / "config.json").write_text('{"model_type": "mixtral",', encoding="utf-8")
    with raises_saying(CheckpointError, "config.json", "not valid JSON"):
        TensorStore.open(directory)


def test_what_is_nothing_of_the_kind(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(3)}, tmp_path / "good.safetensors")
    good = (tmp_path / "good.safetensors").read_bytes()
    for start in (good[:256], b"\x93\x01\x02\x03\x04\x05\x06\x07\x08", b"", b"\0"):
        assert stand_in(start) is None
    assert read_header(tmp_path / "good.safetensors")[0].keys() == {"a"}
    assert json.loads(good[8 : 8 + int.from_bytes(good[:8], "little")])
