"""How classes of transformers hold and compute the experts of a layer: one file each."""
