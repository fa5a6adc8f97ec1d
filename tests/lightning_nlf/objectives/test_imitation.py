"""Imitation: divergences by hand or by integration, schedules, and batches without an expert or a density."""

import math
from dataclasses import replace
from itertools import combinations

import lightning as L
import pytest
import torch
from torch.distributions import Categorical, Independent, Normal
from torch.utils.data import DataLoader

from lightning_nlf.batch import Batch
from lightning_nlf.maths.means import row_counts, stamp_totals
from lightning_nlf.maths.schedules import Linear
from lightning_nlf.networks import GaussianPolicy, GRUPolicy, MLPValue, Policy
from lightning_nlf.objectives import (
    ActorCriticAgent,
    ImitationPolicy,
    JointAgent,
    JointPolicy,
    ReinforcePolicy,
    SummedJointPolicy,
)
from lightning_nlf.objectives.divergences import forward_kl, jensen_shannon, reverse_kl
from lightning_nlf.objectives.imitation import imitation_loss, suffix_weights

DIVERGENCES = ["forward", "reverse", "jsd", "nll"]
S, T = Categorical(probs=torch.tensor([[0.7, 0.2, 0.1]])), Categorical(probs=torch.tensor([[0.5, 0.3, 0.2]]))


def row(*values, **kwargs):
    return torch.tensor([values], dtype=torch.float32, **kwargs)


def gaussian(mean, std):
    return Independent(Normal(torch.tensor([[float(mean)]]), torch.tensor([[float(std)]])), 1)


def episodes(lengths=(3, 5, 2), seed=0, **fields):
    """Random rows in which the learner acted, with the expert's labels on every other step."""
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
        expert_actions=random(1),
        expert_mask=valid & (torch.arange(shape[1]) % 2 == 0),
        expert_params={"mean": random(1), "std": random(1).exp()},
    )
    return replace(rows, **fields)


def policy():
    torch.manual_seed(0)
    return GaussianPolicy(4, 1)


def joint(**knobs):
    return JointPolicy(policy=policy(), **knobs)


class Fixed(Policy):
    """Policy N(0, 1) for every state."""

    def features(self, obs, where=None):
        return obs if where is None else obs[where]

    def distribution(self, features):
        mean = torch.zeros_like(features[..., :1])
        return Independent(Normal(mean, torch.ones_like(mean), validate_args=False), 1, validate_args=False)


def terms_of(module, batch):
    prepared = module.prepare(batch)
    return module.losses(prepared, module.evaluate(prepared))


def loss_of(module, batch):
    return sum(terms_of(module, batch).values())


def gradient_of(module, batch):
    module.zero_grad()
    loss_of(module, batch).backward()
    return torch.cat([p.grad.flatten() for p in module.parameters()])


def test_categorical_divergences_by_hand():
    """S=(.7,.2,.1), T=(.5,.3,.2).

    KL(T‖S) = .5 ln(5/7) + .3 ln 1.5 + .2 ln 2 = −.1682361 + .1216395 + .1386294 = .0920329
    KL(S‖T) = .7 ln 1.4 + .2 ln(2/3) + .1 ln .5 = .2355306 − .0810930 − .0693147 = .0851228
    M=(.6,.25,.15): KL(T‖M) = −.0911608 + .0546965 + .0575364 = .0210721, KL(S‖M) = .1079055 − .0446287 − .0405465
    = .0227303, and half of both is .0219012.
    """
    assert float(forward_kl(T, S)) == pytest.approx(0.0920329, abs=1e-6)
    assert float(reverse_kl(T, S)) == pytest.approx(0.0851228, abs=1e-6)
    assert float(jensen_shannon(T, S)) == pytest.approx(0.0219012, abs=1e-6)


