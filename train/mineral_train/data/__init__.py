"""Labelled images: manifests, folders, duplicates, splits, samples."""
