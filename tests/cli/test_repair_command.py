"""What `ders repair` prints of its result."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.stored_results import QUALITY
from typer.testing import CliRunner

from ders_core import repair
from ders_core.cli.main import app
from ders_core.evaluate.interval import Interval
from ders_core.pipeline.quality import Quality
from ders_core.repair import RepairResult


@pytest.mark.parametrize(("perplexity", "agreement"), [(11.5, 0.9), (None, None)])
def test_what_is_not_known_is_not_told(
    perplexity: float | None,
    agreement: float | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    unsure = {"reference_perplexity": perplexity, "top1_agreement": agreement}
    quality = Quality.model_validate(QUALITY | unsure)
    interval = Interval(0.02, 0.01, 0.03)
    result = RepairResult(
        out="out",
        steps=3,
        tokens=300,
        trained={"scales": 1000},
        before=quality,
        after=quality,
        kl_before=interval,
        kl_after=interval,
        change=interval,
        left_out=(),
        repeated=0,
        bytes=1000,
        needed=1000,
        device="CPU",
        seconds=1.5,
    )
    monkeypatch.setattr(repair, "repair", lambda *_, **__: result)
    for name in ("packed", "original"):
        (tmp_path / name).mkdir()
    text = tmp_path / "text.txt"
    text.write_text("so it goes")
    places = {"--original": tmp_path / "original", "--output": tmp_path / "out", "--text": text}
    options = [str(word) for place in places.items() for word in place]
    told = CliRunner().invoke(app, ["repair", str(tmp_path / "packed"), *options])
    assert told.exit_code == 0, told.output
    assert ("of the original: perplexity 11.50" in told.output) == (perplexity is not None)
    assert "of the original: perplexity 0" not in told.output
    line = next(line for line in told.output.splitlines() if "top-1 agreement" in line)
    assert line.count("not measured") == (2 if agreement is None else 0)
    assert line.count("90.0 %") == (0 if agreement is None else 2)
