"""The measurements, one module per command."""
