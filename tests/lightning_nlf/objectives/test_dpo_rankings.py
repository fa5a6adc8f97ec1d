"""DPO for rankings and ties: hand-worked losses, and their limits without ties."""

import math
from dataclasses import replace

import pytest
import torch

from lightning_nlf.objectives import DavidsonDPOPolicy, DPOPolicy, RankedDPOPolicy, RaoKupperDPOPolicy


def loss_of(module, batch, rewards):
    """The preference loss for given implicit rewards (B,)."""
    prepared = module.prepare(batch)
    lengths = batch.mask.sum(1, keepdim=True)
    now = module.evaluate(prepared)
    now.log_probs = prepared.ref_log_probs + torch.tensor(rewards)[:, None] / module.beta / lengths * batch.mask
    return module.losses(prepared, now)["preference"].detach()


@pytest.mark.parametrize(
    ("kind", "knobs", "strict", "tie"),
    [
        (RaoKupperDPOPolicy, {"theta": 3.0}, 0.2791640, 0.4978956),
        (DavidsonDPOPolicy, {"nu": 1.0}, 0.2690924, 0.4992975),
    ],
)
def test_one_pair_with_ties(kind, knobs, strict, tie, text):
    """d = .15. Rao-Kupper, θ = 3: σ(.15 − ln 3) = .2791640, σ(−.15 − ln 3) = .2229405, (9 − 1)·product = .4978956.

    Davidson, ν = 1: Z = e^.075 + e^−.075 + 2 = 4.0056276; 1.0778842/Z = .2690924, 2/Z = .4992975.
    """
    for ranks, probability in (([0, 1], strict), ([0, 0], tie)):
        batch = text.replies_to([0, 0], [3, 2], rank=torch.tensor(ranks))
        loss = loss_of(kind(policy=text.gru_policy(), **knobs), batch, [0.15, 0.0])
        assert loss == pytest.approx(-math.log(probability), abs=1e-5)


def test_ties_count_in_the_mean(text):
    """Ranks 0 = 0 > 1 with equal rewards: two wins and a tie of Davidson's ν = 1, each ¼ and ½: (2 ln 4 + ln 2)/3."""
    batch = text.replies_to([0, 0, 0], [3, 2, 2], rank=torch.tensor([0, 0, 1]))
    loss = loss_of(DavidsonDPOPolicy(policy=text.gru_policy(), nu=1.0), batch, [0.0, 0.0, 0.0])
    assert loss == pytest.approx(5 * math.log(2) / 3, abs=1e-5)


def test_a_ranking_by_hand(text):
    """Rewards 2, 1, 0 in that order: −log[e²/(e² + e + 1) · e/(e + 1)] = .4076059 + .3132617."""
    batch = text.replies_to([0, 0, 0], [3, 1, 2], rank=torch.tensor([0, 1, 2]))
    loss = loss_of(RankedDPOPolicy(policy=text.gru_policy()), batch, [2.0, 1.0, 0.0])
    assert loss == pytest.approx(0.7208676, abs=1e-5)


def test_a_ranking_of_two_is_a_pair(text):
    batch = text.replies_to([0, 0, 1, 1], [3, 1, 2, 4], rank=torch.tensor([0, 1, 1, 0]))
    losses = [text.loss(text.moved(kind(policy=text.gru_policy())), batch) for kind in (RankedDPOPolicy, DPOPolicy)]
    torch.testing.assert_close(*losses)


@pytest.mark.parametrize(
    ("kind", "knobs"), [(RaoKupperDPOPolicy, {"theta": 1.000001}), (DavidsonDPOPolicy, {"nu": 1e-7})]
)
def test_without_room_for_ties_it_is_dpo(kind, knobs, text):
    batch = text.replies_to([0, 0, 0], [3, 1, 2], rank=torch.tensor([0, 1, 2]))
    losses = [
        text.loss(text.moved(k(policy=text.gru_policy(), **options)), batch)
        for k, options in ((kind, knobs), (DPOPolicy, {}))
    ]
    torch.testing.assert_close(*losses, atol=1e-5, rtol=1e-5)


def test_dpo_leaves_ties_out(text):
    batch = text.replies_to([0, 0, 0], [3, 1, 2], rank=torch.tensor([0, 1, 1]))
    module = text.moved(DPOPolicy(policy=text.gru_policy()))
    first, second = (text.loss(module, replace(batch, rank=torch.tensor(rank))) for rank in ([0, 1, -1], [0, -1, 1]))
    torch.testing.assert_close(text.loss(module, batch), (first + second) / 2)


def test_strengths_are_logged(text):
    batch = text.replies_to([0, 0], [3, 2], rank=torch.tensor([0, 0]))
    for kind, name, value in ((RaoKupperDPOPolicy, "theta", 3.0), (DavidsonDPOPolicy, "nu", 0.7)):
        module = kind(policy=text.gru_policy(), **{name: value})
        assert module.figures(module.prepare(batch))[name] == pytest.approx(value, abs=1e-5)


@pytest.mark.parametrize(
    ("kind", "knobs", "words"),
    [(RaoKupperDPOPolicy, {"theta": 1.0}, "theta: got 1.0"), (DavidsonDPOPolicy, {"nu": 0.0}, "nu: got 0.0")],
)
def test_no_ties_at_all_is_refused(text, kind, knobs, words):
    with pytest.raises(ValueError, match=f"{words}.*DPOPolicy"):
        kind(policy=text.gru_policy(), **knobs)
