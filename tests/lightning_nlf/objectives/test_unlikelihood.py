"""Unlikelihood training: hand-worked losses, knobs, and its effect on a policy."""

import math
from dataclasses import replace

import pytest
import torch

from lightning_nlf.networks import GaussianPolicy
from lightning_nlf.objectives import UnlikelihoodPolicy
from lightning_nlf.objectives.unlikelihood import unlikelihood_loss


@pytest.fixture
def batch(text):
    return text.replies_to([0, 0, 1, 1], [2, 4, 3, 1], score=torch.tensor([1.0, 0.2, 0.8, math.nan]))


def unlikelihood(text, **knobs):
    return UnlikelihoodPolicy(policy=text.gru_policy(), threshold=0.5, **knobs)


def test_unlikelihood_by_hand():
    """π = .75, .5 and .9: ln 4 = 1.3862944, ln 2 = .6931472, ln 10 = 2.3025851."""
    loss = unlikelihood_loss(torch.tensor([[0.75, 0.5, 0.9]]).log())
    assert loss.tolist() == [pytest.approx([1.3862944, 0.6931472, 2.3025851], abs=1e-5)]


def test_unlikelihood_is_a_mean_over_the_steps_of_bad_rows(text):
    """A bad row with π = .75 and .5: (ln 4 + ln 2)/2 = 1.0397208; the third step is padding, or of the good row."""
    batch = text.replies_to([0, 0], [2, 3], score=torch.tensor([0.0, 1.0]))
    module = unlikelihood(text, unlikelihood_weight=2.0)
    prepared = module.prepare(batch)
    log_probs = torch.full(batch.mask.shape, math.log(0.9))
    log_probs[0, batch.mask[0]] = torch.tensor([0.75, 0.5]).log()
    now = replace(module.evaluate(prepared), log_probs=log_probs)
    assert module.losses(prepared, now)["unlikelihood"] == pytest.approx(2 * 1.0397208, abs=1e-6)


def test_certainty_is_finite():
    log_probs = torch.zeros(1, 1, requires_grad=True)
    loss = unlikelihood_loss(log_probs)
    loss.sum().backward()
    assert loss.isfinite().all() and log_probs.grad.isfinite().all()


def test_each_term_is_of_its_rows(text, batch):
    """Good: rows 0 and 2, with 2 and 3 tokens of −1 and −2: 8/5. Bad: row 1. Row 3 has no score."""
    module = unlikelihood(text)
    prepared = module.prepare(batch)
    now = module.evaluate(prepared)
    now.log_probs = torch.tensor([[-1.0], [math.log(0.75)], [-2.0], [-3.0]]) * batch.mask
    terms = module.losses(prepared, now)
    assert terms["likelihood"] == pytest.approx(1.6)
    assert terms["unlikelihood"] == pytest.approx(math.log(4), abs=1e-6)


@pytest.mark.parametrize("knob", [{"threshold": 0.9}, {"unlikelihood_weight": 0.0}])
def test_every_knob_changes_the_loss(knob, text, batch):
    losses = [
        text.loss(UnlikelihoodPolicy(policy=text.gru_policy(), **({"threshold": 0.5} | options)), batch)
        for options in ({}, knob)
    ]
    assert abs(float((losses[0] - losses[1]).detach())) > 1e-3


def test_padding_changes_nothing(text, batch):
    module = unlikelihood(text)
    torch.testing.assert_close(text.loss(module, text.padded(batch)), text.loss(module, batch))


def test_accumulation_is_one_batch(text, batch):
    module = unlikelihood(text)
    prepared = module.prepare(batch)
    parts = text.micro_batches(prepared, [[2, 3], [0, 1]])
    whole = text.gradient_of(module, [prepared])
    torch.testing.assert_close(text.gradient_of(module, parts), whole, atol=1e-6, rtol=1e-4)


def test_the_bad_becomes_unlikely_and_the_good_likely(text, batch):
    module = unlikelihood(text)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.02)
    prepared = module.prepare(batch)

    def likelihoods():
        return module.evaluate(prepared).log_probs.detach().sum(1)

    before = likelihoods()
    for _ in range(30):
        optimizer.zero_grad()
        text.loss(module, batch).backward()
        optimizer.step()
    assert ((likelihoods() > before) == torch.tensor([True, False, True, True]))[:3].all()


def test_densities_are_refused(text, batch):
    module = UnlikelihoodPolicy(policy=GaussianPolicy(4, 1), threshold=0.5)
    states = torch.randn(*batch.mask.shape, 4)
    prepared = module.prepare(replace(batch, obs=states, actions=states[..., :1]))
    with pytest.raises(ValueError, match="discrete actions"):
        module.losses(prepared, module.evaluate(prepared))
