"""Decoding in processes of their own, whose interpreters do not share one lock."""
