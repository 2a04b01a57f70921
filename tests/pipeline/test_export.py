"""Export: what goes home is whole, described, and checked; or it does not go."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import transformers
import yaml
from support.messages import raises_saying
from transformers import SwitchTransformersConfig

from ders_core.codecs import Quantized
from ders_core.errors import Cancelled, DersError, OutputError
from ders_core.files.store import TensorStore
from ders_core.jobs.kind import KINDS
from ders_core.packed.reader import PackedCheckpoint
from ders_core.pipeline.card import auto_class
from ders_core.pipeline.compress import compress
from ders_core.pipeline.export import export
from ders_core.pipeline.formats import Format
from ders_core.pipeline.synthesize import synthesize
from ders_core.pipeline.verify import verify
from ders_core.recipe import DenseBase, Recipe

Snapshot = Callable[[Path], dict[str, str]]
FORMATS: tuple[Format, ...] = ("packed", "original")  # the third, a patch, has tests of its own
QUALITY = {
    "tokens": 4096,
    "perplexity": 12.345678,
    "reference_perplexity": 11.987654,
    "kl": 0.0123456,
    "top1_agreement": 0.98765,
    "routing_agreement": 0.87654,
    "device": "cpu",
    "seconds": 3.0,
}


def weight_bytes(directory: Path) -> int:
    return sum(file.stat().st_size for file in directory.glob("*.safetensors"))


def test_all_formats_are_known() -> None:
    assert set(get_args(Format)) == {*FORMATS, "patch"}


def test_packed_is_the_same_with_a_card(
    packed_dir: Path, tmp_path: Path, snapshot: Snapshot
) -> None:
    before = snapshot(packed_dir)
    result = export(packed_dir, tmp_path / "out")
    assert snapshot(packed_dir) == before
    written = snapshot(tmp_path / "out")
    assert written.pop("README.md")
    assert written == before
    assert verify(tmp_path / "out").ok
    assert result.format == "packed"
    assert result.bytes == weight_bytes(packed_dir)
    assert result.out == str(tmp_path / "out")


def test_original_is_what_synthesize_writes(
    packed_dir: Path, tmp_path: Path, snapshot: Snapshot
) -> None:
    from transformers import AutoModelForCausalLM

    result = export(packed_dir, tmp_path / "out", "original")
    synthesize(packed_dir, tmp_path / "back")
    written = snapshot(tmp_path / "out")
    assert written.pop("README.md")
    assert written == snapshot(tmp_path / "back")
    assert result.bytes == weight_bytes(tmp_path / "back")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert model.dtype is torch.bfloat16


def test_dense_is_another_word_for_original(
    packed_dir: Path, tmp_path: Path, snapshot: Snapshot
) -> None:
    """Scripts and stored jobs of earlier versions say it."""
    assert export(packed_dir, tmp_path / "out", "dense").format == "original"
    export(packed_dir, tmp_path / "same", "original")
    assert snapshot(tmp_path / "out") == snapshot(tmp_path / "same")
    spec = KINDS.find("export")().parse({"packed": "p", "out": "o", "format": "dense"})
    assert spec.model_dump()["format"] == "original"


@pytest.mark.parametrize("format", FORMATS)
def test_checks_are_listed(format: Format, packed_dir: Path, tmp_path: Path) -> None:
    result = export(packed_dir, tmp_path / "out", format)
    assert len(result.checks) >= 2
    assert all(check.ok and check.name and check.detail for check in result.checks)
    count = len(TensorStore.open(tmp_path / "out").tensors)
    assert any(f"{count} checksums" in check.detail for check in result.checks)
    values = json.loads(json.dumps(result.to_dict()))
    assert values["checks"][0]["ok"] is True


@pytest.mark.parametrize("format", FORMATS)
def test_the_card(
    format: Format, packed_dir: Path, mixtral_dir: Path, mix: Recipe, tmp_path: Path
) -> None:
    export(packed_dir, tmp_path / "out", format, quality=QUALITY)
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    _, head, body = card.split("---\n", 2)
    assert yaml.safe_load(head)["library_name"] == "transformers"
    assert format in yaml.safe_load(head)["tags"]
    recipe = body.split("```yaml\n")[1].split("```")[0]
    assert Recipe.from_yaml(recipe) == mix
    units = {"B": 1, "kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9}
    rows = {
        key: float(number) * units[unit]
        for key, number, unit in re.findall(r"^\| (.+?) \| ([\d.]+) (\w?B)\b", body, re.MULTILINE)
    }
    for key, directory in (
        ("Original weight files", mixtral_dir),
        ("This checkpoint's weight files", tmp_path / "out"),
        ("Packed form", packed_dir),
    ):
        assert rows[key] == pytest.approx(weight_bytes(directory), rel=0.006), key
    for figure in ("4096", "12.35", "11.99", "0.0123", "98.8 %", "87.7 %"):
        assert figure in body, figure
    assert "3-bit, blocks of 32" in body
    assert "2503.01359" in body
    assert ("from_pretrained" in body) == (format == "original")
    assert ("ders synthesize" in body) == (format == "packed")


@pytest.mark.parametrize(
    ("fields", "said", "rows"),
    [
        ("base: none", ["Each expert's weight was coded by itself"], []),
        (
            "base: mean\nbase_codec: {codec: quantized, bits: 4}\n"
            "others: [{kinds: [attention], codec: lossless}]",
            ["Each expert is `W_base + F(Δ)`"],
            ["| Bases | 4-bit", "| Other tensors coded |"],
        ),
    ],
)
def test_the_card_tells_what_was_coded(
    fields: str, said: list[str], rows: list[str], mixtral_dir: Path, tmp_path: Path
) -> None:
    recipe = Recipe.from_yaml(
        f"name: x\nversion: 2\n{fields}\nrules: [{{codec: quantized, bits: 4}}]\n"
    )
    compress(mixtral_dir, tmp_path / "packed", recipe)
    export(tmp_path / "packed", tmp_path / "out", "packed")
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    for words in (*said, *rows):
        assert words in card
    assert ("W_base" in card) == (fields != "base: none")
    assert ("Other tensors coded" in card) == bool(rows)


def test_the_card_names_the_class_that_loads_it() -> None:
    assert auto_class({"model_type": "mixtral"}) == "AutoModelForCausalLM"
    switch = {"model_type": "switch_transformers", "is_encoder_decoder": True}
    assert auto_class(switch) == "AutoModelForSeq2SeqLM"
    assert getattr(transformers, auto_class(switch))._model_mapping[SwitchTransformersConfig]


def test_the_card_without_measurements(packed_dir: Path, tmp_path: Path) -> None:
    export(packed_dir, tmp_path / "out")
    assert "Not measured" in (tmp_path / "out" / "README.md").read_text()


def test_the_card_leads_with_kl(packed_dir: Path, tmp_path: Path) -> None:
    """Measured, then predicted, before gain, noise and bytes; what is unknown is left out."""
    outlook = {"predicted_kl": 0.0234, "gain": 0.987, "noise": 0.654}
    export(packed_dir, tmp_path / "both", quality=QUALITY, outlook=outlook)
    card = (tmp_path / "both" / "README.md").read_text(encoding="utf-8")
    places = [
        card.index(f"| {value} |") for value in ("0.0123", "0.0234", "12.35", "0.987", "0.654")
    ]
    assert [*places, card.index("Original weight files")] == sorted(
        [*places, card.index("Original weight files")]
    )
    assert "same way in every layer" in card
    export(packed_dir, tmp_path / "predicted", outlook=outlook)
    card = (tmp_path / "predicted" / "README.md").read_text(encoding="utf-8")
    assert "Not measured" in card
    assert "0.0234" in card
    unknown = dict.fromkeys(outlook)
    export(packed_dir, tmp_path / "old", outlook=unknown)
    assert "gain" not in (tmp_path / "old" / "README.md").read_text(encoding="utf-8").lower()


def test_the_card_without_a_reference(packed_dir: Path, tmp_path: Path) -> None:
    alone = QUALITY | dict.fromkeys(
        ("reference_perplexity", "kl", "top1_agreement", "routing_agreement")
    )
    export(packed_dir, tmp_path / "out", quality=alone)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "12.35" in card
    assert "KL" not in card
    assert "None" not in card


def test_the_card_names_no_path_of_this_machine(
    mixtral_dir: Path, dense_parent_dir: Path, mix: Recipe, tmp_path: Path
) -> None:
    recipe = mix.model_copy(update={"base": DenseBase(dense=dense_parent_dir)})
    compress(mixtral_dir, tmp_path / "packed", recipe)
    export(tmp_path / "packed", tmp_path / "out")
    for file in ("README.md", "config.json", "ders_manifest.json"):
        assert str(tmp_path) not in (tmp_path / "out" / file).read_text()
        assert str(dense_parent_dir.parent) not in (tmp_path / "out" / file).read_text()


def test_an_original_readme_stays_beside_the_card(
    mixtral_dir: Path, mix: Recipe, tmp_path: Path
) -> None:
    source = Path(shutil.copytree(mixtral_dir, tmp_path / "source"))
    (source / "README.md").write_text("the original's card")
    compress(source, tmp_path / "packed", mix)
    assert (tmp_path / "packed" / "README.md").read_text() == "the original's card"
    for form in FORMATS:
        export(tmp_path / "packed", tmp_path / f"out-{form}", form)
        assert (tmp_path / f"out-{form}" / "README.md").read_text() == "the original's card"
        assert "DeRS" in (tmp_path / f"out-{form}" / "DERS.md").read_text()


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("part", ["base", "codes", "carried"])
def test_a_damaged_source_is_refused_and_leaves_nothing(
    format: Format, part: str, packed_dir: Path, tmp_path: Path
) -> None:
    damaged = Path(shutil.copytree(packed_dir, tmp_path / "damaged"))
    packed = PackedCheckpoint(damaged)
    group = next(
        group
        for group in packed.manifest.groups
        if isinstance(group.group_codec().codec, Quantized)
    )
    name = "model.norm.weight" if part == "carried" else f"{group.prefix}.{part}"
    info = packed.store.tensors[name]
    data = bytearray(info.file.read_bytes())
    data[info.begin + 1] ^= 4
    info.file.write_bytes(data)
    with raises_saying(DersError, repr(name)):
        export(damaged, tmp_path / "out", format)
    assert [file.name for file in tmp_path.iterdir()] == ["damaged"]


@pytest.mark.parametrize("format", FORMATS)
def test_a_disk_that_lies_is_caught(
    format: Format, packed_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is read back differs from what was written: the output goes."""
    opened = TensorStore.open

    def spoil(path: str | Path) -> TensorStore:
        if Path(path).name == "checkpoint":
            info = opened(path).tensors["lm_head.weight"]
            data = bytearray(info.file.read_bytes())
            data[info.begin] ^= 1
            info.file.write_bytes(data)
        return opened(path)

    monkeypatch.setattr("ders_core.pipeline.export.TensorStore.open", spoil)
    with raises_saying(OutputError, tmp_path / "out", "removed", "'lm_head.weight' differs"):
        export(packed_dir, tmp_path / "out", format)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("format", FORMATS)
def test_an_existing_output_is_refused(format: Format, packed_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with raises_saying(OutputError, tmp_path / "out", "exists"):
        export(packed_dir, tmp_path / "out", format)
    assert list((tmp_path / "out").iterdir()) == []


def test_an_unknown_format_is_refused(packed_dir: Path, tmp_path: Path) -> None:
    wrong: Any = "zip"
    with raises_saying(OutputError, "'zip'", "packed", "original", "patch"):
        export(packed_dir, tmp_path / "out", wrong)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("stop_at", [1, 5, 20])
def test_an_interruption_leaves_nothing(
    stop_at: int, format: Format, packed_dir: Path, tmp_path: Path
) -> None:
    calls = 0

    def stop(done: int, total: int, message: str) -> None:
        nonlocal calls
        calls += 1
        if calls == stop_at:
            raise Cancelled("stopped by the test")

    with pytest.raises(Cancelled):
        export(packed_dir, tmp_path / "out", format, progress=stop)
    assert list(tmp_path.iterdir()) == []
