"""KL penalty: hand-worked estimators, rewards and β, the effect of each knob, and a KL of 0 at the start."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.distributions import Categorical, kl_divergence

from lightning_nlf.batch import Batch
from lightning_nlf.maths.kl import k1, k2, k3
from lightning_nlf.networks import DecoderShape, GRUPolicy, GRUValue, TransformerPolicy, Value
from lightning_nlf.objectives import ReinforcePolicy, RLHFAgent, RLHFPolicy, kl_penalty, reference
from lightning_nlf.objectives.kl_penalty import ESTIMATORS, KL_HORIZON, adapted_beta, whitened_rewards

VOCABULARY, PROMPT = 7, 2
MAKERS = {
    "policy": lambda **knobs: RLHFPolicy(policy=GRUPolicy(VOCABULARY, 8), **knobs),
    "agent": lambda **knobs: RLHFAgent(policy=GRUPolicy(VOCABULARY, 8), value=GRUValue(VOCABULARY, 8), **knobs),
}


def row(*values):
    return torch.tensor([values], dtype=torch.float32)


def build(kind="policy", **knobs):
    torch.manual_seed(0)
    return MAKERS[kind](**knobs)


def replies(lengths=(3, 5, 2), seed=0, **fields):
    """Random replies to prompts of two tokens, in two groups, with the score on the last token."""
    generator = torch.Generator().manual_seed(seed)
    width = PROMPT - 1 + max(lengths)
    ids = torch.randint(VOCABULARY, (len(lengths), width + 1), generator=generator)
    steps = torch.arange(width)
    ends = PROMPT - 1 + torch.tensor(lengths)[:, None]
    valid = (steps >= PROMPT - 1) & (steps < ends)
    rows = Batch(
        obs=ids[:, :-1],
        actions=ids[:, 1:],
        valid=valid,
        mask=valid,
        log_probs=-1 - torch.rand(valid.shape, generator=generator),
        rewards=torch.where(steps == ends - 1, torch.randn(len(lengths), 1, generator=generator), 0),
        final_obs=ids.gather(1, ends)[:, 0],
        terminated=torch.ones(len(lengths), dtype=torch.bool),
        group=torch.tensor([0, 1, 1, 0, 1])[: len(lengths)],
    )
    return replace(rows, **fields)


def by_the_policy(module, batch):
    """The log-probabilities of the current policy, as if it had sampled the replies."""
    return replace(batch, log_probs=module.evaluate(batch).log_probs.detach())


def moved(module, by=0.3):
    """The same, for a policy that differs from its reference."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in module.policy.parameters():
            p += by * torch.randn(p.shape, generator=generator)
    return module


def loss_of(module, batch):
    prepared = module.prepare(batch)
    return sum(module.losses(prepared, module.evaluate(prepared)).values())


class Told:
    """Records what a module notes."""

    def __init__(self, module):
        self.values = {}
        module.note = lambda name, x, counts=True: self.values.update({name: float(x)})


# ---- the formulas


def test_estimators_by_hand():
    """d = ln 2: k1 = .6931472; k2 = .6931472²/2 = .2402265; k3 = ½ − 1 + .6931472 = .1931472."""
    d = torch.tensor(math.log(2))
    assert [float(k(d)) for k in (k1, k2, k3)] == pytest.approx([0.6931472, 0.2402265, 0.1931472], abs=1e-6)


POLICY, REFERENCE = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.5, 0.3, 0.2])


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_k1_and_k3_are_unbiased(estimator):
    """KL((.7, .2, .1) ‖ (.5, .3, .2)) = .7 ln 1.4 + .2 ln ⅔ + .1 ln ½ = .2355306 − .0810930 − .0693147 = .0851228."""
    expected = (POLICY * ESTIMATORS[estimator]((POLICY / REFERENCE).log())).sum()
    assert expected == pytest.approx(0.0851228, abs=1e-6)


def test_in_the_loss_k2_has_the_gradient_of_the_kl_and_k1_none():
    """The mean gradient: over all possible samples, weighted by their probabilities."""
    logits = POLICY.log().requires_grad_()
    log_ratio = logits.log_softmax(-1) - REFERENCE.log()
    exact = torch.autograd.grad(kl_divergence(Categorical(logits=logits), Categorical(REFERENCE)), logits)[0]
    gradient = {
        name: torch.autograd.grad((POLICY * estimator(log_ratio)).sum(), logits, retain_graph=True)[0]
        for name, estimator in ESTIMATORS.items()
    }
    torch.testing.assert_close(gradient["k2"], exact)
    torch.testing.assert_close(gradient["k1"], torch.zeros(3), atol=1e-6, rtol=0)
    assert exact.norm() > 0.05 and torch.dot(gradient["k3"], exact) > 0


