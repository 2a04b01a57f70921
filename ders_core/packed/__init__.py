"""The packed checkpoint: its manifest, its reader, and the original that it stands for."""
