"""Calibrate: second moments of the experts' inputs, and how often each expert is chosen.

No family has code of its own here.
"""

from ders_core.calibrate.calibrator import calibrate

__all__ = ["calibrate"]
