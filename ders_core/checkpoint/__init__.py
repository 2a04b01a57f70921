"""The experts of a model: recognised, grouped, and read in slices."""

from ders_core.checkpoint.checkpoint import Checkpoint
from ders_core.checkpoint.dense import DenseFFN, dense_ffns
from ders_core.checkpoint.groups import Block, ExpertGroup
from ders_core.checkpoint.layouts import PROJECTIONS, Layout
from ders_core.checkpoint.matrix import Matrix
from ders_core.checkpoint.recognition import Recognition, recognise

__all__ = [
    "PROJECTIONS",
    "Block",
    "Checkpoint",
    "DenseFFN",
    "ExpertGroup",
    "Layout",
    "Matrix",
    "Recognition",
    "dense_ffns",
    "recognise",
]
