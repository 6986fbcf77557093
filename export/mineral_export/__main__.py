"""`python -m mineral_export`: the command mineral-export."""

from mineral_export.cli import main

if __name__ == "__main__":
    main(prog_name="mineral-export")
