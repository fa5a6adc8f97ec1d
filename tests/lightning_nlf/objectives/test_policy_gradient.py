"""Policy gradient: hand-worked losses, the effect of each knob, and invariance to padding and splits."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from lightning_nlf.batch import Batch
from lightning_nlf.maths.means import masked_mean, row_counts, stamp_totals
from lightning_nlf.networks import GaussianPolicy
from lightning_nlf.objectives import ReinforcePolicy
from lightning_nlf.objectives.policy_gradient import (
    BASELINES,
    clipped_policy_loss,
    importance_ratio,
    policy_gradient_loss,
    ratio_figures,
)


def row(*values, **kwargs):
    return torch.tensor([values], dtype=torch.float32, **kwargs)


def episodes(lengths=(3, 5, 2), seed=0, **fields):
    """Random rows in which the learner acted at all steps."""
    generator = torch.Generator().manual_seed(seed)
    shape = len(lengths), max(lengths)
    valid = torch.arange(shape[1]) < torch.tensor(lengths)[:, None]
    random = lambda *trailing: torch.randn(*shape, *trailing, generator=generator)  # noqa: E731
    rows = Batch(
        obs=random(4),
        actions=random(1),
        valid=valid,
        mask=valid,
        log_probs=random(),
        rewards=random(),
        final_obs=torch.randn(len(lengths), 4, generator=generator),
        terminated=torch.ones(len(lengths), dtype=torch.bool),
    )
    return replace(rows, **fields)


def agent(**knobs):
    torch.manual_seed(0)
    return ReinforcePolicy(policy=GaussianPolicy(4, 1), **knobs)


def loss_of(module, batch):
    prepared = module.prepare(batch)
    return sum(module.losses(prepared, module.evaluate(prepared)).values())


def test_policy_gradient_loss_by_hand():
    """−log π·A of each step: −(−1)·2 = 2 and −(−3)·(−1) = −3, with mean −.5; the third step is padding."""
    loss = policy_gradient_loss(row(-1, -3, -5), row(2, -1, 9))
    assert loss[0, :2].tolist() == pytest.approx([2, -3])
    assert masked_mean(loss, row(1, 1, 0).bool()) == pytest.approx(-0.5)
    assert policy_gradient_loss(row(-1, -3)[0], row(2, -1)[0]).tolist() == pytest.approx([2, -3])  # of whole replies


def test_clipped_loss_by_hand():
    """ε=.2. Step 0: ρ=2, A=1 → −min(2, 1.2) = −1.2.  Step 1: ρ=.5, A=−1 → −min(−.5, −.8) = .8.  The mean is −.2."""
    ratio = importance_ratio(row(math.log(2), math.log(0.5)), row(0, 0), row(1, 1).bool())
    loss = clipped_policy_loss(ratio, row(1, -1), 0.2)
    assert loss.tolist() == [pytest.approx([-1.2, 0.8])]
    assert loss.mean() == pytest.approx(-0.2)


@pytest.mark.parametrize(
    ("ratio", "advantage", "moves"), [(1.5, 1, False), (1.5, -1, True), (0.5, -1, False), (0.5, 1, True)]
)
def test_no_gradient_outside_the_clip(ratio, advantage, moves):
    """Outside 1 ± ε there is a gradient only towards that range."""
    new = row(math.log(ratio)).requires_grad_()
    clipped_policy_loss(importance_ratio(new, row(0), row(1).bool()), row(advantage), 0.2).sum().backward()
    assert bool(new.grad.abs().sum() > 0) is moves


def test_padding_cannot_overflow_the_ratio():
    assert importance_ratio(row(0, 1e4), row(0, -1e4), row(1, 0).bool()).tolist() == [[1, 1]]


def test_the_ratio_is_one_on_the_first_pass():
    """Log-probabilities that were stored one state at a time equal those of a forward pass of the whole batch."""
    module, batch = agent(clip=0.2), episodes()
    steps = [module.act(batch.obs[:, t]) for t in range(batch.mask.shape[1])]
    batch = replace(
        batch, actions=torch.stack([s[0] for s in steps], 1), log_probs=torch.stack([s[1] for s in steps], 1)
    )
    now = module.evaluate(batch)
    torch.testing.assert_close(importance_ratio(now.log_probs, batch.log_probs, batch.mask), torch.ones(3, 5))
    figures = module.figures(module.prepare(batch), now)
    assert figures["approx_kl"] == pytest.approx(0, abs=1e-6) and figures["clip_fraction"] == 0


def test_on_the_first_pass_ppo_is_policy_gradient():
    """∇ min(ρA, clip(ρ)A) at ρ = 1 is A ∇log π."""
    gradients = []
    for clip in (None, 0.2):
        module, batch = agent(clip=clip), episodes()
        batch = replace(batch, log_probs=module.evaluate(batch).log_probs.detach())
        loss_of(module, batch).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in module.policy.parameters()]))
    torch.testing.assert_close(*gradients)


def test_reward_to_go_by_hand():
    """γ=.5, r=[1,2,4]: G = [1+.5·(2+.5·4), 2+.5·4, 4] = [3, 4, 4]."""
    batch = replace(episodes((3,)), rewards=row(1, 2, 4))
    prepared = agent(gamma=0.5, normalize_advantages=False).prepare(batch)
    torch.testing.assert_close(prepared.advantages, row(3, 4, 4))


def test_whitening_gives_mean_zero_and_variance_one_over_the_mask():
    batch = agent().prepare(episodes((30, 50, 20)))
    chosen = batch.advantages[batch.mask]
    assert chosen.mean() == pytest.approx(0, abs=1e-5)
    assert chosen.var(correction=0) == pytest.approx(1, abs=1e-4)


def groups():
    """Returns (one step per row) 1, 3 | 5, 7, 9 | 4."""
    rewards = torch.tensor([[1.0], [3], [5], [7], [9], [4]])
    return replace(episodes((1,) * 6), rewards=rewards, group=torch.tensor([0, 0, 1, 1, 1, 2]))


@pytest.mark.parametrize(
    ("baseline", "expected"),
    [
        ("none", [0, 0, 0, 0, 0, 0]),
        ("batch_mean", [29 / 6] * 6),
        ("group_mean", [2, 2, 7, 7, 7, 4]),
        ("leave_one_out", [3, 1, 8, 7, 6, 0]),
        ("shared_group_mean", [2, 2, 7, 7, 7, 4]),
    ],
)
def test_baselines_by_hand(baseline, expected):
    batch = groups()
    values = BASELINES[baseline](batch.rewards, batch)
    torch.testing.assert_close(values[:, 0], torch.tensor(expected, dtype=torch.float32))


def test_rows_that_nobody_learns_from_do_not_enter_a_group_baseline():
    """The expected response has an empty `mask`: the mean of the others in the group is (5 + 7)/2."""
    batch = groups()
    batch = replace(batch, mask=batch.mask & (torch.arange(6) != 4)[:, None])
    assert BASELINES["group_mean"](batch.rewards, batch)[2, 0] == 6


def with_an_expert():
    """γ = 1, reward at the end: 1 and 3 by the learner, 8 by an expert from the second step on, 6 by the expert alone,
    and 100 for a row of labels, without valid steps. The last row belongs to another group.
    """
    batch = episodes((2,) * 6)
    pay = torch.tensor([1.0, 3, 8, 6, 100, 5])
    rewards = torch.stack([torch.zeros(6), pay], 1)
    mask = torch.tensor([[1, 1], [1, 1], [1, 0], [0, 0], [0, 0], [1, 1]]).bool()
    valid = torch.tensor([[1, 1]] * 4 + [[0, 0]] + [[1, 1]]).bool()
    return replace(batch, rewards=rewards, mask=mask, valid=valid, group=torch.tensor([0, 0, 0, 0, 0, 1]))


@pytest.mark.parametrize(
    ("baseline", "mean"), [("group_mean", (1 + 3 + 8) / 3), ("shared_group_mean", (1 + 3 + 8 + 6) / 4)]
)
def test_whether_an_experts_row_raises_the_bar(baseline, mean):
    """The expert's row counts only with `shared_group_mean`; all rows are then compared with the same mean."""
    prepared = agent(gamma=1.0, baseline=baseline, normalize_advantages=False).prepare(with_an_expert())
    target = torch.tensor([1 - mean, 3 - mean, 8 - mean, 6 - mean])
    torch.testing.assert_close(prepared.advantages[:4], target[:, None].expand(-1, 2))
    assert prepared.advantages[5].tolist() == [0, 0]


