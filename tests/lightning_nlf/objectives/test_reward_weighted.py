"""RWR and AWR: hand-worked weights, their limits, and invariance to padding and splits."""

import math
from dataclasses import replace

import pytest
import torch

from lightning_nlf.batch import Batch
from lightning_nlf.networks import GaussianPolicy, GRUValue, MLPValue
from lightning_nlf.objectives import ActorCriticAgent, AWRAgent, RWRPolicy
from lightning_nlf.objectives.reward_weighted import advantage_weights, effective_share, reward_weights, rewarded


@pytest.fixture
def batch(text):
    score = torch.tensor([1.0, -0.5, 0.3, 2.0])
    return text.replies_to([0, 0, 1, 1], [2, 4, 3, 1], score=score)


def rwr(text, **knobs):
    return RWRPolicy(policy=text.gru_policy(), **knobs)


def awr(text, **knobs):
    policy = text.gru_policy()
    return AWRAgent(policy=policy, value=GRUValue(11, width=8), **knobs)


def test_reward_weights_by_hand():
    """τ = 2, r = 0, 2 ln 3 and padding: e^0 = 1 and e^{ln 3} = 3, with mean 2."""
    returns = torch.tensor([[0.0, 2 * math.log(3), 50.0]])
    weights = reward_weights(returns, torch.tensor([[True, True, False]]), 2.0)
    assert weights.tolist() == [pytest.approx([0.5, 1.5, 0.0])]


def test_a_constant_in_the_rewards_cancels():
    returns, mask = torch.tensor([[1.0, 2.0, 4.0]]), torch.ones(1, 3, dtype=torch.bool)
    torch.testing.assert_close(reward_weights(returns + 900, mask, 0.5), reward_weights(returns, mask, 0.5))


def test_a_temperature_that_overflows_is_refused():
    returns, mask = torch.tensor([[0.0, 1.0]]), torch.ones(1, 2, dtype=torch.bool)
    with pytest.raises(ValueError, match="temperature: e"):
        reward_weights(returns, mask, 1e-4)


def test_advantage_weights_by_hand():
    """τ = .5: e^0 = 1, e^{ln 2} = 2, and e^40 clipped to 20."""
    weights = advantage_weights(torch.tensor([0.0, 0.5 * math.log(2), 20.0]), 0.5, 20.0)
    assert weights.tolist() == pytest.approx([1, 2, 20])


def test_effective_share_by_hand():
    """Weights 1, 3 and padding: 16/(2·10) = .8. Equal weights: 1."""
    mask = torch.tensor([[True, True, False]])
    assert effective_share(torch.tensor([[1.0, 3, 7]]), mask) == pytest.approx(0.8)
    assert effective_share(torch.tensor([[5.0, 5, 7]]), mask) == 1


def test_a_score_is_a_reward_at_the_end(batch):
    rewards = rewarded(batch).rewards
    assert rewards.sum(1).tolist() == pytest.approx(batch.score.tolist())
    assert (rewards != 0).sum() == 4 and rewards[1][batch.valid[1]].tolist() == [0, 0, 0, -0.5]
    log_probs = torch.randn(batch.mask.shape)
    assert rewarded(replace(batch, rewards=log_probs)).rewards is log_probs
    with pytest.raises(ValueError, match="neither `rewards` nor `score`"):
        rewarded(replace(batch, score=None))


def test_rwr_by_hand(text, batch):
    """γ = 1: each token has the weight e^score over its mean over tokens, (2e¹ + 4e^−.5 + 3e^.3 + e²)/10."""
    module = rwr(text, gamma=1.0)
    prepared = module.prepare(batch)
    now = module.evaluate(prepared)
    mean = (2 * math.exp(1) + 4 * math.exp(-0.5) + 3 * math.exp(0.3) + math.exp(2)) / 10
    of_tokens = -(batch.score.exp()[:, None] / mean * now.log_probs)[batch.mask].mean()
    torch.testing.assert_close(module.losses(prepared, now)["policy"], of_tokens)


def test_a_high_temperature_is_cloning(text, batch):
    module = rwr(text, temperature=1e6)
    prepared = module.prepare(batch)
    now = module.evaluate(prepared)
    torch.testing.assert_close(module.losses(prepared, now)["policy"], -now.log_probs[batch.mask].mean())


