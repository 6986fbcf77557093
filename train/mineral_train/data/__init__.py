"""Labeled images: manifests, folders, duplicates, splits, samples."""
