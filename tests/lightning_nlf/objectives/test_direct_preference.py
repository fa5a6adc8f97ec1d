"""Properties of all objectives that learn from comparisons, in one table."""

import math
from dataclasses import replace

import lightning as L
import pytest
import torch

from data_modules.offline import OfflineDataModule, save_batch
from lightning_nlf.maths.preferences import pairs
from lightning_nlf.objectives import (
    ConservativeDPOPolicy,
    CPOPolicy,
    DavidsonDPOPolicy,
    DPOPolicy,
    HingeDPOPolicy,
    IPOPolicy,
    ORPOPolicy,
    RankedDPOPolicy,
    RaoKupperDPOPolicy,
    RobustDPOPolicy,
    SimPOPolicy,
    SLiCPolicy,
)
from lightning_nlf.objectives.direct_preference import expected_on_top, preference_figures, reply_steps

WITH_REFERENCE = {  # the loss if policy = reference, so that every difference is 0
    DPOPolicy: math.log(2),
    ConservativeDPOPolicy: math.log(2),
    RobustDPOPolicy: math.log(2),
    HingeDPOPolicy: 1.0,
    IPOPolicy: 25.0,  # 1/(4β²), β = .1
    RankedDPOPolicy: math.log(6),  # 3! orders
    RaoKupperDPOPolicy: math.log(3),  # 1/(1 + θ), θ = 2
    DavidsonDPOPolicy: math.log(3),  # 1/(2 + 2ν), ν = .5
}
KIN = [*WITH_REFERENCE, SLiCPolicy, SimPOPolicy, CPOPolicy, ORPOPolicy]
KNOBS = [
    *[(kind, {"beta": 0.3}) for kind in (*WITH_REFERENCE, SimPOPolicy, CPOPolicy)],
    *[(kind, {"label_smoothing": 0.3}) for kind in (ConservativeDPOPolicy, RobustDPOPolicy)],
    (RaoKupperDPOPolicy, {"theta": 4.0}),
    (DavidsonDPOPolicy, {"nu": 2.0}),
    *[(kind, {"margin": 3.0}) for kind in (SLiCPolicy, SimPOPolicy)],
    *[(kind, {"chosen_weight": 0.5}) for kind in (SLiCPolicy, SimPOPolicy, CPOPolicy, ORPOPolicy)],
    (ORPOPolicy, {"odds_weight": 0.4}),
]
GROUPS, LENGTHS, RANKS = [0, 0, 0, 1, 1, 1, 2, 2, 2], [2, 4, 1, 3, 3, 5, 2, 1, 4], [0, 1, 2, 2, 0, 1, 1, 2, 0]


def named_by_class(kinds):
    return pytest.mark.parametrize("kind", kinds, ids=lambda kind: kind.__name__)


@pytest.fixture
def batch(text):
    """Three groups of three replies, ranked without ties."""
    return text.replies_to(GROUPS, LENGTHS, rank=torch.tensor(RANKS))


@named_by_class(WITH_REFERENCE)
def test_at_the_reference(kind, text, batch):
    """Every implicit reward is 0, and the KL to the reference is 0."""
    module = kind(policy=text.gru_policy())
    prepared = module.prepare(batch)
    assert module.losses(prepared)["preference"].detach() == pytest.approx(WITH_REFERENCE[kind], abs=1e-5)
    figures = module.figures(prepared)
    for name in ("margin", "chosen_reward", "rejected_reward", "reference_kl"):
        assert figures[name] == pytest.approx(0, abs=1e-6)


@named_by_class(KIN)
def test_swapping_chosen_and_rejected_negates_the_margin(kind, text, batch):
    module = text.moved(kind(policy=text.gru_policy()))
    ranked, swapped = (
        module.figures(module.prepare(replace(batch, rank=rank))) for rank in (batch.rank, 2 - batch.rank)
    )
    assert abs(ranked["margin"]) > 1e-3
    assert ranked["margin"] == pytest.approx(-float(swapped["margin"]), abs=1e-6)
    assert ranked["accuracy"] == pytest.approx(1 - float(swapped["accuracy"]))
    assert ranked["chosen_reward"] == pytest.approx(float(swapped["rejected_reward"]))


@named_by_class(KIN)
def test_padding_changes_nothing(kind, text, batch):
    module = text.moved(kind(policy=text.gru_policy()))
    torch.testing.assert_close(text.loss(module, text.padded(batch)), text.loss(module, batch))


@named_by_class(KIN)
def test_the_order_of_rows_changes_nothing(kind, text, batch):
    module = text.moved(kind(policy=text.gru_policy()))
    shuffled = batch[torch.tensor([5, 2, 8, 0, 3, 7, 1, 6, 4])]
    torch.testing.assert_close(text.loss(module, shuffled), text.loss(module, batch))


