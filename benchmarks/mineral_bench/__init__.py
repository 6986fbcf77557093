"""Measure speed, accuracy and cost, each with the conditions of the measurement."""
