"""The model card of an export, where the original has one of its own."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from ders_core.files.address import hub_name
from ders_core.pipeline.card import front_matter
from ders_core.pipeline.compress import compress
from ders_core.pipeline.export import export
from ders_core.recipe import presets

CARD = """---
license: apache-2.0
base_model: someone/dense
language: [de]
tags: [moe]
---
# The original's card
"""


@pytest.fixture
def source(mixtral_dir: Path, tmp_path: Path) -> Path:
    directory = tmp_path / "hub" / "models--some--model" / "snapshots" / "0a1b"
    shutil.copytree(mixtral_dir, directory)
    return directory


@pytest.mark.parametrize("format", ["packed", "original"])
def test_both_cards_are_there(format: str, source: Path, tmp_path: Path) -> None:
    (source / "README.md").write_text(CARD)
    compress(source, tmp_path / "packed", presets()["quantized-2bit"])
    quality = {"tokens": 4096, "perplexity": 12.345, "reference_perplexity": 11.9, "kl": 0.01}
    export(tmp_path / "packed", tmp_path / "out", format, quality=quality)  # type: ignore[arg-type]
    assert (tmp_path / "out" / "README.md").read_text() == CARD
    ours = (tmp_path / "out" / "DERS.md").read_text(encoding="utf-8")
    head = front_matter(ours)
    assert head["license"] == "apache-2.0"
    assert head["language"] == ["de"]
    assert head["base_model"] == "some/model"  # what was compressed, not what that was made of
    assert head["base_model_relation"] == "quantized"
    assert head["tags"] == ["moe", "ders", "mixture-of-experts", format]
    assert "12.3" in ours


def test_ours_is_replaced_by_ours(source: Path, tmp_path: Path) -> None:
    compress(source, tmp_path / "packed", presets()["quantized-2bit"])
    export(tmp_path / "packed", tmp_path / "one")
    assert front_matter((tmp_path / "one" / "README.md").read_text())["base_model"] == "some/model"
    export(tmp_path / "one", tmp_path / "two", "original")
    names = {path.name for path in (tmp_path / "two").iterdir()}
    assert "README.md" in names
    assert "DERS.md" not in names
    assert "original" in front_matter((tmp_path / "two" / "README.md").read_text())["tags"]


@pytest.mark.parametrize(
    "card", ["", "# no head", "---\nnot: [closed\n---\n", "---\n- list\n---\n", "---"]
)
def test_a_head_that_is_none(card: str) -> None:
    assert front_matter(card) == {}


def test_a_head_is_read() -> None:
    assert front_matter(CARD) == yaml.safe_load(CARD.split("---")[1])
    assert front_matter("\ufeff" + CARD.replace("\n", "\r\n")) == front_matter(CARD)


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("hf://owner/repo", "owner/repo"),
        ("hf://owner/repo@v1.0", "owner/repo"),
        ("hf://owner/repo/folder", "owner/repo"),
        ("https://host/owner/repo", None),
        ("/data/models/moe", None),
        ("/c/models--a--b--c/snapshots/0a1b2c", "a/b--c"),
    ],
)
def test_names_on_the_hub(place: str, name: str | None) -> None:
    assert hub_name(place) == name