@named_by_class(KIN)
def test_accumulation_is_one_batch(kind, text, batch):
    """Groups of 3, 2 and 4 replies with ties, so that micro-batches differ in pairs, rankings and chosen tokens."""
    rank = torch.tensor([0, 1, 1, 1, 0, 0, 3, 2, 0])
    uneven = replace(batch, group=torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 2]), rank=rank)
    module = text.moved(kind(policy=text.gru_policy()))
    prepared = module.prepare(uneven)
    whole = text.gradient_of(module, [prepared])
    parts = text.micro_batches(prepared, [[5, 6, 7, 8], [0, 1, 2, 3, 4]])
    assert whole.abs().sum() > 1e-3
    torch.testing.assert_close(text.gradient_of(module, parts), whole, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(("kind", "knobs"), KNOBS, ids=lambda x: x.__name__ if isinstance(x, type) else next(iter(x)))
def test_every_knob_changes_the_loss(kind, knobs, text, batch):
    tied = replace(batch, rank=torch.tensor([0, 0, 2, 2, 0, 1, 1, 2, 0]))
    losses = [text.loss(text.moved(kind(policy=text.gru_policy(), **options)), tied) for options in ({}, knobs)]
    assert abs(float(losses[0] - losses[1])) > 1e-4


@named_by_class(KIN)
def test_a_microbatch_without_pairs_has_no_gradient(kind, text, batch):
    """The group has one reply, or none is ranked. A rank with only such rows must still take part."""
    module = text.moved(kind(policy=text.gru_policy()))
    prepared = module.prepare(batch)
    alone = replace(prepared[torch.tensor([0])], rank=torch.tensor([-1]))
    alone = replace(alone, masks={name: torch.zeros_like(x) for name, x in alone.masks.items()})
    assert text.gradient_of(module, [alone]).abs().sum() == 0


# ---- expected responses


def with_expected(batch, rows, rank=-1):
    """Turns rows into expected responses: the expert's steps, unranked, with no steps to learn from by RL."""
    theirs = torch.zeros(len(batch), dtype=torch.bool)
    theirs[torch.tensor(rows)] = True
    return replace(
        batch,
        mask=batch.mask & ~theirs[:, None],
        expert_mask=batch.mask & theirs[:, None],
        expert_actions=batch.actions,
        rank=torch.where(theirs, rank, batch.rank),
    )


def test_an_expected_response_beats_its_group(batch):
    """Row 1 of the first group is expected, with 0 and 2 after it. The third group has two of them, the second none."""
    ranks = expected_on_top(with_expected(batch, [1, 6, 8]))
    assert ranks.tolist() == [1, 0, 3, 2, 0, 1, 0, 3, 0]


def test_where_nobody_ranked_the_rest_ties_below(batch):
    expected = with_expected(replace(batch, rank=torch.full((9,), -1)), [1])
    assert expected_on_top(expected).tolist() == [1, 0, 1] + [-1] * 6
    assert expected_on_top(replace(expected, rank=None)).tolist() == [1, 0, 1] + [-1] * 6


def test_an_expected_response_that_was_ranked_stays(batch):
    assert expected_on_top(with_expected(batch, [1], rank=2)).tolist() == [0, 2, *RANKS[2:]]


@named_by_class(KIN)
def test_expected_responses_are_compared_by_what_they_say(kind, text, batch):
    """The loss is the same as if the learner had written them and they were ranked first."""
    expected = with_expected(batch, [0, 4, 8])  # the best reply of each group
    as_learners = text.loss(text.moved(kind(policy=text.gru_policy(), expected_first=True)), expected)
    module = text.moved(kind(policy=text.gru_policy()))
    torch.testing.assert_close(as_learners, text.loss(module, batch))
    assert abs(float(as_learners - text.loss(module, expected))) > 1e-4  # without the knob they do not count as replies


def test_reply_steps_are_the_learners_where_it_spoke(batch):
    joint = replace(batch, expert_mask=torch.ones_like(batch.mask), mask=batch.mask.index_fill(0, torch.tensor(0), 0))
    assert reply_steps(joint)[0].all() and torch.equal(reply_steps(joint)[1:], batch.mask[1:])


# ---- what is refused


def test_nothing_to_compare_is_refused(text, batch):
    module = DPOPolicy(policy=text.gru_policy())
    for broken in (replace(batch, group=None), replace(batch, rank=None)):
        with pytest.raises(ValueError, match="no `group` and `rank`"):
            module.prepare(broken)
    with pytest.raises(ValueError, match="expected_first: true"):
        module.prepare(with_expected(replace(batch, rank=torch.full((9,), -1)), [1]))
    with pytest.raises(ValueError, match="no expected response"):
        unranked = replace(batch, rank=torch.full((9,), -1))
        DPOPolicy(policy=text.gru_policy(), expected_first=True).prepare(unranked)


@named_by_class(KIN)
def test_a_collection_without_a_pair_moves_nothing_and_is_told(kind, text, batch):
    """Rollouts only warn, because the next one may have a pair. Rows of a file never change, so they are refused."""
    module = text.moved(kind(policy=text.gru_policy()))
    noted = {}
    module.note = lambda name, x, counts=True: noted.__setitem__(name, float(x))
    prepared = module.prepare(replace(batch, log_probs=torch.zeros(batch.mask.shape)))
    assert noted["pairs"] == 9
    silent = replace(batch, rank=torch.full_like(batch.rank, -1), log_probs=torch.zeros(batch.mask.shape))
    with pytest.warns(UserWarning, match="no group"):
        prepared = module.prepare(silent)
    assert noted["pairs"] == 0
    gradient = text.gradient_of(module, text.micro_batches(prepared, [list(range(9))]))
    assert not gradient.any()
    with pytest.raises(ValueError, match="no group has two ranked replies.*rank at least two replies to one prompt"):
        module.prepare(replace(silent, log_probs=None))


def test_figures_by_hand():
    """Rewards 1, 3, 2 for ranks 0, 1, 1 of one group: margins −2 and −1, and 0 for the tie. One row has no group.

    With rewards 4, 3, 2 both pairs are ranked correctly.
    """
    rank = torch.tensor([0, 1, 1, -1])
    ranked = pairs(torch.zeros(4, dtype=torch.long), rank)
    assert ranked.tie.tolist() == [False, False, True]
    figures = preference_figures(torch.tensor([1.0, 3, 2, 9]), ranked)
    assert {name: x.tolist() for name, x in figures.items()} == {
        "accuracy": [0, 0, 0],
        "margin": [-2, -1, 0],
        "chosen_reward": [1, 1, 0],
        "rejected_reward": [3, 2, 0],
    }
    assert preference_figures(torch.tensor([4.0, 3, 2, 9]), ranked)["accuracy"].tolist() == [1, 1, 0]


def test_figures_are_means_over_the_pairs_that_do_not_tie(text):
    """Implicit rewards 1, 3, 2 for ranks 0, 1, 1: margins −2 and −1, with mean −1.5; chosen 1, rejected 3 and 2."""
    batch = text.replies_to([0, 0, 0, 1], [2, 2, 2, 2], rank=torch.tensor([0, 1, 1, -1]))
    module = DPOPolicy(policy=text.gru_policy(), beta=0.5)
    prepared = module.prepare(batch)
    now = module.evaluate(prepared)
    now.log_probs = prepared.ref_log_probs + torch.tensor([[1.0], [3], [2], [9]]) * batch.mask  # β·2 tokens = 1
    figures = module.figures(prepared, now)
    expected = {"accuracy": 0, "margin": -1.5, "chosen_reward": 1, "rejected_reward": 2.5}
    assert {name: float(figures[name]) for name in expected} == pytest.approx(expected, abs=1e-5)


# ---- with a Trainer


def fitted(module, data, epochs):
    trainer = L.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=epochs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, data)


