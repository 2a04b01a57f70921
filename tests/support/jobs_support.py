"""What the tests of jobs share: recipes, a maker of checkpoints, claims, waiting, comparing."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import torch
from safetensors.torch import save_file

from ders_core.jobs import JobStore, Workspace
from ders_core.jobs.claims import Claim, Claims
from ders_core.jobs.job_process import InChildProcess
from ders_core.jobs.patience import Patience
from ders_core.jobs.perform import Setting
from ders_core.jobs.stop import Stop

SLOW_RECIPE = """
name: slow
rules:
- codec: lowrank
  rank: 8
"""
FAST_RECIPE = """
name: fast
rules:
- codec: quantized
  bits: 4
"""


def make_checkpoint(directory: Path, layers: int, width: int, hidden: int, experts: int) -> Path:
    """A Mixtral directory of experts with a common start, in bfloat16; no router, no tokenizer."""
    directory.mkdir()
    generator = torch.Generator().manual_seed(7)
    tensors = {"model.embed_tokens.weight": torch.randn(32, width, generator=generator).bfloat16()}
    for layer in range(layers):
        for name in ("w1", "w2", "w3"):
            shape = (width, hidden) if name == "w2" else (hidden, width)
            start = torch.randn(shape, generator=generator)
            for expert in range(experts):
                weight = start + 0.02 * torch.randn(shape, generator=generator)
                key = f"model.layers.{layer}.block_sparse_moe.experts.{expert}.{name}.weight"
                tensors[key] = weight.bfloat16()
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    config = {
        "model_type": "mixtral",
        "num_local_experts": experts,
        "num_hidden_layers": layers,
        "num_experts_per_tok": 2,
    }
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def wait_for(what: Callable[[], bool], seconds: float = 90) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def contents(directory: Path) -> dict[str, bytes]:
    """The bytes of every file of a directory."""
    return {file.name: file.read_bytes() for file in sorted(directory.iterdir())}


@contextmanager
def child_of(workspace: Workspace) -> Iterator[InChildProcess]:
    stop = Stop()
    with closing(InChildProcess(Setting(workspace, None, stop, Patience(workspace, stop)))) as doer:
        yield doer


def claimed(store: JobStore) -> Claim:
    """A new job that is claimed."""
    store.submit("analyze", {"checkpoint": "/m"}, "Look")
    claims = Claims(store.path, "worker")
    claims.beat(None, 0, 0.0)
    claim = claims.claim()
    assert claim is not None
    return claim


def log_of(store: JobStore, number: int) -> str:
    return " / ".join(event.message for event in store.events(number))
