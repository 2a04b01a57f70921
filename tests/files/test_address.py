"""Addresses as text: their parts, their places, and what is not one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.messages import raises_saying

from ders_core.errors import CheckpointError
from ders_core.files.address import as_local, as_path, is_remote, lies_below


def test_parts_of_an_address() -> None:
    hub: Any = as_path("hf://owner/repo@main/")
    assert is_remote(hub)
    assert str(hub) == "hf://owner/repo@main"
    assert str(hub / "config.json") == "hf://owner/repo@main/config.json"
    web = as_path("HTTPS://me:secret@Host:8080/a/b/")
    assert str(web) == "https://Host:8080/a/b"
    assert "secret" not in repr(web.parent / "c.json")
    assert as_path("~/x") == Path.home() / "x"
    assert as_path(Path("~/x")) == Path.home() / "x"
    assert as_path(web) is web
    assert not is_remote(as_path("models/8x7b:latest"))


def test_what_must_be_local_says_how() -> None:
    command = "hf download owner/repo --revision main --local-dir DIR"
    with raises_saying(CheckpointError, "hf://owner/repo@main", command):
        as_local("hf://owner/repo@main")
    with raises_saying(CheckpointError, "https://host/model", "local directory", "download"):
        as_local("https://host/model")
    assert as_local("model") == Path("model")


@pytest.mark.parametrize(
    ("address", "root", "below"),
    [
        ("s3://bucket/models/a", "s3://bucket/models", True),
        ("s3://bucket/models", "s3://bucket/models/", True),
        ("s3://bucket/models2", "s3://bucket/models", False),
        ("s3://bucket/models/../b", "s3://bucket/models", False),
        ("https://host/m/%2e%2e/b", "https://host/m", False),
        ("https://host/m/a%2f..%2f..", "https://host/m", False),
        ("http://host/m/a", "https://host/m", False),
        ("https://host.evil/m/a", "https://host/m", False),
        ("https://host@evil/m/a", "https://host/m", False),
        ("https://host:1/m/a", "https://host/m", False),
        ("https://HOST/m/a", "https://host/m", True),
        ("hf://owner/repo@main", "hf://", True),
        ("hf://owner/repo", "hf://owner", True),
        ("hf://owner2/repo", "hf://owner", False),
    ],
)
def test_below_a_root(address: str, root: str, below: bool) -> None:
    assert lies_below(address, root) == below
