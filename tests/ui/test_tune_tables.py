"""What the Tune page makes of an allocation, of runs and of proofs."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import pytest
from support.made_scores import made_scores
from support.page_scores import keep_scores

from ders_core import figures
from ders_core.jobs import JobStore, Workspace
from ders_core.jobs.claims import Claims
from ders_core.later import pd
from ders_core.packed.open import open_checkpoint
from ders_core.tune.allocate import solve
from ders_core.tune.bounds import Bound
from ders_core.tune.constraints import Constraint
from ders_core.ui.tune.measured import measured
from ders_core.ui.tune.tables import groups_table, units_table


def test_bits_count_deltas_and_base() -> None:
    scores = made_scores(4, layers=3)
    whole = Constraint(layers="1", parts=("deltas",), only=("keep",))
    found = solve(scores, Bound("share", 0.4), constraints=[whole])
    units = units_table(found, scores)
    groups = groups_table(units, scores)
    assert len(groups) == 9
    assert units["bytes"].sum() + scores.bytes_beside == found.nbytes
    for row in groups.to_dict("records"):
        of_group = [
            each
            for each in found.chosen
            if each.scored.unit.group == (row["layer"], row["projection"])
        ]
        nbytes = sum(each.candidate.nbytes for each in of_group if each.candidate)
        weights = next(e.scored.unit.weights for e in of_group if e.scored.unit.part == "deltas")
        assert row["bytes"] == nbytes
        assert row["bits"] == pytest.approx(8 * nbytes / weights)
        if row["layer"] == 1:
            assert (row["deltas"], row["base"], row["bits"], row["cost"]) == ("keep", "none", 16, 0)
    figure = figures.bits_map(groups)
    shown = np.exp2(np.array(figure.data[0].z, float))
    expected = [groups.query("layer == @layer")["bits"].clip(1 / 8, 8) for layer in range(3)]
    np.testing.assert_allclose(shown, expected)


def test_costs_count_noise_and_what_is_missing() -> None:
    scores = made_scores(4, layers=1, tensors=0)
    shrunk = Constraint(parts=("deltas",), only=("quantized",))
    found = solve(scores, Bound("share", 0.2), constraints=[shrunk])
    units = units_table(found, scores)
    gram = scores.coupling.shrinkage.T @ scores.coupling.shrinkage / scores.coupling.tokens
    deltas = [each for each in found.chosen if each.scored.unit.part == "deltas"]
    assert all(each.candidate and each.candidate.gain < 1 for each in deltas)
    for column, (each, cost) in enumerate(
        zip(deltas, units.loc[units["part"] == "deltas", "cost"], strict=True)
    ):
        assert each.candidate is not None
        shrunken = (1 - each.candidate.gain) * np.eye(len(deltas))[column]
        assert cost == pytest.approx(each.candidate.noise + shrunken @ gram @ shrunken / 2)


QUALITY = {"tokens": 100, "perplexity": 9.0, "device": "cpu", "seconds": 1.0}


def test_runs_and_trials_are_points_with_intervals(workspace: Workspace, mixtral_dir: Path) -> None:
    checkpoint, kept = open_checkpoint(mixtral_dir), keep_scores(workspace, mixtral_dir)
    assert measured(checkpoint).empty
    store, claims = JobStore(workspace.store_path), Claims(workspace.store_path, "somebody")
    spec = {
        "checkpoint": str(mixtral_dir),
        "calibration": str(kept.calibration),
        "text": "t.txt",
        "budget": "40%",
        "name": "<b>proof</b>",
    }
    store.submit("prove", spec)
    claim = claims.claim()
    assert claim is not None
    trials = [
        {
            "role": role,
            "form": form,
            "recipe": "",
            "predicted_kl": 0.01,
            "foretold_bytes": 40,
            "size": 40.0,
            "most": 40.0,
            "keeps": True,
            "costs": {},
            "measured": {"nbytes": 41, "expert_bytes": 30, "quality": QUALITY | more},
        }
        for role, form, more in (
            ("tuned", "", {"kl": 0.02, "kl_low": 0.015, "kl_high": 0.03}),
            ("uniform", "quantized", {"kl": 0.5}),
        )
    ]
    claim.complete({"bound": "", "sentence": "", "trials": trials, "bytes_before": 100})
    points = measured(checkpoint)
    assert points["name"].tolist() == ["<b>proof</b>, tuned", "<b>proof</b>, uniform quantized"]
    assert points["share"].tolist() == [0.41, 0.41]
    assert points["kl"].tolist() == [0.02, 0.5]
    assert (points["low"][0], points["high"][0]) == (0.015, 0.03)
    assert math.isnan(points["low"][1])
    curve = pd.DataFrame({"share": [0.1, 0.5, 0.9], "kl": [1.0, 0.1, 0.0]})
    figure = figures.frontier(curve, curve, points, (0.5, 0.1))
    by_name = {trace.name: trace for trace in figure.data}
    assert list(by_name["predicted, tuned"].x) == [10, 50]  # 0 is not on a logarithmic scale
    tuned: go.Scatter = by_name["measured, tuned"]
    assert tuned.error_y.array[0] == pytest.approx(0.01)
    assert tuned.error_y.arrayminus[0] == pytest.approx(0.005)
    assert tuned.text[0].startswith("&lt;b&gt;proof")
