"""Injection: hand-worked losses and gradients, the effect of each knob, and cases without any injection."""

import math
from dataclasses import replace

import pytest
import torch

from lightning_nlf.batch import Batch
from lightning_nlf.maths.means import masked_mean
from lightning_nlf.maths.schedules import Linear
from lightning_nlf.modules import PolicyModule
from lightning_nlf.networks import GaussianPolicy, MLPValue
from lightning_nlf.objectives import (
    ActorCriticAgent,
    InjectionAgent,
    InjectionPolicy,
    JointPolicy,
    ReinforcePolicy,
    ShapedInjectionPolicy,
    SummedInjectionPolicy,
    UnweightedInjectionPolicy,
    WeightedInjectionPolicy,
)
from lightning_nlf.objectives.actor_critic import ValueObjective
from lightning_nlf.objectives.injection import (
    ShapedInjectionObjective,
    WeightedInjectionObjective,
    shaped_injection_loss,
    weighted_injection_loss,
)
from lightning_nlf.objectives.policy_gradient import PolicyGradientObjective, importance_ratio


class WeightedInjectionAgent(WeightedInjectionObjective, ValueObjective, PolicyGradientObjective, PolicyModule):
    """Importance-weighted injection with a critic."""


class ShapedInjectionAgent(ShapedInjectionObjective, ValueObjective, PolicyGradientObjective, PolicyModule):
    """LUFFY-shaped injection with a critic."""


POLICIES = [InjectionPolicy, WeightedInjectionPolicy, ShapedInjectionPolicy, UnweightedInjectionPolicy]
AGENTS = [InjectionAgent, WeightedInjectionAgent, ShapedInjectionAgent]


def row(*values, **kwargs):
    return torch.tensor([values], dtype=torch.float32, **kwargs)


def episodes(lengths=(3, 5, 2), takeover=True, seed=0, **fields):
    """Random rows; the expert acted at steps 2 and 3 of the second row."""
    generator = torch.Generator().manual_seed(seed)
    shape = len(lengths), max(lengths)
    valid = torch.arange(shape[1]) < torch.tensor(lengths)[:, None]
    injected = torch.zeros_like(valid)
    if takeover:
        injected[1, 2:4] = True
    random = lambda *trailing: torch.randn(*shape, *trailing, generator=generator)  # noqa: E731
    actions = random(1)
    rows = Batch(
        obs=random(4),
        actions=actions,
        valid=valid,
        mask=valid & ~injected,
        log_probs=random(),
        rewards=random(),
        final_obs=torch.randn(len(lengths), 4, generator=generator),
        terminated=torch.ones(len(lengths), dtype=torch.bool),
        expert_actions=actions,
        expert_mask=injected,
        expert_params={"mean": random(1), "std": random(1).exp()},
    )
    return replace(rows, **fields)


def build(kind, **knobs):
    torch.manual_seed(0)
    networks = {"policy": GaussianPolicy(4, 1)} | ({"value": MLPValue(4)} if "Agent" in kind.__name__ else {})
    return kind(**networks, **knobs)


def terms_of(module, batch):
    prepared = module.prepare(batch)
    return module.losses(prepared, module.evaluate(prepared))


def loss_of(module, batch):
    return sum(terms_of(module, batch).values())


def gradient_of(module, batch):
    module.zero_grad()
    loss_of(module, batch).backward()
    return torch.cat([p.grad.flatten() for p in module.parameters()])


def logs(*ratios):
    return row(*map(math.log, ratios))


