"""Every test here runs tiny models of transformers."""

from one_thread_models import quiet

__all__ = ["quiet"]
