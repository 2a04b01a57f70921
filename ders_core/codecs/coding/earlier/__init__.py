"""Streams of format versions 1 to 3, which are read and no longer written."""
