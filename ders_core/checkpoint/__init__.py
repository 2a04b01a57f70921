"""Model directories: recognised, read by slices, and written whole or not at all."""

from ders_core.checkpoint.header import DTYPES, NAMES, TensorInfo, TensorSpec
from ders_core.checkpoint.layouts import LAYOUTS, PROJECTIONS, Layout
from ders_core.checkpoint.reader import Checkpoint, ExpertGroup
from ders_core.checkpoint.store import TensorStore

__all__ = [
    "DTYPES",
    "LAYOUTS",
    "NAMES",
    "PROJECTIONS",
    "Checkpoint",
    "ExpertGroup",
    "Layout",
    "TensorInfo",
    "TensorSpec",
    "TensorStore",
]
