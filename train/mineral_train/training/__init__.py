"""Training: recipe, loop, losses, optimizer, checkpoints."""
