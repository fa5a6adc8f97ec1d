"""Imitation: divergences worked by hand or integrated, schedules, and what happens without an expert or a density."""

import math
from dataclasses import replace
from itertools import combinations

import pytest
import torch
from torch.distributions import Categorical, Independent, Normal

from lightning_nlf.batch import Batch
from lightning_nlf.functional import Constant, Exponential, Linear
from lightning_nlf.networks import GaussianPolicy, GRUPolicy, MLPValue, Policy
from lightning_nlf.objectives import ActorCriticAgent, ImitationPolicy, JointAgent, JointPolicy, ReinforcePolicy
from lightning_nlf.objectives.imitation import forward_kl, imitation_loss, jensen_shannon, reverse_kl

DIVERGENCES = ["forward", "reverse", "jsd", "nll"]
S, T = Categorical(probs=torch.tensor([[0.7, 0.2, 0.1]])), Categorical(probs=torch.tensor([[0.5, 0.3, 0.2]]))


def row(*values, **kwargs):
    return torch.tensor([values], dtype=torch.float32, **kwargs)


def gaussian(mean, std):
    return Independent(Normal(torch.tensor([[float(mean)]]), torch.tensor([[float(std)]])), 1)


def episodes(lengths=(3, 5, 2), seed=0, **fields):
    """Random rows that the learner acted in, with an expert's word on every other step."""
    generator = torch.Generator().manual_seed(seed)
    shape = len(lengths), max(lengths)
    valid = torch.arange(shape[1]) < torch.tensor(lengths)[:, None]
    random = lambda *more: torch.randn(*shape, *more, generator=generator)  # noqa: E731
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
    """N(0, 1) whatever it sees."""

    def forward(self, obs, where=None):
        mean = torch.zeros_like((obs if where is None else obs[where])[..., :1])
        return Independent(Normal(mean, torch.ones_like(mean)), 1)


def terms_of(module, batch):
    prepared = module.prepare(batch)
    return module.terms(prepared, module.evaluate(prepared))


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
    """The same by a sum over 400,001 points between −40 and 40, in double precision."""
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
    """By central differences of the integral above, in the learner's mean and in its log-std."""
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
    """Policy N(0, 1), expert's actions 1 and 2 on the two labelled steps: ½ ln 2π + (1 + 4)/4 = .9189385 + 1.25."""
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
    """(2 + 4)/2, and (2 + 4)/8 when the optimizer step has 8 labels in all."""
    divergence, mask = row(2, math.nan, 4), row(1, 0, 1).bool()
    assert imitation_loss(divergence, mask) == 3
    assert imitation_loss(divergence, mask, torch.tensor(8.0)) == 0.75


def test_the_forward_kl_is_the_mean_nll_less_the_experts_entropy():
    """E_T[−log S] − H(T): the mean of 200,000 draws from N(1, 1) under N(0, 2) has standard error √.375/447 = .0014."""
    torch.manual_seed(0)
    expert, learner = gaussian(1, 1), gaussian(0, 2)
    nll = -learner.log_prob(expert.sample((200_000,))).mean()
    assert float(nll - expert.entropy()) == pytest.approx(float(forward_kl(expert, learner)), abs=0.0056)


def test_every_divergence_is_another_loss():
    losses = [float(terms_of(joint(divergence=name), episodes())["imitation"]) for name in DIVERGENCES]
    assert all(abs(a - b) > 1e-3 for a, b in combinations(losses, 2))


@pytest.mark.parametrize(
    ("weight", "factor"),
    [
        (2.0, 2.0),
        (Constant(3.0), 3.0),
        (Linear(1.0, 0.2, 40), 0.6),
        (Exponential(2.0, 20), 1.0),
    ],
    ids=["number", "constant", "linear", "exponential"],
)
def test_the_weight_follows_the_experience(weight, factor):
    """10 steps a collection; after two the line from 1 to .2 over 40 is half-way, and 20 is one half-life."""
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
    """Two more columns of NaN, where the expert's std is 0 on top; the same on the steps it says nothing about."""
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
    """A categorical expert over 5 tokens; NaN logits wherever it says nothing."""
    generator = torch.Generator().manual_seed(0)
    known = row(1, 0, 1, 0).bool()
    ids = torch.randint(5, (1, 4), generator=generator)
    logits = torch.randn(1, 4, 5, generator=generator)
    batch = Batch(obs=ids, actions=ids, valid=known, mask=~known & False, expert_mask=known, expert_actions=ids)
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
    labelled = replace(batch, expert_params={"logits": logits.masked_fill(~known[..., None], math.nan)})
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
    with pytest.raises(ValueError, match="use nll"):
        loss_of(joint(divergence=divergence), replace(episodes(), expert_params=None))


def test_only_labelled_steps_are_imitated():
    batch = episodes()
    params = {name: torch.where(batch.expert_mask[..., None], x, x + 3) for name, x in batch.expert_params.items()}
    assert loss_of(joint(), replace(batch, expert_params=params)) == loss_of(joint(), batch)


def test_cloning_finds_the_experts_gaussian():
    """Expert N(.5, .2²) everywhere: 400 steps of Adam on the forward KL find both numbers."""
    batch = episodes((5,) * 8)
    params = {"mean": torch.full_like(batch.actions, 0.5), "std": torch.full_like(batch.actions, 0.2)}
    batch = replace(batch, expert_params=params)
    module = ImitationPolicy(policy=policy())
    optimizer = torch.optim.Adam(module.parameters(), lr=0.02)
    for _ in range(400):
        optimizer.zero_grad()
        loss_of(module, batch).backward()
        optimizer.step()
    learned = module.policy(batch.obs, batch.expert_mask)
    assert float((learned.mean - 0.5).abs().max()) < 0.05
    assert float(learned.variance.sqrt().mean()) == pytest.approx(0.2, abs=0.02)
