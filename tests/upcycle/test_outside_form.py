"""A form from outside of the package is trained, packed, verified, synthesized and loaded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from support.messages import raises_saying
from support.toy_form import RowShift
from support.upcycle_support import VOCABULARY, config_of, tensors

from ders_core.errors import RecipeError
from ders_core.hf import load_model
from ders_core.pipeline.synthesize import synthesize
from ders_core.pipeline.verify import verify
from ders_core.upcycle import DenseModel, UpcycleConfig, predict
from ders_core.upcycle.forms import FORMS
from ders_core.upcycle.loading import load_upcycled
from ders_core.upcycle.testing import CHECKS, Check
from ders_core.upcycle.upcycler import upcycle

FORM = "[{form: rowshift, scale: 3}]"


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    FORMS.register(RowShift)
    yield
    FORMS.unregister(RowShift.name)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_conformance(check: Check) -> None:
    check(RowShift(scale=3))


def test_it_is_trained_packed_and_loaded(llama: Path, text: Path, tmp_path: Path) -> None:
    config = config_of(text, FORM, training={"steps": 3})
    assert config.label == "RS 3"
    packed, moe = tmp_path / "packed", tmp_path / "moe"
    result = upcycle(llama, packed, config, device="cpu")
    assert result.start_difference < 1e-4
    assert result.trained == predict(DenseModel.open(llama), config).trained
    shifts = tensors(packed)["model.layers.0.block_sparse_moe.ders.up.left"]
    assert shifts.abs().sum() > 0
    synthesize(packed, moe)
    assert verify(packed, moe).ok
    tokens = torch.randint(0, VOCABULARY, (2, 24), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        plain = load_model(moe, dtype=torch.float32)(input_ids=tokens).logits
        light = load_upcycled(packed, dtype=torch.float32)[0](input_ids=tokens).logits
    assert torch.allclose(plain, light, rtol=1e-4, atol=1e-4 * float(plain.std()))


def test_it_is_unknown_afterwards() -> None:
    FORMS.unregister(RowShift.name)
    try:
        with raises_saying(RecipeError, "form 'rowshift'", "lowrank, sparse, vanilla"):
            UpcycleConfig.from_yaml(f"name: x\nforms: {FORM}\ndata: {{texts: x}}\n")
    finally:
        FORMS.register(RowShift)
