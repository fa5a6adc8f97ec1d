"""SDPO: hand-worked divergences, steps without a teacher, and the effect of each knob."""

import math
from dataclasses import replace

import pytest
import torch
from torch.distributions import Categorical

from lightning_nlf.batch import Batch
from lightning_nlf.objectives import SDPOPolicy
from lightning_nlf.objectives.divergences import jensen_shannon
from lightning_nlf.objectives.sdpo import both_coarsened, coarsened, distillation_loss

STUDENT, TEACHER = (0.7, 0.2, 0.1), (0.5, 0.3, 0.2)


def categorical(probabilities):
    return Categorical(probs=torch.tensor([probabilities]))


@pytest.fixture
def batch(text):
    return text.rounds_of([0, 0, 1, 1], [2, 4, 3, 2], [0, 0, 0, 0], [0.0] * 4, has_feedback=[1, 0, 1, 1])


def build(text, seed=0, **knobs):
    return SDPOPolicy(policy=text.gru_policy(seed), **knobs)


def as_view(batch):
    """Rows whose view has no feedback."""
    return replace(batch, view=Batch(batch.obs, batch.actions, batch.valid, batch.mask))


def test_coarsened_by_hand():
    """Token 1 of (.7, .2, .1): (.2, .8). Tokens 2, 0: (.1, .7, .2)."""
    assert coarsened(categorical(STUDENT), torch.tensor([[1]])).probs[0].tolist() == pytest.approx([0.2, 0.8])
    assert coarsened(categorical(STUDENT), torch.tensor([[2, 0]])).probs[0].tolist() == pytest.approx([0.1, 0.7, 0.2])


def test_the_teachers_likeliest_are_told_apart():
    """T = (.2, .3, .5), S = (.7, .2, .1), top 2: T (.5, .3, .2), S (.1, .2, .7)."""
    teacher, student = both_coarsened(categorical((0.2, 0.3, 0.5)), categorical(STUDENT), 2)
    assert teacher.probs[0].tolist() == pytest.approx([0.5, 0.3, 0.2])
    assert student.probs[0].tolist() == pytest.approx([0.1, 0.2, 0.7])


def test_a_certain_student_has_a_finite_tail():
    """All mass is in one token, exactly: the tail is 1e-7, and no gradient is NaN."""
    scores = torch.tensor([[50.0, 0.0, 0.0]], requires_grad=True)
    student = coarsened(Categorical(logits=scores), torch.tensor([[0]]))
    assert float(student.logits.detach()[0, 1]) == pytest.approx(math.log(1e-7), abs=0.2)
    student.logits.sum().backward()
    assert scores.grad.isfinite().all()


def looking_up(text, **knobs):
    """The reply is token 1, with (.7, .2, .1) after token 0, and (.5, .3, .2) after token 2 of the view."""
    policy = text.lookup_policy([STUDENT, (0.2, 0.2, 0.6), TEACHER])
    mask = torch.ones(1, 1, dtype=torch.bool)
    prompt, theirs = torch.tensor([[0]]), torch.tensor([[2]])
    action = torch.ones_like(prompt)
    view = Batch(theirs, action, mask, ~mask)
    rows = Batch(prompt, action, mask, mask, log_probs=torch.tensor([[math.log(0.2)]]), view=view)
    return SDPOPolicy(policy=policy, **knobs), rows


@pytest.mark.parametrize(
    ("knobs", "expected"),
    [
        ({}, 0.0219012),
        ({"divergence": "forward"}, 0.0920329),
        ({"divergence": "reverse"}, 0.0851228),
        ({"divergence": "forward", "top_k": 1}, 0.0871767),
        ({"divergence": "reverse", "top_k": 1}, 0.0822829),
        ({"top_k": 1}, 0.0210060),
        ({"top_k": 2}, 0.0219012),
        ({"distillation_weight": 3.0}, 0.0657036),
    ],
)
def test_divergences_by_hand(text, knobs, expected):
    """S=(.7,.2,.1), T=(.5,.3,.2): KL(T‖S) = .5 ln(5/7) + .3 ln 1.5 + .2 ln 2 = .0920329, KL(S‖T) = .7 ln 1.4 −
    .2 ln 1.5 − .1 ln 2 = .0851228. JSD(½), M=(.6,.25,.15): ½(.7 ln(7/6) − .2 ln 1.25 − .1 ln 1.5) + ½(.5 ln(5/6) +
    .3 ln 1.2 + .2 ln(4/3)) = .0219012.
    With the likeliest alone, S=(.7,.3), T=(.5,.5): KL(T‖S) = .5 ln(5/7) + .5 ln(5/3) = .0871767, KL(S‖T) = .7 ln 1.4
    + .3 ln .6 = .0822829, JSD, M=(.6,.4): ½(.7 ln(7/6) + .3 ln .75) + ½(.5 ln(5/6) + .5 ln 1.25) = .0210060.
    Two of three leave one token in the tail, so that nothing is lost.
    """
    module, rows = looking_up(text, **knobs)
    assert float(text.terms(module, rows)["distillation"].detach()) == pytest.approx(expected, abs=1e-6)


def test_another_mixture_by_hand():
    """JSD(¼), M=(.65,.225,.125): ¾(.7 ln(14/13) − .2 ln 1.125 − .1 ln 1.25) + ¼(.5 ln(10/13) + .3 ln(4/3) + .2 ln 1.6)
    = .0167843.
    """
    assert float(jensen_shannon(categorical(TEACHER), categorical(STUDENT), 0.25)) == pytest.approx(0.0167843, abs=1e-6)


