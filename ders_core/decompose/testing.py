"""What every kind of base must do: pytest classes to inherit, for ours and for yours.

    class TestMine(BaseConformance):
        @pytest.fixture
        def base(self) -> Base:
            return MyBase()

runs all of it over small groups in several forms: odd shapes, float16, experts that are stored
transposed, biases, and a shared expert. A base that reads files can take the fixtures `group` and
`tmp_path`, and write what it reads. This module imports pytest; nothing else in the package imports
this one.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from ders_core.checkpoint import Checkpoint, ExpertGroup
from ders_core.decompose.base import BASES, Base, BaseContext, make_base
from ders_core.decompose.decomposition import Decomposition
from ders_core.errors import CheckpointError, DersError, RecipeError
from ders_core.files.store import TensorStore
from ders_core.files.writer import write_json, write_tensors

OUT, IN = 7, 13
"""Rows and columns of an expert's gate; odd, and no multiple of anything."""


def experts(starts: list[int], out: int = OUT, width: int = IN, seed: int = 0) -> torch.Tensor:
    """`[K, out, width]` float32: each expert is the start that the list names, plus noise."""
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(max(starts) + 1, out, width, generator=generator)
    return start[starts] + 0.1 * torch.randn(len(starts), out, width, generator=generator)


def plain(directory: Path, weights: torch.Tensor | None = None) -> ExpertGroup:
    """The gate `[K, out, in]` of a Mixtral block; five experts, or those in `weights`."""
    gate = experts([0] * 5).bfloat16() if weights is None else weights
    block = "model.layers.0.block_sparse_moe"
    tensors = {}
    for expert, weight in enumerate(gate):
        tensors[f"{block}.experts.{expert}.w1.weight"] = weight.clone()
        tensors[f"{block}.experts.{expert}.w3.weight"] = weight.clone()
        tensors[f"{block}.experts.{expert}.w2.weight"] = weight.T.contiguous()
    checkpoint = _checkpoint(directory, tensors, model_type="mixtral", num_local_experts=len(gate))
    return checkpoint.group(0, "gate")


def float16(directory: Path) -> ExpertGroup:
    """As `plain`, in float16."""
    return plain(directory, experts([0] * 5).half())


def sets(directory: Path) -> ExpertGroup:
    """As `plain`, six experts of two starts."""
    return plain(directory, experts([0, 1, 0, 1, 1, 0]).bfloat16())


def biased(directory: Path) -> ExpertGroup:
    """The down projection of a GPT-OSS block: one tensor of all experts, transposed, and biases."""
    weights = {"gate_up_proj": experts([0] * 4, IN, 2 * OUT), "down_proj": experts([0] * 4)}
    tensors = {"model.layers.0.mlp.router.weight": torch.ones(4, IN)}
    for name, weight in weights.items():
        tensors[f"model.layers.0.mlp.experts.{name}"] = weight.bfloat16()
        tensors[f"model.layers.0.mlp.experts.{name}_bias"] = weight[:, 0].bfloat16().contiguous()
    checkpoint = _checkpoint(directory, tensors, model_type="gpt_oss", num_local_experts=4)
    return checkpoint.group(0, "down")


def extended(directory: Path) -> ExpertGroup:
    """The up projection of a Qwen2-MoE block, its shared expert as the last of four."""
    tensors = {"model.layers.0.mlp.gate.weight": torch.ones(3, IN)}
    for name, shape in (("gate", (OUT, IN)), ("up", (OUT, IN)), ("down", (IN, OUT))):
        weights = experts([0] * 4, *shape).bfloat16()
        places = [f"experts.{number}" for number in range(3)] + ["shared_expert"]
        for place, weight in zip(places, weights, strict=True):
            tensors[f"model.layers.0.mlp.{place}.{name}_proj.weight"] = weight.clone()
    checkpoint = _checkpoint(directory, tensors, model_type="qwen2_moe", num_experts=3)
    return checkpoint.group(0, "up", extended=True)


def _checkpoint(directory: Path, tensors: dict[str, torch.Tensor], **config: Any) -> Checkpoint:
    directory.mkdir()
    write_tensors(directory / "model.safetensors", tensors)
    write_json(directory / "config.json", {"num_hidden_layers": 1, **config})
    return Checkpoint(TensorStore.open(directory))


GROUPS: dict[str, Callable[[Path], ExpertGroup]] = {
    form.__name__: form for form in (plain, float16, sets, biased, extended)
}
"""The groups that every kind of base must decompose, by what is special about them."""


def routing(group: ExpertGroup) -> list[int]:
    """As a calibration counts it: expert i saw i tokens."""
    return list(range(group.shape[0]))


