"""A task for the encoder travels to other processes, and keeps credentials to itself."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import pytest

from ders_core.codecs import Keep, Quantized
from ders_core.files.dtype import Dtype
from ders_core.files.header import read_header
from ders_core.files.spec import TensorSpec
from ders_core.files.tensor import FileTensor
from ders_core.packed.open import open_checkpoint
from ders_core.pipeline.encode import CheckpointRef, EncodeTask, encode
from ders_core.pipeline.report import ReportEntry
from ders_core.recipe import ClusteredBase, DenseBase, Recipe, Rule

RULES = (Rule(codec=Quantized(bits=2)), Rule(codec=Keep(), experts="1"))


@pytest.fixture
def task(mixtral_dir: Path, tmp_path: Path) -> EncodeTask:
    source = open_checkpoint(mixtral_dir)
    return EncodeTask(
        source=CheckpointRef(source.place, source.identity),
        recipe=Recipe(name="x", rules=RULES),
        key=(1, "up"),
        device="cpu",
        staged=str(tmp_path / "group.safetensors"),
        ahead=(1, "down"),
    )


@pytest.mark.parametrize("base", [DenseBase(dense=Path("a b")), ClusteredBase(clusters=2)])
def test_a_task_arrives_as_it_was_sent(
    task: EncodeTask, base: DenseBase | ClusteredBase, tmp_path: Path
) -> None:
    sent = replace(task, recipe=task.recipe.model_copy(update={"base": base}))
    assert pickle.loads(pickle.dumps(sent)) == sent
    arrived = pickle.loads(pickle.dumps(task))
    entry = encode(replace(arrived, staged=str(tmp_path / "arrived.safetensors")))
    assert isinstance(entry, ReportEntry)
    assert (entry.layer, entry.projection, entry.base) == (1, "up", "mean")
    encode(task)
    files = [tmp_path / f"{name}.safetensors" for name in ("group", "arrived")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert sum(info.nbytes for info in read_header(files[0])[0].values()) == entry.bytes_after


def test_a_tensor_without_a_place_is_a_fault(task: EncodeTask, tmp_path: Path) -> None:
    """It would be staged, and nobody would copy it."""
    places = {"x": FileTensor("x", TensorSpec(Dtype.U8, (0,)), tmp_path / "x", 0, 0)}
    with pytest.raises(AssertionError, match=r"no place for .*ders\.up\.weight"):
        encode(replace(task, recipe=Recipe(name="kept"), places=places))
    assert list(tmp_path.iterdir()) == []


def test_an_address_is_not_shown(task: EncodeTask) -> None:
    ref = CheckpointRef("https://name:secret@example.org/model", "0" * 64)
    assert "secret" not in repr(replace(task, source=ref))
    assert "0" * 64 in repr(ref)