@named_by_class(KIN)
def test_training_prefers_what_was_chosen(kind, text, tmp_path):
    """The better of two replies ends with the higher implicit reward at every prompt, unlike at the start."""
    pair = text.replies_to([0, 0, 1, 1, 2, 2], [3] * 6, rank=torch.tensor([1, 0, 0, 1, 0, 1]))
    save_batch(pair, tmp_path / "rows.pt")
    module = kind(policy=text.gru_policy(), optimizer=lambda p: torch.optim.Adam(p, lr=0.03))

    before = module.figures(module.prepare(pair))
    fitted(module, OfflineDataModule(str(tmp_path / "rows.pt"), passes=15), epochs=2)
    after = module.figures(module.prepare(pair))
    assert before["accuracy"] < 1 and after["accuracy"] == 1
    assert after["margin"] > before["margin"]


@pytest.mark.parametrize("learn_tie", [True, False])
@named_by_class([RaoKupperDPOPolicy, DavidsonDPOPolicy])
def test_the_tie_parameter_learns_where_it_should(kind, learn_tie, text, batch, tmp_path):
    """The tie parameter decreases if the data has no ties."""
    save_batch(batch, tmp_path / "rows.pt")
    parameters = {"tie": 1.0} if learn_tie else None
    sgd = lambda groups: torch.optim.SGD(groups, lr=0.01)  # noqa: E731
    module = kind(policy=text.gru_policy(), learn_tie=learn_tie, optimizer=sgd, network_lr=parameters)
    before = float(module.tie["raw"].detach())
    fitted(module, OfflineDataModule(str(tmp_path / "rows.pt")), epochs=2)
    after = float(module.tie["raw"].detach())
    assert after < before if learn_tie else after == before
