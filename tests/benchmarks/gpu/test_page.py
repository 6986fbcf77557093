"""The page: every rate beside its ceiling, and none of wrong output in its summary."""

from __future__ import annotations

from typing import Any

from mineral_bench.gpu import page
from mineral_bench.gpu.plan import STAGES


def test_every_rate_stands_beside_its_share_of_the_measured_ceiling() -> None:
    found: dict[str, Any] = {name: {"status": "done"} for name in STAGES}
    found["chip"] |= {"matrix_float16_tflops": 100.0, "matrix_float8_tflops": 200.0, "copy_to_gpu_gb_per_s": 50.0}
    found["models"] |= {"gflop_per_picture": 100.0, "input": [1000, 1000, 3]}
    found["engines"] |= {"ONNX Runtime CUDA FP16": {"256": 600.0, "64": 500.0}, "gpu": {"sm_mhz_median": 1755.0}}
    found["engines"] |= {"ONNX Runtime CUDA FP16 says": {"256": "one CUDA graph", "64": "one CUDA graph"}}
    found["engines"] |= {"better": "ONNX Runtime CUDA FP16"}
    found["peers"] |= {"torch eager, AMP": {"64": 300.0}, "DataLoader + torch, 384": {"pictures_per_s": 200.0}}
    found["quantized"] |= {"TensorRT FP8": {"1": 100.0, "64": 1500.0}}
    found["starter"] |= {"gflop_per_picture": 1.0, "starter, ONNX Runtime CUDA FP16": {"1": 50000.0}}
    ours = {"pictures_per_s": 480.0, "batch_size": 64, "beside": "ONNX Runtime CUDA FP16"}
    found["end_to_end"] |= {"onnx-cuda, 384": ours, "tensorrt, 384": {"failed": "no TensorRT"}}
    found["verify"] |= {"onnx-cuda": {"within_budget": True}}
    for stage, row in {"engines": "ONNX Runtime CUDA FP16", "end_to_end": "onnx-cuda, 384"}.items():
        found[stage] |= {"answers": {row: ["verify", "onnx-cuda"]}}
    text = page.markdown(found)
    assert "| ONNX Runtime CUDA FP16 | - | 500 | 600 | 60% | one CUDA graph | right |" in text
    assert "| TensorRT FP8 | 100 | 1500 | - | 75% |  |" in text, "of the rate in its own type"
    assert "| starter, ONNX Runtime CUDA FP16 | 5e+04 | - | - | 50% |  |" in text, "by its own operations"
    assert "| onnx-cuda, 384 | 480 | 64 | 96% | 80% |  | right |" in text
    assert "| tensorrt, 384 | - |  | - | - | no TensorRT |  |" in text
    assert "| matrix products in float16 | 1000 |" in text
    assert "| copies to the GPU, 3.00 MB an image | 1.667e+04 |" in text
    assert "| engines | sm_mhz_median: 1755 |" in text
    assert "- on the device: ONNX Runtime CUDA FP16, 600 images/s, 60% of the rate" in text
    assert "- the fastest peer there: torch eager, AMP, 300; ours 2.00 x" in text
    assert "- files to probabilities, 384: 480 images/s (onnx-cuda, 384); the fastest peer 200" in text
    assert "DRY RUN" not in text


def test_a_rate_whose_answers_nobody_has_compared_says_so_and_gives_way_to_one_that_is_right() -> None:
    found: dict[str, Any] = {name: {"status": "done"} for name in STAGES}
    found["engines"] |= {"of TensorRT": {"64": 900.0}, "ours": {"64": 500.0}, "answers": {"ours": ["verify", "ours"]}}
    found["verify"] |= {"ours": {"failed": "no memory"}}
    assert "- on the device: of TensorRT, 900 images/s, output not compared" in page.markdown(found)
    found["verify"] |= {"ours": {"within_budget": True}}
    assert "- on the device: ours, 500 images/s\n" in page.markdown(found)
    found["verify"] |= {"ours": {"within_budget": False, "failed": "beyond the budget"}}
    found["engines"].pop("of TensorRT")
    assert "- on the device" not in page.markdown(found)


def test_a_chip_that_told_little_has_a_page() -> None:
    found: dict[str, Any] = {name: {"status": "failed", "error": "1 did not work"} for name in STAGES}
    found["chip"] |= {"matrix_float8_tflops": {"left_out": "not on this chip"}}
    found["chip"] |= {"matrix_float16_tflops": {"failed": "no memory"}, "copy_to_gpu_gb_per_s": {"failed": "no memory"}}
    found["models"] |= {"gflop_per_picture": 100.0, "input": [384, 384, 3]}
    found["engines"] |= {"ONNX Runtime CUDA FP16": {"64": 500.0}, "TensorRT FP16 ended": {"left_out": "not installed"}}
    found["quantized"] |= {"TensorRT FP8": {"64": 1500.0}}
    text = page.markdown(found)
    assert "| ONNX Runtime CUDA FP16 | 500 | - |  |" in text
    assert "| matrix_float16_tflops | failed: no memory |" in text
    assert "- TensorRT FP16 ended: left_out: not installed" in text
    assert "100 GFLOP an image." in text
