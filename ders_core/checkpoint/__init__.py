"""The experts of a model: recognised, grouped, and read in slices."""

from ders_core.checkpoint.checkpoint import Checkpoint
from ders_core.checkpoint.dense import DenseFFN, dense_ffns
from ders_core.checkpoint.groups import Block, ExpertGroup
from ders_core.checkpoint.layouts import PROJECTIONS, Layout
from ders_core.checkpoint.matrix import Matrix
from ders_core.checkpoint.others import KINDS, OtherTensor
from ders_core.checkpoint.recognition import Recognition, recognise
from ders_core.checkpoint.stacks import MatrixStack

__all__ = [
    "KINDS",
    "PROJECTIONS",
    "Block",
    "Checkpoint",
    "DenseFFN",
    "ExpertGroup",
    "Layout",
    "Matrix",
    "MatrixStack",
    "OtherTensor",
    "Recognition",
    "dense_ffns",
    "recognise",
]