def test_weighted_loss_by_hand():
    """ε=.2. ρ, A: 2, 1 → min(2, 1.2) = 1.2;  .5, 1 → .5 (no floor);  2, −1 → min(−2, −1.2) = −2;  .5, −1 → −.5.

    −(1.2 + .5 − 2 − .5)/4 = .2; the fifth step is padding.
    """
    log_ratios, mask = torch.cat([logs(2, 0.5, 2, 0.5), row(math.nan)], 1), row(1, 1, 1, 1, 0).bool()
    ratio = importance_ratio(log_ratios, torch.zeros(1, 5), mask)
    loss = weighted_injection_loss(ratio, row(1, 1, -1, -1, math.nan), 0.2)
    assert loss[0, :4].tolist() == pytest.approx([-1.2, -0.5, 2, 0.5])
    assert float(masked_mean(loss, mask)) == pytest.approx(0.2)


def test_the_ratio_is_of_the_policy_to_the_behaviour():
    """π = .2, b = .4, A = 6: −.5 · 6 = −3."""
    ratio = importance_ratio(logs(0.2), logs(0.4), row(1).bool())
    assert float(weighted_injection_loss(ratio, row(6), 0.2)) == pytest.approx(-3)


@pytest.mark.parametrize(
    ("ratio", "advantage", "gradient"), [(0.5, 3, -1.5), (2, 3, 0), (2, -3, 6), (1.1, 3, -3.3), (0.01, 3, -0.03)]
)
def test_weighted_gradient_by_hand(ratio, advantage, gradient):
    """∂/∂log π of −ρA is −ρA: −.5·3 = −1.5, 2·3 = 6, −1.1·3 = −3.3. Above 1.2 it is 0 unless it reduces the ratio."""
    log_probs = logs(ratio).requires_grad_()
    ratio = importance_ratio(log_probs, row(0), row(1).bool())
    weighted_injection_loss(ratio, row(advantage), 0.2).sum().backward()
    assert float(log_probs.grad) == pytest.approx(gradient, abs=1e-5)


def test_shaped_loss_by_hand():
    """g=.1: f(.01) = .01/.11 = .0909091, f(.5) = .5/.6 = .8333333. With A = 2, −3: −(.1818182 − 2.5)/2 = 1.1590909."""
    loss = shaped_injection_loss(row(0.01, 0.5), row(2, -3), 0.1)
    assert loss.tolist() == [pytest.approx([-0.1818182, 2.5], abs=1e-6)]
    assert float(loss.mean()) == pytest.approx(1.1590909, abs=1e-6)


@pytest.mark.parametrize(("x", "gradient"), [(0.01, -0.0826446), (0.1, -0.25), (1.0, -0.0826446)])
def test_shaped_gradient_by_hand(x, gradient):
    """∂/∂log π of −f(x) is −x·g/(x+g)²: −.01·.1/.11² = −.0826446, −.1·.1/.2² = −.25, −1·.1/1.1² = −.0826446.

    A plain ratio would give −.01, −.1, −1. Shaping gives more weight to rare actions, and less to certain ones.
    """
    log_probs = logs(x).requires_grad_()
    shaped_injection_loss(importance_ratio(log_probs, row(0), row(1).bool()), row(1), 0.1).sum().backward()
    assert float(log_probs.grad) == pytest.approx(gradient, abs=1e-6)


@pytest.mark.parametrize("kind", POLICIES[1:])
def test_the_gradient_through_the_module_is_that_of_one_injected_step(kind):
    """Policy N(m, 1) with m the last layer's bias, injected action m + .3, behaviour log-density that makes x = .5.

    ∂log π/∂m = .3. Weighted: −.5·A·.3. Shaped, g=.1: −A·.5·.1/.6²·.3 = −A·.0416667.
    Unweighted: −A·.3.  A = r − 0 = 2, not normalised.
    """
    module = build(kind, normalize_advantages=False)
    obs = torch.zeros(1, 1, 4)
    mean = module.policy(obs).mean.detach()
    density = module.policy(obs).log_prob(mean + 0.3).detach()
    injected = row(1).bool()
    batch = Batch(
        obs=obs,
        actions=mean + 0.3,
        valid=injected,
        mask=~injected,
        log_probs=density + math.log(2),
        rewards=row(2),
        expert_mask=injected,
    )
    terms_of(module, batch)["injected"].backward()
    expected = {
        WeightedInjectionPolicy: -0.5 * 2 * 0.3,
        ShapedInjectionPolicy: -2 * 0.5 * 0.1 / 0.36 * 0.3,
        UnweightedInjectionPolicy: -2 * 0.3,
    }[kind]
    assert float(module.policy.net[-1].bias.grad) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("kind", POLICIES)
