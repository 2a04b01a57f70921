"""Quick evaluation: perplexity, KL, top-1 agreement and routing agreement."""

from ders_core.evaluate.quality import Quality
from ders_core.evaluate.run import evaluate

__all__ = ["Quality", "evaluate"]
