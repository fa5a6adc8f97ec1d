"""Critics: hand-worked losses and λ-returns, the effect of each knob, and the steps that the critic learns from."""

import math
from dataclasses import replace

import pytest
import torch

from lightning_nlf.batch import Batch
from lightning_nlf.maths.means import masked_mean
from lightning_nlf.networks import (
    DecoderShape,
    GaussianPolicy,
    MLPQValue,
    MLPValue,
    QHead,
    QValue,
    TransformerPolicy,
    Value,
)
from lightning_nlf.objectives import ActorCriticAgent, QActorCriticAgent, ReinforcePolicy
from lightning_nlf.objectives.actor_critic import explained_variance, value_loss


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


def taken_over(batch):
    """The same rows, with the expert acting at steps 2 and 3 of the second row."""
    mask = batch.mask.clone()
    mask[1, 2:4] = False
    return replace(batch, mask=mask)


def agent(**knobs):
    torch.manual_seed(0)
    return ActorCriticAgent(policy=GaussianPolicy(4, 1), value=MLPValue(4), **knobs)


def q_agent(**knobs):
    torch.manual_seed(0)
    return QActorCriticAgent(policy=GaussianPolicy(4, 1), q=MLPQValue(4, 1), **knobs)


class First(Value):
    """V(s) = s₀, so that values can be read from the observation."""

    def forward(self, obs, where=None):
        return (obs if where is None else obs[where])[..., 0]


class FirstPlusAction(QValue):
    """Q(s, a) = s₀ + a."""

    def forward(self, obs, actions, where=None):
        values = obs[..., 0] + actions[..., 0]
        return values if where is None else values[where]


def first_agent(**knobs):
    return ActorCriticAgent(policy=GaussianPolicy(4, 1), value=First(), normalize_advantages=False, **knobs)


def states(*values):
    """(1, T, 4): V is the first coordinate."""
    return torch.nn.functional.pad(row(*values)[..., None], (0, 3))


def episode(values, rewards, final, terminated, **fields):
    return replace(
        episodes((len(values),)),
        obs=states(*values),
        rewards=row(*rewards),
        final_obs=states(final)[:, 0],
        terminated=torch.tensor([terminated]),
        **fields,
    )


def loss_of(module, batch):
    prepared = module.prepare(batch)
    return sum(module.losses(prepared, module.evaluate(prepared)).values())


def gradient_of(module, batch):
    module.zero_grad()
    loss_of(module, batch).backward()
    return torch.cat([p.grad.flatten() for p in module.parameters()])


def test_value_loss_by_hand():
    """½(1 − 2)² = .5 and ½(3 − 1)² = 2, with mean 1.25; the third step is padding."""
    loss = value_loss(row(1, 3, math.nan), row(2, 1, 9))
    assert loss[0, :2].tolist() == pytest.approx([0.5, 2])
    assert masked_mean(loss, row(1, 1, 0).bool()) == pytest.approx(1.25)


def test_clipped_value_loss_by_hand():
    """Old values 0, clip .2, both values now 1, clipped to .2.

    G=2: ½max((1−2)², (.2−2)²) = ½max(1, 3.24) = 1.62.  G=−1: ½max((1+1)², (.2+1)²) = ½max(4, 1.44) = 2.
    The mean is 1.81.
    """
    loss = value_loss(row(1, 1), row(2, -1), row(0, 0), clip=0.2)
    assert loss.tolist() == [pytest.approx([1.62, 2])]
    assert loss.mean() == pytest.approx(1.81)


def test_a_value_that_moved_far_towards_its_return_moves_no_further():
    values = row(1, 1).requires_grad_()
    value_loss(values, row(2, -1), row(0, 0), clip=0.2).mean().backward()
    assert values.grad[0, 0] == 0
    assert values.grad[0, 1] == pytest.approx(1.0)  # (V − G)/2 = 2/2


def test_explained_variance_by_hand():
    """G = 0, 2, 4 and V = 1, 2, 3: G − V = −1, 0, 1 with variance 2/3 of 8/3: .75. A constant error does not count."""
    returns, mask = row(0, 2, 4, math.nan), row(1, 1, 1, 0).bool()
    assert explained_variance(row(1, 2, 3, 99), returns, mask) == pytest.approx(0.75)
    assert explained_variance(row(6, 7, 8, 99), returns, mask) == pytest.approx(0.75)
    assert explained_variance(row(0, 2, 4, 99), returns, mask) == pytest.approx(1)
    assert explained_variance(row(5, 5, 5, 99), returns, mask) == pytest.approx(0)


