"""Ways to choose which entries of a delta stay, and how these are stored: one file each."""
