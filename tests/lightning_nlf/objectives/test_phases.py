"""The phases that prepare rows, the means of terms, and held-out metrics, for every split into micro-batches."""

import inspect
import math
from dataclasses import replace

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

from lightning_nlf import objectives
from lightning_nlf.batch import MissingField, required
from lightning_nlf.maths.steps import last_valid
from lightning_nlf.modules import PolicyModule
from lightning_nlf.networks import GRUReward, GRUValue
from lightning_nlf.objective import Objective, Term
from lightning_nlf.objectives import (
    BradleyTerryReward,
    DPOPolicy,
    ImitationPolicy,
    JointPolicy,
    KTOPolicy,
    ORPOPolicy,
    RankedDPOPolicy,
    RaoKupperDPOPolicy,
    RWRPolicy,
    UnlikelihoodPolicy,
)
from lightning_nlf.rewards.reward_module import RewardModule

# ---- phases


class Recorded:
    """Mixins that record the hooks that ran."""

    def __init__(self):
        self.calls = []

    def mixin(self, name, base=Objective):
        def writes(hook, answer):
            def method(module, *arguments):
                self.calls.append((hook, name))
                return answer(*arguments)

            return method

        def terms(batch, now):
            return [Term(name, now.log_probs, "mask")]

        prepares = ("annotate", "select", "masks", "refer", "shape_rewards", "credit", "reweigh")
        hooks = {hook: writes(hook, lambda batch: batch) for hook in prepares}
        hooks["terms"] = writes("terms", terms)
        hooks["measure"] = writes("measure", lambda stage, batch, now: None)
        hooks["advance"] = writes("advance", lambda: None)
        return type(name, (base,), hooks)

    def module(self, policy):
        right = self.mixin("right")
        left = self.mixin("left", self.mixin("base of left"))
        return type("Both", (left, right, PolicyModule), {})(policy=policy)


ORDER = ["right", "base of left", "left"]


def in_order(*hooks):
    return [(hook, name) for hook in hooks for name in ORDER]


def test_each_phase_runs_each_mixin_once_from_the_right(text):
    recorded = Recorded()
    recorded.module(text.gru_policy()).prepare(text.replies_to([0, 0], [2, 3]))
    phases = ("annotate", "select", "masks", "refer", "shape_rewards", "credit", "reweigh")
    assert recorded.calls == in_order(*phases)


def test_held_out_rows_pass_the_phases_that_add(text):
    """Held-out rows are not selected, and their rewards and credit are not computed."""
    recorded = Recorded()
    module = recorded.module(text.gru_policy())
    logged(module, text.replies_to([0, 0], [2, 3]))
    assert recorded.calls == in_order("annotate", "masks", "refer", "terms", "measure")


def test_terms_and_advance_run_each_mixin_once_from_the_right(text):
    recorded = Recorded()
    module = recorded.module(text.gru_policy())
    assert list(module.losses(text.replies_to([0, 0], [2, 3]))) == ORDER
    module.advance_all()
    assert recorded.calls == in_order("terms", "advance")


# ---- terms


def yielding(*terms):
    """A mixin whose terms are computed from (batch, now)."""

    class Yielding(Objective):
        def terms(self, batch, now):
            return [term(batch, now) for term in terms]

    return Yielding


def made_of(text, *mixins, **knobs):
    return type("Made", (*mixins, PolicyModule), {})(policy=text.gru_policy(), **knobs)


def test_two_terms_with_one_name_are_refused(text):
    mixins = [yielding(lambda batch, now: Term("twin", now.log_probs, "mask")) for _ in range(2)]
    with pytest.raises(ValueError, match="Made: two terms are called twin"):
        made_of(text, *mixins).losses(text.replies_to([0, 0], [2, 3]))


def test_values_of_another_shape_than_their_mask_are_refused(text):
    module = made_of(text, yielding(lambda batch, now: Term("rows", now.log_probs.sum(1), "mask")))
    with pytest.raises(ValueError, match=r"rows: its values have shape \(2,\), but the mask `mask` has \(2, 5\)"):
        module.losses(text.replies_to([0, 1], [2, 3]))


