"""The names by which a packed checkpoint is known."""

MANIFEST = "ders_manifest.json"
QUANT_METHOD = "ders"
"""The `quant_method` of its config.json."""
