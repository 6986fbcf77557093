"""FP16, FP8 and INT8 graphs from a float32 graph."""
