"""Training: recipe, loop, losses, optimiser, checkpoints."""
