"""`python -m mineral_train`, which is what `torchrun` starts."""

from mineral_train.cli import main

if __name__ == "__main__":  # processes that are spawned import this module too
    main(prog_name="mineral-train")
