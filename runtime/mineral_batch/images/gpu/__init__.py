"""JPEG decoding and resizing on the GPU."""
