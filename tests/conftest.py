"""Tiny real checkpoints, made by transformers itself, that every area's tests share.

All are session-scoped and must not be written to: a test that damages one copies it first.
"""

from __future__ import annotations

import gc
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
if "PYTEST_XDIST_WORKER" in os.environ:  # one of several processes: a core each
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from support import forks

from ders_core.files.content import CACHE_VARIABLE
from ders_core.later import torch  # the process that deals tests needs none, and all wait for it

TOGETHER = ("browser", "tune")
"""Folders whose files share what takes long to make: one process has all of their tests."""

LONGEST_FIRST = (
    "browser/test_walk.py",
    "browser",
    "hold/test_kills.py",
    "families/test_families.py",
    "tune",
    "codecs/test_conformance.py",
    "upcycle/test_upcycled_families.py",
    "packed/test_original.py",
    "upcycle/test_training.py",
    "jobs/test_worker.py",
    "hold/test_web_attacks.py",
    "ui/test_without_torch.py",
    "pipeline/test_predicted_on_demo.py",
    "evaluate/test_tasks.py",
    "hold/test_descriptors.py",
)
"""What would keep one process busy after the others have run out of tests."""

settings.register_profile(
    "patient", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("patient")  # a busy machine is no fault

TESTS = Path(__file__).parent
VOCABULARY = 384
TEXT = (
    "The river runs past the mill, and the mill turns its stones by day. "
    "A miller counts sacks: one, two, three, five, eight, thirteen. "
    "When rain comes the water is brown; when frost comes it is slow and clear. "
    "She wrote numbers in a book, 1024 of wheat and 768 of rye, and closed it at night. "
)


def pytest_configure(config: pytest.Config) -> None:
    """What test files import is no garbage. Kernels run on the CPU where there is no GPU; that is
    read where triton is imported."""
    gc.disable()
    deals = config.getoption("numprocesses", None) and "PYTEST_XDIST_WORKER" not in os.environ
    if not deals and not torch.cuda.is_available():
        os.environ["TRITON_INTERPRET"] = "1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files are dealt to the processes in this order."""
    place = {name: number for number, name in enumerate(LONGEST_FIRST)}

    def order(item: pytest.Item) -> int:
        file = item.path.relative_to(TESTS)
        names = (file.as_posix(), file.parts[0])
        return next((place[name] for name in names if name in place), len(place))

    items.sort(key=order)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Deal files to the processes, and the folders of `TOGETHER` whole."""
    from xdist.scheduler import LoadFileScheduling

    class Dealer(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            folder = Path(file).relative_to(TESTS.name).parts[0]
            return folder if folder in TOGETHER else file

    return Dealer(config, log) if config.getvalue("dist") == "loadfile" else None


def pytest_collection_finish() -> None:
    """What was imported stays, so that no full collection of garbage looks at it again: each would
    take half a second, and what a test trains, shows or evaluates asks for several. Young objects
    are looked at less often than Python would, for a twentieth of the suite's time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 10, 10)
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing is kept in the home of whoever runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CACHE_VARIABLE, str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def _unsynced() -> Iterator[None]:
    """No test takes the machine's power away, so none waits for the disk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def _forks() -> None:
    """In one of several processes, what forks are made of will be needed: nobody shall wait."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        forks.start()


@pytest.fixture(scope="session")
def tiny_text() -> str:
    """A few KB of plain English, different from line to line."""
    return "\n".join(f"{number}. {TEXT}" for number in range(1, 17)) + "\n"


@pytest.fixture(scope="session")
def tokenizer(tiny_text: str) -> Any:
    """A byte-level BPE tokenizer of `VOCABULARY` entries, trained on `tiny_text`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(tiny_text.splitlines(), trainer)
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", model_max_length=512
    )


def _mixtral(seed: int = 0) -> Any:
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(seed)
    config = MixtralConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=112,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
        num_experts_per_tok=2,
        max_position_embeddings=512,
        bos_token_id=0,
        eos_token_id=1,
    )
    return MixtralForCausalLM(config).eval()


def _share_a_start(model: Any, closeness: float) -> None:
    """Make every expert the layer's expert 0 plus a difference `closeness` times as large."""
    with torch.no_grad():
        for layer in model.model.layers:
            experts = getattr(layer.mlp, "experts", None)
            if experts is None:
                continue
            for weight in (experts.gate_up_proj, experts.down_proj):
                start, noise = weight[:1].clone(), torch.randn_like(weight)
                weight.copy_(start + closeness * start.std() * noise)


def _save(model: Any, tokenizer: Any, directory: Path, **options: Any) -> Path:
    model.to(torch.bfloat16).save_pretrained(directory, **options)
    tokenizer.save_pretrained(directory)
    return directory


Maker = Callable[[str], Path]


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Maker:
    root = tmp_path_factory.mktemp("checkpoints")
    return lambda name: root / name


@pytest.fixture(scope="session")
def models(tokenizer: Any) -> dict[str, Any]:
    """The models in memory: the Mixtral, its dense parent, and the Qwen2-MoE."""
    from transformers import (
        MistralConfig,
        MistralForCausalLM,
        Qwen2MoeConfig,
        Qwen2MoeForCausalLM,
    )
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    mixtral = _mixtral()
    shared = {
        key: getattr(mixtral.config, key)
        for key in (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "max_position_embeddings",
            "bos_token_id",
            "eos_token_id",
        )
    }
    parent = MistralForCausalLM(MistralConfig(**shared)).eval()
    state = mixtral.state_dict()
    with torch.no_grad():
        for name, weight in parent.state_dict().items():
            if ".mlp." not in name:
                weight.copy_(state[name])
        for dense, moe in zip(parent.model.layers, mixtral.model.layers, strict=True):
            gate, up = moe.mlp.experts.gate_up_proj[0].chunk(2)
            dense.mlp.gate_proj.weight.copy_(gate)
            dense.mlp.up_proj.weight.copy_(up)
            dense.mlp.down_proj.weight.copy_(moe.mlp.experts.down_proj[0])
    _share_a_start(mixtral, 0.15)
    torch.manual_seed(1)
    qwen = Qwen2MoeForCausalLM(
        Qwen2MoeConfig(
            vocab_size=VOCABULARY,
            hidden_size=64,
            intermediate_size=96,
            moe_intermediate_size=40,
            shared_expert_intermediate_size=72,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            num_experts=6,
            num_experts_per_tok=2,
            mlp_only_layers=[1],
            max_position_embeddings=512,
            bos_token_id=0,
            eos_token_id=1,
        )
    ).eval()
    _share_a_start(qwen, 0.15)
    return {"mixtral": mixtral, "parent": parent, "qwen2_moe": qwen}


@pytest.fixture(scope="session")
def mixtral_dir(models: dict[str, Any], tokenizer: Any, place: Maker) -> Path:
    """Mixtral, 2 layers of 4 experts `[112, 64]` that share a start; bfloat16, one file."""
    return _save(models["mixtral"], tokenizer, place("mixtral"))


@pytest.fixture(scope="session")
def mixtral_sharded_dir(models: dict[str, Any], tokenizer: Any, place: Maker) -> Path:
    """The same model as `mixtral_dir` in several files with an index."""
    return _save(models["mixtral"], tokenizer, place("mixtral-sharded"), max_shard_size="120KB")


@pytest.fixture(scope="session")
def dense_parent_dir(models: dict[str, Any], tokenizer: Any, place: Maker) -> Path:
    """The dense Mistral whose FFNs the experts of `mixtral_dir` started from."""
    return _save(models["parent"], tokenizer, place("parent"))


@pytest.fixture(scope="session")
def qwen2_moe_dir(models: dict[str, Any], tokenizer: Any, place: Maker) -> Path:
    """Qwen2-MoE, layers 0 and 2 of 6 experts `[40, 64]` and a shared one, layer 1 dense."""
    return _save(models["qwen2_moe"], tokenizer, place("qwen2-moe"))


@pytest.fixture(scope="session")
def qwen2_moe_sharded_dir(models: dict[str, Any], tokenizer: Any, place: Maker) -> Path:
    """The same model as `qwen2_moe_dir` in several files with an index."""
    directory = place("qwen2-moe-sharded")
    return _save(models["qwen2_moe"], tokenizer, directory, max_shard_size="100KB")


@pytest.fixture(scope="session")
def scratch_dir(models: dict[str, Any], tokenizer: Any, place: Maker) -> Path:
    """A Mixtral whose experts were drawn independently, as when trained from scratch."""
    return _save(_mixtral(seed=7), tokenizer, place("scratch"))


@pytest.fixture
def kernel_device() -> torch.device:
    """Where kernels of Triton run: a GPU, or its interpreter."""
    if find_spec("triton") is None:
        pytest.skip("triton is not installed; it comes with CUDA builds of torch on Linux")
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
