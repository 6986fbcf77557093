"""Provider options against the parsers of the real onnxruntime-gpu, and the fake's parser against them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from mineral_batch.engines.base import Tuning
from mineral_batch.engines.onnx_cuda import CUDA, cuda_options, without_graph
from mineral_batch.engines.onnx_tensorrt import TENSORRT, tensorrt_providers
from mineral_batch.model.starter import starter_path

from ..fakes.onnxruntime import check_options
from .conftest import DIED

if TYPE_CHECKING:
    from .conftest import Child

pytestmark = pytest.mark.gpu_stubs

CUDA_SETS = [
    cuda_options(0, is_exact=is_exact, tuning=Tuning(nhwc=nhwc)) | stream
    for is_exact in (False, True)
    for nhwc in (False, True)
    for stream in ({}, {"user_compute_stream": "4096"})
]
CUDA_SETS.append(without_graph((CUDA, CUDA_SETS[0]))[1])
TENSORRT_SETS = [
    options
    for is_half in (False, True)
    for provider in tensorrt_providers(Path("cache"), 0, is_half=is_half)[:1]
    for options in (provider[1], without_graph(provider)[1], {**provider[1], "user_compute_stream": "4096"})
]
WRONG = [
    (CUDA, {"enable_cuda_graph": "yes"}),
    (CUDA, {"cudnn_conv_algo_search": "FAST"}),
    (CUDA, {"prefer_nchw": "1"}),
    (TENSORRT, {"trt_cuda_graph_enable": "1"}),
    (TENSORRT, {"trt_fp16_enable": "0"}),
    (TENSORRT, {"trt_engine_cache_enabled": "True"}),
]


def fake_refuses(provider: str, options: dict[str, str]) -> bool:
    try:
        check_options(provider, options)
    except RuntimeError:
        return True
    return False


def refusal(child: Child, provider: str, options: dict[str, str]) -> str:
    answer = child("option", str(starter_path()), provider, options)
    return "" if provider == TENSORRT and answer == DIED else answer


@pytest.mark.parametrize("options", CUDA_SETS, ids=lambda options: "-".join(options.values()))
def test_cuda_accepts_every_set_of_options_that_is_used(child: Child, options: dict[str, str]) -> None:
    assert refusal(child, CUDA, options) == ""
    assert not fake_refuses(CUDA, options)


@pytest.mark.parametrize("options", TENSORRT_SETS, ids=lambda options: "-".join(options.values()))
def test_tensorrt_accepts_every_set_of_options_that_is_used(child: Child, options: dict[str, str]) -> None:
    assert refusal(child, TENSORRT, options) == ""
    assert not fake_refuses(TENSORRT, options)


@pytest.mark.parametrize(("provider", "options"), WRONG, ids=str)
def test_what_the_real_parser_refuses_the_fake_refuses_too(child: Child, provider: str, options: Any) -> None:
    assert refusal(child, provider, options)
    assert fake_refuses(provider, options)


def test_with_the_stubs_both_providers_load(child: Child) -> None:
    facts = child("facts")
    assert facts["reasons"] == {CUDA: "", TENSORRT: ""}
    assert re.fullmatch(r"\d+\.\d+", facts["cuda"])