def test_the_spread_is_that_of_the_rows_that_the_mean_is_of():
    """1, 3, 8, 6 have mean 4.5 and variance (12.25 + 2.25 + 12.25 + 2.25)/4 = 7.25; a single row has scale 1."""
    knobs = {"gamma": 1.0, "advantage_scale": "group_std", "normalize_advantages": False}
    prepared = agent(baseline="shared_group_mean", **knobs).prepare(with_an_expert())
    target = torch.tensor([-3.5, -1.5, 3.5, 1.5]) / math.sqrt(7.25)
    torch.testing.assert_close(prepared.advantages[:4, 0], target, rtol=0, atol=1e-5)
    learner_only = agent(baseline="group_mean", **knobs).prepare(with_an_expert())
    assert float(learner_only.advantages[0, 0]) == pytest.approx(
        (1 - 4) / math.sqrt(26 / 3), abs=1e-5
    )  # 9 + 1 + 16, by 3


def test_a_row_counts_by_its_return_from_the_first_decision_on():
    """γ = .5, reward 1 at each of two steps: 1.5 at the first step, while the mean over steps would be 1.25."""
    batch = replace(with_an_expert(), rewards=torch.ones(6, 2))
    prepared = agent(gamma=0.5, baseline="shared_group_mean", normalize_advantages=False).prepare(batch)
    assert prepared.advantages[0].tolist() == pytest.approx([0, -0.5])


