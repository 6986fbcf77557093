"""A new last layer for an exported model, fitted on a user's own photographs; needs no torch."""