@pytest.mark.parametrize(
    ("kl", "expected"), [(3, 0.148464), (9, 0.151536), (6, 0.15), (6.6, 0.150768), (1e9, 0.151536)]
)
def test_beta_by_hand(kl, expected):
    """Target 6, 512 responses: e = clip(KL/6 − 1, ±.2) = ∓.2, 0, .1; .15·(1 ∓ .2·.0512) = .15·(1 ∓ .01024)."""
    beta = adapted_beta(torch.tensor(0.15), torch.tensor(float(kl)), 6, torch.tensor(512), KL_HORIZON)
    assert beta == pytest.approx(expected, abs=1e-6)


def test_whitened_rewards_by_hand():
    """0, 0, 2: mean ⅔, variance (4/9 + 4/9 + 16/9)/3 = 8/9. −⅔/√(8/9) + ⅔ = −.0404401, 4/3/√(8/9) + ⅔ = 2.0808802."""
    rewards = whitened_rewards(row(0, 0, 2, 99), row(1, 1, 1, 0).bool())
    assert rewards[0, :3].tolist() == pytest.approx([-0.0404401, -0.0404401, 2.0808802], abs=1e-6)


def test_whitened_rewards_keep_their_mean_and_have_variance_one():
    batch = replies(rewards=3 + 5 * torch.randn(3, 6))
    rewards = whitened_rewards(batch.rewards, batch.mask)[batch.mask]
    assert rewards.mean() == pytest.approx(float(batch.rewards[batch.mask].mean()), abs=1e-5)
    assert rewards.var(unbiased=False) == pytest.approx(1, abs=1e-5)


# ---- in the reward


def two_tokens(**fields):
    """log π = −1, −2 and log π_ref = −2, −1.5, so d = 1, −.5; the score 3 is on the last token."""
    batch = replies((2,), rewards=row(0, 0, 3), log_probs=row(0, -1, -2), ref_log_probs=row(0, -2, -1.5))
    return replace(batch, **fields)


def test_advantages_are_of_the_penalised_rewards():
    """β = .5: r = −.5, 3 + .25; at γ = 1 the returns are 2.75, 3.25."""
    prepared = build(beta=0.5, gamma=1.0, normalize_advantages=False).prepare(two_tokens())
    assert prepared.rewards[0, 1:].tolist() == [-0.5, 3.25]
    assert prepared.advantages[0, 1:].tolist() == [2.75, 3.25]


class Nothing(Value):
    """V = 0."""

    def forward(self, obs, where=None):
        return torch.zeros(obs.shape[:2] if where is None else (int(where.sum()),), requires_grad=True)


def test_the_critics_advantages_are_of_the_penalised_rewards():
    """The same rewards at γ = 1, λ = .5 and V = 0: A = −.5 + .5·3.25, 3.25."""
    knobs = {"beta": 0.5, "gamma": 1.0, "lam": 0.5, "normalize_advantages": False}
    prepared = RLHFAgent(policy=GRUPolicy(VOCABULARY, 8), value=Nothing(), **knobs).prepare(two_tokens())
    assert prepared.advantages[0, 1:].tolist() == [1.125, 3.25]


def test_a_clipped_score_is_penalised_in_full():
    """Clip 1: r = −.5, 1 + .25."""
    prepared = build(beta=0.5, reward_clip=1.0).prepare(two_tokens())
    assert prepared.rewards[0, 1:].tolist() == [-0.5, 1.25]


def test_what_is_logged_by_hand():
    """Rows with d = (1, −.5) and d = (.5): sums .5 and .5, mean .5. Scores 3 and 1. β = .5 subtracts .25 from each.

    Entropy: −log π of the three tokens is 1, 2, 3. Rows without steps to learn from do not count.
    """
    batch = replies(
        (2, 1, 2),
        rewards=torch.tensor([[0, 0, 3], [0, 1, 0], [0, 0, 50]]),
        log_probs=torch.tensor([[0, -1, -2], [0, -3, 0], [0, math.inf, math.inf]]),
        ref_log_probs=torch.tensor([[0, -2, -1.5], [0, -3.5, 0], [0, -1, -1]]),
    )
    batch = replace(batch, mask=batch.valid & torch.tensor([True, True, False])[:, None])
    module = build(beta=0.5)
    log = Told(module)
    module.prepare(batch)
    expected = {"score": 2, "kl": 0.5, "non_score_reward": -0.25, "policy_entropy": 2, "beta": 0.5}
    assert log.values == pytest.approx(expected)


