"""Upcycling: a dense model becomes a Mixture-of-Experts whose deltas are light from the start.

What needs torch modules and transformers is in `ders_core.upcycle.upcycler`, imported where it
runs.
"""

from ders_core.upcycle.config import Data, FormRule, Router, Training, UpcycleConfig, load_config
from ders_core.upcycle.dense_model import DenseModel
from ders_core.upcycle.forms.lowrank import LowRankForm
from ders_core.upcycle.forms.sparse import Renewal, SparseForm
from ders_core.upcycle.forms.vanilla import Vanilla
from ders_core.upcycle.sizes import Prediction, predict

__all__ = [
    "Data",
    "DenseModel",
    "FormRule",
    "LowRankForm",
    "Prediction",
    "Renewal",
    "Router",
    "SparseForm",
    "Training",
    "UpcycleConfig",
    "Vanilla",
    "load_config",
    "predict",
]