def test_awr_is_an_actor_critic_with_other_weights(text, batch):
    """The critic has the same returns; the policy has weights e^{A/τ}, at most 20: ln 20 = 2.9957."""
    torch.manual_seed(0)
    policy, value = text.gru_policy(), GRUValue(11, width=8)
    plain = ActorCriticAgent(policy=policy, value=value, normalize_advantages=False)
    weighted = AWRAgent(policy=policy, value=value, temperature=0.5)
    first, second = plain.prepare(rewarded(batch)), weighted.prepare(batch)
    torch.testing.assert_close(second.returns, first.returns)
    expected = (first.advantages / 0.5).exp().clamp(max=20.0)
    assert (expected[batch.mask] == 20).any() and (expected[batch.mask] < 20).any()
    torch.testing.assert_close(second.advantages[batch.mask], expected[batch.mask])
    terms = weighted.losses(second, weighted.evaluate(second))
    torch.testing.assert_close(terms["value"], plain.losses(first, plain.evaluate(first))["value"])


@pytest.mark.parametrize(
    ("make", "knob"),
    [
        *[(make, knob) for make in (rwr, awr) for knob in ({"temperature": 0.3}, {"normalize_advantages": True})],
        (rwr, {"gamma": 0.5}),
        (awr, {"lam": 0.2}),
    ],
)
def test_every_knob_changes_the_loss(make, knob, text, batch):
    losses = [float(text.terms(make(text, **options), batch)["policy"].detach()) for options in ({}, knob)]
    assert abs(losses[0] - losses[1]) > 1e-4


@pytest.mark.parametrize("make", [rwr, awr])
def test_padding_changes_nothing(make, text, batch):
    torch.testing.assert_close(text.loss(make(text), text.padded(batch)), text.loss(make(text), batch))


@pytest.mark.parametrize("make", [rwr, awr])
def test_accumulation_is_one_batch(make, text, batch):
    module = make(text)
    prepared = module.prepare(batch)
    parts = text.micro_batches(prepared, [[3, 0], [1, 2]])
    whole = text.gradient_of(module, [prepared])
    torch.testing.assert_close(text.gradient_of(module, parts), whole, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("make", [rwr, awr])
def test_what_was_rewarded_becomes_likelier_than_what_was_not(make, text, batch):
    module = make(text, temperature=0.3)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.02)
    prepared = module.prepare(batch)

    def gap():
        sums = module.evaluate(prepared).log_probs.detach().sum(1) / batch.mask.sum(1)
        return float(sums[0] - sums[1])

    before = gap()
    for _ in range(30):
        optimizer.zero_grad()
        text.loss(module, batch).backward()
        optimizer.step()
    assert gap() > before + 0.3


def test_controllers_learn_by_the_same_file():
    """One step, reward −(a − 1)², a ~ N(0, 1): e^{−(a − 1)²} N(a; 0, 1) is a normal with mean 2/(1 + 2).

    The critic predicts −E(a − 1)² = −2, so that no weight is above e² = 7.4, and none is clipped.
    """
    torch.manual_seed(0)
    policy, value = GaussianPolicy(4, 1), MLPValue(4)
    obs = torch.zeros(256, 1, 4)
    actions = torch.randn(256, 1, 1)
    everywhere = torch.ones(256, 1, dtype=torch.bool)
    rows = Batch(
        obs,
        actions,
        everywhere,
        everywhere,
        rewards=-((actions[..., 0] - 1) ** 2),
        final_obs=obs[:, 0],
        terminated=everywhere[:, 0],
    )
    module = AWRAgent(policy=policy, value=value, temperature=1.0)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.05)
    for _ in range(120):
        prepared = module.prepare(rows)
        optimizer.zero_grad()
        sum(module.losses(prepared, module.evaluate(prepared)).values()).backward()
        optimizer.step()
    assert float(policy(obs[:1]).mean) == pytest.approx(2 / 3, abs=0.1)


@pytest.mark.parametrize(("make", "knob"), [(rwr, {"temperature": 0.0}), (awr, {"temperature": -1.0})])
def test_impossible_knobs_are_refused(make, knob, text):
    with pytest.raises(ValueError, match=f"{next(iter(knob))}: got"):
        make(text, **knob)
