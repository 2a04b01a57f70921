"""One way to write a packed checkpoint: what stands in the directory, and what is checked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from support.messages import raises_saying

from ders_core.codecs.group import Stacked
from ders_core.errors import OutputError
from ders_core.files.side_files import SideFile
from ders_core.files.spec import TensorSpec
from ders_core.files.store import TensorStore
from ders_core.files.writer import file_order
from ders_core.packed.manifest import Manifest
from ders_core.packed.writer import (
    PackedContents,
    PackedFile,
    source_on_no_disk,
    write_packed,
)
from ders_core.recipe import Recipe

CONFIG = {"model_type": "mixtral", "num_hidden_layers": 1}
TENSORS = {
    "b": torch.arange(6.0).reshape(2, 3),
    "a": torch.ones(4, dtype=torch.bfloat16),
    "c": torch.zeros(2, 2, dtype=torch.float64),
}


def contents(side_files: list[SideFile], **changes: Any) -> PackedContents:
    specs = {name: TensorSpec.like(t) for name, t in TENSORS.items()}
    fields: dict[str, Any] = {
        "tensors": {name: Stacked.whole(tensor) for name, tensor in TENSORS.items()},
        "groups": [],
        "source": source_on_no_disk(specs, CONFIG),
        "layout": "mixtral",
        "config": CONFIG,
        "recipe": Recipe(name="nothing"),
        "side_files": side_files,
    }
    return PackedContents(**fields | changes)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    directory = tmp_path / "out"
    directory.mkdir()
    return directory


def test_everything_is_there(out: Path, tmp_path: Path) -> None:
    side = tmp_path / "tokenizer.json"
    side.write_text("{}")
    seen: dict[str, str] = {}
    counts: list[int] = []
    written = write_packed(
        out,
        contents([SideFile(side.name, side)]),
        advance=lambda count, message: counts.append(count),
        check=seen.__setitem__,
    )
    assert {file.name for file in out.iterdir()} == {
        "model.safetensors",
        "config.json",
        "ders_manifest.json",
        "tokenizer.json",
    }
    store = TensorStore.open(out)
    assert all(torch.equal(store.tensors[name].read(), t) for name, t in TENSORS.items())
    assert written.bytes_total == store.bytes_total == (out / "model.safetensors").stat().st_size
    assert written.checksums == seen == Manifest.read(out).checksums
    assert sum(counts) == sum(tensor.nbytes for tensor in TENSORS.values())


def test_tensors_lie_where_the_contents_say(out: Path) -> None:
    files = [PackedFile(["b", "a"], 1000), PackedFile(["c"], 0)]
    written = write_packed(out, contents([], files=files))
    names = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    store = TensorStore.open(out)
    assert store.files == {names[0]: ("b", "a"), names[1]: ("c",)}
    assert store.tensors["b"].begin == 1000 > store.tensors["c"].begin
    assert all(torch.equal(store.tensors[name].read(), t) for name, t in TENSORS.items())
    assert list(Manifest.read(out).checksums) == list(written.checksums) == ["b", "a", "c"]


def test_a_source_on_no_disk_gets_the_identity_that_it_would_have(
    out: Path, tmp_path: Path
) -> None:
    write_packed(out, contents([]))
    source = tmp_path / "source"
    source.mkdir()
    specs = {name: TensorSpec.like(t) for name, t in TENSORS.items()}
    save_file({name: TENSORS[name] for name in file_order(specs)}, source / "model.safetensors")
    (source / "config.json").write_text(json.dumps(CONFIG))
    assert Manifest.read(out).source.identity == TensorStore.open(source).identity


def test_how_the_source_was_quantized_is_kept(out: Path) -> None:
    config = CONFIG | {"quantization_config": {"quant_method": "fp8"}}
    source = source_on_no_disk({}, config).model_copy(update={"identity": "known"})
    write_packed(out, contents([], config=config, source=source))
    quantization = json.loads((out / "config.json").read_text())["quantization_config"]
    assert quantization["quant_method"] == "ders"
    assert quantization["original"] == {"quant_method": "fp8"}
    assert Manifest.read(out).source.identity == "known"


def test_a_check_that_fails_ends_the_writing(out: Path) -> None:
    def check(name: str, sha256: str) -> None:
        raise OutputError(f"{name} is damaged")

    with raises_saying(OutputError, "damaged"):
        write_packed(out, contents([]), check=check)
    assert not (out / "ders_manifest.json").exists()