def _read_all(splits: list[tuple[str, Decomposition]]) -> None:
    """Read every weight, as encoding does."""
    for _, split in splits:
        for _ in split.deltas():
            pass


class BaseConformance:
    """Inherit it and define the fixture `base`."""

    context = BaseContext(tokens=routing)

    @pytest.fixture
    def base(self) -> Base:
        raise NotImplementedError("define the fixture `base`, which returns what is tested")

    @pytest.fixture(params=list(GROUPS))
    def group(self, request: pytest.FixtureRequest, tmp_path: Path) -> ExpertGroup:
        return GROUPS[request.param](tmp_path / "experts")

    def splits(self, base: Base, group: ExpertGroup) -> list[tuple[str, Decomposition]]:
        """All decompositions that the base offers, in order."""
        base.check(group)
        return list(base.decompositions(group, self.context))

    def test_it_is_registered_and_described(self, base: Base) -> None:
        kind = BASES.find(base.name)
        assert isinstance(base, kind)
        assert base.name in base.spelling()
        assert base.label.strip()
        assert base.summary.strip().endswith(".")
        start = kind.start()
        assert start is None or isinstance(start, kind)
        assert start is not None or not base.tried_by_auto
        assert not kind.model_fields or base.name in kind.model_fields

    def test_yaml_and_back(self, base: Base) -> None:
        text = yaml.safe_dump({"base": base.dump()}, allow_unicode=True)
        again = make_base(yaml.safe_load(text)["base"])
        assert again == base
        assert type(again) is type(base)
        assert yaml.safe_dump({"base": again.dump()}, allow_unicode=True) == text
        assert pickle.loads(pickle.dumps(base)) == base
        with pytest.raises(RecipeError, match=base.name):
            make_base({**base.model_dump(mode="json"), base.name: None, "no such field": 1})

    def test_it_travels_without_the_paths_of_this_machine(self, base: Base) -> None:
        public = base.public()
        assert [path.name for path in base.files] == [str(path) for path in public.files]
        assert make_base(public.dump()) == public
        base.check_files()
        identity = base.identity()
        assert (identity is not None) == bool(base.files)
        assert base.identity() == identity

    def test_base_and_delta_are_the_weight(self, base: Base, group: ExpertGroup) -> None:
        """To the last bit in float32, so that the base's rounding is nobody's error."""
        splits = self.splits(base, group)
        assert splits
        assert len({name for name, _ in splits}) == len(splits)
        for _, split in splits:
            assert split.base.dtype is group.dtype.torch
            assert bool(torch.isfinite(split.base).all())
            for expert, delta in enumerate(split.deltas()):
                weight, expert_base = group.read(expert), split.base_of(expert)
                assert delta.dtype is torch.float32
                assert expert_base.shape == delta.shape == weight.shape
                assert torch.equal(delta.double(), weight.double() - expert_base.double())
                assert torch.equal(expert_base.float() + delta, weight.float())

    def test_it_takes_the_bytes_that_it_promises(self, base: Base, group: ExpertGroup) -> None:
        count, (members, *matrix) = base.count(group.shape[0]), group.shape
        for _, split in self.splits(base, group):
            if split.bases is None:
                stacked, shape = None, matrix
            else:
                stacked = max(split.bases) + 1
                shape = [stacked, *matrix]
                assert len(split.bases) == members
                assert set(split.bases) == set(range(stacked))
            assert list(split.base.shape) == shape
            if count.exact:
                assert stacked == count.most
            else:
                assert (stacked or 1) <= (count.most or 1)

    def test_the_same_bytes_again(self, base: Base, group: ExpertGroup) -> None:
        first, second = self.splits(base, group), self.splits(base, group)
        assert [name for name, _ in first] == [name for name, _ in second]
        for (_, one), (_, other) in zip(first, second, strict=True):
            assert torch.equal(one.base, other.base)
            assert one.bases == other.bases

    def test_what_is_not_finite_is_refused_by_its_name(
        self, base: Base, group: ExpertGroup, tmp_path: Path
    ) -> None:
        weights = group.read()
        weights[1, 2, 3] = float("nan")
        damaged = replace(group, experts=plain(tmp_path / "damaged", weights).experts)
        with pytest.raises(CheckpointError, match=rf"experts\.1\.|layer 0, {group.projection}"):
            _read_all(self.splits(base, damaged))

    def test_without_a_calibration(self, base: Base, group: ExpertGroup) -> None:
        """It works, or says what it needs."""
        if base.needs_calibration:
            with pytest.raises(DersError, match="calibration"):
                list(base.decompositions(group, BaseContext()))
        else:
            assert list(base.decompositions(group, BaseContext()))
