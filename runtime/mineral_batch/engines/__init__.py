"""Inference engines: one file per engine, opened through `registry`."""