def test_without_a_takeover_it_is_reinforce(kind):
    batch = episodes(takeover=False)
    module, plain = build(kind), build(ReinforcePolicy)
    assert loss_of(module, batch) == loss_of(plain, batch)
    assert torch.equal(gradient_of(module, batch), gradient_of(plain, batch))


@pytest.mark.parametrize("kind", AGENTS)
def test_without_a_takeover_the_agent_is_the_actor_critic(kind):
    batch = episodes(takeover=False)
    assert loss_of(build(kind), batch) == loss_of(build(ActorCriticAgent), batch)


@pytest.mark.parametrize("kind", POLICIES[1:])
def test_with_weight_zero_it_is_reinforce_on_the_learners_steps(kind):
    batch = episodes()
    assert loss_of(build(kind, injected_weight=0.0), batch) == loss_of(build(ReinforcePolicy), batch)


@pytest.mark.parametrize("kind", POLICIES[1:])
def test_a_schedule_moves_the_weight_while_it_runs(kind):
    """10 steps per batch: Linear(1, 0, 20) is .5 after the first and 0 after the second, which is REINFORCE."""
    module, constant, batch = build(kind, injected_weight=Linear(1.0, 0.0, 20)), build(kind), episodes()
    half, whole = terms_of(module, batch)["injected"], terms_of(constant, batch)["injected"]
    torch.testing.assert_close(half, 0.5 * whole)
    assert loss_of(module, batch) == loss_of(build(ReinforcePolicy), batch)


def test_injection_by_imitation_is_joint_on_the_injected_steps():
    batch = episodes()
    assert loss_of(build(InjectionPolicy), batch) == loss_of(build(JointPolicy), batch)
    assert terms_of(build(InjectionPolicy), batch)["imitation"] > 0


def test_the_two_kinds_of_step_meet_only_their_own_term():
    """Another behaviour density changes the injected term on injected steps, and nothing on the learner's steps."""
    batch = episodes()
    reference = terms_of(build(WeightedInjectionPolicy), batch)
    theirs = replace(batch, log_probs=torch.where(batch.mask, batch.log_probs, batch.log_probs + 1))
    learner_changed = replace(batch, log_probs=torch.where(batch.mask, batch.log_probs + 1, batch.log_probs))
    moved, unchanged = (terms_of(build(WeightedInjectionPolicy), changed) for changed in (theirs, learner_changed))
    assert moved["injected"] != reference["injected"] and moved["policy"] == reference["policy"]
    assert unchanged["injected"] == reference["injected"] and unchanged["policy"] == reference["policy"]


@pytest.mark.parametrize(
    ("kind", "knob"),
    [
        (WeightedInjectionPolicy, {"injected_weight": 0.5}),
        (WeightedInjectionPolicy, {"injected_clip": 3.0}),
        (UnweightedInjectionPolicy, {"injected_weight": 0.5}),
        (ShapedInjectionPolicy, {"injected_weight": 0.5}),
        (ShapedInjectionPolicy, {"shape": 0.5}),
        (ShapedInjectionPolicy, {"relative": False}),
        (InjectionPolicy, {"imitation_weight": 0.5}),
        (InjectionPolicy, {"divergence": "reverse"}),
        (InjectionPolicy, {"cut_at_takeover": True}),
        (InjectionAgent, {"cut_at_takeover": True}),
        (WeightedInjectionAgent, {"lam": 0.2}),
        (ShapedInjectionAgent, {"shape": 0.5}),
    ],
    ids=lambda x: x.__name__ if isinstance(x, type) else next(iter(x)),
)
def test_every_knob_changes_the_loss(kind, knob):
    batch = episodes()
    rewards = torch.where(batch.mask, batch.rewards, 5)
    batch = replace(batch, rewards=rewards, log_probs=torch.full((3, 5), -3.0))  # A > 0 and ρ > 1 + ε: the clip acts
    assert not torch.isclose(loss_of(build(kind, **knob), batch), loss_of(build(kind), batch))


