from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.jobs_support import FAST_RECIPE
from support.odd_models import own_code_model

import ders_core.analysis.analyzer
from ders_core.jobs import Job, JobStore, Workspace
from ders_core.jobs.worker import run_worker
from ders_core.packed.open import open_checkpoint
from ders_core.pipeline.calibration import Calibration
from ders_core.pipeline.compress import compress
from ders_core.recipe import Recipe


def do(workspace: Workspace, kind: str, spec: dict[str, Any]) -> Job:
    """File a job, let a worker do it, return it."""
    store = JobStore(workspace.store_path)
    number = store.submit(kind, spec, kind).id
    run_worker(workspace, stop_when_idle=True)
    return store.get(number)


def result_of(job: Job) -> dict[str, Any]:
    assert (job.state, job.error) == ("done", None)
    assert job.result is not None
    return job.result


@pytest.fixture
def packed(mixtral_dir: Path, tmp_path: Path) -> Path:
    compress(mixtral_dir, tmp_path / "packed", Recipe.from_yaml(FAST_RECIPE))
    return tmp_path / "packed"


def test_pages_need_neither_torch_nor_dask() -> None:
    heavy = "{'torch', 'dask', 'distributed', 'transformers', 'streamlit', 'pandas'}"
    code = f"import sys, ders_core.jobs; print(sorted({heavy} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_analyze(workspace: Workspace, mixtral_dir: Path) -> None:
    from ders_core.analysis import Analysis

    result = result_of(do(workspace, "analyze", {"checkpoint": str(mixtral_dir), "device": "cpu"}))
    identity = open_checkpoint(mixtral_dir).identity
    directory = workspace.analysis_dir(identity)
    assert result == {"identity": identity, "directory": str(directory)}
    analysis = Analysis.load(directory)
    assert len(analysis.groups) == 6
    assert not analysis.spectra.empty


