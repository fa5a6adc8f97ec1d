"""KTO: hand-worked losses, good and bad rows, replies after other prompts, and the baseline from them."""

import math
from dataclasses import replace

import pytest
import torch

from lightning_nlf.maths.steps import row_sums
from lightning_nlf.objectives import KTOPolicy
from lightning_nlf.objectives.kto import good_and_bad, kto_loss, mismatched, next_prompts

GROUPS, LENGTHS = [0, 0, 1, 2, 2, 2], [2, 4, 3, 1, 5, 2]


@pytest.fixture
def batch(text):
    label = torch.tensor([True, False, True, True, False, False])
    return text.replies_to(GROUPS, LENGTHS, extra={"label": label})


def kto(text, **knobs):
    return KTOPolicy(policy=text.gru_policy(), **knobs)


def test_losses_by_hand():
    """β = .5, z₀ = 1. Good, r = 3: 1 − σ(.5·2) = .2689414, times λ_D = 2. Bad, r = −1: 1 − σ(.5·2), times λ_U = 3."""
    losses = kto_loss(torch.tensor([3.0, -1.0]), torch.tensor([True, False]), torch.tensor(1.0), 0.5, 2.0, 3.0)
    assert losses.tolist() == pytest.approx([0.5378828, 0.8068243], abs=1e-6)


def test_at_the_reference(text, batch):
    """r = z₀ = 0: 1 − σ(0) = ½, with λ_D = 2 for 3 of 6 rows (2·3 + 1·3)/2/6 = .75."""
    assert text.loss(kto(text), batch).detach() == pytest.approx(0.5, abs=1e-5)
    assert text.loss(kto(text, desirable_weight=2.0), batch).detach() == pytest.approx(0.75, abs=1e-5)
    assert text.loss(kto(text, undesirable_weight=4.0), batch).detach() == pytest.approx(1.25, abs=1e-5)


def test_labels_or_scores_say_who_is_good(text, batch):
    """A score at the threshold is good. NaN is neither good nor bad, and neither is a row without a reply.

    If the expert wrote them, both count: a reply without a score is an expected response.
    """
    good, bad = good_and_bad(batch, None)
    assert good.tolist() == batch.extra["label"].tolist() and bad.tolist() == (~batch.extra["label"]).tolist()
    scored = replace(batch, score=torch.tensor([1, 0.5, 0.4, math.nan, 2, 2]))
    scored = replace(scored, mask=scored.mask.index_fill(0, torch.tensor(5), False))
    good, bad = good_and_bad(scored, 0.5)
    assert good.tolist() == [True, True, False, False, True, False]
    assert bad.tolist() == [False, False, True, False, False, False]
    theirs = replace(scored, mask=torch.zeros_like(batch.mask), expert_mask=batch.mask)
    assert [rows.tolist() for rows in good_and_bad(theirs, 0.5)] == [
        [True, True, False, True, True, True],
        [False, False, True, False, False, False],
    ]
    with pytest.raises(ValueError, match="threshold: the batch has no labels"):
        good_and_bad(replace(batch, extra={}), None)
    with pytest.raises(ValueError, match="threshold: got 0.5, but the batch has no scores"):
        good_and_bad(batch, 0.5)


def test_each_group_gets_the_prompt_of_the_next(text, batch):
    assert next_prompts(batch).tolist() == [2, 2, 3, 0, 0, 0]
    assert next_prompts(replace(batch, group=None)).tolist() == [1, 2, 3, 4, 5, 0]
    assert next_prompts(replace(batch, group=torch.tensor([4, 4, 4, 9, 9, 1]))).tolist() == [3, 3, 3, 5, 5, 0]


def tokens(batch, row):
    """The text of a row: all tokens before its last reply step, and the last action."""
    last = int(batch.mask[row].nonzero()[-1])
    return [*batch.obs[row, : last + 1].tolist(), int(batch.actions[row, last])]


def test_the_reply_stands_behind_the_other_prompt(text, batch):
    """Prompts of groups 0, 1, 2 have 2, 3, 4 tokens. Each row has the prompt of the next group and its own reply."""
    view = mismatched(batch)
    for row, (group, length) in enumerate(zip(GROUPS, LENGTHS, strict=True)):
        donor = [2, 2, 3, 0, 0, 0][row]
        prompt, reply = tokens(batch, donor)[: 2 + GROUPS[donor]], tokens(batch, row)[2 + group :]
        assert len(reply) == length
        assert tokens(view, row) == prompt + reply
        assert view.actions[row][view.mask[row]].tolist() == reply


def test_what_is_no_text_is_refused(batch):
    with pytest.raises(ValueError, match="rows of token ids"):
        mismatched(replace(batch, obs=torch.randn(*batch.obs.shape, 4)))
    with pytest.raises(ValueError, match="rows of token ids"):
        mismatched(replace(batch, obs=batch.obs.float()))


