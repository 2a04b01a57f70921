"""Calibrate: second moments of the experts' inputs, and how often each expert is chosen.

There is no code for single families.
"""

from ders_core.calibrate.calibrator import calibrate, has_room_for_each

__all__ = ["calibrate", "has_room_for_each"]
