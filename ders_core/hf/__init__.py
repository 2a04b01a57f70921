"""Everything that touches transformers.

Importing this package teaches `from_pretrained` of every class to read packed checkpoints, and the
auto classes the upcycled models that transformers has no class for.
"""

from ders_core.hf.describe import describe, shared_dtype
from ders_core.hf.load import load_model, load_tokenizer
from ders_core.hf.plugin import as_stored, install
from ders_core.hf.save import save_packed
from ders_core.hf.upcycled import register

install()
register()

__all__ = [
    "as_stored",
    "describe",
    "load_model",
    "load_tokenizer",
    "save_packed",
    "shared_dtype",
]
