"""Experts that are gathered side by side: the same parameters as transformers' own conversions."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import MixtralForCausalLM
from transformers.core_model_loading import (
    Chunk,
    Concatenate,
    ConversionOps,
    MergeModulelist,
    SkipParameters,
    Transpose,
    WeightConverter,
)
from transformers.modeling_utils import LoadStateDictInfo

from ders_core.compute.threads import threads_of_torch
from ders_core.errors import CheckpointError
from ders_core.files.spec import TensorSpec
from ders_core.hf.gathered import Gathering, gathering
from ders_core.hf.lazy import LazyTensor
from ders_core.packed.model_tensors import ModelTensors

MERGE, JOIN = MergeModulelist(dim=0), Concatenate(dim=1)
OPERATIONS: dict[str, list[ConversionOps]] = {
    "stacked": [MERGE],
    "stacked and concatenated": [MERGE, JOIN],
    "stacked along columns": [MergeModulelist(dim=1)],
    "concatenated along experts": [MERGE, Concatenate(dim=0)],
    "concatenated alone": [Concatenate(dim=0)],
    "turned": [MERGE, JOIN, Transpose(1, 2)],
    "cut": [Chunk(dim=0)],
}


@dataclass
class Given:
    """Tensors in memory, read as those of a packed checkpoint are. failing: a name whose file is
    damaged."""

    values: dict[str, torch.Tensor]
    failing: str = ""
    read_names: list[str] = field(default_factory=list)

    def read(self, name: str) -> torch.Tensor:
        if name == self.failing:
            raise CheckpointError(f"{name} cannot be read")
        self.read_names.append(name)
        return self.values[name].clone()

    def spec(self, name: str) -> TensorSpec:
        return TensorSpec.like(self.values[name])

    def lazy(self, name: str) -> LazyTensor:
        return LazyTensor(cast(ModelTensors, self), name)


def converted(
    conversion: WeightConverter, tensors: dict[str, list[tuple[str, Any]]], dtype: torch.dtype
) -> dict[str, torch.Tensor] | None:
    """What a conversion makes of tensors by source pattern, as transformers asks for it; None where
    they do not fit together."""
    conversion = deepcopy(conversion)
    for pattern, members in tensors.items():
        for name, tensor in members:

            def take(tensor: Any = tensor) -> Any:
                return tensor[...].to(device="cpu", dtype=dtype)

            conversion.add_tensor("whole.weight", name, pattern, take)
    info = LoadStateDictInfo(set(), set(), set(), [], {}, set())
    try:
        result: dict[str, torch.Tensor] = conversion.convert("whole.weight", loading_info=info)
    except (SkipParameters, IndexError, KeyError, ValueError):
        return None
    return {name: value[0] if isinstance(value, list) else value for name, value in result.items()}


@settings(deadline=None, max_examples=60)
@given(
    operations=st.sampled_from(list(OPERATIONS)),
    experts=st.integers(1, 5),
    heights=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    width=st.integers(1, 5),
    odd=st.sampled_from(["", "fewer", "wider", "dtype", "flat", "missing"]),
    dtype=st.sampled_from([torch.bfloat16, torch.float32]),
    threads=st.integers(1, 3),
)
def test_parameters_are_those_of_transformers(
    operations: str,
    experts: int,
    heights: list[int],
    width: int,
    odd: str,
    dtype: torch.dtype,
    threads: int,
) -> None:
    random = torch.Generator().manual_seed(experts)
    values, names = dict[str, torch.Tensor](), dict[str, list[str]]()
    for number, height in enumerate(heights):
        for expert in range(experts):
            name = f"experts.{expert}.w{number}"
            values[name] = torch.randn(height, width, generator=random)
            names.setdefault(f"experts.*.w{number}", []).append(name)
    last = list(values)[-1]
    match odd:
        case "fewer" if experts > 1:
            names[f"experts.*.w{len(heights) - 1}"].remove(last)
        case "wider":
            values[last] = torch.randn(2, width + 1, generator=random)
        case "dtype":
            values[last] = values[last].to(torch.float16)
        case "flat":
            values = {name: tensor[0] for name, tensor in values.items()}
        case "missing" if len(heights) > 1:
            del names["experts.*.w0"]
    patterns = [f"experts.*.w{number}" for number in range(len(heights))]
    targets = ["whole", "rest"] if operations == "cut" and len(heights) == 1 else ["whole"]
    conversion = WeightConverter(patterns, targets, OPERATIONS[operations])
    (ours,), source = within(conversion), Given(values)
    assert type(ours) is Gathering
    lazy = {p: [(n, source.lazy(n)) for n in each] for p, each in names.items()}
    plain = {p: [(n, values[n]) for n in each] for p, each in names.items()}
    with threads_of_torch(threads):
        result = converted(ours, lazy, dtype)
    expected = converted(conversion, plain, dtype)
    assert (result is None) == (expected is None)
    if result is None or expected is None:
        return
    assert result.keys() == expected.keys()
    for name, parameter in expected.items():
        assert result[name].dtype is dtype
        assert torch.equal(result[name], parameter)
    assert sorted(source.read_names) == sorted(n for each in names.values() for n in each)


def within(*conversions: Any) -> list[Any]:
    model = MixtralForCausalLM.__new__(MixtralForCausalLM)
    object.__setattr__(model, "_weight_conversions", [])
    with gathering(model, conversions) as ours:
        return ours


def test_an_error_is_the_reader_s_own() -> None:
    """transformers would tell of a tensor that is missing."""
    values = {f"experts.{expert}.w0": torch.ones(2, 3) for expert in range(4)}
    (ours,) = within(WeightConverter(["experts.*.w0"], ["whole"], [MERGE]))
    source = Given(values, failing="experts.2.w0")
    members = [(name, source.lazy(name)) for name in values]
    with pytest.raises(CheckpointError, match=r"experts\.2\.w0 cannot be read"):
        converted(ours, {"experts.*.w0": members}, torch.float32)


def test_a_model_keeps_the_conversions_of_transformers() -> None:
    used, unused = (WeightConverter(["a.*.b"], [target], [MERGE]) for target in ("c", "d"))
    model = MixtralForCausalLM.__new__(MixtralForCausalLM)
    with gathering(model, [unused, used]) as ours:
        object.__setattr__(model, "_weight_conversions", [ours[1]])
    assert model._weight_conversions == [used]