def test_gaussian_kl_by_hand():
    """T=N(1,1), S=N(0,2): KL(T‖S) = ln 2 + (1 + 1)/(2·4) − ½ = .4431472; KL(S‖T) = −ln 2 + 5/2 − ½ = 1.3068528."""
    expert, learner = gaussian(1, 1), gaussian(0, 2)
    assert float(forward_kl(expert, learner)) == pytest.approx(0.4431472, abs=1e-6)
    assert float(reverse_kl(expert, learner)) == pytest.approx(1.3068528, abs=1e-6)


def integrated_jsd(expert, learner, mix):
    """The same divergences by a sum over 400,001 points between −40 and 40, in double precision."""
    x = torch.linspace(-40, 40, 400_001, dtype=torch.float64)

    def log_density(distribution):
        mean, std = (float(part.squeeze()) for part in (distribution.mean, distribution.variance.sqrt()))
        return -0.5 * ((x - mean) / std) ** 2 - math.log(std * math.sqrt(2 * math.pi))

    t, s = log_density(expert), log_density(learner)
    m = torch.logaddexp(t + math.log(mix), s + math.log(1 - mix))
    integrand = mix * t.exp() * (t - m) + (1 - mix) * s.exp() * (s - m)
    return float(integrand.sum() * (x[1] - x[0]))


@pytest.mark.parametrize("mix", [0.5, 0.1])
@pytest.mark.parametrize(
    ("expert", "learner"),
    [
        ((0, 1), (0, 1)),
        ((1, 1), (0, 2)),
        ((2, 0.5), (-1, 1)),
        ((5, 0.3), (-5, 0.3)),
        ((0.3, 0.1), (0, 1)),
        ((0.3, 0.02), (0, 1)),
        ((0, 1), (4, 0.05)),
    ],
)
def test_jsd_of_gaussians_is_its_integral(expert, learner, mix):
    expert, learner = gaussian(*expert), gaussian(*learner)
    assert float(jensen_shannon(expert, learner, mix)) == pytest.approx(integrated_jsd(expert, learner, mix), abs=1e-4)


def test_the_gradient_of_the_jsd_is_that_of_its_integral():
    """Central differences of the integral above, in the learner's mean and log-std."""
    moved, expert = torch.tensor([0.2, -0.3], requires_grad=True), gaussian(0.5, 0.2)
    jensen_shannon(expert, Independent(Normal(moved[None, :1], moved[None, 1:].exp()), 1)).sum().backward()

    def integral(mean, log_std):
        return integrated_jsd(expert, gaussian(mean, math.exp(log_std)), 0.5)

    step = 1e-3
    by_mean = (integral(0.2 + step, -0.3) - integral(0.2 - step, -0.3)) / (2 * step)
    by_log_std = (integral(0.2, -0.3 + step) - integral(0.2, -0.3 - step)) / (2 * step)
    assert moved.grad.tolist() == pytest.approx([by_mean, by_log_std], abs=1e-3)


def test_jsd_is_symmetric_and_at_most_ln_2():
    a, b = gaussian(1, 0.5), gaussian(-1, 2)
    assert float(jensen_shannon(a, b)) == pytest.approx(float(jensen_shannon(b, a)), abs=1e-5)
    assert float(jensen_shannon(gaussian(9, 0.1), gaussian(-9, 0.1))) == pytest.approx(math.log(2), abs=1e-4)


def test_jsd_in_several_dimensions_is_refused():
    plane = Independent(Normal(torch.zeros(3, 2), torch.ones(3, 2)), 1)
    with pytest.raises(ValueError, match="jsd needs one action dimension"):
        jensen_shannon(plane, plane)


@pytest.mark.parametrize("divergence", DIVERGENCES[:3])
def test_nothing_is_left_to_learn_from_oneself(divergence):
    """Policy N(0, 1) and an expert N(0, 1): the divergence is 0."""
    batch = episodes()
    params = {"mean": torch.zeros_like(batch.actions), "std": torch.ones_like(batch.actions)}
    module = ImitationPolicy(policy=Fixed(), divergence=divergence)
    assert float(loss_of(module, replace(batch, expert_params=params))) == pytest.approx(0, abs=1e-5)


