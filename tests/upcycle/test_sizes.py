"""What is predicted from headers, against what is counted by hand in the models themselves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file
from support.messages import raises_saying

from ders_core.errors import RecipeError
from ders_core.upcycle import (
    Data,
    DenseModel,
    FormRule,
    LowRankForm,
    Renewal,
    SparseForm,
    Training,
    UpcycleConfig,
    Vanilla,
    predict,
)

EXPERTS = 3


def config(form: Vanilla | SparseForm | LowRankForm, **fields: object) -> UpcycleConfig:
    return UpcycleConfig.model_validate(
        {"name": "x", "experts": EXPERTS, "data": Data(texts=(Path("text.txt"),))}
        | {"forms": (FormRule(form=form),)}
        | fields
    )


def count(directory: Path) -> int:
    """Values of all tensors, by reading them."""
    return sum(tensor.numel() for tensor in load_file(directory / "model.safetensors").values())


@pytest.mark.parametrize(
    ("form", "of_one"),
    [
        (Vanilla(), lambda out, width: out * width),
        (LowRankForm(rank=4), lambda out, width: 4 * (out + width)),
        (LowRankForm(rank=500), lambda out, width: min(out, width) * (out + width)),
        (SparseForm(drop_rate=0.9), lambda out, width: round(out * width * (1 - 0.9))),
        (
            SparseForm(drop_rate=0.75, renew=Renewal()),
            lambda out, width: round(out * width * (1 - 0.75)),
        ),
    ],
    ids=lambda value: getattr(value, "label", ""),
)
def test_values_of_a_llama_like_model(
    dense_parent_dir: Path,
    form: Vanilla | SparseForm | LowRankForm,
    of_one: Callable[[int, int], int],
) -> None:
    """gate, up `[112, 64]` and down `[64, 112]` in 2 layers, no biases."""
    dense = DenseModel.open(dense_parent_dir)
    sizes = predict(dense, config(form))
    shapes = [(112, 64), (112, 64), (64, 112)]
    experts = 2 * EXPERTS * sum(of_one(*shape) for shape in shapes)
    base = 2 * sum(out * width for out, width in shapes)
    routers = 2 * EXPERTS * 64
    copies = isinstance(form, Vanilla)
    assert sizes.dense == count(dense_parent_dir)
    assert sizes.added == experts + routers - (base if copies else 0)
    assert sizes.trained == experts + routers + (0 if copies else base)
    assert sizes.parameters == sizes.dense + sizes.added
    index = 4 * experts if isinstance(form, SparseForm) else 0
    assert sizes.parameter_bytes == 4 * sizes.parameters + index
    assert sizes.gradient_bytes == 4 * sizes.trained
    assert sizes.optimizer_bytes == 8 * sizes.trained


def test_frozen_bases_are_not_trained_and_halve_in_bfloat16(dense_parent_dir: Path) -> None:
    dense = DenseModel.open(dense_parent_dir)
    trained = predict(dense, config(LowRankForm(rank=2)))
    frozen = predict(dense, config(LowRankForm(rank=2), base="frozen"))
    base = 2 * 3 * 112 * 64
    assert trained.added == frozen.added
    assert trained.trained - frozen.trained == base
    half = predict(dense, config(LowRankForm(rank=2), base="frozen", training=Training(bf16=True)))
    untrained = frozen.parameters - frozen.trained
    assert frozen.parameter_bytes - half.parameter_bytes == 2 * untrained


@pytest.mark.parametrize("form", [Vanilla(), LowRankForm(rank=4), SparseForm(drop_rate=0.9)])
def test_values_of_a_model_with_biases_and_no_gate(
    gpt2_dir: Path, form: Vanilla | LowRankForm | SparseForm
) -> None:
    """up `[80, 48]` and down `[48, 80]` with biases; the 2nd of 3 layers becomes MoE, and the
    always-on FFN is one more expert."""
    dense = DenseModel.open(gpt2_dir)
    assert (dense.family, dense.hidden, dense.intermediate, dense.layers) == ("gpt2", 48, 80, 3)
    assert dense.parameters == count(gpt2_dir)
    sizes = predict(dense, config(form, layers="every-other", universal=True))
    of_one = {"vanilla": 80 * 48, "lowrank": 4 * (80 + 48), "sparse": round(80 * 48 * (1 - 0.9))}
    members = EXPERTS + 1
    values, biases, routers = 2 * members * of_one[form.name], members * (80 + 48), members * 48
    copies = 2 * 80 * 48 if isinstance(form, Vanilla) else 0
    assert sizes.added == values + biases + routers - copies - (80 + 48)
    assert sizes.trained == values + biases + routers + (2 * 80 * 48 - copies)


def test_bytes_on_disk_are_those_of_the_parts(dense_parent_dir: Path) -> None:
    """Vanilla: whole copies. LM: the base and what its codec says of each expert, router beside."""
    dense = DenseModel.open(dense_parent_dir)
    itemsize = 2  # bfloat16
    shapes = [(112, 64), (112, 64), (64, 112)]
    base = sum(out * width for out, width in shapes) * itemsize
    routers = EXPERTS * 64 * itemsize
    before = sum(info.nbytes for info in dense.store.tensors.values())
    vanilla = predict(dense, config(Vanilla()))
    assert vanilla.dense_bytes == before
    assert vanilla.packed_bytes == before + 2 * ((EXPERTS - 1) * base + routers)
    low = predict(dense, config(LowRankForm(rank=4)))
    parts = sum(4 * (out + width) for out, width in shapes) * itemsize
    assert low.packed_bytes == before + 2 * (EXPERTS * parts + routers)


def test_a_layer_that_is_not_there(dense_parent_dir: Path) -> None:
    with raises_saying(RecipeError, "layers", "layer 5", "0-1"):
        predict(DenseModel.open(dense_parent_dir), config(Vanilla(), layers="0,5"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("form", "fields"),
    [
        (Vanilla(), {"layers": "1"}),
        (LowRankForm(rank=3), {"base": "frozen", "universal": True}),
        (SparseForm(drop_rate=0.9), {"layers": "every-other", "router": {"train": False}}),
        (SparseForm(drop_rate=0.9, renew=Renewal()), {"universal": True}),
    ],
    ids=lambda value: getattr(value, "label", ""),
)
@pytest.mark.parametrize("parent", ["gpt2", "mistral"])
def test_what_is_trained_and_written_is_what_was_predicted(
    gpt2_dir: Path,
    dense_parent_dir: Path,
    tmp_path: Path,
    tiny_text: str,
    parent: str,
    form: Vanilla | LowRankForm | SparseForm,
    fields: dict[str, object],
) -> None:
    from ders_core.upcycle.upcycler import upcycle

    (tmp_path / "text.txt").write_text(tiny_text, encoding="utf-8")
    data = Data(texts=(tmp_path / "text.txt",), window=32)
    chosen = config(form, data=data, training=Training(steps=1, batch=1), **fields)
    place = gpt2_dir if parent == "gpt2" else dense_parent_dir
    result = upcycle(place, tmp_path / "out", chosen, device="cpu")
    predicted = predict(DenseModel.open(place), chosen)
    assert result.trained == predicted.trained
    assert result.packed_bytes <= 1.01 * predicted.packed_bytes + 30_000  # with the files' headers
    assert result.packed_bytes >= 0.8 * predicted.packed_bytes
