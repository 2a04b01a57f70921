"""A program without `ders_core.hf` that loads a packed checkpoint gets an error that names it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from ders_core.files.model_files import IMPORT_FIRST
from ders_core.pipeline.compress import compress
from ders_core.pipeline.synthesize import synthesize
from ders_core.recipe import presets

WAYS = """
import sys, traceback
from transformers import AutoModel, AutoModelForCausalLM, MixtralForCausalLM, pipeline

for load in (
    AutoModelForCausalLM.from_pretrained,
    AutoModel.from_pretrained,
    MixtralForCausalLM.from_pretrained,
    lambda path: AutoModelForCausalLM.from_pretrained(path, use_safetensors=True, device_map="cpu"),
    lambda path: AutoModelForCausalLM.from_pretrained(path, ignore_mismatched_sizes=True),
    lambda path: pipeline("text-generation", model=path),
):
    try:
        load(sys.argv[1])
        print("loaded")
    except Exception:
        print(traceback.format_exc().replace(chr(10), " "))
"""


@pytest.fixture(scope="module")
def packed(mixtral_sharded_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("alone") / "packed"
    compress(mixtral_sharded_dir, out, presets()["quantized-2bit"])
    return out


def test_every_way_of_loading_fails_and_says_why(packed: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WAYS, str(packed)], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    answers = done.stdout.splitlines()
    assert len(answers) == 6
    for answer in answers:
        assert "import ders_core.hf" in answer, answer


def test_the_name_goes_where_the_model_goes(packed: Path, tmp_path: Path) -> None:
    """With the package, a config in hand loads too, and what is saved is an ordinary model."""
    config = AutoConfig.from_pretrained(packed)
    assert config.transformers_weights == IMPORT_FIRST
    model = AutoModelForCausalLM.from_pretrained(packed, config=config, dtype="auto")
    synthesize(packed, tmp_path / "plain")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "plain", dtype="auto")
    for name, weight in plain.state_dict().items():
        assert torch.equal(model.state_dict()[name], weight), name
    model.config.save_pretrained(tmp_path / "saved")
    assert "transformers_weights" not in json.loads((tmp_path / "saved/config.json").read_text())


def test_a_name_of_the_original_comes_back(mixtral_dir: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "w.safetensors").write_bytes((mixtral_dir / "model.safetensors").read_bytes())
    config = json.loads((mixtral_dir / "config.json").read_text())
    config["transformers_weights"] = "w.safetensors"
    (source / "config.json").write_text(json.dumps(config))
    compress(source, tmp_path / "packed", presets()["quantized-2bit"])
    AutoModelForCausalLM.from_pretrained(tmp_path / "packed")
    synthesize(tmp_path / "packed", tmp_path / "back")
    names = {path.name for path in (tmp_path / "back").iterdir()}
    assert names == {"config.json", "w.safetensors"}
    assert (tmp_path / "back" / "config.json").read_text() == json.dumps(config)
