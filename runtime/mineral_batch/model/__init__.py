"""The model file: its contract, its ONNX metadata, the starter model."""
