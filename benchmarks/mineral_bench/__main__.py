"""`python -m mineral_bench`: the command mineral-bench."""

from mineral_bench.cli import main

if __name__ == "__main__":
    main(prog_name="mineral-bench")
