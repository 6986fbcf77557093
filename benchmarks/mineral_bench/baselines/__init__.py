"""Other programs' ways to predict the same photographs with the same model, and ours behind the same interface."""