def test_nll_by_hand():
    """Policy N(0, 1), expert actions 1 and 2 on the two labelled steps: ½ ln 2π + (1 + 4)/4 = .9189385 + 1.25."""
    batch = replace(
        episodes((3,)), expert_actions=row(1, 9, 2)[..., None], expert_mask=row(1, 0, 1).bool(), expert_params=None
    )
    assert float(loss_of(ImitationPolicy(policy=Fixed(), divergence="nll"), batch)) == pytest.approx(2.1689385)


def test_forward_kl_through_the_module_by_hand():
    """Policy N(0, 1). Experts N(1, 1): ½. N(0, 2): ln ½ + 4/2 − ½ = .8068528. Mean .6534264; the third has no label."""
    batch = replace(
        episodes((3,)),
        expert_mask=row(1, 1, 0).bool(),
        expert_params={"mean": row(1, 0, 50)[..., None], "std": row(1, 2, 3)[..., None]},
    )
    assert float(loss_of(ImitationPolicy(policy=Fixed()), batch)) == pytest.approx(0.6534264)


def test_imitation_loss_by_hand():
    """−log N(a; 0, 1) = c + a²/2 of the expert's a = 1, 2 on the labelled steps, c = ½ ln 2π = .9189385.

    Mean (1.4189385 + 2.9189385)/2 = 2.1689385; a quarter of it if the optimizer step has 8 labels in all.
    """
    module = ImitationPolicy(policy=Fixed(), divergence="nll")
    expert = {"expert_actions": row(1, math.nan, 2)[..., None], "expert_mask": row(1, 0, 1).bool()}
    prepared = module.prepare(replace(episodes((3,)), **expert))
    loss = imitation_loss(prepared, module.evaluate(prepared), "nll")
    assert loss.shape == (1, 3)
    assert loss[0, [0, 2]].tolist() == pytest.approx([1.4189385, 2.9189385])
    assert float(module.losses(prepared)["imitation"]) == pytest.approx(2.1689385)
    stamped = replace(prepared, totals={"expert_mask": torch.tensor(8.0)})
    assert float(module.losses(stamped)["imitation"]) == pytest.approx(2.1689385 / 4)


def test_the_forward_kl_is_the_mean_nll_less_the_experts_entropy():
    """E_T[−log S] − H(T): the mean of 200,000 samples of N(1, 1) under N(0, 2) has standard error √.375/447 = .0014."""
    torch.manual_seed(0)
    expert, learner = gaussian(1, 1), gaussian(0, 2)
    nll = -learner.log_prob(expert.sample((200_000,))).mean()
    assert float(nll - expert.entropy()) == pytest.approx(float(forward_kl(expert, learner)), abs=0.0056)


def test_every_divergence_is_another_loss():
    losses = [float(terms_of(joint(divergence=name), episodes())["imitation"]) for name in DIVERGENCES]
    assert all(abs(a - b) > 1e-3 for a, b in combinations(losses, 2))


@pytest.mark.parametrize(("weight", "factor"), [(2.0, 2.0), (Linear(1.0, 0.2, 40), 0.6)], ids=["number", "linear"])
def test_the_weight_follows_the_experience(weight, factor):
    """10 steps per collection: after two, a line from 1 to .2 over 40 steps is at its middle."""
    module, batch = joint(imitation_weight=weight), episodes()
    module.prepare(batch)
    terms = terms_of(module, batch)
    assert module.experience == 20
    reference = terms_of(joint(), batch)
    torch.testing.assert_close(terms["imitation"], factor * reference["imitation"])
    torch.testing.assert_close(terms["policy"], reference["policy"])