def test_the_estimator_is_that_of_the_kl_that_is_logged_and_held():
    """d = 1, −.5: k1 .5; k2 .5 + .125; k3 e⁻¹ + e^½ − 2 + .5 = .5166007. The target .51 is above the first only."""
    for estimator, kl, grows in (("k1", 0.5, False), ("k2", 0.625, True), ("k3", 0.5166007, True)):
        module = build(beta=0.5, kl_estimator=estimator, kl_target=0.51)
        log = Told(module)
        prepared = module.prepare(two_tokens())
        assert log.values["kl"] == pytest.approx(kl, abs=1e-6)
        assert bool(module.beta > 0.5) is grows
        assert prepared.rewards[0, 1:].tolist() == [-0.5, 3.25]  # the penalty uses k1


def test_beta_moves_after_the_collection_it_was_used_on(monkeypatch):
    """KL .5 of one row, target .25, horizon 100: e = .2, β = .5·(1 + .2/100) = .501 for the next collection."""
    monkeypatch.setattr(kl_penalty, "KL_HORIZON", 100)
    module = build(beta=0.5, kl_target=0.25)
    assert module.prepare(two_tokens()).rewards[0, 1] == -0.5
    assert module.beta == pytest.approx(0.501, abs=1e-9)
    assert module.prepare(two_tokens()).rewards[0, 1] == pytest.approx(-0.501)


def test_only_a_beta_that_moves_is_in_the_checkpoint():
    assert "beta" in build(kl_target=6.0).state_dict() and "beta" not in build().state_dict()


@pytest.mark.parametrize("kind", MAKERS)
def test_at_the_start_there_is_nothing_to_penalise(kind):
    nothing_to_penalise(build(kind, beta=10.0))


def test_the_reference_has_the_temperature_of_the_policy():
    """Weights with a std of 1, so that scores differ much, and less if divided by 1.5."""
    torch.manual_seed(0)
    shape = DecoderShape(VOCABULARY, layers=1, heads=2, width=16, context=8, init_std=1.0)
    nothing_to_penalise(RLHFPolicy(policy=TransformerPolicy(shape, temperature=1.5), beta=10.0))


def nothing_to_penalise(module):
    log = Told(module)
    batch = by_the_policy(module, replies())
    prepared = module.prepare(batch)
    assert log.values["kl"] == pytest.approx(0, abs=1e-5)
    torch.testing.assert_close(prepared.rewards, batch.rewards, atol=1e-5, rtol=0)


def test_the_reference_does_not_follow():
    module = build()
    batch = by_the_policy(module, replies())
    log = Told(moved(module))
    module.prepare(by_the_policy(module, batch))
    assert abs(log.values["kl"]) > 0.1


def test_a_reference_read_in_chunks_is_the_same(monkeypatch):
    batch = replies((3, 5, 2, 4, 1))
    prepared, reads = [], []
    for chunk in (64, 2):
        monkeypatch.setattr(reference, "CHUNK", chunk)
        module = build()
        module.reference.register_forward_hook(lambda network, inputs, output: reads.append(len(inputs[0])))
        prepared.append(module.prepare(batch).ref_log_probs)
    assert reads == [5, 2, 2, 1]
    assert prepared[0][batch.mask].abs().min() > 0
    torch.testing.assert_close(prepared[1], prepared[0])


def test_what_the_reference_said_is_kept_where_it_is_asked_for(tmp_path):
    batch = replies()
    cached = build(reference_cache=str(tmp_path / "kept"))
    torch.testing.assert_close(cached.prepare(batch).ref_log_probs, build().prepare(batch).ref_log_probs)
    assert len(list((tmp_path / "kept").iterdir())) == 1


KNOBS = [
    {"beta": 0.5},
    {"reward_clip": 0.1},
    {"whiten_rewards": True},
    {"kl_weight": 0.5},
    {"kl_weight": 0.5, "kl_loss_estimator": "k2"},
]


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("knobs", KNOBS, ids=str)
def test_every_knob_changes_the_loss(knobs, kind):
    batch = replies()
    plain = {"kl_weight": 0.5} if len(knobs) > 1 else {}
    losses = [loss_of(moved(build(kind, **chosen)), batch) for chosen in (knobs, plain)]
    assert not torch.isclose(*losses)


@pytest.mark.parametrize("kind", MAKERS)
def test_padding_never_changes_the_loss_or_its_gradient(kind):
    """Two more columns, with NaN in every float field."""
    batch = replies()
    wider = batch.map(
        lambda x: (
            torch.cat([x, torch.full_like(x[:, :2], math.nan if x.is_floating_point() else 1)], 1) if x.ndim > 1 else x
        )
    )
    padding = torch.arange(wider.mask.shape[1]) >= batch.mask.shape[1]
    wider = replace(wider, valid=wider.valid & ~padding, mask=wider.mask & ~padding)
    results = []
    for rows in (batch, wider):
        module = moved(build(kind, whiten_rewards=True, reward_clip=0.5, kl_weight=0.5))
        loss = loss_of(module, rows)
        loss.backward()
        results.append((loss, torch.cat([p.grad.flatten() for p in module.parameters()])))
    torch.testing.assert_close(results[1][0], results[0][0])
    torch.testing.assert_close(results[1][1], results[0][1], atol=1e-6, rtol=1e-4)


