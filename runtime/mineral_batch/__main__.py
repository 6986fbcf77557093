"""`python -m mineral_batch`: the command mineral-batch."""

from mineral_batch.cli import main

if __name__ == "__main__":
    main(prog_name="mineral-batch")
