"""Comparison of model files: parity, budgets and the gate before a file is kept."""