def test_not_relative_is_the_probability_itself():
    """x = π, for any density of the behaviour."""
    batch = episodes()
    module = build(ShapedInjectionPolicy, relative=False)
    prepared = module.prepare(batch)
    x = module.policy(batch.obs).log_prob(batch.actions).exp()
    injected = batch.valid & ~batch.mask
    expected = -(x / (x + 0.1) * prepared.advantages)[injected].mean()
    torch.testing.assert_close(module.losses(prepared, module.evaluate(prepared))["injected"], expected)


@pytest.mark.parametrize("kind", POLICIES + AGENTS)
def test_padding_never_changes_the_loss_or_its_gradient(kind):
    """Two more columns of NaN, where the expert's std is 0."""
    batch = episodes()

    def widened(x):
        if x.ndim < 2 or x.shape[1] != 5:
            return x
        return torch.cat([x, torch.full_like(x[:, :2], math.nan if x.is_floating_point() else False)], 1)

    wide = batch.map(widened)
    wide = replace(wide, expert_params=wide.expert_params | {"std": wide.expert_params["std"].nan_to_num(0.0)})
    torch.testing.assert_close(loss_of(build(kind), wide), loss_of(build(kind), batch))
    torch.testing.assert_close(gradient_of(build(kind), wide), gradient_of(build(kind), batch))


def deterministic(batch):
    """The expert's log-density is +inf at the steps where it acted, and its std is 0."""
    return replace(
        batch,
        log_probs=torch.where(batch.mask, batch.log_probs, math.inf),
        expert_params=batch.expert_params | {"std": torch.zeros_like(batch.actions)},
    )


@pytest.mark.parametrize("kind", [*POLICIES[1:3], *AGENTS[1:]])
def test_importance_weights_against_a_deterministic_expert_are_refused(kind):
    with pytest.raises(ValueError, match="the expert is deterministic"):
        build(kind).prepare(deterministic(episodes()))


@pytest.mark.parametrize(
    ("kind", "knob"),
    [
        (ShapedInjectionPolicy, {"relative": False}),
        (UnweightedInjectionPolicy, {}),
        (InjectionPolicy, {"divergence": "nll"}),
    ],
)
def test_without_a_ratio_a_deterministic_expert_is_fine(kind, knob):
    batch = episodes()
    assert loss_of(build(kind, **knob), deterministic(batch)) == loss_of(build(kind, **knob), batch)


def test_a_deterministic_expert_is_refused_by_the_divergences_too():
    with pytest.raises(ValueError, match="nll"):
        loss_of(build(InjectionPolicy), deterministic(episodes()))


@pytest.mark.parametrize("kind", POLICIES)
def test_what_the_expert_showed_becomes_likelier(kind):
    """Injected actions of 1 are rewarded, the learner's are not: after 150 steps of Adam the mean has increased."""
    module = build(kind, normalize_advantages=kind is not InjectionPolicy)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.02)
    injected = (torch.arange(64) % 2 == 0)[:, None]
    obs, means = torch.zeros(64, 1, 4), []
    for _ in range(150):
        sampled, log_probs, _, _ = module.act(obs[:, 0])
        actions = torch.where(injected, 1 + 0.1 * torch.randn(64, 1), sampled)
        density = -0.5 * ((actions - 1) / 0.1) ** 2 - math.log(0.1 * math.sqrt(2 * math.pi))
        batch = Batch(
            obs=obs,
            actions=actions[:, None],
            valid=torch.ones(64, 1, dtype=torch.bool),
            mask=~injected,
            log_probs=torch.where(injected, density, log_probs[:, None]),
            rewards=injected.float(),
            expert_actions=actions[:, None],
            expert_mask=injected,
            expert_params={"mean": torch.ones(64, 1, 1), "std": torch.full((64, 1, 1), 0.1)},
        )
        optimizer.zero_grad()
        loss_of(module, batch).backward()
        optimizer.step()
        means.append(float(module.policy(obs[:1]).mean.detach()))
    assert means[-1] > means[0] + 0.3