def test_analyze_goes_on_from_what_a_worker_had_finished(
    workspace: Workspace, mixtral_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ders_core.analysis import Analysis, analyze

    checkpoint = open_checkpoint(mixtral_dir)
    growing = workspace.growing_dir(checkpoint.identity)
    analyze(checkpoint, grown=lambda analysis: analysis.save(growing))
    analyze_group = ders_core.analysis.analyzer.analyze_group
    layers: set[int] = set()

    def watched(task: Any) -> Any:
        layers.add(task.layer)
        return analyze_group(task)

    monkeypatch.setattr("ders_core.analysis.analyzer.analyze_group", watched)
    result_of(do(workspace, "analyze", {"checkpoint": str(mixtral_dir), "device": "cpu"}))
    assert layers == set(checkpoint.moe_layers[1:])
    assert not growing.exists()
    assert len(Analysis.load(workspace.analysis_dir(checkpoint.identity)).groups) == 6


def test_run_with_a_text(
    workspace: Workspace, mixtral_dir: Path, tiny_text: str, tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text(tiny_text)
    spec = {"checkpoint": str(mixtral_dir), "recipe": FAST_RECIPE, "workers": 1, "device": "cpu"}
    result = result_of(do(workspace, "run", spec | {"text": str(text), "max_tokens": 600}))
    quality = result["quality"]
    assert 0 <= quality["kl"] < 1
    assert quality["reference_perplexity"] > 1
    assert 0 <= quality["routing_agreement"] <= 1
    saved = Path(result["packed"]).parent / "quality.json"
    assert json.loads(saved.read_text()) == quality


def test_evaluate_alone(
    workspace: Workspace, mixtral_dir: Path, tiny_text: str, tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text(tiny_text)
    spec = {"model": str(mixtral_dir), "text": str(text), "max_tokens": 300, "device": "cpu"}
    result = result_of(do(workspace, "evaluate", spec))
    assert result["perplexity"] > 1
    assert result["kl"] is None
    halves = tmp_path / "halves"
    halves.mkdir()
    middle = tiny_text.index("\n") + 1
    (halves / "1.txt").write_text(tiny_text[:middle])
    (tmp_path / "2.txt").write_text(tiny_text[middle:])
    several = spec | {"text": [str(halves), f" '{tmp_path / '2.txt'}' "]}
    again = result_of(do(workspace, "evaluate", several))
    assert again["perplexity"] == result["perplexity"]
    named = spec | {"text": {"one": str(text), "two": [str(text)]}, "max_tokens": 600}
    domains = result_of(do(workspace, "evaluate", named))["domains"]
    assert [each["name"] for each in domains] == ["one", "two"]
    assert domains[1]["perplexity"] == result["perplexity"]


def test_calibrate(workspace: Workspace, mixtral_dir: Path, tiny_text: str, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(tiny_text)
    spec = {"checkpoint": str(mixtral_dir), "text": str(text), "max_tokens": 62, "window": 32}
    for gradients in (False, True):
        measured = dict.fromkeys(("gradients", "others", "each_expert"), gradients)
        job = do(workspace, "calibrate", spec | measured | {"device": "cpu"})
        result = result_of(job)
        calibration = Calibration.open(result["path"])
        assert calibration.path.parent == workspace.run_dir(job.id)
        assert result["tokens"] == calibration.tokens == 64
        assert result["gradients"] == calibration.has_gradients == gradients
        assert result["others"] == len(calibration.others.names) == 10 * gradients
        assert result["each_expert"] == calibration.has_each == gradients
        calibration.check(open_checkpoint(mixtral_dir))


def test_a_run_refuses_what_evaluation_would_refuse_before_it_compresses(
    workspace: Workspace, mixtral_dir: Path, tiny_text: str, tmp_path: Path
) -> None:
    strange, text, short = tmp_path / "strange", tmp_path / "text.txt", tmp_path / "short.txt"
    text.write_text(tiny_text)
    short.write_text("a")
    shutil.copytree(mixtral_dir, strange)
    config = json.loads((strange / "config.json").read_text())
    (strange / "config.json").write_text(json.dumps(config | {"vocab_size": 20}))
    for model, file, fact in ((mixtral_dir, short, "text"), (strange, text, "strange")):
        spec = {"checkpoint": str(model), "recipe": FAST_RECIPE, "text": str(file), "workers": 1}
        job = do(workspace, "run", spec)
        assert (job.state, job.result) == ("failed", None)
        assert fact in (job.error or "")
        assert not (workspace.run_dir(job.id) / "packed").exists()


@pytest.mark.parametrize("content", [b"", "text".encode("utf-16"), None])
def test_a_run_refuses_its_text_before_it_compresses(
    content: bytes | None, workspace: Workspace, mixtral_dir: Path, tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    if content is not None:
        text.write_bytes(content)
    spec = {"checkpoint": str(mixtral_dir), "recipe": FAST_RECIPE, "workers": 1, "device": "cpu"}
    job = do(workspace, "run", spec | {"text": [str(text)]})
    assert job.state == "failed"
    assert str(text) in (job.error or "")
    assert not (workspace.run_dir(job.id) / "packed").exists()


def test_a_models_own_code_is_run_only_if_a_job_says_so(
    workspace: Workspace,
    tokenizer: Any,
    tiny_text: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, text = own_code_model(tmp_path, tokenizer, monkeypatch), tmp_path / "text.txt"
    text.write_text(tiny_text)
    rest = {"text": str(text), "max_tokens": 100, "device": "cpu"}
    recipe = {"recipe": FAST_RECIPE, "workers": 1}
    for kind, spec in (
        ("evaluate", {"model": str(model), **rest}),
        ("run", {"checkpoint": str(model), **recipe, **rest}),
    ):
        refused = do(workspace, kind, spec)
        assert refused.state == "failed"
        assert "trust_remote_code" in (refused.error or "")
        assert not (workspace.run_dir(refused.id) / "packed").exists()
        result = result_of(do(workspace, kind, spec | {"trust_remote_code": True}))
        quality = result if kind == "evaluate" else result["quality"]
        assert quality["perplexity"] > 1
        assert quality["dtype"] == "float32"


@pytest.mark.parametrize("form", ["packed", "original", "dense"])
def test_export(workspace: Workspace, packed: Path, form: str) -> None:
    out = workspace.exports / "small"
    spec = {"packed": str(packed), "out": str(out), "format": form}
    result = result_of(do(workspace, "export", spec))
    assert result["out"] == str(out)
    assert result["bytes"] > 0
    assert all(check["ok"] for check in result["checks"])
    assert out.is_dir()
    again = do(workspace, "export", spec)
    assert again.state == "failed"
    assert f"{out} exists" in (again.error or "")


@pytest.mark.parametrize("named", ["base: {dense: /proc/1}", "calibration: /proc/1/environ"])
def test_files_of_a_recipe_must_lie_within_the_roots(
    workspace: Workspace, mixtral_dir: Path, named: str
) -> None:
    recipe = f"name: x\n{named}\nrules: [{{codec: quantized, bits: 4}}]\n"
    job = do(workspace, "run", {"checkpoint": str(mixtral_dir), "recipe": recipe})
    assert job.state == "failed"
    assert "/proc/1" in (job.error or "")
    assert "DERS_ROOTS" in (job.error or "")
