"""JPEG: decoding with libjpeg-turbo's warnings, and what its structure tells about damage."""
