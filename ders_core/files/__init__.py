"""Bytes on a disk or at an address: safetensors files, read in parts and written safely.

Knows no model.
"""