def test_cut_returns_share_no_mean():
    with pytest.raises(ValueError, match="cut_at_takeover"):
        agent(baseline="shared_group_mean", cut_at_takeover=True)


def test_a_group_baseline_without_groups_is_refused():
    with pytest.raises(ValueError, match="group"):
        agent(baseline="group_mean").prepare(episodes())


def test_padding_never_changes_the_loss():
    module, batch = agent(entropy_weight=0.1, clip=0.2), episodes()
    wider = batch.map(
        lambda x: torch.cat([x, torch.full_like(x[:, :2], 7)], 1) if x.ndim > 1 and x.shape[1] == 5 else x
    )
    padding = torch.arange(7) >= 5
    wider = replace(wider, valid=wider.valid & ~padding, mask=wider.mask & ~padding)
    torch.testing.assert_close(loss_of(module, wider), loss_of(module, batch))


@pytest.mark.parametrize(
    "knob",
    [
        {"gamma": 0.5},
        {"baseline": "batch_mean", "normalize_advantages": False},
        {"clip": 0.01},
        {"normalize_advantages": False},
        {"entropy_weight": 0.5},
        {"cut_at_takeover": True},
        {"decision": "reply"},
        {"reduce": "sum"},
    ],
    ids=lambda knob: next(iter(knob)),
)
def test_every_knob_changes_the_loss(knob):
    batch = episodes()
    expert_steps = torch.zeros_like(batch.mask)
    expert_steps[1, 2:4] = True
    batch = replace(batch, mask=batch.mask & ~expert_steps)
    reference = {"normalize_advantages": False} if "baseline" in knob else {}
    assert not torch.isclose(loss_of(agent(**knob), batch), loss_of(agent(**reference), batch))


def test_the_learners_return_is_cut_at_the_takeover():
    """γ=1, r=[1,1,1,1], the expert acts at steps 2, 3. Uncut: G₀=4, G₁=3. Cut, without a critic: 2, 1."""
    batch = replace(episodes((4,)), rewards=row(1, 1, 1, 1), mask=row(1, 1, 0, 0).bool())
    for cut, expected in ((False, [4, 3]), (True, [2, 1])):
        prepared = agent(gamma=1.0, normalize_advantages=False, cut_at_takeover=cut).prepare(batch)
        assert prepared.returns[0, :2].tolist() == expected


def test_figures_of_the_ratio_by_hand():
    """ε=.2; ρ = 2, ½, 1.1: two of three are outside. KL: Σ ρ − 1 − ln ρ = .306853 + .193147 + .004690, / 3.

    Mean 3.6/3 = 1.2; variance (1 + .25 + .01)/3 = .42.
    """
    ratio = row(2, 0.5, 1.1)
    figures = {name: x.mean() for name, x in ratio_figures(ratio, 0.2).items()}
    assert figures["clip_fraction"] == pytest.approx(2 / 3)
    assert figures["approx_kl"] == pytest.approx(0.168230, abs=1e-5)
    assert figures["ratio_mean"] == pytest.approx(1.2) and figures["ratio_variance"] == pytest.approx(0.42)


