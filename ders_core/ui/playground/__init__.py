"""The Playground: what an original and its compressed form say to the same prompt."""
