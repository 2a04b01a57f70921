"""What holds for every registered codec: the checks that ship with the package."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.codec_support import STRENGTHS, gauss, inputs, second_moments

from ders_core.codecs import CODECS, Codec, EncodeContext, Expected, Keep, Parts, make_codec
from ders_core.codecs.testing import CHECKS, check_class, check_codec, examples_of
from ders_core.codecs.testing.inputs import DTYPES
from ders_core.codecs.testing.packing import check_packing
from ders_core.files.dtype import Dtype
from ders_core.files.spec import TensorSpec

EXAMPLES = list(
    dict.fromkeys(
        [
            *(codec for cls in CODECS.values() for codec in examples_of(cls)),
            *(make_codec(fields) for fields in STRENGTHS),
        ]
    )
)


@pytest.mark.parametrize("cls", CODECS.values(), ids=list(CODECS))
def test_classes_describe_themselves(cls: type[Codec]) -> None:
    check_class(cls)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("codec", EXAMPLES, ids=lambda codec: codec.label)
def test_codecs_conform(codec: Codec, check: Callable[[Codec], None]) -> None:
    check(codec)


def test_labels_tell_examples_apart() -> None:
    labels = [codec.label for codec in EXAMPLES if getattr(codec, "svd", "auto") == "auto"]
    assert len(set(labels)) == len(labels)


@pytest.mark.parametrize("codec", EXAMPLES, ids=lambda codec: codec.label)
@settings(max_examples=10, deadline=None)
@given(
    out=st.integers(1, 24),
    width=st.integers(1, 40),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**62 - 1),
    calibration=st.sampled_from(["none", "diagonal", "full"]),
)
def test_any_weight_is_packed_as_promised(
    codec: Codec, out: int, width: int, dtype: torch.dtype, seed: int, calibration: str
) -> None:
    base = gauss((out, width), seed % 997, 1.0).to(dtype)
    weight = (base.float() + gauss((out, width), seed % 1000)).to(dtype)
    moments = None
    if calibration != "none":
        moments = second_moments(
            inputs(width, tokens=1 + seed % 60)
        )  # often of less than full rank
        moments = moments.diagonal() if calibration == "diagonal" else moments
    delta = weight.float() - base.float()
    check_packing(
        codec.fit([delta, delta * 0.5]), weight, base, EncodeContext(dtype, seed, moments)
    )


class Faulty(Keep):
    """A codec that breaks one promise at a time."""

    name: ClassVar[str] = "faulty"
    fault: str = ""

    def parts(self, shape: tuple[int, int], dtype: Dtype) -> dict[str, TensorSpec]:
        out, width = shape
        width += self.fault == "promise"
        return {"weight": TensorSpec(dtype, (out, width))}

    def pack(self, weight: torch.Tensor, base: torch.Tensor, context: EncodeContext) -> Parts:
        if self.fault == "purity" and weight.numel():
            weight[0, 0] += 1
        noise = torch.rand(weight.shape) if self.fault == "determinism" else 0.0
        return {"weight": (weight + noise).to(weight.dtype)}

    def unpack(
        self, parts: Mapping[str, torch.Tensor], base: torch.Tensor, context: EncodeContext
    ) -> torch.Tensor:
        weight = parts["weight"]
        if self.fault == "dtype":
            return weight.double()
        return weight * torch.nan if self.fault == "finite" else weight.clone()

    def expected(self, statistics: Any) -> Expected:
        return Expected(0.5 if self.fault == "gain" else 1.0, float(self.fault == "noise"))


@pytest.mark.parametrize(
    "fault", ["promise", "purity", "determinism", "dtype", "finite", "gain", "noise", ""]
)
def test_the_checks_see_faults(fault: str) -> None:
    CODECS.register(Faulty)
    try:
        if fault:
            with pytest.raises(AssertionError):
                check_codec(Faulty(fault=fault))
        else:
            check_codec(Faulty())
    finally:
        CODECS.unregister("faulty")
