"""Mixed feedback in one fit: each term equals the plain objective on its own lines alone."""

import lightning as L
import pytest
import torch

from data_modules.feedback import FeedbackDataModule, Judgement, write
from data_modules.text.tokenizer import WordTokenizer
from lightning_nlf.maths.means import row_counts, stamp_totals
from lightning_nlf.networks import GRUPolicy
from lightning_nlf.objectives import DPOPolicy, ImitationPolicy, ReinforcePolicy
from lightning_nlf.objectives.mixed_feedback import MixedFeedbackPolicy

USE = ("score", "ranking", "preference", "expected", "critique")
NLL = {"divergence": "nll"}
KINDS = {  # the term: its lines, the plain objective, its knobs and term, and the fields that it uses
    "policy": (
        [Judgement("q a", ("b", "c d a"), score=(0.25, 1.0)), Judgement("q", ("b c",), score=(0.5,))],
        (ReinforcePolicy, {"gamma": 1.0}, "policy", ("score",)),
    ),
    "critique": (
        [Judgement("q b", ("b",), critique=("e e",)), Judgement("q d", ("a", "c"), critique=(None, "d"))],
        (ImitationPolicy, NLL, "imitation", ("critique",)),
    ),
    "imitation": (
        [Judgement("q c", expected="e d"), Judgement("q q", expected="a")],
        (ImitationPolicy, NLL, "imitation", ("expected",)),
    ),
    "preference": (
        [Judgement("q e", ("b", "c d"), ranking="B > A"), Judgement("q e", ("d", "e"), preference=0.9)],
        (DPOPolicy, {"beta": 0.5}, "preference", ("ranking", "preference")),
    ),
}
ALL = [line for lines, _ in KINDS.values() for line in lines]


@pytest.fixture
def module_of(tmp_path):
    def make(judgements, use=USE, **knobs):
        write(tmp_path / "feedback.jsonl", judgements)
        tokenizer = WordTokenizer().fit(["a b c d e q answer : critique"])
        data = FeedbackDataModule(path=str(tmp_path / "feedback.jsonl"), tokenizer=tokenizer, use=use, **knobs)
        data.setup("fit")
        return data

    return make


def built(family, **knobs):
    """Reference and policy differ, so that no term has its initial value."""
    torch.manual_seed(0)
    module = family(policy=GRUPolicy(13, 8), **knobs)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in module.policy.parameters():
            p += 0.3 * torch.randn(p.shape, generator=generator)
    return module


def mixed(**knobs):
    return built(MixedFeedbackPolicy, gamma=1.0, beta=0.5, divergence="nll", **knobs)


def terms(module, rows, parts=1):
    """Terms of the prepared rows, in one part, or the mean over parts as a Trainer would compute it."""
    prepared = module.prepare(rows)
    totals = {name: count.sum().float() for name, count in row_counts(prepared).items()}
    cut = [prepared[prepared.group % parts == i] for i in range(parts)]
    losses = [module.losses(part, module.evaluate(part)) for part in stamp_totals(cut, totals, parts)]
    return {name: sum(part_losses[name] for part_losses in losses) / parts for name in losses[0]}


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_each_term_is_what_it_is_on_its_own_lines_alone(kind, parts, module_of):
    """For any mixture and split. No part of three has lines of every kind."""
    lines, (plain, knobs, name, use) = KINDS[kind]
    alone = terms(built(plain, **knobs), module_of(lines, use).rows)[name]
    terms_now = terms(mixed(), module_of(ALL).rows, parts)[kind]
    assert alone.abs() > 1e-3
    torch.testing.assert_close(terms_now, alone, atol=1e-6, rtol=1e-5)


@pytest.mark.filterwarnings("error:rank. no group has two ranked replies")
@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_that_no_line_has_is_silent(kind, module_of):
    """On the lines of one kind alone, its term equals the plain objective. The others are 0 and have no gradient."""
    lines, (plain, knobs, name, use) = KINDS[kind]
    module = mixed()
    losses = terms(module, module_of(lines).rows)
    assert {term for term, loss in losses.items() if loss != 0} == {kind}
    torch.testing.assert_close(losses[kind], terms(built(plain, **knobs), module_of(lines, use).rows)[name])
    for term, loss in losses.items():
        module.zero_grad()
        loss.backward(retain_graph=True)
        gradients = [p.grad for p in module.policy.parameters() if p.grad is not None]
        assert any(gradient.any() for gradient in gradients) == (term == kind), term


def test_a_reply_without_a_score_has_not_earned_0(module_of):
    """Without the mixin, ranked replies would count as failures, and change the policy term."""
    rows = module_of(ALL).rows
    terms_now, naive = (terms(module, rows)["policy"] for module in (mixed(), built(ReinforcePolicy, gamma=1.0)))
    assert (terms_now - naive).abs() > 1e-2


def test_the_weight_of_the_critiques(module_of):
    rows = module_of(ALL).rows
    once, twice = (terms(mixed(critique_weight=weight), rows) for weight in (1.0, 2.0))
    torch.testing.assert_close(twice["critique"], 2 * once["critique"])
    torch.testing.assert_close(twice["imitation"], once["imitation"])


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_one_fit_learns_all_of_it(module_of):
    """Held-out lines have a ranking, an expected response and a critique. Their losses are logged, and decrease."""
    held_out = [Judgement("d", ("b", "c d"), ranking="B > A", expected="e d", critique=("e e", None))]
    data = module_of(ALL, minibatches=2)
    write(data.paths[0] + ".held", held_out)
    data = module_of(ALL, minibatches=2, val_path=data.paths[0] + ".held")
    module = mixed(optimizer=lambda p: torch.optim.Adam(p, 0.02))
    quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
    trainer = L.Trainer(accelerator="cpu", max_epochs=12, num_sanity_val_steps=0, inference_mode=False, **quiet)
    before = trainer.validate(module, datamodule=data, verbose=False)[0]
    trainer.fit(module, datamodule=data)
    after = trainer.callback_metrics
    for name in ("val/preference", "val/imitation", "val/critique"):
        assert after[name] < 0.8 * before[name]
    assert {"train/policy", "train/critique", "train/imitation", "train/preference"} <= set(after)


def test_who_has_a_score_must_be_said(module_of):
    rows = module_of(ALL).rows
    del rows.extra["scored"]
    with pytest.raises(ValueError, match="extra.scored"):
        mixed().prepare(rows)
