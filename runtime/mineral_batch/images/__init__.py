"""Images: found, opened, decoded and resized to the model's input; training uses the same code."""
