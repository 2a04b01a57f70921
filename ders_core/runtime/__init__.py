"""Models that compute with packed experts: base and deltas stay as small in memory as on disk."""

from ders_core.runtime.modes import MODES, Mode

__all__ = ["MODES", "Mode"]
