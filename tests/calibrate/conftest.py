"""A text to measure on, and packed models that are visibly worse than their originals."""

from support.measured_calibrations import calibration, saved
from support.worse_models import pair, pair_of, text_file

__all__ = ["calibration", "pair", "pair_of", "saved", "text_file"]
