"""Export: a checkpoint in, one self-describing ONNX file out."""

#: 17 brought LayerNormalization as one op (decomposed, ViTs go wrong in FP16); 23 has Attention as one op, which a GPU
#: wants in FP16, and which older runtimes do not know.
OPSET = 20
OLDEST_OPSET, NEWEST_OPSET = 17, 23

#: Largest difference between a checkpoint's probability and an exported file's. Float32 in another order of summation
#: moves them by 7e-6 (a small ViT) to 2e-4 (the paper's model, random weights).
TOLERANCE = 1e-3

#: Maps of a picture, of its most probable minerals: one in 200 of the paper's pictures shows more.
TOP = 3