def test_the_teachers_kl_is_a_figure(text):
    """KL(T‖S) for every divergence."""
    module, rows = looking_up(text, divergence="reverse")
    prepared = module.prepare(rows)
    assert float(module.figures(prepared)["teacher_kl"]) == pytest.approx(0.0920329, abs=1e-6)
    terms = {term.name: term for term in module.gather(prepared, module.evaluate(prepared))}
    assert {name: (term.over, term.per) for name, term in terms.items()} == {
        "distillation": ("taught", None),
        "teacher_kl": ("taught", None),
    }
    assert not terms["teacher_kl"].value.requires_grad


@pytest.mark.parametrize(
    ("behaviour", "expected"),
    [(0.05, 2), (0.16, 1.25), (0.4, 0.5)],
)
def test_the_ratio_by_hand(text, behaviour, expected):
    """π = .2 of the sampled token: ratios 4, 1.25, .5; the first is clipped at 2."""
    module, rows = looking_up(text)
    rows = replace(rows, log_probs=torch.tensor([[math.log(behaviour)]]))
    assert float(text.terms(module, rows)["distillation"].detach()) == pytest.approx(expected * 0.0219012, abs=1e-6)


def test_the_ratio_has_no_gradient():
    """The loss of each token is ρ D: ∂/∂D = ρ, and ρ has no gradient."""
    ratio, divergence = torch.tensor([[0.5, 2.0]], requires_grad=True), torch.tensor([[3.0, 0.25]], requires_grad=True)
    loss = distillation_loss(divergence, ratio)
    assert loss.tolist() == [[1.5, 0.5]]
    loss.sum().backward()
    assert ratio.grad is None and divergence.grad.tolist() == [[0.5, 2.0]]
    with pytest.raises(ValueError, match="shapes: divergence"):
        distillation_loss(divergence, ratio[:, :1])


def test_the_gradient_is_the_students(text):
    """KL(T‖S): the gradient of the student's scores is S − T = (.2, −.1, −.1); the teacher, another row, has none."""
    module, rows = looking_up(text, divergence="forward", teacher_rate=1.0)
    text.terms(module, rows)["distillation"].backward()
    expected = torch.tensor([[0.2, -0.1, -0.1], [0, 0, 0], [0, 0, 0]])
    torch.testing.assert_close(module.policy.scores.grad, expected)


def test_rows_without_feedback_teach_nothing(text, batch):
    """Without a teacher there is no loss and no gradient. One row of four without it is not in the mean."""
    module = text.moved(build(text))
    unseen = replace(batch, view=replace(batch.view, valid=torch.zeros_like(batch.view.valid)))
    text.terms(module, unseen)["distillation"].backward()
    assert not any(p.grad.any() for p in module.policy.parameters())
    alone = batch[torch.tensor([0, 2, 3])]
    torch.testing.assert_close(text.loss(module, batch), text.loss(module, alone))


def test_rows_without_feedback_cost_nothing(text, batch):
    """The second row is not evaluated, because no other term needs it."""
    module = build(text)
    prepared = module.prepare(batch)
    assert prepared.mask.any(1).tolist() == [True, False, True, True]
    assert torch.equal(module.evaluate(prepared).where, prepared.masks["taught"])


def test_a_teacher_who_knows_no_more_teaches_nothing(text, batch):
    """The teacher is the policy and reads the same tokens, so the loss is 0 until the policy moves away."""
    module, rows = build(text, top_k=4), as_view(batch)
    loss = text.terms(module, rows)["distillation"]
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0, abs=1e-7)
    assert max(float(p.grad.abs().max()) for p in module.policy.parameters()) < 1e-6
    assert float(text.loss(text.moved(module), rows).detach()) > 0.001


def test_the_policy_comes_closer_to_the_teacher(text, batch):
    module = build(text, teacher_rate=0.0, divergence="forward")
    optimizer = torch.optim.Adam(module.policy.parameters(), lr=0.02)
    prepared = module.prepare(batch)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = module.losses(prepared, module.evaluate(prepared))["distillation"]
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize(
    "knob",
    [
        {"divergence": "forward"},
        {"divergence": "reverse"},
        {"top_k": 2},
        {"distillation_weight": 0.5},
        {"teacher_rate": 1.0},
    ],
)
def test_every_knob_changes_the_loss(text, batch, knob):
    batch = replace(batch, log_probs=batch.log_probs - 3)  # ratios above and below 1
    usual, changed = (float(text.loss(text.moved(build(text, **knobs)), batch).detach()) for knobs in ({}, knob))
    assert usual != pytest.approx(changed, rel=1e-4)


def test_padding_and_micro_batches_change_nothing(text, batch):
    module = text.moved(build(text))
    prepared = module.prepare(batch)
    whole = text.gradient_of(module, text.micro_batches(prepared, [[0, 1, 2, 3]]))
    for parts in ([[0, 1], [2, 3]], [[1], [0, 2, 3]]):  # the second split has a part without a teacher
        torch.testing.assert_close(text.gradient_of(module, text.micro_batches(prepared, parts)), whole)
    torch.testing.assert_close(text.loss(module, text.padded(batch)), text.loss(module, batch))


def test_a_limit_as_large_as_the_vocabulary_is_none(text, batch):
    losses = [text.loss(text.moved(build(text, top_k=k)), batch) for k in (11, 100)]
    assert torch.equal(*losses)


def test_impossible_knobs_are_refused(text, batch):
    with pytest.raises(ValueError, match="top_k"):
        build(text, top_k=0)
    with pytest.raises(ValueError, match="log_probs"):
        text.loss(build(text), replace(batch, log_probs=None))
