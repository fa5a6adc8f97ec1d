"""Hand-worked losses of SLiC, SimPO, CPO and ORPO on one pair: log π −10 and −12 over 5 and 4 tokens."""

import math
from dataclasses import replace

import pytest
import torch

from lightning_nlf.objectives import CPOPolicy, ORPOPolicy, SimPOPolicy, SLiCPolicy
from lightning_nlf.objectives.reference_free import best_replies, log_odds, simpo_loss, slic_loss


def test_slic_by_hand():
    """h = −10 + 12 = 2: max(0, 3 − 2) = 1, and 0 with δ = 1."""
    assert slic_loss(torch.tensor([2.0]), 3.0) == 1 and slic_loss(torch.tensor([2.0]), 1.0) == 0


def test_simpo_by_hand():
    """Log-probabilities per token −2 and −3: −log σ(2·1 − .5) = −log σ(1.5) = .2014133."""
    assert simpo_loss(torch.tensor([1.0]), 2.0, 0.5) == pytest.approx(0.2014133, abs=1e-6)


def test_odds_by_hand():
    """p = ½ has log-odds 0, p = .8 has ln 4. p = 1 has a finite value and gradient."""
    log_probs = torch.tensor([0.5, 0.8, 1.0]).log().requires_grad_()
    odds = log_odds(log_probs)
    assert odds[:2].tolist() == pytest.approx([0, math.log(4)], abs=1e-6)
    odds.sum().backward()
    assert odds.isfinite().all() and log_probs.grad.isfinite().all()


@pytest.mark.parametrize(
    ("kind", "knobs", "preference", "chosen"),
    [
        (SLiCPolicy, {"margin": 3.0, "chosen_weight": 0.5}, 1.0, 1.0),
        (SimPOPolicy, {"beta": 2.0, "margin": 0.5}, 0.2014133, None),
        (CPOPolicy, {"beta": 0.1}, 0.5981389, 2.0),
        (ORPOPolicy, {"odds_weight": 0.5}, 0.1443755, 2.0),
    ],
)
def test_both_terms_by_hand(kind, knobs, preference, chosen, text):
    """The chosen reply's tokens have a loss of 2 each. CPO: −log σ(.1·2) = .5981389.

    ORPO: odds e^−2/(1 − e^−2) = .1565176 and e^−3/(1 − e^−3) = .0523957, whose ratio ρ is 2.987223;
    −log σ(ln ρ) = ln(1 + 1/ρ) = .2887508, and half of it .1443754.
    """
    batch = text.replies_to([0, 0], [5, 4], rank=torch.tensor([0, 1]))
    module = kind(policy=text.gru_policy(), **knobs)
    prepared = module.prepare(batch)
    now = module.evaluate(prepared)
    now.log_probs = torch.tensor([[-2.0], [-3.0]]) * batch.mask
    terms = module.losses(prepared, now)
    assert terms["preference"] == pytest.approx(preference, abs=1e-5)
    assert terms.get("chosen") == (None if chosen is None else pytest.approx(chosen))


def test_the_chosen_are_those_that_nothing_beats(text):
    """The first group has a tie at the top; the second is one tie, without a chosen reply; the third has one reply."""
    rank = torch.tensor([1, 0, 0, 2, 2, 0, -1])
    batch = text.replies_to([0, 0, 0, 1, 1, 2, 2], [2, 3, 1, 2, 2, 2, 4], rank=rank)
    assert best_replies(batch).sum(1).tolist() == [0, 3, 1, 0, 0, 0, 0]


def test_likelihood_is_a_mean_over_tokens(text):
    """3 chosen tokens at −1 and 1 at −5: 8/4."""
    batch = text.replies_to([0, 0, 1, 1], [3, 2, 1, 2], rank=torch.tensor([0, 1, 0, 1]))
    module = SimPOPolicy(policy=text.gru_policy(), chosen_weight=1.0)
    prepared = module.prepare(batch)
    now = replace(module.evaluate(prepared), log_probs=torch.tensor([[-1.0], [-7], [-5], [-9]]) * batch.mask)
    assert module.losses(prepared, now)["chosen"] == pytest.approx(2.0)