@pytest.mark.parametrize(
    ("terminated", "lam", "advantages"),
    [(False, 1.0, [0.5, 1.0]), (True, 1.0, [-1.5, -3.0]), (False, 0.5, [0.25, 1.0]), (True, 0.0, [0.0, -3.0])],
)
def test_truncation_bootstraps_and_termination_does_not(terminated, lam, advantages):
    """γ=.5, r=[1,1], V=[3,4], V(s_T)=8.

    Truncated, λ=1: G₁ = 1 + .5·8 = 5, G₀ = 1 + .5·5 = 3.5; A = [.5, 1].  λ=.5: δ = [1 + 2 − 3, 1 + 4 − 4] = [0, 1],
    A₀ = 0 + .25·1.  Terminated, λ=1: G = [1.5, 1]; A = [−1.5, −3].  λ=0: δ = [0, 1 − 4].
    """
    batch = episode([3, 4], [1, 1], 8, terminated)
    prepared = first_agent(gamma=0.5, lam=lam).prepare(batch)
    torch.testing.assert_close(prepared.advantages, row(*advantages))
    torch.testing.assert_close(prepared.returns, row(*advantages) + row(3, 4))
    torch.testing.assert_close(prepared.values, row(3, 4))


@pytest.mark.parametrize(("cut", "advantages"), [(False, [3, 1]), (True, [4, 2])])
def test_a_return_cut_at_the_takeover_ends_in_the_value_there(cut, advantages):
    """γ=λ=1, r=1 each, V=[1,2,3,4], the expert in steps 2 and 3.

    Uncut: G = 4, 3; A = 3, 1.  Cut: G₁ = 1 + V₂ = 4, G₀ = 1 + 4 = 5; A = 4, 2.
    """
    batch = episode([1, 2, 3, 4], [1, 1, 1, 1], 9, True, mask=row(1, 1, 0, 0).bool())
    prepared = first_agent(gamma=1.0, lam=1.0, cut_at_takeover=cut).prepare(batch)
    assert prepared.advantages[0, :2].tolist() == advantages


def test_the_module_sums_the_policys_and_the_critics_loss():
    """V=[3,4], terminated, λ=1, γ=.5, r=[1,1]: A = [−1.5, −3].

    policy: −(−1.5 log π₀ − 3 log π₁)/2;  value: .5 · ½(1.5² + 3²)/2 = 1.40625.
    """
    module, batch = first_agent(gamma=0.5, lam=1.0, value_weight=0.5), episode([3, 4], [1, 1], 8, True)
    prepared = module.prepare(batch)
    terms = module.losses(prepared, module.evaluate(prepared))
    log_probs = module.policy(batch.obs).log_prob(batch.actions)[0]
    assert set(terms) == {"policy", "value"}
    assert float(terms["policy"]) == pytest.approx(float(1.5 * log_probs[0] + 3 * log_probs[1]) / 2, abs=1e-5)
    assert float(terms["value"]) == pytest.approx(1.40625)


def test_the_weights_of_the_q_actor_critic_are_q():
    """Q(s, a) = s₀ + a: ∇log π is weighted by exactly this, not by an advantage."""
    batch = taken_over(episodes())
    module = QActorCriticAgent(policy=GaussianPolicy(4, 1), q=FirstPlusAction(), normalize_advantages=False)
    prepared = module.prepare(batch)
    expected = torch.where(batch.valid, batch.obs[..., 0] + batch.actions[..., 0], 0)
    torch.testing.assert_close(prepared.advantages, expected)
    log_probs = module.policy(batch.obs).log_prob(batch.actions)
    policy = module.losses(prepared, module.evaluate(prepared))["policy"]
    torch.testing.assert_close(policy, -(log_probs * expected)[batch.mask].mean())


def test_q_is_regressed_on_sarsa():
    """λ=0, γ=.5, Q=[1+10, 2+20], r=[1,1], terminated: targets r₀ + .5·Q₁ = 12 and r₁ = 1."""
    batch = replace(episode([1, 2], [1, 1], 9, True), actions=row(10, 20)[..., None])
    module = QActorCriticAgent(policy=GaussianPolicy(4, 1), q=FirstPlusAction(), gamma=0.5, lam=0.0)
    torch.testing.assert_close(module.prepare(batch).returns, row(12, 1))


