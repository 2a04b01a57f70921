"""Kernels run on a GPU where there is one, else under Triton's interpreter on the CPU.

Tests that want the fixture import it, before anything that imports triton.
"""

from __future__ import annotations

import os
from importlib.util import find_spec

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is defined


@pytest.fixture
def kernel_device() -> torch.device:
    """Where kernels run."""
    if find_spec("triton") is None:
        pytest.skip("triton is not installed; it comes with CUDA builds of torch on Linux")
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
