"""`mineral-export`: from a checkpoint to the file that is deployed."""

import click

from mineral_batch.cli.console import LazyGroup

_COMMANDS = {
    "onnx": ("mineral_export.cli.onnx:onnx", "Export a checkpoint to one self-describing ONNX file."),
    "fp16": ("mineral_export.cli.fp16:fp16", "Convert an ONNX file to FP16, for GPUs."),
    "trt": ("mineral_export.cli.trt:trt", "Build a TensorRT engine from an ONNX file."),
    "int8": ("mineral_export.cli.int8:int8", "Quantize an ONNX file to INT8 with real photographs."),
    "fp8": ("mineral_export.cli.fp8:fp8", "Quantize an ONNX file to FP8 with real photographs."),
    "verify": ("mineral_export.cli.verify:verify", "Compare the output of two forms of a model."),
    "triton": ("mineral_export.cli.triton:triton", "Add a model to a Triton Inference Server repository."),
}


@click.group(
    cls=LazyGroup,
    table=_COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "MINERAL_EXPORT"},
)
@click.version_option(package_name="mineral-batch")
def main() -> None:
    """Turn a trained checkpoint into a file that runs without PyTorch."""
