"""Export: turn a trained checkpoint into files that run without PyTorch.

Rooms, from the top down: `cli`; `tensorrt` and `triton`; `precision` (FP16, INT8, FP8 graphs); `onnx` (checkpoint to
ONNX); `verify` (compare two forms of a model); `export_model` (the PyTorch module that is exported).
"""
