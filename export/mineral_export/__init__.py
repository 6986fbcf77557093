"""Export: a checkpoint in, one self-describing ONNX file out."""