def scores_of_steps(per=None, weight=1.0, logged_only=False):
    """The score of the row at each of the learner's steps."""

    def term(batch, now):
        values = batch.score[:, None].expand(batch.mask.shape)
        return Term("score", values + 0 * now.log_probs, "mask", per, weight, logged_only)

    return yielding(term)


@pytest.fixture
def scored(text):
    """Rows of 1 and 3 steps with scores 6 and 2; the last 2 steps of the second row are the learner's."""
    rows = text.replies_to([0, 0], [1, 3], score=torch.tensor([6.0, 2.0]))
    first = rows.valid & (rows.valid.cumsum(1) == 1)
    return replace(rows, mask=rows.valid & ~(first & torch.tensor([[False], [True]])))


def test_a_mean_is_over_the_steps_or_per_another_count(text, scored):
    """(6 + 2 + 2) over 3 steps of the learner, or per 4 valid steps; times the weight."""
    assert float(made_of(text, scores_of_steps()).losses(scored)["score"]) == pytest.approx(10 / 3)
    per_valid = made_of(text, scores_of_steps("valid", weight=0.5))
    assert float(per_valid.losses(scored)["score"]) == pytest.approx(0.5 * 10 / 4)
    parts = text.micro_batches(scored, [[0], [1]])
    assert float(sum(per_valid.losses(part)["score"] for part in parts)) / 2 == pytest.approx(0.5 * 10 / 4)


def test_a_mean_per_another_count_does_not_depend_on_how_held_out_rows_are_cut(text, scored):
    """10/4, without the weight. Weighted by the learner's steps, the rows would give (6/1 · 1 + 4/3 · 2)/3."""
    module = made_of(text, scores_of_steps("valid", weight=0.5))
    for parts in ([scored], [scored[:1], scored[1:]]):
        assert validated(module, parts)["val/score"] == pytest.approx(10 / 4)


def test_a_figure_is_no_loss(text, scored):
    module = made_of(text, scores_of_steps(logged_only=True))
    assert module.losses(scored) == {}
    assert float(module.figures(scored)["score"]) == pytest.approx(10 / 3)
    with pytest.raises(ValueError, match="val_share"):
        logged(module, scored)


class MeanOfScores(Objective):
    def terms(self, batch, now):
        score = required(batch.score, "the batch has no score")
        yield Term("score", score[:, None] + 0 * now.log_probs, "mask")


def test_a_field_that_is_missing_ends_training_and_leaves_out_a_mixins_terms_of_held_out_rows(text):
    rows = text.replies_to([0, 0], [2, 3])
    module = made_of(text, MeanOfScores, yielding(lambda batch, now: Term("nll", -now.log_probs, "mask")))
    with pytest.raises(MissingField, match="the batch has no score"):
        module.losses(rows)
    assert set(logged(module, rows)) == {"val/nll"}
    assert set(logged(module, replace(rows, score=torch.ones(2)))) == {"val/nll", "val/score"}


def test_demonstrations_are_measured_by_imitation_alone(text):
    """Held-out rows have no advantages for the policy gradient. In training that is an error."""
    rows = text.replies_to([0, 0], [2, 3])
    rows = replace(rows, mask=rows.mask & False, expert_mask=rows.mask, expert_actions=rows.actions)
    module, plain = (kind(policy=text.gru_policy(), divergence="nll") for kind in (JointPolicy, ImitationPolicy))
    with pytest.raises(MissingField, match="no advantages"):
        module.losses(rows)
    assert logged(module, rows) == logged(plain, rows)
    assert "val/imitation" in logged(plain, rows)


# ---- sums


class SumOfReplies(Objective):
    """A weighted term of steps, and a term of rows."""

    def masks(self, batch):
        return batch.with_masks(replies=batch.mask.any(1))

    def terms(self, batch, now):
        yield Term("steps", -now.log_probs, "mask", weight=0.5)
        yield Term("rows", now.log_probs.sum(1) ** 2, "replies")


