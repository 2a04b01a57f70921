"""Model directories: recognised, read by slices, and written whole or not at all."""

from ders_core.checkpoint.dense import DenseFFN, dense_ffns
from ders_core.checkpoint.groups import Block, ExpertGroup
from ders_core.checkpoint.header import DTYPES, NAMES, TensorInfo, TensorSpec
from ders_core.checkpoint.layouts import PROJECTIONS, Layout
from ders_core.checkpoint.matrix import Matrix
from ders_core.checkpoint.reader import Checkpoint
from ders_core.checkpoint.recognise import Recognition, recognise
from ders_core.checkpoint.store import TensorStore

__all__ = [
    "DTYPES",
    "NAMES",
    "PROJECTIONS",
    "Block",
    "Checkpoint",
    "DenseFFN",
    "ExpertGroup",
    "Layout",
    "Matrix",
    "Recognition",
    "TensorInfo",
    "TensorSpec",
    "TensorStore",
    "dense_ffns",
    "recognise",
]
