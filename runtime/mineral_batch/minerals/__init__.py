"""The minerals: labels, names in use, and what is known about each."""

from mineral_batch.minerals.names import MINERALS, canonical, other_names

__all__ = ["MINERALS", "canonical", "other_names"]