@pytest.mark.parametrize("parts", [[[0, 1, 2, 3, 4]], [[0], [1, 2, 3, 4]], [[4, 1], [3], [0, 2]]])
def test_a_sum_is_the_sum_whatever_the_cut(parts, text):
    """SGD on Σ terms, in this number of micro-batches. The mean over 15 steps and 5 rows would be another loss."""
    rows = text.replies_to([0, 0, 1, 1, 1], [2, 4, 1, 3, 5])
    module = made_of(text, SumOfReplies, reduce="sum", optimizer=lambda p: torch.optim.SGD(p, lr=1e-3))
    start = [p.detach().clone() for p in module.parameters()]
    log_probs = module.evaluate(rows).log_probs
    loss = 0.5 * -log_probs[rows.mask].sum() + (log_probs.sum(1) ** 2).sum()
    gradients = torch.autograd.grad(loss, list(module.parameters()))
    prepared = module.prepare(rows)
    micro_batches = DataLoader(text.micro_batches(prepared, parts), batch_size=None)
    trainer = quiet_trainer(max_epochs=1, accumulate_grad_batches=len(parts), num_sanity_val_steps=0)
    trainer.fit(module, micro_batches)
    assert trainer.global_step == 1
    assert float(trainer.callback_metrics["train/loss"]) == pytest.approx(float(loss.detach()), rel=1e-5)
    for before, gradient, after in zip(start, gradients, module.parameters(), strict=True):
        torch.testing.assert_close(after.detach(), before - 1e-3 * gradient, atol=1e-6, rtol=1e-5)


def test_held_out_rows_of_a_sum_are_measured_by_their_mean(text, scored):
    summed, mean = (made_of(text, scores_of_steps(), reduce=reduce) for reduce in ("sum", "mean"))
    assert logged(summed, scored) == logged(mean, scored) == {"val/score": pytest.approx(10 / 3)}
    rows = text.replies_to([0, 0, 1, 1], [2, 4, 1, 3], rank=torch.tensor([0, 1, 1, 0]))
    rewards = [BradleyTerryReward(reward=gru_reward(), reduce=reduce) for reduce in ("sum", "mean")]
    assert logged(rewards[0], rows) == logged(rewards[1], rows)


# ---- held-out rows


KINDS = {
    DPOPolicy: {},
    RankedDPOPolicy: {},
    RaoKupperDPOPolicy: {},
    ORPOPolicy: {"chosen_weight": 0.3},
    KTOPolicy: {"threshold": 0.5},
    UnlikelihoodPolicy: {"threshold": 0.5, "unlikelihood_weight": 3.0},
}


@pytest.fixture
def batch(text):
    """Three groups of unequal size, with a tie. Each of the parts below has good and bad rows."""
    return text.replies_to(
        [0, 0, 0, 1, 1, 2, 2],
        [2, 4, 1, 3, 3, 5, 2],
        rank=torch.tensor([0, 1, 1, 1, 0, 0, 1]),
        score=torch.tensor([1, 0, 0, 0, 1, 1, 0.0]),
    )


def quiet_trainer(**knobs):
    return L.Trainer(
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **knobs,
    )


def validated(module, parts):
    return quiet_trainer().validate(module, DataLoader(parts, batch_size=None), verbose=False)[0]


def logged(module, rows):
    """Held-out metrics by name, without a Trainer."""
    metrics = {}
    module.log = lambda name, x, **_: metrics.update({name: x})
    with torch.no_grad():
        module.assess("val", rows)
    numbers = {name: float(x.compute()) for name, x in metrics.items()}
    for x in metrics.values():
        x.reset()
    del module.log
    return numbers


