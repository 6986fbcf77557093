"""Training: photographs with labels in, a checkpoint out."""
