"""A text to measure on, and packed models that are visibly worse than their originals."""

from support.worse_models import pair, pair_of, text_file

__all__ = ["pair", "pair_of", "text_file"]
