"""TIFF: which of a file's images is the photo, and the pixel formats that Pillow decodes wrongly."""