def test_a_schedule_moves_the_loss_while_it_runs():
    module, batch = joint(imitation_weight=Linear(1.0, 0.0, 20)), episodes()
    first, second, third = (float(terms_of(module, batch)["imitation"]) for _ in range(3))
    assert first > 0 and second == 0 and third == 0  # after 10, 20 and 30 steps: half, none, none


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_joint_with_weight_zero_is_reinforce(divergence):
    batch = episodes()
    module, plain = joint(imitation_weight=0.0, divergence=divergence), ReinforcePolicy(policy=policy())
    assert loss_of(module, batch) == loss_of(plain, batch)
    assert torch.equal(gradient_of(module, batch), gradient_of(plain, batch))


def test_the_joint_agent_with_weight_zero_is_the_actor_critic():
    batch, losses = episodes(), []
    for kind, knobs in ((JointAgent, {"imitation_weight": 0.0}), (ActorCriticAgent, {})):
        torch.manual_seed(0)
        losses.append(loss_of(kind(policy=GaussianPolicy(4, 1), value=MLPValue(4), **knobs), batch))
    assert losses[0] == losses[1]


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_a_batch_without_an_expert_gives_no_imitation(divergence):
    batch = replace(episodes(), expert_mask=None, expert_actions=None, expert_params=None)
    assert terms_of(joint(divergence=divergence), batch)["imitation"] == 0
    assert loss_of(joint(divergence=divergence), batch) == loss_of(ReinforcePolicy(policy=policy()), batch)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_padding_never_changes_the_loss_or_its_gradient(divergence):
    """Two more columns of NaN, where the expert's std is also 0; the same on steps without a label."""
    batch = episodes()

    def widened(x):
        if x.ndim < 2 or x.shape[1] != 5:
            return x
        return torch.cat([x, torch.full_like(x[:, :2], math.nan if x.is_floating_point() else False)], 1)

    wide = batch.map(widened)
    unknown = ~wide.expert_mask[..., None]
    params = {
        "mean": wide.expert_params["mean"].masked_fill(unknown, math.nan),
        "std": wide.expert_params["std"].masked_fill(unknown, 0.0),
    }
    wide = replace(wide, expert_params=params)
    torch.testing.assert_close(
        loss_of(joint(divergence=divergence), wide), loss_of(joint(divergence=divergence), batch)
    )
    torch.testing.assert_close(
        gradient_of(joint(divergence=divergence), wide), gradient_of(joint(divergence=divergence), batch)
    )


@pytest.mark.parametrize("divergence", DIVERGENCES[:3])
def test_tokens_are_imitated_alike(divergence):
    """A categorical expert over 5 tokens, with NaN logits at steps without a label."""
    generator = torch.Generator().manual_seed(0)
    is_labelled = row(1, 0, 1, 0).bool()
    ids = torch.randint(5, (1, 4), generator=generator)
    logits = torch.randn(1, 4, 5, generator=generator)
    batch = Batch(
        obs=ids, actions=ids, valid=is_labelled, mask=~is_labelled & False, expert_mask=is_labelled, expert_actions=ids
    )
    torch.manual_seed(0)
    module = ImitationPolicy(policy=GRUPolicy(5, 8), divergence=divergence)
    learner, expert = module.policy(ids).probs[0, [0, 2]], logits[0, [0, 2]].softmax(-1)
    middle = (learner + expert) / 2
    kl = lambda p, q: (p * (p / q).log()).sum(-1)  # noqa: E731
    expected = {
        "forward": kl(expert, learner),
        "reverse": kl(learner, expert),
        "jsd": (kl(expert, middle) + kl(learner, middle)) / 2,
    }[divergence].mean()
    labelled = replace(batch, expert_params={"logits": logits.masked_fill(~is_labelled[..., None], math.nan)})
    torch.testing.assert_close(loss_of(module, labelled), expected)


@pytest.mark.parametrize("divergence", DIVERGENCES[:3])
def test_a_deterministic_expert_has_nothing_to_diverge_from(divergence):
    batch = episodes()
    params = batch.expert_params | {"std": torch.zeros_like(batch.actions)}
    with pytest.raises(ValueError, match="deterministic"):
        loss_of(joint(divergence=divergence), replace(batch, expert_params=params))