@pytest.mark.parametrize(("terminated", "low", "high"), [(True, 1, 1), (False, 5, 15)])
def test_q_of_a_truncated_row_is_of_an_action_of_the_policy(terminated, low, high):
    """γ=.5, r=1, Q(s_T, a) = 8 + a with a ~ N(12, .05²): 1 + .5·20 = 11, five deviations being .125. Terminated: 1."""
    policy = GaussianPolicy(4, 1, log_std=-3.0)
    with torch.no_grad():
        policy.net[-1].weight.zero_()
        policy.net[-1].bias.fill_(12.0)
    module = QActorCriticAgent(policy=policy, q=FirstPlusAction(), gamma=0.5)
    target = float(module.prepare(episode([3], [1], 8, terminated)).returns)
    assert target == pytest.approx(1 if terminated else 11, abs=0.13)
    assert low <= target <= high


class CountedPolicy(TransformerPolicy):
    """Counts the forward passes of its trunk."""

    reads = 0

    def states(self, obs, where, exact=True):
        self.reads += 1
        return super().states(obs, where, exact)


def q_on_trunk(**knobs):
    torch.manual_seed(0)
    return QActorCriticAgent(policy=CountedPolicy(DecoderShape(30, 1, 2, 8, 8)), q=QHead(8, 30), **knobs)


def dialogues(**fields):
    """Two rows of tokens, in which the learner acts from the second token on."""
    ids = torch.randint(30, (2, 6), generator=torch.Generator().manual_seed(0))
    valid = row(0, 1, 1, 1, 1).bool() & (torch.arange(5) < torch.tensor([[5], [3]]))
    rows = episodes((5, 3), obs=ids[:, :-1], actions=ids[:, 1:], valid=valid, mask=valid, final_obs=ids[:, -1])
    return replace(rows, **fields)


def test_a_q_head_and_the_policy_read_the_trunk_once():
    """Q(s, a) = w_a · x(s) + b_a, where x(s) are the policy's features."""
    module, batch = q_on_trunk(), dialogues()
    for parameter in module.q.parameters():
        torch.nn.init.normal_(parameter)
    features, tokens = module.policy.features(batch.obs, batch.mask), batch.actions[batch.mask]
    expected = (features * module.q.head.weight[tokens]).sum(-1) + module.q.head.bias[tokens]
    module.policy.reads = 0
    values = module.evaluate(batch).values
    assert module.policy.reads == 1 and values.std() > 0.1
    torch.testing.assert_close(values[batch.mask], expected)
    torch.testing.assert_close(module.prepare(batch).values[batch.mask], expected.detach())


def test_a_q_head_says_what_follows_a_truncated_row():
    """γ=.5, λ=1, no rewards, Q = 4 for every token: G of the last four steps is .25, .5, 1, 2. One forward pass."""
    module = q_on_trunk(gamma=0.5, lam=1.0)
    torch.nn.init.constant_(module.q.head.bias, 4)
    prepared = module.prepare(dialogues(rewards=torch.zeros(2, 5), terminated=torch.zeros(2, dtype=torch.bool)))
    torch.testing.assert_close(prepared.returns[0], row(0, 0.25, 0.5, 1, 2)[0])
    assert module.policy.reads == 2  # the rows, and their final states


@pytest.mark.parametrize(
    "knob",
    [
        {"lam": 0.5},
        {"value_weight": 0.1},
        {"gamma": 0.5},
        {"clip": 0.01},
        {"normalize_advantages": False},
        {"entropy_weight": 0.5},
        {"cut_at_takeover": True},
    ],
    ids=lambda knob: next(iter(knob)),
)
@pytest.mark.parametrize("make", [agent, q_agent])
def test_every_knob_changes_the_loss(knob, make):
    batch = taken_over(episodes())
    assert not torch.isclose(loss_of(make(**knob), batch), loss_of(make(), batch))


@pytest.mark.parametrize("make", [agent, q_agent])
def test_the_value_clip_changes_the_loss_once_the_values_moved(make):
    losses = []
    for clip in (None, 0.1):
        module = make(value_clip=clip)
        prepared = module.prepare(episodes())
        prepared = replace(prepared, values=prepared.values - 1)  # as if V had increased by 1 since the collection
        losses.append(module.losses(prepared, module.evaluate(prepared))["value"])
    assert losses[1] > losses[0]


