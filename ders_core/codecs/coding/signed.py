"""Signed numbers that are mostly small as numbers that are not negative."""

from __future__ import annotations

from ders_core.later import np


def unsigned(numbers: np.ndarray) -> np.ndarray:
    """0, −1, 1, −2 … as 0, 1, 2, 3 …"""
    mapped: np.ndarray = numbers << 1 ^ numbers >> 63
    return mapped


def signed(numbers: np.ndarray) -> np.ndarray:
    """The inverse."""
    mapped: np.ndarray = numbers >> 1 ^ -(numbers & 1)
    return mapped
