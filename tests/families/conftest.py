"""Every test here runs tiny models of transformers."""

from support.one_thread_models import quiet

__all__ = ["quiet"]
