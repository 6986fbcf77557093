"""What `mineral-export onnx` does unless told otherwise; imported by the command line, so without torch."""

#: 17 introduced LayerNormalization as one operator (decomposed, ViTs give wrong FP16 results).
OLDEST_OPSET = 17
OPSET = 20
#: The first opset with `Attention` as one operator, which GPUs want in FP16 and older runtimes do not know.
ATTENTION_OPSET = 23
NEWEST_OPSET = 23

#: Maps for each image, of its most probable minerals: 1 in 200 of the paper's images has more than three.
TOP = 3
