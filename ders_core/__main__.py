"""`python -m ders_core` is `ders`; so are `torchrun -m ders_core` and `accelerate launch -m`."""

from ders_core.cli.main import main

main()
