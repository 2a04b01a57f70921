"""Loading with transformers: the same weights from every form, little memory, clear refusals."""

from __future__ import annotations

import gc
import json
import os
import shutil
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from support.messages import raises_saying

from ders_core.compute.device import available_devices, device_label, resolve_device
from ders_core.compute.threads import threads_of_torch
from ders_core.errors import CheckpointError, DersError
from ders_core.hf import load_model, load_tokenizer
from ders_core.hf.plugin import WITHOUT_THREADS
from ders_core.packed.model_tensors import ModelTensors
from ders_core.pipeline.compress import compress
from ders_core.pipeline.synthesize import synthesize
from ders_core.recipe import presets

FAMILIES = ("mixtral_dir", "qwen2_moe_dir")


@pytest.fixture(scope="module")
def packed_dir(tmp_path_factory: pytest.TempPathFactory, mixtral_dir: Path) -> Path:
    out = tmp_path_factory.mktemp("packed") / "mixed"
    compress(mixtral_dir, out, presets()["mixed"])
    return out


def copied(source: Path, target: Path, **config: Any) -> Path:
    """A copy with some entries of config.json changed."""
    shutil.copytree(source, target)
    entries = json.loads((target / "config.json").read_text(encoding="utf-8")) | config
    (target / "config.json").write_text(json.dumps(entries), encoding="utf-8")
    return target


def plain(path: Path) -> dict[str, torch.Tensor]:
    """The weights as transformers itself loads them."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        path, dtype="auto", use_safetensors=True, trust_remote_code=False
    )
    weights: dict[str, torch.Tensor] = model.state_dict()
    return weights


def same_weights(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        tensor.dtype == second[name].dtype and torch.equal(tensor, second[name])
        for name, tensor in first.items()
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_an_original_loads_as_in_transformers(family: str, request: pytest.FixtureRequest) -> None:
    directory: Path = request.getfixturevalue(family)
    model = load_model(directory)
    assert same_weights(model.state_dict(), plain(directory))
    assert not model.training
    assert model.dtype == torch.bfloat16


@pytest.mark.parametrize("family", FAMILIES)
def test_a_packed_original_loads_bit_for_bit(
    family: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    directory: Path = request.getfixturevalue(family)
    compress(directory, tmp_path / "keep", presets()["keep"])
    assert same_weights(load_model(tmp_path / "keep").state_dict(), plain(directory))


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_loads_like_its_synthesized_form(
    family: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    directory: Path = request.getfixturevalue(family)
    compress(directory, tmp_path / "packed", presets()["mixed"])
    synthesize(tmp_path / "packed", tmp_path / "dense")
    weights = load_model(tmp_path / "packed").state_dict()
    assert same_weights(weights, plain(tmp_path / "dense"))
    assert not same_weights(weights, plain(directory))


def test_tied_embeddings_stay_tied(mixtral_dir: Path, tmp_path: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(mixtral_dir, dtype="auto")
    model.config.tie_word_embeddings = True
    model.tie_weights()
    model.save_pretrained(tmp_path / "tied")
    compress(tmp_path / "tied", tmp_path / "packed", presets()["keep"])
    loaded = load_model(tmp_path / "packed")
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert same_weights(loaded.state_dict(), plain(tmp_path / "tied"))


def test_a_packed_model_knows_where_it_is_from(mixtral_dir: Path, packed_dir: Path) -> None:
    model, original = load_model(packed_dir), load_model(mixtral_dir)
    assert model.config.name_or_path == str(packed_dir)
    assert not hasattr(model.config, "quantization_config")
    assert model.generation_config.eos_token_id == original.generation_config.eos_token_id == 1


def test_the_dtype_is_the_checkpoints_unless_asked(
    mixtral_dir: Path, packed_dir: Path, tmp_path: Path
) -> None:
    for directory in (mixtral_dir, packed_dir):
        unnamed = copied(directory, tmp_path / directory.name, dtype=None)
        assert load_model(unnamed).dtype == torch.bfloat16
        wide = load_model(directory, dtype=torch.float32).state_dict()
        narrow = load_model(directory).state_dict()
        assert {tensor.dtype for tensor in wide.values()} == {torch.float32}
        assert all(torch.equal(wide[name].bfloat16(), narrow[name]) for name in wide)
        # what is packed is added in float32, and rounded to the checkpoint's dtype for that alone
        same = all(torch.equal(wide[name], narrow[name].float()) for name in wide)
        assert same == (directory is mixtral_dir)


def test_few_experts_are_in_memory_beside_the_model(
    packed_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many as threads synthesize, and not all those of a parameter."""
    read, lock = ModelTensors.read, threading.Lock()
    living, most = 0, 0

    def died() -> None:
        nonlocal living
        with lock:
            living -= 1

    def watched(self: ModelTensors, name: str) -> torch.Tensor:
        nonlocal living, most
        tensor = read(self, name)
        if ".experts." in name:
            with lock:
                living += 1
                most = max(most, living)
            weakref.finalize(tensor.untyped_storage(), died)
        return tensor

    monkeypatch.setattr(ModelTensors, "read", watched)
    with threads_of_torch(2):
        model = load_model(packed_dir)
    gc.collect()
    assert living == 0
    assert 0 < most <= 2
    assert model.config.num_local_experts == 4


