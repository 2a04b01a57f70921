"""Loaded by dask into each worker process of an embedded cluster: it sees one GPU, its own."""

from __future__ import annotations

import os
from typing import Any

VISIBLE = "CUDA_VISIBLE_DEVICES"


def dask_setup(worker: Any) -> None:
    """The worker's number tells which; before anything has asked for a GPU."""
    visible = [name for name in os.environ.get(VISIBLE, "").split(",") if name]
    number = int(worker.name)
    os.environ[VISIBLE] = visible[number % len(visible)] if visible else str(number)
