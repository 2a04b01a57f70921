"""Pointers that git left in place of a tokenizer's files."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.messages import raises_saying

from ders_core.errors import CheckpointError
from ders_core.hf import load_tokenizer

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


def linked(source: Path, target: Path) -> None:
    for file in source.iterdir():
        (target / file.name).symlink_to(file)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"])
def test_a_pointer_is_named(name: str, mixtral_dir: Path, tmp_path: Path) -> None:
    linked(mixtral_dir, tmp_path)
    (tmp_path / name).unlink(missing_ok=True)
    (tmp_path / name).write_text(POINTER, encoding="utf-8")
    with raises_saying(CheckpointError, tmp_path / name, "git-lfs", "git lfs pull"):
        load_tokenizer(tmp_path)


def test_a_model_that_is_not_needed_may_be_one(mixtral_dir: Path, tmp_path: Path) -> None:
    linked(mixtral_dir, tmp_path)
    (tmp_path / "tokenizer.model").write_text(POINTER, encoding="utf-8")
    assert load_tokenizer(tmp_path)("the mill")["input_ids"]
    (tmp_path / "tokenizer.json").unlink()
    with raises_saying(CheckpointError, "tokenizer.model", "git-lfs"):
        load_tokenizer(tmp_path)
