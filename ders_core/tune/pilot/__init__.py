"""Pilot: from a checkpoint and a text to figures on which a person can decide.

The experts are compared (verdict); a calibration is made of one part of the text; three safe sizes
and an aggressive one are chosen from what it predicts; each is compressed, measured on the other
part, and goes on with a few prompts beside the original.
"""
