"""Quick evaluation: perplexity, KL, top-1 agreement and routing agreement; replies to a prompt.

The package can be called as its function: `from ders_core import evaluate`.
"""

import sys
from types import ModuleType

from ders_core.evaluate.evaluator import check_evaluation, evaluate
from ders_core.evaluate.replies import compare_all_replies, compare_replies
from ders_core.pipeline.quality import Quality
from ders_core.pipeline.replies import Replies

__all__ = [
    "Quality",
    "Replies",
    "check_evaluation",
    "compare_all_replies",
    "compare_replies",
    "evaluate",
]


class _CallablePackage(ModuleType):
    """A package named as the function that it offers, and called in its place."""

    __call__ = staticmethod(evaluate)


sys.modules[__name__].__class__ = _CallablePackage
