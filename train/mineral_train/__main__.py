"""`python -m mineral_train`: the command mineral-train."""

from mineral_train.cli import main

if __name__ == "__main__":
    main(prog_name="mineral-train")