def gru_reward():
    torch.manual_seed(0)
    return GRUReward(11, width=8)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_it_is_what_training_says_of_the_rows(kind, text, batch):
    """Held-out terms without their weights, in one batch or in two. They do not count as experience.

    KTO's baseline depends on the batch, so it is fixed.
    """
    module = text.moved(kind(policy=text.gru_policy(), **KINDS[kind]))
    module.reference_point = lambda batch: torch.tensor(0.3)
    whole = validated(module, [batch])
    parts = validated(module, [batch[torch.tensor([0, 1, 2])], batch[torch.tensor([3, 4, 5, 6])]])
    assert module.experience == 0
    prepared = module.prepare(batch)
    means = module.losses(prepared) | module.figures(prepared)
    weights = {"chosen": 0.3, "unlikelihood": 3.0}
    single = {"theta", "baseline_kl"}  # not a mean over rows
    assert set(whole) == {f"val/{name}" for name in means if name not in single} and len(whole) >= 2
    for name in means.keys() - single:
        expected = float(means[name].detach()) / weights.get(name, 1.0)
        assert whole[f"val/{name}"] == pytest.approx(expected, abs=1e-5)
        assert parts[f"val/{name}"] == pytest.approx(whole[f"val/{name}"], abs=1e-5)


def test_expected_responses_are_compared_there_too(text, batch):
    theirs = torch.tensor([True] + [False] * 6)
    rows = replace(
        batch,
        mask=batch.mask & ~theirs[:, None],
        expert_mask=batch.mask & theirs[:, None],
        expert_actions=batch.actions,
        rank=torch.where(theirs, -1, batch.rank),
    )
    module = text.moved(DPOPolicy(policy=text.gru_policy(), expected_first=True))
    measured, ranked = validated(module, [rows]), validated(module, [batch])
    of_the_learner = "val/reference_kl"  # over `mask`, in which an expected response is not
    assert measured.pop(of_the_learner) != ranked.pop(of_the_learner)
    assert measured == pytest.approx(ranked, abs=1e-5)


def test_rollouts_are_measured_by_their_return(text, batch):
    rewarded = replace(batch, rewards=torch.ones(batch.mask.shape))
    assert validated(DPOPolicy(policy=text.gru_policy()), [rewarded]) == {"val/return": pytest.approx(20 / 7)}


def test_a_regression_on_rewards_is_evaluated_by_rewards(text, batch):
    with pytest.raises(ValueError, match="val_share"):
        validated(RWRPolicy(policy=text.gru_policy()), [batch])


# ---- names


NLL, LEASHED = {"divergence": "nll"}, {"kl_weight": 0.1}
KNOBS = {
    "ImitationPolicy": NLL, "JointPolicy": NLL, "SummedJointPolicy": NLL, "JointAgent": NLL, "InjectionPolicy": NLL,
    "InjectionAgent": NLL, "FilteredJointPolicy": NLL, "RejectionSamplingPolicy": NLL, "C3POPolicy": NLL,
    "MixedFeedbackPolicy": NLL, "RLHFPolicy": LEASHED, "RLHFAgent": LEASHED, "OneStepRLHFPolicy": LEASHED,
    "KTOPolicy": {"threshold": 0.5}, "UnlikelihoodPolicy": {"threshold": 0.5},
    "SimPOPolicy": {"chosen_weight": 1.0}, "SDPOPolicy": {},
    "DPOPolicy": {}, "ConservativeDPOPolicy": {}, "RobustDPOPolicy": {}, "HingeDPOPolicy": {}, "IPOPolicy": {},
    "RankedDPOPolicy": {}, "RaoKupperDPOPolicy": {}, "DavidsonDPOPolicy": {}, "CPOPolicy": {}, "ORPOPolicy": {},
    "SLiCPolicy": {}, "BradleyTerryReward": {}, "RaoKupperReward": {}, "DavidsonReward": {}, "PlackettLuceReward": {},
    "SoftPreferenceReward": {}, "OutcomeReward": {}, "ProcessReward": {}, "StepValueReward": {},
}  # fmt: skip
BY_REWARDS = {
    "ReinforcePolicy", "ActorCriticAgent", "AWRAgent", "RWRPolicy", "CritiqueGRPOPolicy", "FirstTurnPolicy",
    "RLSDPolicy", "SRPOPolicy", "UnweightedInjectionPolicy", "SummedInjectionPolicy", "WeightedInjectionPolicy",
    "ShapedInjectionPolicy",
}  # fmt: skip
OF_CONTROL = {"QActorCriticAgent"}
LABELS_IN_REWARDS = ("ProcessReward", "StepValueReward")


