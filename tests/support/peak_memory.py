"""Peak memory of a load, in a process of its own that has imported everything before."""

from __future__ import annotations

from multiprocessing.connection import Connection
from pathlib import Path

import torch
from support import forks


def peak_of_loading(checkpoint: Path, small: Path) -> int:
    """By how many KiB the peak of a process grows when transformers loads a checkpoint there.

    small: one that is loaded before, so that what is imported and compiled for it does not count.
    """
    forks.start()
    receiver, sender = forks.FORKS.Pipe(duplex=False)
    with receiver:
        process = forks.FORKS.Process(target=_load, args=(checkpoint, small, sender))
        process.start()
        sender.close()
        grown: int = receiver.recv()  # EOFError if the load fails
        process.join()
    return grown


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
