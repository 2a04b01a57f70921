"""Every family, every form: it starts as the dense model, and what is written is what was there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.upcycle_support import FAMILIES, VOCABULARY, dense_model

from ders_core.compute.progress import Meter, quiet
from ders_core.files.json_object import read_json
from ders_core.files.writer import write_json
from ders_core.hf import load_model
from ders_core.hf.upcycled import UPCYCLED
from ders_core.packed.open import open_checkpoint
from ders_core.packed.reader import PackedCheckpoint
from ders_core.pipeline.synthesize import synthesize
from ders_core.pipeline.verify import verify
from ders_core.upcycle import UpcycleConfig
from ders_core.upcycle.data import Windows
from ders_core.upcycle.dense_model import FAMILIES as KNOWN
from ders_core.upcycle.loading import load_upcycled
from ders_core.upcycle.saving import RECORD, public_config
from ders_core.upcycle.sources import FromDense, TrainableModel

FORMS = {
    "vanilla": "[{form: vanilla}]",
    "SM": "[{form: sparse, drop_rate: 0.8}]",
    "SM learned": "[{form: sparse, drop_rate: 0.8, renew: {}}]",
    "LM": "[{form: lowrank, rank: 3}]",
    "mixed": "[{form: lowrank, rank: 2}, {projections: down, form: sparse, drop_rate: 0.7}]",
}
PLACES = {
    "everywhere": "",
    "every other": "layers: every-other\n",
    "universal": "universal: true\n",
    "every other, universal, top-1": "layers: 0,2\nuniversal: true\ntop_k: 1\n",
}
STANDARD = {
    ("llama", "everywhere"): "mixtral",
    ("mistral", "everywhere"): "mixtral",
    ("llama", "universal"): "qwen2_moe",
    ("mistral", "universal"): "qwen2_moe",
    ("llama", "every other, universal, top-1"): "qwen2_moe",
    ("mistral", "every other, universal, top-1"): "qwen2_moe",
    ("qwen2", "universal"): "qwen2_moe",
    ("qwen2", "every other, universal, top-1"): "qwen2_moe",
    ("qwen3", "everywhere"): "qwen3_moe",
    ("qwen3", "every other"): "qwen3_moe",
}


def test_the_families_are_those_that_have_classes() -> None:
    assert set(KNOWN) == set(UPCYCLED) == set(FAMILIES)


@pytest.fixture(scope="session", params=sorted(FAMILIES))
def dense(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tokenizer: Any
) -> Path:
    directory: Path = tmp_path_factory.mktemp("dense") / request.param
    dense_model(request.param).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture
def text(tmp_path: Path, tiny_text: str) -> Path:
    file = tmp_path / "text.txt"
    file.write_text(tiny_text, encoding="utf-8")
    return file


def config_of(text: Path, place: str, forms: str, noise: float) -> UpcycleConfig:
    return UpcycleConfig.from_yaml(
        f"name: x\nseed: 3\nexperts: 4\n{PLACES[place]}noise: {noise}\n"
        f"forms: {FORMS[forms]}\nrouter: {{std: 0.3}}\ndata: {{texts: {text}, window: 16}}\n"
    )


def started(dense: Path, config: UpcycleConfig, tokenizer: Any) -> tuple[FromDense, TrainableModel]:
    start = FromDense(dense, config)
    windows = Windows(config.data.texts, tokenizer, 16)
    return start, start.model(torch.device("cpu"), windows, Meter(1, quiet))


@pytest.mark.parametrize("place", ["everywhere", "every other, universal, top-1"])
def test_every_form_starts_as_the_dense_model(
    dense: Path, text: Path, tokenizer: Any, place: str
) -> None:
    tokens = torch.randint(0, VOCABULARY, (2, 24), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = load_model(dense, dtype=torch.float32)(input_ids=tokens).logits
    assert wanted.std() > 0.05, "logits that tell nothing"
    forms_here = list(FORMS)
    if place != "everywhere":  # two of the forms by turns, for each family others
        turn = sorted(FAMILIES).index(dense.name)
        forms_here = [forms_here[(turn + more) % len(FORMS)] for more in (0, 2)]
    for forms in forms_here:
        _, model = started(dense, config_of(text, place, forms, 0.0), tokenizer)
        with torch.no_grad():
            upcycled = model.network(input_ids=tokens).logits
        close = 1e-4 * float(wanted.std())
        assert torch.allclose(wanted, upcycled, rtol=1e-4, atol=close), forms
        assert model.difference < 1e-4, forms


@pytest.mark.parametrize("forms", FORMS)
def test_noise_makes_it_start_elsewhere(
    llama: Path, text: Path, tokenizer: Any, forms: str
) -> None:
    _, model = started(llama, config_of(text, "everywhere", forms, 0.3), tokenizer)
    assert model.difference > 1e-3


WRITTEN = (
    ("vanilla", "everywhere"),
    ("LM", "everywhere"),
    ("SM", "universal"),
    ("SM learned", "every other"),
    ("mixed", "every other, universal, top-1"),
)


def written_by(family: str) -> list[tuple[str, str]]:
    """All of them where a place may make a standard MoE; else three of the five by turns."""
    if any(family == name for name, _ in STANDARD):
        return list(WRITTEN)
    turn = sorted(FAMILIES).index(family)
    return [WRITTEN[(turn + more) % len(WRITTEN)] for more in (0, 1, 3)]


def test_all_are_written_by_families_without_a_standard() -> None:
    others = set(FAMILIES) - {name for name, _ in STANDARD}
    assert {each for family in others for each in written_by(family)} == set(WRITTEN)


@pytest.mark.parametrize(
    ("dense", "forms", "place"),
    [(family, *each) for family in sorted(FAMILIES) for each in written_by(family)],
    indirect=["dense"],
)
def test_what_is_written_is_what_was_there(
    dense: Path, text: Path, tokenizer: Any, tmp_path: Path, forms: str, place: str
) -> None:
    config = config_of(text, place, forms, 0.3)
    start, model = started(dense, config, tokenizer)
    for block in model.blocks.values():
        if block.universal is not None:
            torch.nn.init.normal_(block.universal)
    out = tmp_path / "packed"
    out.mkdir()
    start.save(out, model)
    record = {"config": public_config(config), "modules": model.modules, **start.record()}
    write_json(out / RECORD, record)

    family = read_json(dense / "config.json")["model_type"]
    expected = STANDARD.get((family, place), f"{family}_upcycled")
    assert read_json(out / "config.json")["model_type"] == expected
    assert not PackedCheckpoint(out).checksum_problems(lambda count, message: None)
    tokens = torch.randint(0, VOCABULARY, (2, 24), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = model.network(input_ids=tokens).logits
        packed = load_model(out, dtype=torch.float32)(input_ids=tokens).logits
        light = load_upcycled(out, dtype=torch.float32)[0](input_ids=tokens).logits
    close = 1e-4 * float(wanted.std())
    assert torch.allclose(wanted, packed, rtol=1e-4, atol=close)
    assert torch.allclose(wanted, light, rtol=1e-4, atol=close)

    moe = tmp_path / "moe"
    synthesize(out, moe)
    original = open_checkpoint(moe)
    assert original.identity == PackedCheckpoint(out).manifest.source.identity
    assert original.moe_layers == sorted(model.blocks)
    assert verify(out, moe).ok
    with torch.no_grad():
        plain = load_model(moe, dtype=torch.float32)(input_ids=tokens).logits
    assert torch.allclose(plain, packed, rtol=1e-5, atol=close / 100)
