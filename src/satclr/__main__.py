"""`python -m satclr`, as `torchrun -m satclr` needs it."""

from satclr.cli import main

main()
