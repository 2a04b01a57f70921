"""Bytes on a disk or at an address: safetensors read by ranges and written whole.

Knows no model.
"""
