"""The review page: people confirm and correct what a run predicted, on their own machine."""
