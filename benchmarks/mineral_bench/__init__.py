"""Measurements: how fast, how right, what it costs, each with the conditions that it was made under."""
