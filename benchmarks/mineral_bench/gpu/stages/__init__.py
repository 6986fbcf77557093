"""The stages of a run; each saves after every measurement, so that what it has measured is never lost."""