def test_a_group_of_equal_scores_teaches_nothing():
    """GRPO without a KL: three replies with score .1 each, and another group with different scores."""
    scores = torch.tensor([0.1, 0.1, 0.1, 0.0, 1.0])[:, None]
    batch = replies((3, 5, 2, 4, 1), group=torch.tensor([0, 0, 0, 1, 1]))
    batch = replace(batch, rewards=torch.where(batch.rewards != 0, scores, 0))
    knobs = {"beta": 0.0, "gamma": 1.0, "baseline": "group_mean", "advantage_scale": "group_std"}
    advantages = build(normalize_advantages=False, **knobs).prepare(batch).advantages
    assert (advantages[:3][batch.mask[:3]] == 0).all()
    assert advantages[3:][batch.mask[3:]].tolist() == pytest.approx([-1] * 4 + [1], abs=1e-5)


# ---- in the loss


def test_kl_loss_by_hand():
    """Now log π = −1, −2, as above: k3 = e⁻¹ − 1 + 1 = .3678794, e^½ − 1 − .5 = .1487213; weight .1, mean of both."""
    module = build(kl_weight=0.1)
    prepared = module.prepare(two_tokens())
    now = module.evaluate(prepared)
    now.log_probs = row(0, -1, -2)
    assert module.losses(prepared, now)["kl_loss"] == pytest.approx(0.1 * (0.3678794 + 0.1487213) / 2, abs=1e-6)


@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_the_kl_loss_alone_leads_back_to_the_reference(estimator):
    module = moved(build(beta=0.0, kl_weight=1.0, kl_loss_estimator=estimator, normalize_advantages=False))
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
    batch = replies((4,) * 5, rewards=torch.zeros(5, 5))
    gaps = []
    for _ in range(60):
        prepared = module.prepare(batch)
        now = module.evaluate(prepared)
        gaps.append(float((now.log_probs - prepared.ref_log_probs)[batch.mask].abs().mean()))
        optimizer.zero_grad()
        sum(module.losses(prepared, now).values()).backward()
        optimizer.step()
    assert gaps[-1] < 0.2 * gaps[0]


def test_without_penalty_and_term_it_is_plain_reinforce():
    batch = replies()
    torch.manual_seed(0)
    plain = ReinforcePolicy(policy=GRUPolicy(VOCABULARY, 8))
    assert loss_of(build(beta=0.0), batch) == loss_of(plain, batch)


# ---- mistakes


@pytest.mark.parametrize(
    ("knobs", "pattern"),
    [
        ({"beta": -1.0}, "beta"),
        ({"beta": 0.0, "kl_target": 6.0}, "beta"),
        ({"kl_target": 0.0}, "kl_target"),
        ({"reward_clip": 0.0}, "reward_clip"),
        ({"kl_weight": -0.1}, "kl_weight"),
    ],
)
def test_a_knob_out_of_range_is_named(knobs, pattern):
    with pytest.raises(ValueError, match=f"^{pattern}: "):
        build(**knobs)


@pytest.mark.parametrize("missing", ["rewards", "log_probs"])
def test_a_batch_that_cannot_be_penalised_is_refused(missing):
    with pytest.raises(ValueError, match="beta: the batch has no"):
        build().prepare(replies(**{missing: None}))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention_dropout = 0.1


@pytest.mark.parametrize("part", [nn.Dropout(0.1), nn.GRU(8, 8, num_layers=2, dropout=0.1), Attention()])
def test_dropout_is_refused(part):
    policy = GRUPolicy(VOCABULARY, 8)
    policy.extra = part
    with pytest.raises(ValueError, match=r"dropout: policy\.extra has dropout 0\.1"):
        RLHFPolicy(policy=policy)


def test_dropout_of_a_language_model_is_refused():
    shape = DecoderShape(vocabulary=VOCABULARY, layers=1, heads=2, width=16, context=8)
    with pytest.raises(ValueError, match="dropout: policy"):
        RLHFPolicy(policy=TransformerPolicy(shape, dropout=0.1))


def test_a_scale_by_groups_beside_a_critic_is_refused():
    with pytest.raises(ValueError, match="advantage_scale: got group_std, but the critic is the baseline"):
        build("agent", advantage_scale="group_std")
