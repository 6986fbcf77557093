"""TensorRT and TensorRT for RTX: building plans and running them."""
