from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from mineral_batch.errors import DataError
from mineral_train.model.backbones import import_timm
from mineral_train.training.losses import LOSSES, EntropyLoss, HillLoss, MultiLabelLoss, make_loss

GENERATOR = torch.Generator().manual_seed(0)
LOGITS = 4 * torch.randn(5, 36, generator=GENERATOR, dtype=torch.float64)
TARGETS = (torch.rand(5, 36, generator=GENERATOR) < 0.2).double()

VARIANTS = {
    "bce": LOSSES["bce"],
    "focal": LOSSES["focal"],
    "asymmetric": LOSSES["asymmetric"],
    "hill": HillLoss,
    "entropy": LOSSES["entropy"],
    "asymmetric, both gammas": partial(MultiLabelLoss, gamma_positive=1, gamma_negative=4),
    "asymmetric, root": partial(MultiLabelLoss, gamma_positive=0.5, gamma_negative=0.5),
}
#: Those of the paper, in which an absent label costs the more the surer the model is of it.
PAPERS = ["asymmetric", "bce", "focal"]
each_variant = pytest.mark.parametrize("make", VARIANTS.values(), ids=VARIANTS.keys())


def paper_asymmetric(x, y, gamma_positive=0.0, gamma_negative=1.0):
    """The paper's equation, for every label of every image."""
    p = 1 / (1 + np.exp(-x))
    return -(y * (1 - p) ** gamma_positive * np.log(p) + (1 - y) * p**gamma_negative * np.log(1 - p))


def test_asymmetric_is_the_papers_equation():
    expected = paper_asymmetric(LOGITS.numpy(), TARGETS.numpy()).sum(axis=1).mean()
    assert make_loss("asymmetric")(LOGITS, TARGETS).item() == pytest.approx(expected, rel=1e-12)


def test_focal_is_the_equation_of_lin_et_al():
    x, y = LOGITS.numpy(), TARGETS.numpy()
    p = 1 / (1 + np.exp(-x))
    p_t, alpha_t = np.where(y == 1, p, 1 - p), np.where(y == 1, 0.25, 0.75)
    expected = (-alpha_t * (1 - p_t) ** 2 * np.log(p_t)).sum(axis=1).mean()
    assert make_loss("focal")(LOGITS, TARGETS).item() == pytest.approx(expected, rel=1e-12)


def test_hill_is_the_equation_of_zhang_et_al():
    x, y = LOGITS.numpy(), TARGETS.numpy()
    p, q = 1 / (1 + np.exp(-x)), 1 / (1 + np.exp(1 - x))
    expected = (-y * (1 - q) ** 2 * np.log(q) + (1 - y) * (1.5 - p) * p**2).sum(axis=1).mean()
    assert make_loss("hill")(LOGITS, TARGETS).item() == pytest.approx(expected, rel=1e-12)


def test_entropy_is_the_equation_of_zhou_et_al():
    x, y = LOGITS.numpy(), TARGETS.numpy()
    p = 1 / (1 + np.exp(-x))
    entropy = -(p * np.log(p) + (1 - p) * np.log(1 - p))
    expected = (-y * np.log(p) - 0.1 * (1 - y) * entropy).sum(axis=1).mean()
    assert make_loss("entropy")(LOGITS, TARGETS).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("make", [HillLoss, EntropyLoss])
def test_a_label_that_may_be_missing_is_not_pushed_down_with_full_strength(make):
    """The slope at an absent label of which the model is sure, against that of cross-entropy, which is 1."""
    x = torch.tensor([[6.0]], dtype=torch.float64, requires_grad=True)
    make()(x, torch.zeros(1, 1)).backward()
    assert x.grad.item() < 0.02


def test_focal_equals_torchvision():
    import_timm()
    from torchvision.ops import sigmoid_focal_loss

    expected = sigmoid_focal_loss(LOGITS, TARGETS, alpha=0.3, gamma=1.5, reduction="sum") / len(LOGITS)
    torch.testing.assert_close(MultiLabelLoss(0.3, 0.7, 1.5, 1.5)(LOGITS, TARGETS), expected)


