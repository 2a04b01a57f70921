"""Kernels run on a GPU where there is one, else under Triton's interpreter on the CPU."""

from __future__ import annotations

import os
from importlib.util import find_spec

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is defined

collect_ignore_glob: list[str] = []


@pytest.fixture
def device() -> torch.device:
    if find_spec("triton") is None:
        pytest.skip("triton is not installed; it comes with CUDA builds of torch on Linux")
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
