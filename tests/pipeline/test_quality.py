"""The figures of quality: one table from which shell, model card and pages take their words."""

from __future__ import annotations

from ders_core.pipeline.quality import (
    COMPARED,
    EVALUATED,
    NOISE_COST,
    OUTPUT_ERROR,
    Quality,
    TextQuality,
    evaluated_rows,
    kl_text,
)

MEASURED = Quality(
    tokens=4096,
    perplexity=12.345678,
    reference_perplexity=11.987654,
    kl=0.0123456,
    kl_low=0.01,
    kl_high=0.015,
    kl_p95=0.05,
    kl_p99=0.2,
    top1_agreement=0.98765,
    routing_agreement=0.87654,
    device="cpu",
    seconds=3.0,
)


def test_every_figure_of_an_evaluation_has_words() -> None:
    described = {figure.key for figure in EVALUATED}
    assert described == TextQuality.model_fields.keys()
    for figure in {*EVALUATED, *COMPARED, NOISE_COST, OUTPUT_ERROR}:
        assert figure.label
        assert figure.short
        assert figure.help.endswith(".")


def test_values_as_people_read_them() -> None:
    texts = [text for _, text in evaluated_rows(MEASURED.to_dict())]
    kl = "0.0123 (0.0100 to 0.0150)"
    assert texts == [kl, "0.0500", "0.200", "12.35", "11.99", "98.8 %", "87.7 %", "4096"]


def test_a_kl_without_an_interval() -> None:
    earlier = {key: value for key, value in MEASURED.to_dict().items() if key != "kl_low"}
    assert kl_text(earlier) == "0.0123"


def test_how_it_was_computed_is_told() -> None:
    told = MEASURED.model_copy(update={"dtype": "float32", "device": "CPU (x86_64, 2 threads)"})
    label, text = evaluated_rows(told.to_dict())[-1]
    assert label == "computed in"
    assert text == "float32 on CPU (x86_64, 2 threads)"


def test_what_was_not_measured_is_left_out() -> None:
    alone = Quality(tokens=10, perplexity=2.0, device="cpu", seconds=1.0)
    assert [label for label, _ in evaluated_rows(alone.to_dict())] == [
        "perplexity",
        "tokens evaluated",
    ]
    assert alone.perplexity_change is None


def test_the_change_of_the_perplexity() -> None:
    assert MEASURED.perplexity_change == 12.345678 / 11.987654 - 1


def test_keys_of_another_version() -> None:
    newer = MEASURED.to_dict() | {"surprise": 1}
    assert Quality.model_validate(newer) == MEASURED