def test_a_deterministic_experts_actions_can_be_imitated():
    batch = episodes()
    params = batch.expert_params | {"std": torch.zeros_like(batch.actions)}
    module = joint(divergence="nll")
    assert loss_of(module, replace(batch, expert_params=params)) == loss_of(module, batch)


@pytest.mark.parametrize("divergence", DIVERGENCES[:3])
def test_an_expert_without_a_distribution_is_refused(divergence):
    with pytest.raises(ValueError, match="use divergence: nll"):
        loss_of(joint(divergence=divergence), replace(episodes(), expert_params=None))


def test_only_labelled_steps_are_imitated():
    batch = episodes()
    params = {name: torch.where(batch.expert_mask[..., None], x, x + 3) for name, x in batch.expert_params.items()}
    assert loss_of(joint(), replace(batch, expert_params=params)) == loss_of(joint(), batch)


def test_cloning_finds_the_experts_gaussian():
    """Expert N(.5, .2²) for every state: 400 steps of Adam on the forward KL learn both parameters."""
    batch = episodes((5,) * 8)
    params = {"mean": torch.full_like(batch.actions, 0.5), "std": torch.full_like(batch.actions, 0.2)}
    batch = replace(batch, expert_params=params)
    module = ImitationPolicy(policy=policy())
    optimizer = torch.optim.Adam(module.parameters(), lr=0.02)
    for _ in range(400):
        optimizer.zero_grad()
        loss_of(module, batch).backward()
        optimizer.step()
    trained_policy = module.policy(batch.obs, batch.expert_mask)
    assert float((trained_policy.mean - 0.5).abs().max()) < 0.05
    assert float(trained_policy.variance.sqrt().mean()) == pytest.approx(0.2, abs=0.02)


# ---- until the policy beats the expert


def earning(*returns, takeovers=()):
    """Rows of two steps with these returns; in the rows `takeovers` the expert acted at the second step."""
    batch = episodes((2,) * len(returns))
    mask = batch.valid.clone()
    mask[list(takeovers), 1] = False
    rewards = torch.tensor(returns)[:, None] * torch.tensor([0.25, 0.75])
    return replace(batch, rewards=rewards, mask=mask, expert_mask=batch.valid)


def test_imitation_ends_when_the_policy_beats_the_expert():
    """Returns 10, 30: mean 20, so the average is 20. Then 120: .9 · 20 + .1 · 120 = 30. Then 3: 27.3."""
    module = joint(until_return=29.0)
    for batch, average, imitates in [
        (earning(10.0, 30.0), 20, True),
        (earning(120.0), 30, False),
        (earning(3.0), 27.3, True),
    ]:
        terms = terms_of(module, batch)
        assert float(module.average_return) == pytest.approx(average)
        assert bool(terms["imitation"] != 0) == imitates and terms["policy"] != 0


def test_until_return_is_noted_and_multiplies_the_schedule():
    module, batch = joint(until_return=50.0, imitation_weight=Linear(2.0, 0.0, 4)), earning(10.0)
    weights = []
    for rows in (batch, earning(1000.0)):
        prepared = module.prepare(rows)
        weights.append(float(module.figures(prepared)["imitation_weight"]))
    assert weights == [1.0, 0.0]  # two steps of four: half of 2; then .9 · 10 + .1 · 1000 = 109


def test_rows_with_an_expert_in_them_are_no_return_of_the_policys():
    """Only the middle row, 5, is the learner's own. Without such a row the average does not change."""
    module = joint(until_return=100.0)
    module.prepare(earning(900.0, takeovers=(0,)))
    assert module.average_return.isnan()
    module.prepare(earning(900.0, 5.0, 900.0, takeovers=(0, 2)))
    module.prepare(earning(900.0, takeovers=(0,)))
    assert module.average_return == 5


