"""The output folder: run, journal, tables, reading and checking them."""
