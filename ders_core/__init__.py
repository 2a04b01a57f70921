"""DeRS: Decompose, Replace, Synthesis for upcycled Mixture-of-Experts (arXiv 2503.01359)."""

__version__ = "0.1.0"
