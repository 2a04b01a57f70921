"""`ders report`: an original and its packed forms on one page that stands alone."""

from __future__ import annotations

import json
from html import unescape
from pathlib import Path

import pytest
from support.html_tables import html_tables
from support.shell import ders, error_of
from support.stored_results import QUALITY

from ders_core.analysis import analyze
from ders_core.figures.decision import Candidate, decision_html
from ders_core.packed.open import open_checkpoint
from ders_core.packed.reader import PackedCheckpoint
from ders_core.pipeline.quality import Quality, WorstToken, kl_text
from ders_core.pipeline.report import Outlook
from ders_core.pipeline.verify import verify
from ders_core.units import bytes_text


@pytest.fixture(scope="module")
def packed(mixtral_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    place = tmp_path_factory.mktemp("forms")
    forms = place / "two", place / "drop"
    for form, recipe in zip(forms, ("quantized-2bit", "sparse-drop0.9"), strict=True):
        assert ders("compress", mixtral_dir, form, "--recipe", recipe).returncode == 0
    return forms


def test_the_page_has_sizes_errors_and_quality(
    mixtral_dir: Path, packed: tuple[Path, Path], tmp_path: Path
) -> None:
    measured = {**QUALITY, "kl": 0.01234, "kl_low": 0.01}
    files = [tmp_path / "a.json", tmp_path / "b.json"]
    files[0].write_text(json.dumps(QUALITY))
    files[1].write_text(json.dumps(measured))
    out = tmp_path / "page.html"
    done = ders(
        *("report", mixtral_dir, *packed, "-o", out),
        *(word for file in files for word in ("--quality", file)),
    )
    assert done.returncode == 0, done.stderr
    page = out.read_text(encoding="utf-8")
    assert page.count("plotly.js v") == 1
    assert "<script src" not in page
    total = open_checkpoint(mixtral_dir).bytes_total
    sizes, *tables = html_tables(page)
    for form, row, kl in zip(packed, sizes, (QUALITY, measured), strict=True):
        nbytes = PackedCheckpoint(form).bytes_total
        assert row[""] == form.name
        assert (row["size"], row["of original"]) == (
            bytes_text(nbytes),
            f"{100 * nbytes / total:.1f} %",
        )
        assert row["KL"] == kl_text(kl)
    for form, rows in zip(packed, (one for one in tables if "gain" in one[0]), strict=True):
        for row, error in zip(rows, verify(form, mixtral_dir).groups, strict=True):
            assert (row["layer"], row["projection"]) == (str(error.layer), error.projection)
            assert float(row["gain"]) == pytest.approx(error.gain, rel=5e-3)
            assert float(row["‖Ŵ−W‖/‖W‖"]) == pytest.approx(error.rel_error_weight, rel=5e-3)
    verdict = analyze(open_checkpoint(mixtral_dir)).verdict
    assert verdict.sentence in unescape(page)


def test_what_is_wrong_is_told_before_anything_is_written(
    mixtral_dir: Path, qwen2_moe_dir: Path, packed: tuple[Path, Path], tmp_path: Path
) -> None:
    out, figures = tmp_path / "page.html", tmp_path / "a.json"
    figures.write_text(json.dumps(QUALITY))
    done = ders("report", qwen2_moe_dir, packed[0], "-o", out)
    assert done.returncode == 1
    assert "was packed from another checkpoint" in error_of(done)
    done = ders("report", mixtral_dir, *packed, "-o", out, "--quality", figures)
    assert (done.returncode, "there are 1 for 2" in done.stderr) == (2, True)
    assert ders("report", mixtral_dir, *packed, "-o", tmp_path / "page.txt").returncode == 2
    out.write_text("mine")
    done = ders("report", mixtral_dir, *packed, "-o", out)
    assert (done.returncode, out.read_text()) == (1, "mine")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "page.html"]


def test_names_and_texts_from_files_are_not_html() -> None:
    """Nor are columns shown in which nothing is known."""
    evil = "<script>alert(1)</script>"
    token = WorstToken(before=evil, came=evil, original=evil, model=evil, kl=1.5)
    quality = Quality(tokens=9, perplexity=2.0, device="cpu", seconds=1.0, worst=(token,))
    one = Candidate(evil, evil, 10, quality, Outlook(), ())
    page = decision_html(evil, 100, [one, one])
    assert evil not in page
    assert page.count("&lt;script&gt;alert(1)") >= 6
    (sizes, *_) = html_tables(page)
    assert list(sizes[0]) == ["", "size", "of original", "perplexity"]
