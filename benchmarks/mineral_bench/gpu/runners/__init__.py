"""Ways to run a model: each is a context manager (settings, batch, ...) that yields a `Workload`."""
