"""Quick evaluation: perplexity, KL, top-1 agreement and routing agreement."""

from ders_core.evaluate.evaluator import evaluate
from ders_core.pipeline.quality import Quality

__all__ = ["Quality", "evaluate"]
