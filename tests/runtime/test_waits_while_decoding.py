"""What a step of decoding waits for on a device: nothing where products are grouped, and else once
a layer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from support.counted_device import DEVICE, counted_waits

from ders_core.codecs import Codec, Entropy, LowRank, Quantized, Sparse
from ders_core.compute.grouped.blocks import SIZE
from ders_core.decompose.base import Base
from ders_core.decompose.bases.mean import MeanBase
from ders_core.decompose.bases.none import NoBase
from ders_core.hf import load_model
from ders_core.pipeline.compress import compress
from ders_core.recipe import Recipe, Rule
from ders_core.runtime.experts import PackedExperts
from ders_core.runtime.grouped import GroupedLayer
from ders_core.runtime.held import HeldGroup

CODECS: tuple[Codec, ...] = (
    Quantized(bits=2, group_size=16),
    LowRank(rank=3, factor_bits=6),
    Sparse(drop_rate=0.9),
    Entropy(bits=0.3, rounding="unbiased"),
    Entropy(bits=1.3, rounding="unbiased"),
)
CHOSEN = torch.tensor([[0, 2], [3, 1], [2, -1]])
"""−1 stands for no expert."""


def experts_of(codec: Codec, base: Base, original: Path, out: Path) -> PackedExperts:
    """Of the first layer, in float32."""
    compress(original, out, Recipe(name="waits", rules=(Rule(codec=codec),), base=base))
    model = load_model(out, dtype=torch.float32, mode="packed")
    experts = model.model.layers[0].mlp.experts.packed
    assert isinstance(experts, PackedExperts)
    return experts


def inputs(tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    return torch.randn(tokens, 64, generator=random), torch.rand(tokens, 2, generator=random)


@pytest.mark.parametrize("base", [MeanBase(), NoBase()], ids=lambda base: base.label)
@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.label)
def test_experts_one_after_another_wait_once(
    codec: Codec, base: Base, mixtral_dir: Path, tmp_path: Path
) -> None:
    """To learn which tokens each expert has: of few, with which deltas are multiplied as they are,
    and of so many that weights are made."""
    experts = experts_of(codec, base, mixtral_dir, tmp_path / "packed")
    calls = []
    for times in (1, 100):
        x, weights = inputs(times * len(CHOSEN))
        calls.append((x, CHOSEN.repeat(times, 1), weights))
    with torch.inference_mode():
        expected = [experts.compute(*call) for call in calls]
        with counted_waits() as waits:
            experts.to(DEVICE, non_blocking=True)
            there = [[each.to(DEVICE) for each in call] for call in calls]
            assert not waits
            got = [experts.compute(*call) for call in there]
            assert waits.total() == len(calls), waits
            near = [each.cpu() for each in got]
    for one, other in zip(near, expected, strict=True):
        assert float((one - other).abs().max()) <= 1e-5 * float(other.abs().max())


@dataclass(frozen=True)
class Multiplied:
    """Grouped products with whole deltas `[experts, out, in]`, in the place of a kernel."""

    matrices: torch.Tensor

    def add(self, call: object, y: torch.Tensor, column: int) -> None:
        """As of `GroupedProducts`."""
        blocks, shares = call.blocks, call.shares  # type: ignore[attr-defined]
        pairs = blocks.pairs.flatten().long()
        experts = blocks.experts.long().repeat_interleave(SIZE, output_size=len(pairs))
        x = call.x[pairs.clamp(min=0) // call.each]  # type: ignore[attr-defined]
        products = torch.einsum("pi,poi->po", x, self.matrices[experts.clamp(min=0)])
        if shares is not None:
            products = products * shares[pairs.clamp(min=0)].unsqueeze(1)
        products = torch.where(((pairs >= 0) & (experts >= 0)).unsqueeze(1), products, 0.0)
        out = self.matrices.shape[1]
        y[:, column : column + out].index_add_(0, pairs.clamp(min=0), products)


def test_grouped_products_wait_for_nothing(
    mixtral_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What stands around the kernels."""
    experts = experts_of(CODECS[0], MeanBase(), mixtral_dir, tmp_path / "packed")
    x, weights = inputs(len(CHOSEN))
    with torch.inference_mode():
        expected = experts.compute(x, CHOSEN, weights)
        deltas: dict[int, torch.Tensor] = {}
        for name in experts.groups:
            group = experts.group(name)
            identity = torch.eye(group.shape[2])
            each = [group.delta_product(expert, identity).T for expert in range(group.shape[0])]
            deltas[id(group)] = torch.stack(each)
        with counted_waits() as waits:
            experts.to(DEVICE, non_blocking=True)
            far = {key: Multiplied(each.to(DEVICE)) for key, each in deltas.items()}
            monkeypatch.setattr(HeldGroup, "grouped", lambda group: far[id(group)])
            monkeypatch.setattr(type(experts.group("up")), "grouped", HeldGroup.grouped)
            groups = {name: experts.group(name) for name in experts.groups}
            layer = GroupedLayer.of(experts.form, groups)
            assert layer is not None
            got = layer.compute(*(each.to(DEVICE) for each in (x, CHOSEN, weights)))
            assert not waits, waits
            near = got.cpu()
    assert float((near - expected).abs().max()) <= 1e-5 * float(expected.abs().max())