def built(text, name, **knobs):
    kind = getattr(objectives, name)
    if issubclass(kind, RewardModule):
        return kind(reward=gru_reward(), **knobs)
    value = {"value": GRUValue(11, width=8)} if name.endswith("Agent") else {}
    return text.moved(kind(policy=text.gru_policy(), **value, **knobs))


@pytest.fixture
def held_out(text):
    """Rows with every kind of feedback: ranked replies, a critique, an expected response."""
    rows = text.rounds_of([0, 0, 0, 1, 1, 1], [2, 4, 3, 3, 1, 5], [0, 0, 1, 0, 0, 1], [0.0] * 6, has_feedback=[1] * 6)
    extra = {
        "label": torch.tensor([1, 0, 1, 1, 0, 1]).bool(),
        "scored": torch.ones(6, dtype=torch.bool),
        "critique": torch.tensor([0, 0, 1, 0, 0, 0]).bool(),
        "preference": torch.full((6,), 0.9),
        "step_ends": last_valid(rows.valid),
    }
    rank, score = torch.tensor([0, 1, -1, 0, 0, 1]), torch.tensor([1.0, 0, 1, 0, 1, 0])
    return replace(rows, rewards=None, extra=rows.extra | extra, rank=rank, score=score)


def test_every_class_is_below():
    kinds = {name for name, x in vars(objectives).items() if inspect.isclass(x) and issubclass(x, Objective)}
    assert kinds == KNOBS.keys() | BY_REWARDS | OF_CONTROL


@pytest.mark.parametrize("name", KNOBS)
def test_every_name_that_is_logged_is_announced(name, text, held_out):
    """A callback may monitor it: it is in `reports` of the class or of one of its mixins."""
    module = built(text, name, **KNOBS[name])
    rows = replace(held_out, rewards=torch.ones(held_out.mask.shape)) if name in LABELS_IN_REWARDS else held_out
    names = {metric.removeprefix("val/") for metric in logged(module, rows)}
    assert names and names <= set(module.held_out_metrics())
    assert set(module.held_out_losses) <= names


@pytest.mark.parametrize("name", sorted(BY_REWARDS))
def test_rows_that_have_no_reward_are_refused_where_only_rewards_are_learned(name, text, held_out):
    with pytest.raises(ValueError, match="reward"):
        logged(built(text, name), held_out)


@pytest.mark.parametrize("name", KNOBS)
def test_held_out_rows_leave_nothing_to_the_log_of_training(name, text, held_out):
    """They take no part in sums over ranks either, which would wait for a rank with fewer held-out batches."""
    module = built(text, name, **KNOBS[name])
    rows = replace(held_out, rewards=torch.ones(held_out.mask.shape)) if name in LABELS_IN_REWARDS else held_out
    logged(module, rows)
    assert not module._unlogged


@pytest.mark.parametrize(("name", "loss"), [("C3POPolicy", "preference"), ("MixedFeedbackPolicy", "imitation")])
def test_the_first_loss_says_which_model_is_best(name, loss, text, held_out):
    module = built(text, name, **KNOBS[name])
    logged(module, held_out)
    assert module.held_out_losses[0] == loss


def test_perplexity_is_of_the_steps_that_are_imitated(text, held_out):
    """A critique is also an expert row, but it is predicted, not imitated."""
    metrics = logged(built(text, "MixedFeedbackPolicy", **KNOBS["MixedFeedbackPolicy"]), held_out)
    assert metrics["val/perplexity"] == pytest.approx(math.exp(metrics["val/imitation"]), rel=1e-4)
    assert metrics["val/critique"] != pytest.approx(metrics["val/imitation"], abs=1e-3)


def test_of_held_out_rows_a_mixin_has_all_its_terms_or_none(text, batch):
    class Halfway(Objective):
        def terms(self, batch, now):
            yield Term("before", now.log_probs, "valid")
            required(batch.advantages, "no advantages")

    module = made_of(text, Halfway)
    assert module.gather(batch, module.evaluate(batch), held_out=True) == []
