"""Choices that a codec makes from the values: levels, scales, which entries to keep, GPTQ."""
