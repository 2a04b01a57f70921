"""Loaded by dask into each worker process of an embedded cluster, so that each sees one GPU."""

from __future__ import annotations

import os
from typing import Any

VISIBLE = "CUDA_VISIBLE_DEVICES"


def dask_setup(worker: Any) -> None:
    """Choose the GPU by the worker's number, before CUDA is initialised."""
    visible = [name for name in os.environ.get(VISIBLE, "").split(",") if name]
    number = int(worker.name)
    os.environ[VISIBLE] = visible[number % len(visible)] if visible else str(number)
