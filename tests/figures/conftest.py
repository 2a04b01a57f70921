"""Tiny checkpoints whose experts are given."""

from support.given_experts import checkpoint_of, group_of, planted

__all__ = ["checkpoint_of", "group_of", "planted"]
