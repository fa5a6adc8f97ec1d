"""Hand-worked losses of DPO and its variants on one pair."""

import pytest
import torch

from lightning_nlf.objectives import (
    ConservativeDPOPolicy,
    DPOPolicy,
    HingeDPOPolicy,
    IPOPolicy,
    RobustDPOPolicy,
)
from lightning_nlf.objectives.dpo import (
    conservative_dpo_loss,
    dpo_loss,
    hinge_loss,
    ipo_loss,
    robust_dpo_loss,
)

# log π −10 and −12, reference −11 and −11.5: h = (−10 + 11) − (−12 + 11.5) = 1.5, and β = .1 makes .15
PAIR = torch.tensor([1.5])


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (lambda h: dpo_loss(h, 0.1), 0.6209570),
        (lambda h: conservative_dpo_loss(h, 0.1, 0.1), 0.6359570),
        (lambda h: robust_dpo_loss(h, 0.1, 0.1), 0.6022071),
        (lambda h: hinge_loss(h, 0.1), 0.85),
        (lambda h: ipo_loss(h, 0.1), 12.25),
    ],
    ids=["sigmoid", "conservative", "robust", "hinge", "ipo"],
)
def test_one_pair(loss, expected):
    """−log σ(.15) = .6209570 and −log σ(−.15) = .7709570.

    Conservative .9·.6209570 + .1·.7709570 = .6359570; robust (.9·.6209570 − .1·.7709570)/.8 = .6022071;
    hinge 1 − .15; IPO (1.5 − 1/.2)² = 3.5².
    """
    assert loss(PAIR).tolist() == pytest.approx([expected], abs=1e-6)


def test_smoothing_is_unbiased_in_the_mean_over_wrong_labels():
    """A label is wrong with probability ε: (1 − ε) L(h) + ε L(−h) of the robust loss is the loss of the right label."""
    h = torch.tensor([-2.0, 0.3, 5.0])
    mean = 0.8 * robust_dpo_loss(h, 0.5, 0.2) + 0.2 * robust_dpo_loss(-h, 0.5, 0.2)
    torch.testing.assert_close(mean, dpo_loss(h, 0.5))


def test_a_pair_that_is_right_by_a_margin_has_no_hinge():
    assert hinge_loss(torch.tensor([11.0]), 0.1) == 0


def test_ipo_stops_at_its_margin():
    """β = .1: the square is 0 at h = 1/(2β) = 5."""
    assert ipo_loss(torch.tensor([5.0]), 0.1) == 0


def test_log_ratios_of_the_module_by_hand(text):
    """Sums −10/−12 and −11/−11.5 over 5 and 4 tokens: implicit rewards .1·1 and .1·(−.5), with margin .15."""
    batch = text.replies_to([0, 0], [5, 4], rank=torch.tensor([0, 1]))
    shares = batch.mask / batch.mask.sum(1, keepdim=True)
    log_probs, reference = (torch.tensor(sums)[:, None] * shares for sums in ([-10.0, -12.0], [-11.0, -11.5]))
    module = DPOPolicy(policy=text.gru_policy())
    prepared = module.prepare(batch)
    prepared.ref_log_probs.copy_(reference)
    now = module.evaluate(prepared)
    now.log_probs = log_probs
    figures = module.figures(prepared, now)
    assert figures["chosen_reward"] == pytest.approx(0.1)
    assert figures["rejected_reward"] == pytest.approx(-0.05)
    assert figures["margin"] == pytest.approx(0.15)
    assert figures["accuracy"] == 1
    assert figures["reference_kl"] == pytest.approx((-1 + 0.5) / 9)
    assert module.losses(prepared, now)["preference"] == pytest.approx(0.6209570, abs=1e-6)  # −log σ(.15)


@pytest.mark.parametrize(
    ("kind", "knobs", "words"),
    [
        (DPOPolicy, {"beta": 0.0}, "beta: got 0.0"),
        (IPOPolicy, {"beta": -1.0}, "beta: got -1.0"),
        (HingeDPOPolicy, {"beta": float("nan")}, "beta: got nan"),
        (ConservativeDPOPolicy, {"label_smoothing": -0.1}, "label_smoothing: got -0.1"),
        (RobustDPOPolicy, {"label_smoothing": 0.5}, "label_smoothing: got 0.5"),
    ],
)
def test_impossible_knobs_are_refused(text, kind, knobs, words):
    with pytest.raises(ValueError, match=words):
        kind(policy=text.gru_policy(), **knobs)
