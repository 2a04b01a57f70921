"""Configurations: what they say, what is wrong with them, where."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.messages import raises_saying

from ders_core.errors import RecipeError
from ders_core.upcycle import (
    Data,
    FormRule,
    LowRankForm,
    Renewal,
    SparseForm,
    Training,
    UpcycleConfig,
    Vanilla,
    load_config,
)

SAMPLES = Path(__file__).parents[2] / "sample_configs" / "upcycle"

forms = st.one_of(
    st.just(Vanilla()),
    st.builds(LowRankForm, rank=st.integers(1, 999)),
    st.builds(
        SparseForm,
        drop_rate=st.floats(0, 0.999),
        renew=st.none() | st.builds(Renewal, first=st.integers(1, 9), share=st.floats(0, 1)),
    ),
)
projections = st.sets(st.sampled_from(["gate", "up", "down"]), min_size=1).map(
    lambda names: tuple(sorted(names))
)
configs = st.builds(
    UpcycleConfig,
    name=st.text(st.characters(codec="utf-8", categories=["L", "N", "P"]), min_size=1, max_size=20),
    seed=st.integers(0, 2**31 - 1),
    experts=st.integers(8, 64),
    top_k=st.integers(1, 8),
    layers=st.sampled_from(["all", "every-other", "0", "0-3,7"]),
    universal=st.booleans(),
    base=st.sampled_from(["trained", "frozen"]),
    forms=st.tuples(
        st.builds(FormRule, form=forms), st.builds(FormRule, projections=projections, form=forms)
    ),
    noise=st.floats(0, 1),
    train=st.lists(st.sampled_from(["*.norm.*", "lm_head.*"]), max_size=2).map(tuple),
    data=st.builds(Data, texts=st.just((Path("a b.txt"), Path("c.jsonl")))),
    training=st.builds(Training, steps=st.integers(1, 10**6), learning_rate=st.floats(1e-8, 1)),
)


@given(configs)
def test_what_is_written_is_read_again(config: UpcycleConfig) -> None:
    assert UpcycleConfig.from_yaml(config.to_yaml()) == config


@pytest.mark.parametrize("file", sorted(SAMPLES.glob("*.yaml")), ids=lambda file: file.stem)
def test_the_samples_are_configurations(file: Path) -> None:
    config = load_config(file)
    assert UpcycleConfig.from_yaml(config.to_yaml()) == config


DATA = "data: {texts: a}"


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        ("- a", ["mapping"]),
        ("name: [", ["line 1: ", "YAML"]),
        ("name: x", ["'data'"]),
        (f"name: x\n{DATA}\nexpert: 3", ["line 3: ", "key 'expert'"]),
        (f"name: x\n{DATA}\ntraining: {{step: 3}}", ["line 3: ", "key 'training.step'"]),
        (f"name: x\n{DATA}\nforms:\n- {{form: lowrank, rank: 0}}", ["line 4: forms.0", "rank"]),
        (f"name: x\n{DATA}\nforms:\n- {{form: dense}}", ["line 4: forms.0", "'dense'"]),
        (f"name: x\n{DATA}\nforms:\n- {{projections: up, form: vanilla}}", ["forms", "'down'"]),
        (f"name: x\n{DATA}\ntop_k: 9", ["top_k is 9", "4 experts"]),
        (f"name: x\n{DATA}\nlayers: 3-1", ["line 3: layers: ", "3-1", "backwards"]),
    ],
)
def test_a_fault_is_one_sentence_with_its_line(text: str, facts: list[str]) -> None:
    with raises_saying(RecipeError, *facts):
        UpcycleConfig.from_yaml(text)


def test_the_last_form_that_names_a_projection_counts() -> None:
    config = UpcycleConfig.from_yaml(
        f"name: x\n{DATA}\nforms:\n- {{form: lowrank, rank: 2}}\n"
        "- {projections: [down, up], form: sparse, drop_rate: 0.5}\n"
        "- {projections: up, form: vanilla}\n"
    )
    labels = [config.form(name).label for name in ("gate", "up", "down")]
    assert labels == ["LM 2", "vanilla", "SM 0.5"]
    assert config.label == "gate: LM 2; up: vanilla; down: SM 0.5"


def test_layers() -> None:
    def chosen(layers: str) -> list[int]:
        return UpcycleConfig.from_yaml(f"name: x\n{DATA}\nlayers: {layers}").chosen_layers(6)

    assert chosen("all") == [0, 1, 2, 3, 4, 5]
    assert chosen("every-other") == [1, 3, 5]
    assert chosen("[0, 2]") == [0, 2]
    assert chosen("0-1,4") == [0, 1, 4]
    with raises_saying(RecipeError, "layer 6", "0-5"):
        chosen("6")


def test_positions_are_renewed_less_and_less() -> None:
    renewal = Renewal(first=10, every=20, until=0.5, share=0.4)
    shares = {step: renewal.share_at(step, 200) for step in range(1, 201)}
    assert shares[10] == 1.0
    later = [step for step, share in shares.items() if share and step != 10]
    assert later == [30, 50, 70, 90]
    values = [shares[step] for step in later]
    assert values == sorted(values, reverse=True)
    assert 0 < values[-1] < values[0] < 0.4