def test_padding_and_labels_are_no_return():
    """Rewards of 10⁶ after the last step; a row that has only labels."""
    batch, module = earning(4.0, 8.0), joint(until_return=100.0)
    wide = batch.map(lambda x: torch.cat([x, torch.zeros_like(x)], 1) if x.shape[1:2] == (2,) else x)
    rewards = wide.rewards.masked_fill(~wide.valid, 1e6)
    nobody = torch.tensor([[True], [False]])
    module.prepare(replace(wide, rewards=rewards, valid=wide.valid & nobody, mask=wide.mask & nobody))
    assert module.average_return == 4


def test_the_average_is_in_the_checkpoint():
    module, resumed = joint(until_return=29.0), joint(until_return=29.0)
    module.prepare(earning(40.0))
    resumed.load_state_dict(module.state_dict())
    assert resumed.average_return == 40
    assert joint().state_dict().keys() == ReinforcePolicy(policy=policy()).state_dict().keys()


def test_until_return_without_rewards_is_refused():
    with pytest.raises(ValueError, match="until_return: the batch has no rewards"):
        ImitationPolicy(policy=policy(), until_return=1.0).prepare(replace(episodes(), rewards=None))


# ---- suffixes weighted by how they went


def test_suffix_weights_by_hand():
    """A = 1, 3 and τ = 1: z = ∓1, e^{∓1} = .3678794, 2.7182818 with mean 1.5430806: .2384058, 1.7615942."""
    weights = suffix_weights(row(1, 77, 3, math.nan), row(1, 0, 1, 0).bool(), 1.0)
    torch.testing.assert_close(weights, row(0.2384058, 1, 1.7615942, 1))


def test_a_weight_counts_twenty_at_most():
    """One of 10 steps is at 3σ, e³ = 20.0855 → 20, the others have e^{−1/3} = .7165313: mean (20 + 6.448782)/10."""
    weights = suffix_weights(row(*[0] * 9, 1), row(*[1] * 10).bool(), 1.0)
    assert weights[0, -1] / weights[0, 0] == pytest.approx(20 / 0.7165313, rel=1e-5)
    assert weights[0, -1] == pytest.approx(20 / 2.6448782, rel=1e-5)
    cold = suffix_weights(row(*[0] * 9, 1), row(*[1] * 10).bool(), 1e-30)
    torch.testing.assert_close(cold, row(*[0] * 9, 10))


def test_suffix_weights_do_not_depend_on_the_scale_of_rewards():
    advantages, mask = torch.randn(4, 6), torch.rand(4, 6) < 0.7
    weights = suffix_weights(advantages, mask, 0.5)
    assert weights[mask].mean() == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(suffix_weights(100 * advantages - 7, mask, 0.5), weights, rtol=1e-4, atol=1e-5)
    hot = suffix_weights(advantages, mask, 1e6)
    torch.testing.assert_close(hot, torch.ones_like(hot))


@pytest.mark.parametrize("mask", [row(0, 0, 0).bool(), row(1, 1, 1).bool()], ids=["none", "alike"])
def test_nothing_to_prefer_is_no_preference(mask):
    assert suffix_weights(row(2, 2, 2), mask, 1e-3).tolist() == [[1, 1, 1]]


def test_suffix_weights_are_those_of_all_ranks():
    """Two ranks with one row each, whose sums are added as by the Trainer: equal to one process with both rows."""
    advantages, mask = torch.randn(2, 5), torch.tensor([[1, 1, 0, 1, 0], [0, 1, 1, 1, 1]]).bool()
    tapes = [_Tape(), _Tape()]
    for _ in range(9):  # each pass adds one more sum of the other rank
        halves = [
            suffix_weights(advantages[i : i + 1], mask[i : i + 1], 0.7, tapes[i].against(tapes[1 - i])) for i in (0, 1)
        ]
    torch.testing.assert_close(torch.cat(halves), suffix_weights(advantages, mask, 0.7))


