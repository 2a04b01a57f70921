"""The parts of the Upcycle page."""
