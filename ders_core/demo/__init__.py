"""The demo: a small upcycled MoE that comes with the package, and the way to train one anew."""
