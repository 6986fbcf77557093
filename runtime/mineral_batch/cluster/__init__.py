"""Runs in pieces: shards for schedulers, outputs by URL and clusters, merged into the tables of a single run."""