@pytest.mark.parametrize("make", [agent, q_agent])
def test_padding_never_changes_the_loss_or_its_gradient(make):
    """Two more columns, with NaN in every float field."""
    batch = taken_over(episodes())

    def widened(x):
        if x.ndim < 2 or x.shape[1] != 5:
            return x
        return torch.cat([x, torch.full_like(x[:, :2], math.nan if x.is_floating_point() else False)], 1)

    plain, wide = make(clip=0.2, value_clip=0.2), make(clip=0.2, value_clip=0.2)
    torch.testing.assert_close(gradient_of(wide, batch.map(widened)), gradient_of(plain, batch))
    torch.testing.assert_close(loss_of(wide, batch.map(widened)), loss_of(plain, batch))


def test_the_critic_does_not_learn_on_injected_steps():
    batch = taken_over(episodes())
    injected = batch.valid & ~batch.mask
    module = agent()
    prepared = module.prepare(replace(batch, expert_mask=injected))
    prepared.obs.requires_grad_()
    now = module.evaluate(prepared)
    module.losses(prepared, now)["value"].backward()
    moved = prepared.obs.grad.abs().sum(-1) > 0
    assert torch.equal(moved, batch.mask)
    assert (now.values[injected] != 0).all()  # even though they were evaluated


def test_the_critics_loss_moves_the_critic_only():
    module = agent()
    prepared = module.prepare(episodes())
    module.losses(prepared, module.evaluate(prepared))["value"].backward()
    assert all(p.grad is None for p in module.policy.parameters())
    assert all(p.grad.abs().sum() > 0 for p in module.value.parameters())


def test_a_batch_without_a_learners_step_is_harmless():
    batch = episodes()
    gradient = gradient_of(agent(), replace(batch, mask=torch.zeros_like(batch.mask)))
    assert gradient.tolist() == [0] * len(gradient)


def test_with_a_critic_of_zero_and_lambda_one_it_is_reinforce():
    """V = 0 everywhere: G − 0 is the reward-to-go."""
    batch = taken_over(episodes())
    module, plain = agent(lam=1.0, value_weight=0.0), ReinforcePolicy(policy=agent().policy)
    with torch.no_grad():
        for parameter in module.value.net[-1].parameters():
            parameter.zero_()
    torch.testing.assert_close(loss_of(module, batch), loss_of(plain, batch))


def test_a_critic_learns_a_value():
    """Every episode has one step with reward 3: V approaches 3 within 300 steps of Adam at .02."""
    module, batch = agent(), replace(episodes((1,) * 32), rewards=torch.full((32, 1), 3.0))
    optimizer = torch.optim.Adam(module.value.parameters(), lr=0.02)
    for _ in range(300):
        prepared = module.prepare(batch)
        optimizer.zero_grad()
        module.losses(prepared, module.evaluate(prepared))["value"].backward()
        optimizer.step()
    torch.testing.assert_close(module.value(batch.obs), torch.full((32, 1), 3.0), atol=0.1, rtol=0)


@pytest.mark.parametrize("terminated", [True, False])
@pytest.mark.parametrize("kind", [ActorCriticAgent, ReinforcePolicy])
def test_an_episode_in_parts_is_prepared_as_one_long_row(kind, terminated):
    """Six steps in one row, and in rows of one, three and two: the same returns and whitened advantages."""
    whole = episodes((6,), terminated=torch.tensor([terminated]))
    cuts = ((0, 1), (1, 4), (4, 6))

    def parts_of(x):
        return torch.nn.utils.rnn.pad_sequence([x[0, a:b] for a, b in cuts], batch_first=True)

    names = ("obs", "actions", "valid", "mask", "log_probs", "rewards")
    parts = Batch(
        **{name: parts_of(getattr(whole, name)) for name in names},
        final_obs=torch.stack([whole.obs[0, 1], whole.obs[0, 4], whole.final_obs[0]]),
        terminated=torch.tensor([False, False, terminated]),
        extra={"episode": torch.zeros(3, dtype=torch.long), "part": torch.arange(3)},
    )
    value = {} if kind is ReinforcePolicy else {"value": First()}
    module = kind(policy=GaussianPolicy(4, 1), gamma=0.9, **value)
    long, short = module.prepare(whole), module.prepare(parts)
    for name in ("returns", "advantages"):
        torch.testing.assert_close(getattr(short, name), parts_of(getattr(long, name)))
