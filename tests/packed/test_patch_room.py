"""The room that a patch against a base takes is known before anything is written."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors import safe_open
from support.messages import raises_saying

from ders_core.errors import OutputError
from ders_core.files.store import TensorStore
from ders_core.packed.patch import least_bytes
from ders_core.packed.reader import PackedCheckpoint
from ders_core.pipeline.export import export

Free = Callable[[int], None]


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Free:
    """Pretends that a disk has so many free bytes."""
    usage = shutil.disk_usage

    def have(count: int) -> None:
        total, used, _ = usage("/")
        monkeypatch.setattr(
            shutil, "disk_usage", lambda _: SimpleNamespace(total=total, used=used, free=count)
        )

    return have


def travelling(patch: Path) -> int:
    """Bytes of the tensors in a patch, as safetensors reads them."""
    total = 0
    for file in patch.glob("patch*.safetensors"):
        with safe_open(file, "pt") as opened:
            tensors = [opened.get_tensor(name) for name in opened.keys()]  # noqa: SIM118
        total += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    return total


def test_it_is_compared_once_the_base_is_read(
    packed: Path, other: Path, tmp_path: Path, free: Free
) -> None:
    export(packed, tmp_path / "first", "patch", base=other)
    needed = travelling(tmp_path / "first")
    assert needed > least_bytes(PackedCheckpoint(packed), other)
    free(needed - 1)
    with raises_saying(OutputError, str(tmp_path), "needs", "free"):
        export(packed, tmp_path / "second", "patch", base=other)
    assert [path.name for path in tmp_path.iterdir()] == ["first"]
    free(1 << 40)
    export(packed, tmp_path / "second", "patch", base=other)
    assert travelling(tmp_path / "second") == needed


def test_what_no_base_of_these_shapes_can_hold_is_compared_before_it_is_read(
    packed: Path,
    other: Path,
    mixtral_dir: Path,
    tmp_path: Path,
    free: Free,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def never(*_: object) -> None:
        pytest.fail("the base was read")

    monkeypatch.setattr("ders_core.packed.patch.make.tensor_checksums", never)
    held = {info.spec.stored for info in TensorStore.open(mixtral_dir).tensors.values()}
    mine = TensorStore.open(packed).tensors.values()
    least = sum(info.nbytes for info in mine if info.spec.stored not in held)
    assert least == least_bytes(PackedCheckpoint(packed), mixtral_dir) > 0
    free(least - 1)
    with raises_saying(OutputError, str(tmp_path), "needs", "free"):
        export(packed, tmp_path / "patch", "patch", base=mixtral_dir)
    assert not list(tmp_path.iterdir())
