"""An engine whose GPU is at hand is compared with its model before it is written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage

from mineral_batch.engines.tensorrt.plan import read_record
from mineral_batch.model.onnx_file import read_contract
from mineral_export.verify.samples import synthetic_images

from ...fakes.tensorrt import Engines
from .graphs import (
    LABELS,
    ONE_CHIP,
    built,
    nothing_but_the_model,
    refused,
    run,
)

tensorrt_rtx = pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX has wheels for Linux and Windows on x86-64")


def test_an_engine_is_compared_with_its_model_before_it_is_written(product: Path, plan: Path, l4: Engines) -> None:
    result = run(product, "-o", plan, *ONE_CHIP, "--max", 4)
    assert result.exit_code == 0, result.output
    record = read_record(plan)
    assert " of 8 synthetic images" in record.compared
    assert f"Compared with {product}: {record.compared}\n" in result.output
    assert l4.plans == [plan.read_bytes()] * len(l4.plans), "what was compared is what was written"


def test_an_engine_with_other_answers_is_not_written_unless_told(product: Path, plan: Path, l4: Engines) -> None:
    right = l4.compute
    l4.compute = lambda pixels: 1 - right(pixels)
    message = refused(product, "-o", plan, *ONE_CHIP)
    assert "nothing was written: largest difference of a probability" in message
    assert "(budget of float16); add --force to write it anyway" in message
    assert nothing_but_the_model(plan)
    assert " of 8 synthetic images" in built(product, "-o", plan, *ONE_CHIP, "--force").compared


def test_the_budget_is_that_of_the_precision(product: Path, plan: Path, l4: Engines) -> None:
    right = l4.compute

    def slightly_off(pixels: np.ndarray) -> np.ndarray:
        answers = np.array(right(pixels))
        answers[0, 0] += 0.003
        return answers

    l4.compute = slightly_off
    assert built(product, "-o", plan, *ONE_CHIP).precision == "float16"
    plan.unlink()
    assert "(budget of float32)" in refused(product, "-o", plan, *ONE_CHIP, "--precision", "fp32")


def test_with_labels_the_loss_of_map_decides(product: Path, plan: Path, l4: Engines) -> None:
    photos = plan.parent / "photos"
    photos.mkdir()
    session, rows = l4.compute, ["path,labels"]
    pixels = synthetic_images(read_contract(product).input, 6)
    first = session(pixels)[:, 0]
    for index, picture in enumerate(pixels):
        PILImage.fromarray(picture).save(photos / f"{index}.png")
        rows.append(f"{index}.png,{LABELS[int(first[index] < np.median(first))]}")
    (photos / "labels.csv").write_text("\n".join(rows) + "\n", "utf-8")
    words = (product, "-o", plan, *ONE_CHIP, "--labels", photos / "labels.csv")
    assert "0.00 points of mAP lost" in built(*words).compared
    plan.unlink()
    l4.compute = lambda pixels: 1 - session(pixels)
    assert "nothing was written: mAP lost, in points," in refused(*words)
    assert " of 6 photographs" in built(*words, "--points", 100).compared


@pytest.mark.parametrize("trouble", ["loads", "starts"])
def test_an_engine_that_does_not_run_where_it_should_is_not_written_unless_told(
    product: Path, plan: Path, l4: Engines, trouble: str
) -> None:
    setattr(l4, trouble, False)
    message = refused(product, "-o", plan, *ONE_CHIP)
    assert "nothing was written, because the engine could not be compared with its model: tensorrt-rtx" in message
    assert nothing_but_the_model(plan)
    result = run(product, "-o", plan, *ONE_CHIP, "--force")
    assert f"Not compared with {product}: tensorrt-rtx" in result.output
    assert read_record(plan).compared == ""


def test_an_engine_for_another_gpu_is_written_and_said_not_to_be_compared(
    product: Path, plan: Path, l4: Engines
) -> None:
    result = run(product, "-o", plan, "--compute-capability", "12.0")
    assert result.exit_code == 0, result.output
    assert (
        f"Not compared with {product}: NVIDIA L4 has compute capability 8.9. "
        f"On the machine that will run it: mineral-export verify {product} {plan}\n"
    ) in result.output
    assert read_record(plan).compared == ""
    assert "execute" not in l4.cuda.log


def test_without_a_gpu_it_is_said_that_nothing_was_compared(product: Path, plan: Path) -> None:
    result = run(product, "-o", plan, *ONE_CHIP)
    assert f"Not compared with {product}: this machine has no GPU. On the machine that will run it: " in result.output
