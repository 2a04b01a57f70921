"""Numbers as bytes: bit planes, positions, patterns, entropy codes; and numbers from a seed."""
