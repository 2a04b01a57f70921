"""Tiny checkpoints whose experts are given, and the tables of one that transformers made."""

from pathlib import Path

import pytest
from support.given_experts import checkpoint_of, group_of, planted

from ders_core.analysis import Analysis, analyze
from ders_core.packed.open import open_checkpoint

__all__ = ["checkpoint_of", "group_of", "planted"]


@pytest.fixture(scope="session")
def analysis(mixtral_dir: Path) -> Analysis:
    """Nothing in it may be changed."""
    return analyze(open_checkpoint(mixtral_dir))
