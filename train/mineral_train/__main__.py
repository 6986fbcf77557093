"""`python -m mineral_train`, which is what `torchrun` starts."""

from mineral_train.cli import main

main(prog_name="mineral-train")