class _Tape:
    """Records the sums of a rank in their order."""

    def __init__(self):
        self.sums = []

    def against(self, tape):
        theirs, self.sums = iter(tape.sums), []

        def over_ranks(x):
            self.sums.append(x)
            return x + next(theirs, torch.zeros_like(x))

        return over_ranks


def injected(rewards=(0.0, 0.0, 1.0, 1.0, 5.0, 9.0)):
    """Three rows of two steps: the first row is the learner's, with labels; the others are the expert's."""
    batch = episodes((2, 2, 2))
    mask = torch.tensor([[1, 1], [0, 0], [0, 0]]).bool()
    return replace(batch, mask=mask, expert_mask=batch.valid, rewards=torch.tensor(rewards).view(3, 2))


def test_good_suffixes_are_imitated_more():
    """By hand: nll under N(0, 1) of the expert's actions, times the weights of injected steps, and 1 for labels."""
    batch = injected()
    module = JointPolicy(policy=Fixed(), divergence="nll", suffix_temperature=0.5)
    prepared = module.prepare(batch)
    weights = suffix_weights(prepared.advantages, batch.valid & ~batch.mask, 0.5)
    assert weights[0].tolist() == [1, 1] and weights[2, 0] > 1 > weights[1, 0]
    nll = 0.5 * batch.expert_actions.squeeze(-1) ** 2 + 0.5 * math.log(2 * math.pi)
    loss = module.losses(prepared, module.evaluate(prepared))["imitation"]
    torch.testing.assert_close(loss, (weights * nll).mean())
    assert loss != terms_of(JointPolicy(policy=Fixed(), divergence="nll"), batch)["imitation"]


@pytest.mark.parametrize("normalize", [True, False])
def test_the_learners_own_spread_does_not_move_the_weights(normalize):
    module = joint(suffix_temperature=0.5, normalize_advantages=normalize)
    weights = [module.prepare(injected((a, 0.0, 1, 1, 5, 9))).extra["imitation_weights"] for a in (0.0, 1.0, -50.0)]
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(weights[0], weights[2], rtol=1e-4, atol=1e-5)


def test_weighted_suffixes_do_not_depend_on_how_rows_are_cut():
    module = joint(suffix_temperature=0.5)
    prepared = module.prepare(injected())
    whole = module.losses(prepared, module.evaluate(prepared))["imitation"]
    totals = {name: count.sum().float() for name, count in row_counts(prepared).items()}
    parts = stamp_totals([prepared[:1], prepared[1:]], totals, 2)
    cut = [module.losses(part, module.evaluate(part))["imitation"] for part in parts]
    torch.testing.assert_close(sum(cut) / 2, whole)


def test_rows_of_a_label_buffer_count_one():
    """Held-out rows have no weights, because these are computed per collection."""
    batch = as_labels(episodes())
    weighted, plain = joint(suffix_temperature=0.5), joint()
    assert weighted.losses(batch)["imitation"] == plain.losses(batch)["imitation"] != 0


def as_labels(batch):
    nothing, zero = torch.zeros_like(batch.mask), torch.zeros(batch.mask.shape)
    return replace(batch, valid=nothing, mask=nothing, advantages=zero)


def test_suffixes_without_advantages_are_refused():
    with pytest.raises(ValueError, match="suffix_temperature: the batch has no advantages"):
        ImitationPolicy(policy=policy(), suffix_temperature=1.0).prepare(episodes())


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_a_temperature_that_is_not_above_zero_is_refused(temperature):
    with pytest.raises(ValueError, match="suffix_temperature: got"):
        joint(suffix_temperature=temperature)


# ---- sums


