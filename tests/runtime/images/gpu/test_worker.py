"""Workers whose GPU or nvImageCodec fails, and what they hold while they work."""

from __future__ import annotations

import itertools
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from mineral_batch import BackendError, Predictor
from mineral_batch.cli import main
from mineral_batch.cuda import probe
from mineral_batch.cuda.probe import DriverError
from mineral_batch.images.decoder import CpuDecoder
from mineral_batch.images.gpu import batch as batch_module
from mineral_batch.images.gpu import decoder as decoder_module
from mineral_batch.images.gpu import resize as resize_module
from mineral_batch.images.gpu import selftest
from mineral_batch.images.gpu.decoder import GpuDecoder
from mineral_batch.images.gpu.jpeg import inspect_jpeg

from ....fakes.cuda import CONTEXTS, CudaError
from ....fakes.nvimgcodec import LOST, POISON, Machine
from ...conftest import encode, scene
from .conftest import SPEC, assert_alike, decoded, jpeg, workers

if TYPE_CHECKING:
    from pathlib import Path


def test_a_gpu_that_fails_now_and_then_is_told_once_and_decodes_every_picture(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is asked again: a picture that the processor decodes instead would be answered otherwise than the others."""
    monkeypatch.setattr(decoder_module, "WORKERS_PER_GPU", 1)
    decoder = GpuDecoder(SPEC, CpuDecoder(SPEC))
    content = jpeg()
    for failures in (2, 4, 2, 4):  # each time the list, and the picture that is known
        machine.failures = failures
        assert_alike(decoded(decoder, content), decoded(CpuDecoder(SPEC), content))
    decoder.close()
    said = [record.getMessage() for record in caplog.records]
    assert said == ["decoding on GPU 0: RuntimeError: out of memory; trying again"]
    assert decoder.counts == {"on the GPU": 4}


def test_a_picture_that_no_decoder_bears_costs_no_other_and_no_lane(decoder: GpuDecoder, machine: Machine) -> None:
    contents = [jpeg(seed=seed, comment=POISON if seed % 4 == 0 else b"") for seed in range(24)]
    with ThreadPoolExecutor(24) as pool:
        found = list(pool.map(lambda content: decoded(decoder, content), contents))
    for image, content in zip(found, contents, strict=True):
        assert_alike(image, decoded(CpuDecoder(SPEC), content))
    reason = "on the CPU: it failed: RuntimeError: an image that it cannot handle"
    assert decoder.counts == {"on the GPU": 18, reason: 6}
    assert len(workers(0)) == 2


def test_a_gpu_that_fails_on_and_on_ends_the_run_instead_of_giving_other_pixels(
    decoder: GpuDecoder, machine: Machine
) -> None:
    machine.fails = "out of memory"
    content = jpeg()
    message = r"no GPU decodes any more \(GPU 0: RuntimeError: out of memory\): rerun .*, or --decode cpu"
    for _ in range(3):
        with pytest.raises(BackendError, match=message):
            decoder.decode("a", lambda: content)
    assert decoder.counts == {}
    png = encode(scene(90, 60), "PNG")
    assert decoded(decoder, png), "what is the processor's anyway"


def test_a_gpu_that_refuses_whatever_it_is_given_has_failed(decoder: GpuDecoder, machine: Machine) -> None:
    """As it does where nvJPEG fails, for want of memory say."""
    machine.refuses_all = True
    with pytest.raises(
        BackendError, match=r"no GPU decodes any more \(GPU 0: RuntimeError: it decodes no JPEG any more"
    ):
        decoder.decode("a", jpeg)
    assert decoder.counts == {}


def test_all_that_wait_for_a_lost_gpu_are_told(decoder: GpuDecoder, machine: Machine) -> None:
    machine.lists_left = 1
    with ThreadPoolExecutor(40) as pool:  # more than there are in a list
        answers = [pool.submit(decoder.decode, str(seed), partial(jpeg, seed=seed)) for seed in range(40)]
    errors = [answer.exception() for answer in answers if answer.exception()]
    assert errors
    assert all(f"no GPU decodes any more (GPU 0: RuntimeError: {LOST})" in str(error) for error in errors)
    assert decoder.counts == {"on the GPU": len(answers) - len(errors)}, "nothing by the processor"


@pytest.mark.parametrize("how", ["nvImageCodec", "the driver"])
def test_the_other_gpus_do_the_work_of_one_that_is_lost(
    machine: Machine, how: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    decoder = GpuDecoder(SPEC, CpuDecoder(SPEC), devices=(0, 1))
    if how == "nvImageCodec":
        machine.broken = {0}
    else:
        copy = machine.cuMemcpyDtoHAsync_v2

        def lost(*args: Any) -> None:
            if machine.stack[-1] == CONTEXTS:
                raise CudaError("cuMemcpyDtoHAsync_v2", 700)
            copy(*args)

        monkeypatch.setattr(machine, "cuMemcpyDtoHAsync_v2", lost)
    pictures = 0
    while workers(0):
        decoded(decoder, jpeg())
        pictures += 1
    assert len(workers(1)) == 2
    assert decoder.counts == {"on the GPU": pictures}, "none by the processor"
    assert len(caplog.records) == 2, "one for each lane"
    assert all("this decoder stops, the others continue" in one.getMessage() for one in caplog.records)
    decoder.close()


def test_what_fails_while_it_is_closed_is_told_and_leaves_nothing_else_behind(
    decoder: GpuDecoder, machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    machine.errors["cuMemFree_v2"] = 700
    decoder.close()
    messages = {record.getMessage() for record in caplog.records}
    assert messages == {
        "closing the decoder on GPU 0: DriverError: CUDA error 700 (CUDA_ERROR_ILLEGAL_ADDRESS: what it means.)"
    }
    machine.memory.clear()  # it went with the GPU


def test_a_gpu_without_enough_memory_keeps_nothing_of_it(machine: Machine) -> None:
    machine.errors["cuMemGetInfo_v2"] = 2
    with pytest.raises(BackendError, match=r"does not start on NVIDIA L4 \(.* CUDA error 2 "):
        GpuDecoder(SPEC, CpuDecoder(SPEC))
    del machine.errors["cuMemGetInfo_v2"]
    machine.errors["cuMemHostAlloc"] = 2
    with pytest.raises(BackendError, match=r"CUDA error 2 \(CUDA_ERROR_OUT_OF_MEMORY"):
        GpuDecoder(SPEC, CpuDecoder(SPEC))


@pytest.mark.parametrize(
    ("processors", "of_the_machine", "threads"), [(64, 64, 16), (16, 64, 4), (2, 2, 1), (1, 2, 1), (1, 1, 0)]
)
def test_nvimagecodec_is_given_no_decoder_of_the_processor_and_every_gpu_two_lanes(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, processors: int, of_the_machine: int, threads: int
) -> None:
    """And all of them together as many threads as there are processors for this process; 0 is its own choice."""
    monkeypatch.setattr(decoder_module, "cpu_count", lambda: processors)
    monkeypatch.setattr(os, "cpu_count", lambda: of_the_machine)
    GpuDecoder(SPEC, CpuDecoder(SPEC), devices=(0, 1)).close()
    kinds = ["HW_GPU_ONLY", "GPU_ONLY", "HYBRID_CPU_GPU"]
    wanted = {"backends": kinds, "options": ":fancy_upsampling=0", "max_num_cpu_threads": threads}
    assert machine.decoders == [{"device_id": index, **wanted} for index in (0, 0, 1, 1)]


def test_the_first_list_of_each_decoder_is_as_long_as_any(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder_module, "WORKERS_PER_GPU", 1)
    GpuDecoder(SPEC, CpuDecoder(SPEC)).close()
    assert [len(batch) for batch in machine.batches] == [32, 1, 1, 1]
    assert len(set(machine.batches[0])) == 1


def test_memory_for_two_lists_of_pictures_stays_with_the_process_while_it_decodes(machine: Machine) -> None:
    decoder = GpuDecoder(SPEC, CpuDecoder(SPEC), devices=(0, 1))
    two_lists = 2 * 32 * 12_000_000 * 3
    assert machine.kept == {0: two_lists, 1: two_lists}
    decoder.close()
    assert machine.kept == {0: 0, 1: 0}


SIZE = 90 * 60


def hold_until(count: int, decoder: GpuDecoder, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the workers finish no list before so many pictures were queued, whatever the order of the threads."""
    put, resample = decoder._queue.put, machine.resample
    queued, all_queued = itertools.count(1), threading.Event()

    def counting(picture: Any) -> None:
        put(picture)
        if next(queued) == count:
            all_queued.set()

    def waiting(*args: Any) -> Any:
        assert all_queued.wait(120)
        return resample(*args)

    monkeypatch.setattr(decoder._queue, "put", counting)
    machine.kernels["resample"] = waiting


@pytest.mark.parametrize(("free", "most"), [(0, 1), (16 * 3 * (3 * SIZE + 10), 3)])
def test_memory_is_bounded_by_pixels_however_many_wait(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, free: int, most: int
) -> None:
    """By what is free on the GPU, and one picture is always taken."""
    machine.free = free
    monkeypatch.setattr(batch_module, "MAX_PIXELS", SIZE)
    decoder = GpuDecoder(SPEC, CpuDecoder(SPEC))
    machine.batches.clear()
    machine.most_pixels_alive = 0
    contents = [jpeg(seed=seed) for seed in range(40)]
    hold_until(len(contents), decoder, machine, monkeypatch)
    threads = [threading.Thread(target=decoded, args=(decoder, content)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    decoder.close()
    assert sum(map(len, machine.batches)) == 40
    assert max(map(len, machine.batches)) == most
    assert machine.most_pixels_alive <= 2 * most * SIZE


def test_weights_are_copied_once_for_pictures_of_one_size(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder_module, "WORKERS_PER_GPU", 1)
    decoder = GpuDecoder(SPEC, CpuDecoder(SPEC))
    machine.log.clear()
    for seed in range(5):
        decoded(decoder, jpeg(seed=seed))
    assert sum(entry.startswith("to GPU") for entry in machine.log) == 2, "one for each axis"
    decoder.close()


@pytest.mark.parametrize("remembered", [1, 3])
def test_weights_of_more_sizes_than_there_is_room_for_replace_each_other(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, remembered: int
) -> None:
    monkeypatch.setattr(resize_module, "_CACHED_TABLES", remembered)
    decoder = GpuDecoder(SPEC, CpuDecoder(SPEC))
    machine.batches.clear()
    contents = [jpeg(60 + 7 * seed, 50 + 11 * (seed % 3), seed) for seed in range(8)] * 3
    hold_until(len(contents), decoder, machine, monkeypatch)
    with ThreadPoolExecutor(len(contents)) as pool:
        for content, image in zip(contents, pool.map(partial(decoded, decoder), contents), strict=True):
            assert_alike(image, decoded(CpuDecoder(SPEC, exact=True), content))
    assert max(map(len, machine.batches)) > 1, "several in one list"
    decoder.close()


def test_lanes_end_with_the_decoder(machine: Machine) -> None:
    GpuDecoder(SPEC, CpuDecoder(SPEC)).close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("gpu-decode")]


@pytest.mark.parametrize(
    ("form", "is_upside_down"),
    [
        ("baseline", lambda picture: True),
        ("progressive", lambda picture: "progressive" in picture.info),
        ("gray", lambda picture: picture.mode == "L"),
    ],
)
def test_pixels_that_are_wrong_are_refused(machine: Machine, form: str, is_upside_down: Any) -> None:
    machine.is_upside_down = is_upside_down
    message = rf"gives wrong pixels on NVIDIA L4 \(a {form} JPEG differs by .*\): use --decode cpu"
    with pytest.raises(BackendError, match=message):
        GpuDecoder(SPEC, CpuDecoder(SPEC))


def test_a_decoder_that_knows_baseline_jpegs_alone_will_do(machine: Machine) -> None:
    known = selftest._test_jpegs(selftest._SIZE)
    machine.refused = {known["progressive"], known["gray"]}
    decoder = GpuDecoder(SPEC, CpuDecoder(SPEC))
    decoded(decoder, jpeg())
    assert decoder.counts == {"on the GPU": 1}
    decoder.close()


def test_a_lane_is_tried_on_pictures_that_it_would_be_given() -> None:
    for content in selftest._test_jpegs(selftest._SIZE).values():
        assert not isinstance(inspect_jpeg(content), str)


def test_an_nvimagecodec_that_does_not_start_is_one_line(machine: Machine) -> None:
    machine.fails = "Internal error - Could not create decoder. Code: 8"
    with pytest.raises(BackendError, match=r"does not start on NVIDIA L4 \(.*Code: 8\): pip install"):
        GpuDecoder(SPEC, CpuDecoder(SPEC))


def test_a_missing_nvjpeg_is_named(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.refused = {selftest._test_jpegs(selftest._SIZE)["baseline"]}
    with pytest.raises(BackendError, match=r"nvJPEG is missing: pip install .*\[gpu-decode\]'"):
        GpuDecoder(SPEC, CpuDecoder(SPEC))
    monkeypatch.setattr(batch_module, "cuda_version", lambda: "12.8")
    with pytest.raises(BackendError, match="nvimgcodec-cu12"):
        GpuDecoder(SPEC, CpuDecoder(SPEC))


def test_a_missing_nvimagecodec_or_gpu_is_named_and_nothing_is_decoded_otherwise(
    machine: Machine, model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BackendError, match="there is no GPU 2, only 0, 1"):
        GpuDecoder(SPEC, CpuDecoder(SPEC), devices=(0, 2))
    monkeypatch.setitem(sys.modules, "nvidia.nvimgcodec", None)
    with pytest.raises(BackendError, match=r"needs nvImageCodec, .*: pip install .*\[gpu-decode\]'"):
        Predictor(model_path, backend="onnx-cpu", decode="gpu")


def test_the_command_says_in_one_line_what_is_missing(
    model_path: Path, album: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent() -> Any:
        raise DriverError("no NVIDIA driver")

    monkeypatch.setattr(probe, "gpus", absent)
    arguments = ["predict", album, "-o", tmp_path / "out", "-m", model_path, "--backend", "onnx-cpu", "--decode", "gpu"]
    done = CliRunner().invoke(main, list(map(str, arguments)))
    assert done.exit_code == 1
    assert (
        "--decode gpu needs an NVIDIA GPU: no NVIDIA driver; install the NVIDIA driver" in done.stderr.splitlines()[-1]
    )
    assert not (tmp_path / "out").exists()
