"""Calibrate: second moments of what experts' weights are multiplied with, and their use.

No family has code of its own here.
"""

from ders_core.calibrate.calibrator import calibrate

__all__ = ["calibrate"]
