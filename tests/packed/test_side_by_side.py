"""Tensors that hold many experts are filled by several threads, with the same bits."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from support.disk_forms import FORMS, write

from ders_core.codecs import Quantized
from ders_core.compute.threads import threads_of_torch
from ders_core.packed.matrices import PackedMatrices
from ders_core.packed.reader import PackedCheckpoint
from ders_core.pipeline.compress import compress
from ders_core.recipe import Recipe, Rule


@pytest.mark.parametrize("form", ["gpt_oss", "llama4", "dbrx"])
def test_experts_of_one_tensor(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(tmp_path / "source", *FORMS[form])
    compress(source, tmp_path / "packed", Recipe(name="x", rules=(Rule(codec=Quantized(bits=4)),)))
    plain = PackedMatrices.weight
    both = threading.Barrier(2)  # passed only by two at once

    def weight(self: PackedMatrices, *given: Any) -> torch.Tensor:
        if torch.get_num_threads() == 1 and waits:
            both.wait(60)
        return plain(self, *given)

    monkeypatch.setattr(PackedMatrices, "weight", weight)
    tensors = PackedCheckpoint(tmp_path / "packed").original
    assembled = [name for name, each in tensors.assembler.tensors.items() if len(each.members) > 1]
    assert assembled
    for name in assembled:
        waits = len(tensors.assembler.tensors[name].members) % 2 == 0
        with threads_of_torch(2):
            found = tensors.read(name)
        waits = False
        with threads_of_torch(1):
            alone = tensors.read(name)
        assert torch.equal(found, alone)
        assert torch.equal(found, torch.cat(list(tensors.pieces(name))).view(found.shape))
        assert (found - FORMS[form][0][name].to(found.dtype)).abs().max() < 0.5