def test_the_summed_joint_loss_by_hand():
    """Policy N(0, 1), γ = .5, rewards 1, 2, 4 → G = 3, 4, 4; actions 1, 0, 2, expert actions 0, 1, 0; c = ½ ln 2π.

    Σ −log π(a) G = 11c + (1·3 + 0·4 + 4·4)/2 = 11c + 9.5;  Σ −log π(a_E) = 3c + .5.
    """
    batch = replace(
        episodes((3,)),
        rewards=row(1, 2, 4),
        actions=row(1, 0, 2)[..., None],
        expert_actions=row(0, 1, 0)[..., None],
        expert_mask=row(1, 1, 1).bool(),
    )
    module = SummedJointPolicy(policy=Fixed(), gamma=0.5, normalize_advantages=False, divergence="nll")
    terms, c = terms_of(module, batch), 0.5 * math.log(2 * math.pi)
    assert float(terms["policy"]) == pytest.approx(11 * c + 9.5, rel=1e-5)
    assert float(terms["imitation"]) == pytest.approx(3 * c + 0.5, rel=1e-5)


# ---- held-out demonstrations


class Halves(Policy):
    """Policy over three tokens with probabilities ½, ¼, ¼ for every prefix."""

    def features(self, obs, where=None):
        return torch.zeros(obs.shape if where is None else (int(where.sum()),))

    def distribution(self, features):
        return Categorical(probs=torch.tensor([0.5, 0.25, 0.25]).expand(*features.shape, 3))


def measured(module, *batches):
    """Metrics that an evaluation of these batches logs."""
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    (metrics,) = trainer.validate(module, DataLoader(batches, batch_size=None), verbose=False)
    return {name: pytest.approx(value, abs=1e-5) for name, value in metrics.items()}


def demonstrated(*actions):
    """One row of expert steps, and one step of padding at which the policy would be wrong."""
    tokens = torch.tensor([[*actions, 2]])
    is_labelled = torch.tensor([[True] * len(actions) + [False]])
    return Batch(
        obs=tokens,
        actions=tokens,
        valid=is_labelled,
        mask=torch.zeros_like(is_labelled),
        expert_actions=tokens,
        expert_mask=is_labelled,
    )


def test_demonstrations_that_were_held_out_are_measured_by_token():
    """Tokens 0, then 0 and 1: the mean of ln 2, ln 2, ln 4 is 4/3 ln 2, and exp of it is 2^(4/3); 2 of 3 are right.

    The mean of the two batches' means would be 5/4 ln 2.
    """
    module = ImitationPolicy(policy=Halves(), divergence="nll", imitation_weight=7.0)
    assert measured(module, demonstrated(0), demonstrated(0, 1)) == {
        "val/imitation": 4 / 3 * math.log(2), "val/divergence": 4 / 3 * math.log(2),
        "val/accuracy": 2 / 3, "val/perplexity": 2 ** (4 / 3),
    }  # fmt: skip


def test_a_divergence_is_no_perplexity():
    """KL of (¼, ½, ¼) from (½, ¼, ¼) = ¼ ln ½ + ½ ln 2 = ¼ ln 2; the expert's tokens are 1 and 0."""
    rows = demonstrated(1, 0)
    params = {"logits": torch.tensor([0.25, 0.5, 0.25]).log().expand(1, 3, 3)}
    module = ImitationPolicy(policy=Halves(), divergence="forward")
    assert measured(module, replace(rows, expert_params=params)) == {
        "val/imitation": math.log(2) / 4, "val/divergence": math.log(2) / 4, "val/accuracy": 1 / 2,
    }  # fmt: skip


def test_controls_that_were_held_out_have_no_accuracy():
    logged = measured(ImitationPolicy(policy=policy()), episodes(rewards=None))
    assert set(logged) == {"val/imitation", "val/divergence"}


def test_rows_with_rewards_are_measured_by_their_return():
    rows = episodes()
    expected = float(torch.where(rows.valid, rows.rewards, 0).sum(1).mean())
    assert measured(ImitationPolicy(policy=policy()), rows) == {"val/return": expected}
