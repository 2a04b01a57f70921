"""What travels beside the weights, and what is left aside and named."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from support.messages import raises_saying

from ders_core.errors import CheckpointError
from ders_core.files.side_files import beside, is_weights
from ders_core.files.store import PATCH_FILE, TensorStore
from ders_core.packed.patch import apply_patch, make_patch
from ders_core.packed.reader import PackedCheckpoint
from ders_core.pipeline.compress import compress
from ders_core.pipeline.export import export
from ders_core.pipeline.synthesize import synthesize
from ders_core.recipe import presets

TRAVEL = (
    "LICENSE",
    "additional_chat_templates/tool_use.jinja",
    "adapter_config.json",
    "adapter_model.safetensors",
    "chat_template.jinja",
    "deep/er/notes.txt",
    "modeling_custom.py",
    "original/params.json",
    "spk_dict.pt",
    "tekken.json",
    "tokenizer.model",
)
LEFT = (
    "consolidated.safetensors",
    "checkpoint-500/",
    "optimizer.pt",
    "original/consolidated.00.pth",
    "pytorch_model-00001-of-00002.bin",
    "pytorch_model.bin.index.json",
    "rng_state_0.pth",
)
NEITHER = (".gitattributes", ".cache/huggingface/x.lock", "__pycache__/modeling_custom.pyc")


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory, mixtral_dir: Path) -> Path:
    """A model with everything beside it that may lie beside one."""
    directory = tmp_path_factory.mktemp("full") / "model"
    shutil.copytree(mixtral_dir, directory)
    training = ("checkpoint-500/config.json", "checkpoint-500/model.safetensors")
    for name in (*TRAVEL, *LEFT, *NEITHER, *training):
        if not name.endswith("/"):
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            (directory / name).write_text(f"this is {name}")
    return directory


def assert_travelled(directory: Path) -> None:
    for name in TRAVEL:
        assert (directory / name).read_text() == f"this is {name}"
    for name in (*LEFT, *NEITHER):
        assert not (directory / name).exists(), name


def test_there_and_back(full: Path, tmp_path: Path) -> None:
    report = compress(full, tmp_path / "packed", presets()["quantized-2bit"])
    assert report.left_aside == tuple(sorted(LEFT))
    assert_travelled(tmp_path / "packed")
    assert PackedCheckpoint(tmp_path / "packed").beside.left_aside == ()
    synthesize(tmp_path / "packed", tmp_path / "back")
    assert_travelled(tmp_path / "back")
    export(tmp_path / "packed", tmp_path / "copy")
    export(tmp_path / "packed", tmp_path / "original", "original")
    assert_travelled(tmp_path / "copy")
    assert_travelled(tmp_path / "original")
    (tmp_path / "patch").mkdir()
    make_patch(PackedCheckpoint(tmp_path / "packed"), tmp_path / "patch", full)
    apply_patch(full, tmp_path / "patch", tmp_path / "applied")
    assert_travelled(tmp_path / "applied")
    again = compress(tmp_path / "applied", tmp_path / "again", presets()["quantized-2bit"])
    assert again.left_aside == ()


def test_an_output_in_the_models_own_folder(full: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(full, tmp_path / "source"))
    unfinished = source / "other.partial" / "tokenizer.json"
    unfinished.parent.mkdir()
    unfinished.write_text("")
    recipe = presets()["quantized-2bit"]
    report = compress(source, source / "packed", recipe)
    assert report.left_aside == tuple(sorted(LEFT))
    assert_travelled(source / "packed")
    assert not (source / "packed" / "packed.partial").exists()
    assert not (source / "packed" / "other.partial").exists()
    report = compress(source, tmp_path / "out", recipe)
    assert "packed/" in report.left_aside
    assert not (tmp_path / "out" / "packed").exists()


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../x", "a//x", "", "model.safetensors"])
def test_a_patch_cannot_write_elsewhere(full: Path, tmp_path: Path, name: str) -> None:
    compress(full, tmp_path / "packed", presets()["quantized-2bit"])
    (tmp_path / "patch").mkdir()
    make_patch(PackedCheckpoint(tmp_path / "packed"), tmp_path / "patch", full)
    manifest = (tmp_path / "patch" / PATCH_FILE).read_text()
    (tmp_path / "patch" / PATCH_FILE).write_text(manifest.replace('"tekken.json"', f'"{name}"'))
    with raises_saying(CheckpointError, PATCH_FILE):
        apply_patch(full, tmp_path / "patch", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_names_of_weights() -> None:
    for name in ("a/model.safetensors", "x.gguf", "pytorch_model_fsdp_0.bin", "ema.ckpt", "m.onnx"):
        assert is_weights(name), name
    for name in ("spk_dict.pt", "adapter/adapter_model.bin", "modeling_x.py", "voices.bin"):
        assert not is_weights(name), name


def test_hidden_files_are_not_spoken_of(tmp_path: Path) -> None:
    found = beside(tmp_path, [".git/config", "a/.hidden", "config.json", "b.txt"], ["config.json"])
    assert [file.name for file in found.files] == ["b.txt"]
    assert found.left_aside == ()


def test_links_to_folders_are_not_followed(full: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(full, tmp_path / "source"))
    (source / "loop").symlink_to(source)
    names = [file.name for file in TensorStore.open(source).beside.files]
    assert not any(name.startswith("loop") for name in names)
