"""Quick evaluation: perplexity, KL, top-1 agreement and routing agreement.

The package can be called as its function: `from ders_core import evaluate`.
"""

import sys
from types import ModuleType

from ders_core.evaluate.evaluator import check_evaluation, evaluate
from ders_core.pipeline.quality import Quality

__all__ = ["Quality", "check_evaluation", "evaluate"]


class _CallablePackage(ModuleType):
    """A package named as the function that it offers, and called in its place."""

    __call__ = staticmethod(evaluate)


sys.modules[__name__].__class__ = _CallablePackage
