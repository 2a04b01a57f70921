"""The app's process imports no torch: a process of its own draws every page, queues a job, shows
results, and says what it has imported."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from support.page_scores import keep_scores

from ders_core.analysis import analyze
from ders_core.codecs import Entropy
from ders_core.jobs import JobStore, Workspace
from ders_core.packed.open import open_checkpoint
from ders_core.pipeline.compress import compress
from ders_core.recipe import Recipe, Rule, presets
from ders_core.ui.opened import Open

APP = Path(__file__).parents[2] / "app.py"
DRAW = """
import json, sys
from streamlit.testing.v1 import AppTest
import ders_core.ui.job_progress
from ders_core.jobs import default_workspace
from ders_core.ui.opened import Open

ders_core.ui.job_progress.ensure_worker = lambda workspace: None

def seen(app):
    assert not app.exception, app.exception
    kinds = (app.markdown, app.caption, app.error, app.title)
    text = [str(each.value) for kind in kinds for each in kind]
    text += [f"{metric.label}: {metric.value}" for metric in app.metric]
    text += [str(frame.value.to_dict()) for frame in app.dataframe]
    plots = len(app.get("plotly_chart"))
    heavy = [m for m in ("torch", "transformers", "numba", "distributed") if m in sys.modules]
    return {"text": " ".join(text), "plots": plots, "heavy": heavy}

app = AppTest.from_file(sys.argv[1], default_timeout=120).run()
drawn = {"checkpoint": seen(app)}
for page in ("redundancy", "spectra", "tune", "upcycle", "export", "playground", "runs"):
    drawn[page] = seen(app.switch_page(f"pages/{page}.py").run())
app.button(key="run_start").click().run()
drawn["queued"] = seen(app)
drawn["recipe"] = seen(app.switch_page("pages/recipe.py").run())
app.button(key="predict").click().run()
drawn["predicted"] = seen(app)
Open(sys.argv[2]).save(default_workspace())
drawn["packed"] = seen(AppTest.from_file(sys.argv[1], default_timeout=120).run())
print(json.dumps(drawn))
"""


def test_every_page_and_a_prediction(
    workspace: Workspace,
    mixtral_dir: Path,
    dense_parent_dir: Path,
    work: Callable[[], None],
) -> None:
    checkpoint = open_checkpoint(mixtral_dir)
    analyze(checkpoint, spectra="curve").save(workspace.analysis_dir(checkpoint.identity))
    streams = workspace.path / "streams"
    compress(mixtral_dir, streams, Recipe(name="streams", rules=(Rule(codec=Entropy(bits=1)),)))
    packed = open_checkpoint(streams)
    analyze(packed, spectra="none").save(workspace.analysis_dir(packed.identity))
    keep_scores(workspace, mixtral_dir)
    store, recipe = JobStore(workspace.store_path), presets()["quantized-2bit"]
    done = store.submit("run", {"checkpoint": str(mixtral_dir), "recipe": recipe.to_yaml()}, "two")
    work()
    assert store.get(done.id).state == "done"
    state = Open(str(mixtral_dir), recipe.to_yaml(), dense=str(dense_parent_dir))
    state.save(workspace)
    words = [sys.executable, "-c", DRAW, str(APP), str(streams)]
    process = subprocess.run(words, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    drawn = json.loads(process.stdout.splitlines()[-1])
    assert {page: seen["heavy"] for page, seen in drawn.items() if seen["heavy"]} == {}
    assert "share one start" in drawn["checkpoint"]["text"]
    assert "In memory: " in drawn["packed"]["text"]
    assert "(From a sample" not in drawn["packed"]["text"]  # its analysis is there
    assert drawn["redundancy"]["plots"] >= 4
    assert drawn["spectra"]["plots"] >= 4
    assert drawn["tune"]["plots"] >= 2
    assert "Predicted KL" in drawn["tune"]["text"]
    assert "two" in drawn["runs"]["text"]
    assert "Gain: " in drawn["predicted"]["text"]
    assert [job.state for job in store.list(kind="run")] == ["queued", "done"]
