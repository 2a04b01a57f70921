"""What the figures of a benchmark of quality depend on."""

from __future__ import annotations

import platform

import torch
import transformers

import ders_core
from ders_core.compute.device import device_label


def versions() -> str:
    """In one line: programs, processor, threads."""
    return (
        f"ders-studio {ders_core.__version__}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}, Python {platform.python_version()}, "
        f"{device_label('cpu')}, {torch.backends.cpu.get_cpu_capability()}"
    )
