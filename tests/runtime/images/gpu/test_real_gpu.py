"""The decoder on the GPU of this machine."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from mineral_batch import BackendError
from mineral_batch.images.decoder import CpuDecoder
from mineral_batch.images.gpu.decoder import GpuDecoder

from ...conftest import encode, scene
from .conftest import SPEC, decoded, jpeg, with_orientation

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def real_decoder() -> Iterator[GpuDecoder]:
    """On the GPU of this machine; what is missing is the reason for leaving its tests out."""
    try:
        opened = GpuDecoder(SPEC, CpuDecoder(SPEC, exact=True))
    except BackendError as error:
        pytest.skip(str(error))
    yield opened
    opened.close()


@pytest.mark.gpu
def test_a_real_gpu_gives_pillows_pixels_whatever_the_jpeg(real_decoder: GpuDecoder) -> None:
    forms: list[dict[str, Any]] = [{}, {"progressive": True}, {"subsampling": "4:4:4"}, {"subsampling": "4:2:2"}]
    contents = [jpeg(1200, 900, seed, **form) for seed, form in enumerate(forms)]
    contents += [with_orientation(value, width=1400, height=900) for value in range(1, 9)]
    contents.append(encode(scene(1200, 900).convert("L"), "JPEG"))
    cpu = CpuDecoder(SPEC, exact=True)
    with ThreadPoolExecutor(len(contents)) as pool:
        for _ in range(3):
            for content, image in zip(contents, pool.map(partial(decoded, real_decoder), contents), strict=True):
                expected = decoded(cpu, content)
                assert (image.width, image.height) == (expected.width, expected.height)
                assert np.abs(image.pixels.astype(int) - expected.pixels).mean() < 1
    assert real_decoder.counts == {"on the GPU": 3 * len(contents)}


@pytest.mark.gpu
def test_a_real_gpu_decodes_a_picture_alike_among_any_others(real_decoder: GpuDecoder) -> None:
    """So that a run which was stopped ends with the same bytes."""
    contents = [jpeg(1200 + 40 * seed, 900, seed, progressive=bool(seed % 3)) for seed in range(24)]
    alone = [decoded(real_decoder, content).pixels for content in contents]
    with ThreadPoolExecutor(len(contents)) as pool:
        for image, expected in zip(pool.map(partial(decoded, real_decoder), contents), alone, strict=True):
            np.testing.assert_array_equal(image.pixels, expected)
