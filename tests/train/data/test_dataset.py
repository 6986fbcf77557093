"""Samples: the deployed pixels for evaluation; for training, variations that depend on seed, epoch and index alone."""

import pickle
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as PILImage
from torch.utils.data import DataLoader

from mineral_batch.errors import DataError
from mineral_batch.images.decode import load_image
from mineral_batch.model.contract import InputSpec
from mineral_batch.types import Image
from mineral_train.data import dataset as dataset_module
from mineral_train.data.augment import Augment
from mineral_train.data.dataset import PhotoDataset
from mineral_train.data.manifest import Row

LABELS = ("gold", "quartz", "ruby")
SPEC = InputSpec(height=40, width=48)
AUGMENTS = [Augment(), Augment(crop=(0.3, 0.9)), Augment(policy="", flip=0.5, crop=(0.5, 1.0))]


@pytest.fixture
def rows(tmp_path: Path, save_photo) -> list[Row]:
    labels = [(), ("gold",), ("ruby", "gold"), ("quartz",)]
    return [
        Row(save_photo(tmp_path / f"{k}.jpg", k, size=(300 - 20 * k, 200)), labels[k % 4], "train") for k in range(8)
    ]


def samples(dataset: PhotoDataset, epoch: int, workers: int = 0) -> list[np.ndarray]:
    """The pixels of one epoch in the order of the indices, drawn through a loader in a random order."""
    dataset.set_epoch(epoch)
    options = {"multiprocessing_context": "fork", "persistent_workers": True} if workers else {}
    loader = DataLoader(dataset, batch_size=3, shuffle=True, num_workers=workers, **options)
    return in_order(loader)


def in_order(loader: DataLoader) -> list[np.ndarray]:
    found = {int(i): x.numpy().copy() for pixels, _, index in loader for x, i in zip(pixels, index, strict=True)}
    return [found[i] for i in range(len(found))]


@pytest.mark.parametrize("resize", ["squash", "crop"])
@pytest.mark.parametrize("cache", [False, True])
def test_evaluation_sees_exactly_what_deployment_sees(rows: list[Row], resize: str, cache: bool) -> None:
    spec = InputSpec(height=40, width=48, resize=resize)
    dataset = PhotoDataset(rows, LABELS, spec, cache=cache)
    for _ in range(2):  # the second time, from the cache
        for k, row in enumerate(rows):
            pixels, target, index = dataset[k]
            image = load_image(row.path, spec)
            assert isinstance(image, Image)
            np.testing.assert_array_equal(pixels.numpy().transpose(1, 2, 0), image.pixels)
            assert (pixels.dtype, target.dtype, index) == (torch.uint8, torch.float32, k)
            assert [name for name, there in zip(LABELS, target, strict=True) if there] == sorted(row.labels)


@pytest.mark.parametrize("augment", AUGMENTS)
def test_variations_do_not_depend_on_workers_order_or_cache(rows: list[Row], augment: Augment) -> None:
    plain = PhotoDataset(rows, LABELS, SPEC, augment, seed=7)
    expected = {epoch: samples(plain, epoch) for epoch in (0, 1)}
    for workers, cache in [(2, False), (0, True), (2, True)]:
        other = PhotoDataset(rows, LABELS, SPEC, augment, seed=7, cache=cache)
        for epoch in (1, 0, 1):
            np.testing.assert_array_equal(samples(other, epoch, workers), expected[epoch])


def test_workers_that_persist_follow_the_epoch(rows: list[Row]) -> None:
    dataset = PhotoDataset(rows, LABELS, SPEC, Augment())
    loader = DataLoader(dataset, 3, num_workers=1, persistent_workers=True, multiprocessing_context="fork")
    for epoch in (0, 3):
        dataset.set_epoch(epoch)
        np.testing.assert_array_equal(in_order(loader), samples(PhotoDataset(rows, LABELS, SPEC, Augment()), epoch))


@pytest.mark.parametrize("augment", AUGMENTS)
def test_epoch_seed_and_index_each_change_the_variation(rows: list[Row], augment: Augment) -> None:
    same = [Row(rows[0].path, (), "train")] * 8
    base = samples(PhotoDataset(same, LABELS, SPEC, augment, seed=1), 0)
    assert len({x.tobytes() for x in base}) > 4
    for seed, epoch in [(2, 0), (1, 1)]:
        other = samples(PhotoDataset(same, LABELS, SPEC, augment, seed=seed), epoch)
        assert sum(not np.array_equal(a, b) for a, b in zip(base, other, strict=True)) > 4


