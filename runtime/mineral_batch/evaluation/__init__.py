"""Accuracy: metrics, thresholds, curves, and matching predictions to labels."""