def test_injected_advantages_are_whitened_with_the_learners():
    """One learner step per row, as after an early take-over. With Adam's momentum alone, 50 steps would reach 10⁴."""
    valid = torch.ones(2, 50, dtype=torch.bool)
    mask = torch.arange(50).expand(2, -1) == 0
    batch = replace(
        episodes((50, 50), takeover=False), valid=valid, mask=mask, expert_mask=~mask, rewards=torch.ones(2, 50)
    )
    advantages = build(WeightedInjectionPolicy).prepare(batch).advantages
    assert advantages.mean() == pytest.approx(0, abs=1e-5)
    assert advantages.var(correction=0) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("kind", POLICIES[1:])
@pytest.mark.parametrize("labels", [None, torch.zeros(3, 5, dtype=torch.bool)], ids=["absent", "elsewhere"])
def test_injected_steps_are_read_without_labels(kind, labels):
    """The policy is evaluated at the steps of the injected term, even if they are not in `expert_mask`."""
    batch = episodes()
    unlabelled = replace(batch, expert_mask=labels)
    assert terms_of(build(kind), batch)["injected"] != 0
    assert torch.equal(gradient_of(build(kind), unlabelled), gradient_of(build(kind), batch))


def test_the_originals_update_is_the_sum_over_prefix_and_suffix():
    """−Σ_t log π(a_t) G_t over the whole second row, for both actors: the loss of its second update."""
    batch = episodes()[1:2]
    module = build(SummedInjectionPolicy, normalize_advantages=False, gamma=0.9)
    log_probs, rewards = module.policy(batch.obs).log_prob(batch.actions)[0], batch.rewards[0].tolist()
    returns, following = [], 0.0
    for reward in reversed(rewards):
        following = reward + 0.9 * following
        returns.insert(0, following)
    torch.testing.assert_close(loss_of(module, batch), -(log_probs * torch.tensor(returns)).sum())


def test_unweighted_is_the_mean_of_what_is_summed():
    batch = episodes()
    means, sums = (terms_of(build(kind), batch) for kind in (UnweightedInjectionPolicy, SummedInjectionPolicy))
    assert means["injected"] != 0
    torch.testing.assert_close(2 * means["injected"], sums["injected"])  # 2 injected steps
    torch.testing.assert_close(8 * means["policy"], sums["policy"])  # 8 steps of the learner


@pytest.mark.parametrize("kind", [WeightedInjectionPolicy, ShapedInjectionPolicy])
def test_without_log_probs_there_is_no_ratio(kind):
    with pytest.raises(ValueError, match="no log_probs"):
        build(kind).prepare(episodes(log_probs=None))
    build(ShapedInjectionPolicy, relative=False).prepare(episodes(log_probs=None))


@pytest.mark.parametrize("kind", [WeightedInjectionPolicy, ShapedInjectionPolicy, UnweightedInjectionPolicy])
def test_an_injected_row_whose_score_nobody_knows_is_refused(kind):
    """The second row is injected. Unknown scores of the learner's rows are checked by the policy gradient, not here."""
    scored = episodes(score=torch.tensor([math.nan, 1.0, math.nan]))
    build(kind).prepare(scored)
    with pytest.raises(ValueError, match="score: row 1"):
        build(kind).prepare(replace(scored, score=torch.tensor([1.0, math.nan, 1.0])))