def test_the_callers_random_numbers_are_left_alone(rows: list[Row]) -> None:
    random.seed(3)
    np.random.seed(3)  # noqa: NPY002
    torch.manual_seed(3)
    expected = random.random(), np.random.random(), torch.rand(1)  # noqa: NPY002
    random.seed(3)
    np.random.seed(3)  # noqa: NPY002
    torch.manual_seed(3)
    dataset = PhotoDataset(rows, LABELS, SPEC, Augment(crop=(0.5, 1)))
    _ = [dataset[k] for k in range(len(dataset))]
    assert (random.random(), np.random.random(), torch.rand(1)) == expected  # noqa: NPY002


def test_without_operations_nothing_changes(rows: list[Row]) -> None:
    nothing = PhotoDataset(rows, LABELS, SPEC, Augment(policy="", flip=0))
    np.testing.assert_array_equal(samples(nothing, 0), samples(PhotoDataset(rows, LABELS, SPEC), 0))


def test_the_mirror_image_comes_as_often_as_asked(rows: list[Row]) -> None:
    original = PhotoDataset(rows, LABELS, SPEC)[0][0]
    always = PhotoDataset(rows, LABELS, SPEC, Augment(policy="", flip=1))[0][0]
    assert torch.equal(always, original.flip(2))
    half = PhotoDataset([rows[0]] * 200, LABELS, SPEC, Augment(policy="", flip=0.5), cache=True)
    mirrored = sum(torch.equal(half[k][0], always) for k in range(200))
    assert 70 < mirrored < 130


def test_a_crop_keeps_the_share_of_the_area_that_was_asked(tmp_path: Path) -> None:
    """On an image whose red and green are its coordinates, the kept range of each is the crop's width and height."""
    ramp = np.linspace(0, 255, 256).astype(np.uint8)
    image = np.stack([np.tile(ramp, (256, 1)), np.tile(ramp[:, None], (1, 256)), np.zeros((256, 256), np.uint8)], 2)
    PILImage.fromarray(image).save(tmp_path / "ramp.png")
    rows = [Row(tmp_path / "ramp.png", (), "train")] * 40
    dataset = PhotoDataset(rows, LABELS, InputSpec(64, 64), Augment(policy="", flip=0, crop=(0.3, 0.6)))
    spans = [dataset[k][0][:2].numpy().astype(float) for k in range(40)]
    areas = [np.prod([np.ptp(channel) / 255 for channel in span]) for span in spans]
    assert 0.25 < min(areas) < 0.4
    assert 0.5 < max(areas) < 0.65


def test_an_image_that_cannot_be_decoded_is_named_with_the_way_out(rows: list[Row]) -> None:
    rows[1].path.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"1\.jpg: .*--skip-damaged"):
        PhotoDataset(rows, LABELS, SPEC)[1]


@pytest.mark.parametrize("cache", [False, True])
def test_a_pickled_dataset_gives_the_same_samples(rows: list[Row], cache: bool) -> None:
    dataset = PhotoDataset(rows, LABELS, SPEC, Augment(), seed=4, cache=cache)
    dataset.set_epoch(2)
    copy = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(copy[3][0], dataset[3][0])


def test_options_that_make_no_sense_are_refused(rows: list[Row]) -> None:
    with pytest.raises(DataError, match="flip is a probability"):
        Augment(flip=1.5)
    with pytest.raises(DataError, match="crop is a range of area shares"):
        Augment(crop=(0.9, 0.1))
    for policy in ("mixup", "rand-z9", "rand-m0.5.5"):
        with pytest.raises(DataError, match=r"not a RandAugment policy of timm; use for example 'rand-m9-mstd0\.5'"):
            PhotoDataset(rows, LABELS, SPEC, Augment(policy=policy))
    with pytest.raises(DataError, match="labels not among the 1 labels"):
        PhotoDataset(rows, LABELS[:1], SPEC)


def test_a_cache_that_does_not_fit_is_refused_before_it_kills_the_process(rows: list[Row], monkeypatch) -> None:
    if not Path("/dev/shm").is_dir():
        pytest.skip("this system has no /dev/shm to fill")
    monkeypatch.setattr(dataset_module.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    with pytest.raises(DataError, match=r"needs 0\.0 GB of shared memory .* --shm-size"):
        PhotoDataset(rows, LABELS, SPEC, cache=True)