def test_the_baseline_is_the_kl_of_replies_behind_other_prompts(text, batch):
    """The mean over rows of log π/π_ref of the view, by two forward passes; at least 0, and without a gradient."""
    signs = set()
    for seed in range(6):
        module = text.moved(kto(text), seed)
        prepared = module.prepare(batch)
        view = prepared.view
        with torch.no_grad():
            ratios = module.policy(view.obs).log_prob(view.actions) - module.reference(view.obs).log_prob(view.actions)
        mean = float(row_sums(ratios, view.mask).mean())
        signs.add(mean > 0)
        baseline = module.reference_point(prepared)
        assert baseline == pytest.approx(max(mean, 0), abs=1e-5) and not baseline.requires_grad
    assert signs == {True, False}


def silent(batch, *rows):
    """The same, although these rows have no reply."""
    return replace(batch, mask=batch.mask.index_fill(0, torch.tensor(rows), False))


def test_rows_without_a_reply_count_for_nothing_in_the_baseline(text, batch):
    """Log-ratios of .5 per token in replies of 2, 4 and 3 tokens: z₀ = (1 + 2 + 1.5) / 3 = 1.5, not 4.5 / 6."""
    module = kto(text)
    prepared = module.prepare(silent(batch, 3, 4, 5))
    now = module.evaluate(prepared.view).log_probs.detach()
    shifted = replace(prepared, view=replace(prepared.view, ref_log_probs=now - 0.5))
    assert float(module.reference_point(shifted)) == pytest.approx(1.5, abs=1e-5)


def test_a_row_without_a_reply_gives_no_prompt(batch):
    """Group 1 has no reply, so that group 2 follows group 0, with its first row that has a reply."""
    assert next_prompts(silent(batch, 2, 3)).tolist() == [4, 4, 4, 0, 0, 0]
    assert next_prompts(replace(silent(batch, 1, 2), group=None)).tolist() == [3, 3, 3, 4, 5, 0]


def test_a_batch_in_which_nobody_replied_teaches_nothing(text, batch):
    module = text.moved(kto(text))
    prepared = module.prepare(silent(batch, *range(6)))
    assert not prepared.view.mask.any()
    loss = text.loss(module, prepared)
    loss.backward()
    assert float(loss.detach()) == 0 and all(not p.grad.any() for p in module.parameters() if p.grad is not None)


def test_the_baseline_matters(text, batch):
    losses = []
    for shift in (0.0, 5.0):
        module = text.moved(kto(text, desirable_weight=3.0))
        module.reference_point = lambda batch, shift=shift: torch.tensor(shift)
        losses.append(float(text.loss(module, batch).detach()))
    assert abs(losses[0] - losses[1]) > 1e-3


@pytest.mark.parametrize(
    "knob", [{"beta": 0.4}, {"desirable_weight": 2.0}, {"undesirable_weight": 2.0}, {"threshold": 0.5}]
)
def test_every_knob_changes_the_loss(knob, text, batch):
    scored = replace(batch, score=torch.tensor([0.0, 1, 0, 1, 0, 1]))
    losses = [float(text.loss(text.moved(kto(text, **options)), scored).detach()) for options in ({}, knob)]
    assert abs(losses[0] - losses[1]) > 1e-4


def test_padding_changes_nothing(text, batch):
    module = text.moved(kto(text))
    torch.testing.assert_close(text.loss(module, text.padded(batch)), text.loss(module, batch))


def test_accumulation_is_one_batch(text, batch):
    """With a fixed baseline, which depends on the micro-batch: 2 of 3 are good, then 1 of 3, and one has no label."""
    module = text.moved(kto(text))
    module.reference_point = lambda batch: torch.tensor(0.3)
    scored = replace(batch, extra={}, score=torch.tensor([1, 0, 1, math.nan, 0, 0]))
    module.threshold = 0.5
    prepared = module.prepare(scored)
    whole = text.gradient_of(module, [prepared])
    parts = text.micro_batches(prepared, [[0, 1, 2], [3, 4, 5]])
    assert whole.abs().sum() > 1e-3
    torch.testing.assert_close(text.gradient_of(module, parts), whole, atol=1e-6, rtol=1e-4)


def test_the_good_gains_and_the_bad_loses(text, batch):
    module = kto(text)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.02)
    prepared = module.prepare(batch)
    for _ in range(40):
        optimizer.zero_grad()
        module.losses(prepared)["kto"].backward()
        optimizer.step()
    figures = module.figures(prepared)
    assert figures["chosen_reward"] > 0.1 and figures["rejected_reward"] < -0.1


def test_a_beta_of_nothing_is_refused(text):
    with pytest.raises(ValueError, match="beta: got 0.0"):
        kto(text, beta=0.0)
