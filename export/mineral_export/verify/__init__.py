"""Compare two forms of a model; write a new form only if it gives the same output, within a budget."""