def test_binary_cross_entropy_equals_torch():
    expected = F.binary_cross_entropy_with_logits(LOGITS, TARGETS, reduction="sum") / len(LOGITS)
    torch.testing.assert_close(make_loss("bce")(LOGITS, TARGETS), expected)


@pytest.mark.parametrize(("gamma_positive", "gamma_negative"), [(0, 1), (1, 4), (0, 0)])
def test_asymmetric_equals_timm_with_its_gradient(gamma_positive, gamma_negative):
    import_timm()
    from timm.loss import AsymmetricLossMultiLabel

    theirs = AsymmetricLossMultiLabel(gamma_negative, gamma_positive, 0.0, eps=1e-300)
    ours = MultiLabelLoss(gamma_positive=gamma_positive, gamma_negative=gamma_negative)
    x = (LOGITS / 4).requires_grad_()  # theirs computes 1 - p in float32, which has few digits left at p near 1
    # One image at a time: timm's reduction over a batch was a sum until it became a mean.
    expected = torch.stack([theirs(x[i : i + 1], TARGETS[i : i + 1]) for i in range(len(x))]).mean()
    actual = ours(x, TARGETS)
    torch.testing.assert_close(actual.float(), expected)
    gradients = [torch.autograd.grad(loss, x)[0].float() for loss in (actual, expected)]
    torch.testing.assert_close(*gradients)


@each_variant
def test_gradient_is_the_derivative(make):
    loss = make()
    x = LOGITS[:2, :6].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss(x, TARGETS[:2, :6]), x)


@each_variant
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_finite_at_extreme_logits(make, dtype):
    x = torch.tensor([[-1e4, -100.0, -20.0, 0.0, 20.0, 100.0, 1e4]], dtype=dtype, requires_grad=True)
    for target in (0.0, 0.5, 1.0):
        value = make()(x, torch.full_like(x, target))
        (gradient,) = torch.autograd.grad(value, x)
        assert value.dtype == torch.float32
        assert value.isfinite()
        assert gradient.isfinite().all()


@pytest.mark.parametrize("name", LOSSES)
def test_a_confident_mistake_still_pulls_with_full_strength(name):
    """Where log(p + eps) would have gone flat: the slope at logit -30 of a present label is that of -log p."""
    x = torch.tensor([[-30.0]], requires_grad=True)
    make_loss(name)(x, torch.ones(1, 1)).backward()
    weight = 0.25 if name == "focal" else 1.0
    assert x.grad.item() == pytest.approx(-weight, rel=1e-6)


@pytest.mark.parametrize("name", PAPERS)
def test_half_precision_logits_are_summed_in_single_precision(name):
    x = torch.full((1, 4096), 60.0, dtype=torch.float16)
    expected = make_loss(name)(x.double(), torch.zeros(1, 4096)).item()
    assert expected > torch.finfo(torch.float16).max
    assert make_loss(name)(x, torch.zeros(1, 4096)).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_scale_does_not_depend_on_the_batch(name):
    loss = make_loss(name)
    twice = loss(LOGITS.repeat(2, 1), TARGETS.repeat(2, 1))
    torch.testing.assert_close(twice, loss(LOGITS, TARGETS))


@given(
    logit=st.floats(-50, 50),
    step=st.floats(1e-3, 10),
    name=st.sampled_from([*PAPERS, "hill"]),
    present=st.booleans(),
)
def test_never_negative_and_better_logits_cost_less(logit, step, name, present):
    better = logit + step if present else logit - step
    costs = [
        make_loss(name)(torch.tensor([[x]], dtype=torch.float64), torch.tensor([[present]])).item()
        for x in (better, logit)
    ]
    assert 0 <= costs[0] <= costs[1]
    assert math.isfinite(costs[1])


def test_shapes_that_would_broadcast_are_refused():
    with pytest.raises(ValueError, match=r"\(5, 36\).*\(36,\)"):
        make_loss("bce")(LOGITS, TARGETS[0])


def test_an_unknown_loss_says_which_exist():
    with pytest.raises(DataError, match="no loss 'hinge'; choose one of asymmetric, focal, bce"):
        make_loss("hinge")


def test_negative_parameters_are_refused():
    with pytest.raises(DataError, match="must be 0 or more"):
        MultiLabelLoss(gamma_negative=-1)
