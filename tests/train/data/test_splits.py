"""The split: a partition that keeps groups whole and labels in proportion."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mineral_batch.errors import DataError
from mineral_train.data.manifest import SPLITS
from mineral_train.data.splits import stratified_split


def drawn(seed: int, count: int, rates: list[float], largest_group: int) -> tuple[np.ndarray, np.ndarray]:
    """Targets with independent labels of the given rates, and groups of 1 to `largest_group` images."""
    rng = np.random.default_rng(seed)
    targets = rng.random((count, len(rates))) < rates
    groups = np.repeat(np.arange(count), rng.integers(1, largest_group, count, endpoint=True))[:count]
    return targets, rng.permutation(groups)


@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 60),
    st.integers(0, 4),
    st.integers(1, 20),
    st.lists(st.integers(0, 20), min_size=2, max_size=2),
)
@settings(max_examples=100, deadline=None)
def test_no_group_is_separated_and_every_image_has_one_split(seed, count, labels, largest, others) -> None:
    targets, groups = drawn(seed, count, [0.3] * labels, largest)
    shares = [18, *others]

    splits = stratified_split(targets, groups, shares, seed=seed)

    assert len(splits) == count
    assert set(splits) <= {name for name, share in zip(SPLITS, shares, strict=True) if share}
    of_group: dict[int, set[str]] = {}
    for group, split in zip(groups.tolist(), splits, strict=True):
        of_group.setdefault(group, set()).add(split)
    assert all(len(found) == 1 for found in of_group.values())


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("shares", [(18, 1, 1), (70, 10, 20)])
@pytest.mark.parametrize(("largest", "bound"), [(1, 2), (6, 4)])
def test_each_label_is_shared_out_within_a_few_images(seed, shares, largest, bound) -> None:
    """Of 4,000 images, labels from 1 in 4 to 1 in 200: within 2 of the share, in groups of up to 6 within 4."""
    targets, groups = drawn(seed, 4000, [0.25, 0.1, 0.1, 0.05, 0.02, 0.01, 0.005], largest)
    splits = np.array(stratified_split(targets, groups, shares, seed=seed))

    kinds = np.column_stack([targets, ~targets.any(axis=1)])
    for name, share in zip(SPLITS, shares, strict=True):
        expected = kinds.sum(axis=0) * share / sum(shares)
        assert np.abs(kinds[splits == name].sum(axis=0) - expected).max() <= bound
        assert abs((splits == name).sum() - 4000 * share / sum(shares)) <= 0.005 * 4000


def test_a_random_split_would_not_pass_the_bound() -> None:
    """What stratification is for: at these sizes chance alone misses by tens of images."""
    targets, _ = drawn(0, 4000, [0.25, 0.1, 0.1, 0.05, 0.02, 0.01, 0.005], 1)
    chosen = np.random.default_rng(0).random(4000) < 0.2
    assert np.abs(targets[chosen].sum(axis=0) - 0.2 * targets.sum(axis=0)).max() > 10


def test_a_rare_label_reaches_every_split_that_its_share_allows() -> None:
    targets = np.zeros((200, 2), bool)
    targets[:, 0] = True
    targets[:20, 1] = True  # 20 images at 18:1:1 are 18, 1 and 1
    splits = np.array(stratified_split(targets, np.arange(200)))
    assert [int((splits[:20] == name).sum()) for name in SPLITS] == [18, 1, 1]
    assert [int((splits == name).sum()) for name in SPLITS] == [180, 10, 10]


def test_the_same_seed_gives_the_same_split_and_another_another() -> None:
    targets, groups = drawn(3, 500, [0.3, 0.1], 3)
    assert stratified_split(targets, groups, seed=5) == stratified_split(targets, groups, seed=5)
    assert stratified_split(targets, groups, seed=5) != stratified_split(targets, groups, seed=6)


def test_shares_are_relative() -> None:
    targets, groups = drawn(3, 500, [0.3, 0.1], 3)
    assert stratified_split(targets, groups, (8, 1, 1)) == stratified_split(targets, groups, (0.8, 0.1, 0.1))


@pytest.mark.parametrize("shares", [(0, 1, 1), (18, -1, 1), (18, 1), (1, 1, 1, 1), (float("nan"), 1, 1)])
def test_shares_that_make_no_split_are_refused(shares) -> None:
    with pytest.raises(DataError, match="a split is three shares, training:validation:test"):
        stratified_split(np.zeros((3, 1), bool), np.arange(3), shares)
