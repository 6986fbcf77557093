"""Benchmarks: throughput, accuracy and comparison with other programs."""
