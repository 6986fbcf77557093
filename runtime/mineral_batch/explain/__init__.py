"""Where a model looks: maps, overlays and their scores."""
