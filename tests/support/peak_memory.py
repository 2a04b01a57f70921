"""Peak memory of a load and of a compression, each in a process of its own that has imported
everything before."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType

import torch
from support import forks

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "memory.py"


def peak_of_loading(checkpoint: Path, small: Path) -> int:
    """By how many KiB the peak of a process grows when transformers loads a checkpoint there.

    small: one that is loaded before, so that what is imported and compiled for it does not count.
    """
    return _told_by(_load, checkpoint, small)


def peak_of_compressing(checkpoint: Path, recipe: str, threads: int) -> int:
    """By how many bytes, as the benchmark of memory measures it."""
    return _told_by(_compress, checkpoint, recipe, threads)


def memory_benchmark() -> ModuleType:
    """`benchmarks/memory.py`, whose peaks the documentation claims."""
    spec = importlib.util.spec_from_file_location("memory_benchmark", BENCHMARK)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _told_by(work: Callable[..., None], *given: object) -> int:
    """What work(*given, connection) sends, in a forked process."""
    forks.start()
    receiver, sender = forks.FORKS.Pipe(duplex=False)
    with receiver:
        process = forks.FORKS.Process(target=work, args=(*given, sender))
        process.start()
        sender.close()
        grown: int = receiver.recv()  # EOFError if the work fails
        process.join()
    return grown


def _compress(checkpoint: Path, recipe: str, threads: int, sender: Connection) -> None:
    torch.set_num_threads(1)
    sender.send(memory_benchmark().peak_growth(checkpoint, recipe, threads))


def _load(checkpoint: Path, small: Path, sender: Connection) -> None:
    from transformers import AutoModelForCausalLM, MixtralForCausalLM  # before the measurement

    import ders_core.hf  # noqa: F401  teaches transformers the packed format

    torch.set_num_threads(1)
    AutoModelForCausalLM.from_pretrained(small, dtype=torch.bfloat16)
    Path("/proc/self/clear_refs").write_text("5")  # the peak is what is in memory now
    before = _peak()
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.bfloat16)
    assert isinstance(model, MixtralForCausalLM)
    assert sum(weight.numel() for weight in model.parameters())
    sender.send(_peak() - before)


def _peak() -> int:
    """Of this process, in KiB; getrusage would count what the parent held."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
