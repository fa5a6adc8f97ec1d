"""SRPO: which term each reply has, and that its weight does not depend on the other replies."""

import math
from dataclasses import replace

import pytest
import torch

from lightning_nlf.maths.means import mask_named
from lightning_nlf.objectives import ReinforcePolicy, SDPOPolicy, SRPOPolicy
from lightning_nlf.objectives.srpo import confidence_weights

GROUPS, LENGTHS = [0, 0, 0, 1, 1, 1], [2, 4, 3, 1, 2, 5]
EARNED, SEEN = [1.0, 0.2, 0.4, 0.9, 0.5, 0.0], [1, 1, 0, 0, 1, 1]
ROUTED = [False, True, False, False, True, True]  # failed, with a teacher


@pytest.fixture
def batch(text):
    return text.rounds_of(GROUPS, LENGTHS, [0] * 6, EARNED, SEEN)


def knobs_of(**knobs):
    return {"normalize_advantages": False, "baseline": "group_mean", "gamma": 1.0} | knobs


def build(text, **knobs):
    return text.moved(SRPOPolicy(policy=text.gru_policy(), **knobs_of(**knobs)))


def test_weights_by_hand():
    """H = 0, ln 2, ln 4, β=1: 1, ½, ¼, with mean 7/12 → 12/7, 6/7, 3/7; β=2: 1, ¼, 1/16 → 16/7, 4/7, 1/7."""
    entropy, mask = torch.tensor([[0, math.log(2), math.log(4), math.nan]]), torch.tensor([[True, True, True, False]])
    assert confidence_weights(entropy, mask, 1.0).tolist() == [pytest.approx([12 / 7, 6 / 7, 3 / 7, 1])]
    assert confidence_weights(entropy, mask, 2.0).tolist() == [pytest.approx([16 / 7, 4 / 7, 1 / 7, 1])]


def test_what_goes_where(text, batch):
    """Returns 1, .2, .4 and .9, .5, 0: group means .5333, .4667. Only replies without distillation have advantages."""
    prepared = build(text).prepare(batch)
    assert prepared.masks["taught"].any(1).tolist() == ROUTED
    advantages = [float(a[m][0]) for a, m in zip(prepared.advantages, batch.mask, strict=True)]
    assert advantages == pytest.approx([1 - 1.6 / 3, 0, 0.4 - 1.6 / 3, 0.9 - 1.4 / 3, 0, 0], abs=1e-6)


def test_success_is_more_than_the_threshold(text, batch):
    """A return of .5 is not a success at .5, but is at .49."""
    assert build(text, success=0.49).prepare(batch).masks["taught"].any(1).tolist() == [*ROUTED[:4], False, True]


def test_both_terms_are_means_over_all_of_the_learners_steps(text, batch):
    """17 steps, 11 with a teacher, whose mean is SDPO's; the policy term is REINFORCE with advantage 0 at these."""
    module = build(text, entropy_beta=0.0)
    prepared = module.prepare(batch)
    now = module.evaluate(prepared)
    terms = module.losses(prepared, now)
    assert set(terms) == {"policy", "distillation"}
    sdpo = text.moved(SDPOPolicy(policy=text.gru_policy()))
    alone = text.terms(sdpo, batch[torch.tensor(ROUTED)])["distillation"]
    torch.testing.assert_close(terms["distillation"], alone * 11 / 17)
    summed = (now.log_probs * prepared.advantages)[batch.mask].sum()
    torch.testing.assert_close(terms["policy"], -summed / 17)


def test_without_failures_it_is_the_policy_gradient(text, batch):
    module = build(text, success=-1.0)
    plain = text.moved(ReinforcePolicy(policy=text.gru_policy(), **knobs_of()))
    terms = text.terms(module, batch)
    assert not terms["distillation"]
    torch.testing.assert_close(terms["policy"], text.terms(plain, batch)["policy"])


def test_the_weights_are_by_the_teacher(text, batch):
    """Mean 1 over the distilled steps, with more weight where the teacher is more certain."""
    module = build(text)
    prepared = module.prepare(batch)
    taught, weights = prepared.masks["taught"], prepared.extra["distillation_weights"]
    assert float(weights[taught].mean()) == pytest.approx(1)
    assert (weights[~taught] == 1).all()
    entropy = module.teach(prepared, taught).entropy().detach()
    assert torch.equal(entropy.argsort(), weights[taught].argsort(descending=True))
    weighted = module.losses(prepared, module.evaluate(prepared))["distillation"]
    plain = text.terms(build(text, entropy_beta=0.0), batch)["distillation"]
    assert float(weighted.detach()) != pytest.approx(float(plain.detach()), rel=1e-4)


@pytest.mark.parametrize("knob", [{"success": 0.1}, {"entropy_beta": 3.0}, {"teacher_rate": 1.0}, {"clip": 0.2}])
def test_every_knob_changes_the_loss(text, batch, knob):
    usual, changed = (float(text.loss(build(text, **knobs), batch).detach()) for knobs in ({}, knob))
    assert usual != pytest.approx(changed, rel=1e-5)


def test_padding_and_micro_batches_change_nothing(text, batch):
    module = build(text, clip=0.2)
    prepared = module.prepare(batch)
    whole = text.gradient_of(module, text.micro_batches(prepared, [list(range(6))]))
    for parts in ([[0, 1, 2], [3, 4, 5]], [[0, 2, 3], [1, 4, 5]]):  # one part of the second split has no failed reply
        torch.testing.assert_close(text.gradient_of(module, text.micro_batches(prepared, parts)), whole)
    torch.testing.assert_close(text.loss(module, text.padded(batch)), text.loss(module, batch))


def test_what_is_wrong_is_named(text, batch):
    with pytest.raises(ValueError, match="entropy_beta"):
        build(text, entropy_beta=-1.0)
    with pytest.raises(ValueError, match="success"):
        build(text).prepare(replace(batch, rewards=None))


def test_a_step_without_failures_counts_as_no_distillation(text, batch):
    """The logged value is a mean over all optimizer steps with learner steps, and 0 counts for this one."""
    module = build(text, success=-1.0)
    prepared = module.prepare(batch)
    terms = {term.name: term for term in module.gather(prepared, module.evaluate(prepared))}
    assert module.count(terms["distillation"], prepared) == batch.mask.sum()
    assert mask_named(prepared, terms["distillation"].over).sum() == batch.mask.sum()