def test_loading_is_silent_and_leaves_the_settings_alone(
    mixtral_dir: Path,
    packed_dir: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(WITHOUT_THREADS, raising=False)
    logging = transformers.logging
    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    broken = copied(packed_dir, tmp_path / "broken", num_hidden_layers=3)
    logging.set_verbosity_info()
    logging.enable_progress_bar()
    try:
        capfd.readouterr()
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(load_model, [mixtral_dir, packed_dir] * 2))
        load_tokenizer(packed_dir)
        with pytest.raises(CheckpointError):
            load_model(broken)
        assert logging.get_verbosity() == logging.INFO
        assert logging.is_progress_bar_enabled()
        assert WITHOUT_THREADS not in os.environ
        assert capfd.readouterr() == ("", "")
    finally:
        logging.set_verbosity(before)
        if not bars:
            logging.disable_progress_bar()


def _change(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def apply(directory: Path) -> None:
        file = directory / "model.safetensors"
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, file, metadata={"format": "pt"})

    return apply


EXPERT = "model.layers.1.block_sparse_moe.experts.2.w3.weight"
DAMAGES: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    "missing": (
        _change(lambda tensors: tensors.pop("model.norm.weight")),
        ("'model.norm.weight'", "missing"),
    ),
    "no-expert": (
        _change(lambda tensors: tensors.pop(EXPERT)),
        ("layer 1, up", "expert 2", "missing"),
    ),
    "unexpected": (
        _change(lambda tensors: tensors.update(surplus=torch.ones(2))),
        ("'surplus'", "not part"),
    ),
    "shape": (
        _change(lambda tensors: tensors.update({"model.norm.weight": torch.ones(7)})),
        ("'model.norm.weight'", "shape"),
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_weights_are_named(damage: str, mixtral_dir: Path, tmp_path: Path) -> None:
    apply, facts = DAMAGES[damage]
    directory = copied(mixtral_dir, tmp_path / "damaged")
    apply(directory)
    with raises_saying(CheckpointError, directory, *facts):
        load_model(directory)


@pytest.mark.parametrize(
    ("config", "facts"),
    [
        ({"num_hidden_layers": 3}, ["'model.layers.2.", " 8 more ", "missing"]),
        ({"hidden_size": 128}, ["shape"]),
        ({"hidden_size": "many"}, ["transformers", "'hidden_size'", "many"]),
        ({"model_type": "unheard-of"}, ["transformers", "unheard-of"]),
    ],
)
def test_a_config_of_another_model_is_refused(
    config: dict[str, Any], facts: list[str], mixtral_dir: Path, packed_dir: Path, tmp_path: Path
) -> None:
    for directory in (mixtral_dir, packed_dir):
        copy = copied(directory, tmp_path / directory.name, **config)
        with raises_saying(CheckpointError, copy, *facts):
            load_model(copy)


def test_what_a_packed_checkpoint_complains_of_is_heard(
    packed_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: ModelTensors, name: str) -> torch.Tensor:
        raise CheckpointError(f"unreadable: {name}")

    monkeypatch.setattr(ModelTensors, "read", fail)
    with pytest.raises(CheckpointError, match=r"^unreadable: \S+$"):
        load_model(packed_dir)


def test_code_in_a_checkpoint_is_not_run(mixtral_dir: Path, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    classes = {"AutoConfig": "remote.Config", "AutoModelForCausalLM": "remote.Model"}
    directory = copied(mixtral_dir, tmp_path / "remote", model_type="strange", auto_map=classes)
    (directory / "remote.py").write_text(f"open({str(ran)!r}, 'w').close()\n", encoding="utf-8")
    with raises_saying(CheckpointError, directory, "trust_remote_code"):
        load_model(directory)
    assert not ran.exists()


def test_a_missing_package_is_named_and_not_the_experts(
    mixtral_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Experts are missing too, but that is not why the model did not load."""
    directory = copied(mixtral_dir, tmp_path / "copy")
    _change(lambda tensors: tensors.pop(EXPERT))(directory)

    def fail(*args: Any, **options: Any) -> Any:
        raise ImportError("this needs the package gptqmodel; run `pip install gptqmodel`")

    monkeypatch.setattr(transformers.MixtralForCausalLM, "from_pretrained", fail)
    with raises_saying(CheckpointError, directory, "transformers", "pip install gptqmodel"):
        load_model(directory)


def test_a_tokenizer_or_a_clear_refusal(mixtral_dir: Path, tmp_path: Path, tiny_text: str) -> None:
    tokenizer = load_tokenizer(mixtral_dir)
    reference = transformers.AutoTokenizer.from_pretrained(mixtral_dir)
    assert tokenizer(tiny_text)["input_ids"] == reference(tiny_text)["input_ids"]
    bare = copied(mixtral_dir, tmp_path / "bare")
    (bare / "tokenizer.json").unlink()
    for directory in (bare, tmp_path / "nowhere"):
        with raises_saying(CheckpointError, directory, "no tokenizer"):
            load_tokenizer(directory)


def test_devices_are_named_and_absent_ones_refused(mixtral_dir: Path) -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto").type == available_devices()[-1]
    assert f"{torch.get_num_threads()} threads" in device_label("cpu")
    with raises_saying(DersError, "device 'tpu'", "cpu", "cuda", "auto"):
        load_model(mixtral_dir, device="tpu")
    if not torch.cuda.is_available():
        with raises_saying(DersError, "no CUDA device", "cpu"):
            load_model(mixtral_dir, device="cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_gpu_gets_the_same_weights(mixtral_dir: Path, packed_dir: Path) -> None:
    for directory in (mixtral_dir, packed_dir):
        model = load_model(directory, device="cuda")
        assert {parameter.device.type for parameter in model.parameters()} == {"cuda"}
        moved = {name: tensor.cpu() for name, tensor in model.state_dict().items()}
        assert same_weights(moved, load_model(directory).state_dict())