def test_figures_of_the_ratio_leave_padding_out():
    """All ratios of the learner are e^.5: the variance is (e^.5 − 1)². At padding the ratio would be NaN."""
    module = agent(clip=0.2)
    batch = module.prepare(episodes((3, 5, 2)))
    now = module.evaluate(batch)
    batch = replace(batch, log_probs=torch.where(batch.mask, now.log_probs.detach() - 0.5, math.nan))
    figures = module.figures(batch, now)
    assert figures["clip_fraction"] == 1
    assert figures["ratio_mean"] == pytest.approx(math.exp(0.5), abs=1e-5)
    assert figures["ratio_variance"] == pytest.approx((math.exp(0.5) - 1) ** 2, abs=1e-5)


def test_the_experts_steps_are_experience_too():
    batch = episodes((3, 5, 2))
    module = agent()
    module.prepare(replace(batch, mask=torch.zeros_like(batch.mask)))
    assert module.experience == 10


def test_experience_counts_all_that_was_decided():
    module = agent()
    module.prepare(episodes((3, 5, 2)))
    module.prepare(episodes((1, 1)))
    assert module.experience == 12


def test_a_step_along_the_gradient_raises_the_return():
    """Actions near 1 are rewarded: after 200 steps the mean action is near 1."""
    module = agent(normalize_advantages=True)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.02)
    obs = torch.zeros(64, 1, 4)
    for _ in range(200):
        actions, log_probs, _, _ = module.act(obs[:, 0])
        batch = replace(
            episodes((1,) * 64),
            obs=obs,
            actions=actions[:, None],
            log_probs=log_probs[:, None],
            rewards=-((actions - 1) ** 2),
        )
        optimizer.zero_grad()
        loss_of(module, batch).backward()
        optimizer.step()
    assert float(module.policy(obs[:1]).mean) == pytest.approx(1, abs=0.15)


def summed(**knobs):
    """Textbook REINFORCE."""
    return agent(reduce="sum", **knobs)


def test_summed_is_the_mean_times_the_steps():
    """10 steps of the learner, in the policy term and in the entropy term."""
    batch = episodes((3, 5, 2))
    torch.testing.assert_close(
        loss_of(summed(entropy_weight=0.1), batch), 10 * loss_of(agent(entropy_weight=0.1), batch)
    )


def test_a_long_row_counts_for_more():
    """One row per update equals a stamp with its own number of steps: 5 to 2, although means weigh them equally."""
    prepared = summed(normalize_advantages=False).prepare(episodes((5, 2)))
    equal = replace(prepared, advantages=torch.ones_like(prepared.advantages))

    def pulls(module):
        now = [module.evaluate(equal[i : i + 1]) for i in (0, 1)]
        for evaluation, width in zip(now, (5, 2), strict=True):
            evaluation.log_probs = -torch.ones(1, width)
        return [float(module.losses(equal[i : i + 1], now[i])["policy"]) for i in (0, 1)]

    assert pulls(summed()) == [5, 2] and pulls(agent()) == [1, 1]


@pytest.mark.parametrize(("accumulate", "world_size"), [(2, 1), (1, 2)], ids=["accumulated", "ranks"])
def test_a_sum_does_not_depend_on_how_rows_are_cut(accumulate, world_size):
    """Lightning averages over micro-batches and DDP over ranks. The mean of the parts' losses is the total sum."""
    module = summed()
    prepared = module.prepare(episodes((3, 5, 2)))
    whole = module.losses(prepared, module.evaluate(prepared))["policy"]
    totals = {name: count.sum().float() for name, count in row_counts(prepared).items()}
    parts = stamp_totals([prepared[:1], prepared[1:]], totals, 2)
    module._trainer = SimpleNamespace(accumulate_grad_batches=accumulate, world_size=world_size)
    cut = [module.losses(part, module.evaluate(part))["policy"] for part in parts]
    torch.testing.assert_close(sum(cut) / 2, whole)
