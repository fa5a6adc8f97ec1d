"""FeedbackDataModule: epochs, process ranks, held-out rows, and refused arguments."""

import hashlib
from dataclasses import replace
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from jsonargparse import ArgumentParser

from data_modules.feedback import FeedbackDataModule, Judgement, write
from data_modules.feedback.selection import Keep
from data_modules.judgements.schema import Step
from data_modules.text.tokenizer import WordTokenizer
from lightning_nlf.networks import GRUPolicy, GRUReward
from lightning_nlf.objectives import (
    BradleyTerryReward,
    DPOPolicy,
    FilteredJointPolicy,
    ImitationPolicy,
    JointPolicy,
    ProcessReward,
    ReinforcePolicy,
    ShapedInjectionPolicy,
    UnweightedInjectionPolicy,
)

WORDS = "abcde"


def prompts(count):
    """Different prompts, each with two ranked replies."""
    return [
        Judgement(" ".join(["q"] * (i % 4 + 1) + [WORDS[i // 4]]), ("a b", "c"), score=(0.0, 1.0), ranking="B > A")
        for i in range(count)
    ]


def read_prompts(batch):
    """Prompt tokens of each row."""
    return {tuple(batch.obs[i, : int(batch.valid[i].int().argmax()) + 1].tolist()) for i in range(len(batch))}


def held_out(data):
    (loader,) = data.val_dataloader()
    return list(loader)


# ---- training


def test_an_epoch_sees_every_row_once_and_splits_no_group(module):
    data = module(prompts(12), minibatches=5, passes=2)
    batches = list(data.train_dataloader())
    assert len(batches) == 10 and sum(map(len, batches)) == 2 * 24
    for batch in batches:
        assert (batch.group.bincount()[batch.group] == 2).all()
        assert batch.totals["strict_pairs"] == len(batch) / 2 and batch.extra["scored"].all()
        assert batch.totals["mask"] == batch.mask.sum() > 0


def test_ranks_share_the_groups(module):
    parts = [module(prompts(5), world_size=2, rank=rank).collect(None, None) for rank in (0, 1)]
    groups = [set(part.group.tolist()) for part in parts]
    assert groups == [{0, 2, 4}, {1, 3}]


def test_too_few_groups_are_refused(module):
    data = module(prompts(2), minibatches=3)
    with pytest.raises(ValueError, match="path: got 2 judgements, must be at least 3"):
        next(data.iteration())


def test_the_teacher_is_paid_once(module):
    """Three lines, each with two scores and a ranking; the expected response of one line is not used."""
    data = module([*prompts(3), Judgement("q", expected="a")], use=("score", "ranking"))
    for _ in range(2):
        list(data.train_dataloader())
    assert data.counters == {"iteration": 2, "feedback_calls": 9}


def test_what_is_said_once_is_paid_once(module):
    """Two critiques and one comparison: a ranking and a preference of the same pair count once."""
    line = Judgement("q", ("a", "b"), critique=("c", "d"), ranking="A > B", preference=0.75, score=(1.0, 1.0))
    data = module([line], use=("ranking", "preference", "critique"), critique_prompt="{prompt} e {response} d")
    list(data.train_dataloader())
    assert data.counters["feedback_calls"] == 3
    assert data.longest_row == 6  # q e a d c <eos>


def test_a_tokenizer_made_from_the_files_knows_their_critiques(module):
    line = Judgement("a", ("b",), critique=("no source",), score=(0.0,))
    data = module([line], use=("critique",), tokenizer=WordTokenizer(), critique_prompt="{prompt} said {response} bad")
    assert data.tokenizer.decode(data.rows.actions[0].tolist()) == "said b bad no source"
    with pytest.raises(ValueError):
        module([line], use=("score",), tokenizer=WordTokenizer()).tokenizer.encode("source")


def fitted(model, data, epochs):
    data.trainer = None
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=epochs, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(model, datamodule=data)
    return trainer


@pytest.mark.parametrize("better", [0, 1])
@pytest.mark.parametrize(
    ("objective", "settings", "knobs"),
    [
        (ReinforcePolicy, {"gamma": 1.0}, {"use": ("score",)}),
        (ImitationPolicy, {"divergence": "nll"}, {"use": ("expected",), "keep": Keep(above=1.0)}),
        (DPOPolicy, {}, {"use": ("ranking",)}),
    ],
)
def test_a_policy_learns_to_prefer_the_better_reply(module, objective, settings, knobs, better):
    """The first word of the better reply, "a b" or "c", becomes the most probable one."""
    scores, ranking = ((1.0, 0.0), "A > B") if better == 0 else ((0.0, 1.0), "B > A")
    data = module([replace(line, score=scores, ranking=ranking) for line in prompts(8)], minibatches=2, **knobs)
    torch.manual_seed(0)
    model = objective(policy=GRUPolicy(9, 16), optimizer=lambda p: torch.optim.Adam(p, 0.02), **settings)
    fitted(model, data, epochs=20)
    tokens, *_ = model.reply(torch.tensor([[8, 3]]), torch.tensor([2]), stop=(1,), max_new=1, deterministic=True)
    assert tokens.tolist() == [[(3, 5)[better]]]


@pytest.mark.parametrize(
    ("objective", "judgement", "knobs"),
    [
        (BradleyTerryReward, {"ranking": "B > A"}, {"use": ("ranking",)}),
        (
            ProcessReward,
            {"steps": ((Step(1, 0.0), Step(3, 1.0)), (Step(1, 1.0),))},  # a is wrong; b and c are right
            {"use": ("steps",)},
        ),
    ],
)
def test_a_reward_is_learned_and_measured_on_held_out_prompts(module, objective, judgement, knobs):
    """The reply c is better than a b for every prompt."""
    lines = [Judgement(line.prompt, line.responses, **judgement) for line in prompts(12)]
    torch.manual_seed(0)
    model = objective(reward=GRUReward(9, 16), optimizer=lambda p: torch.optim.Adam(p, 0.02))
    trainer = fitted(model, module(lines, minibatches=2, val_share=0.25, **knobs), epochs=15)
    assert trainer.callback_metrics["val/accuracy"] == 1


def test_a_yaml_says_it_all(tmp_path):
    """The short class path works, although it is imported lazily."""
    write(tmp_path / "feedback.jsonl", prompts(2))
    knobs = {
        "path": str(tmp_path / "feedback.jsonl"),
        "tokenizer": {"class_path": "data_modules.text.tokenizer.ByteTokenizer"},
        "use": ["score", "ranking"],
        "keep": {"share": 0.5, "per_prompt": True},
        "control_codes": [" bad", " good"],
        "scale": [0, 10],
    }
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(L.LightningDataModule, "data")
    config = {"data": {"class_path": "data_modules.feedback.FeedbackDataModule", "init_args": knobs}}
    data = parser.instantiate_classes(parser.parse_object(config)).data
    data.setup("fit")
    assert data.rows.expert_mask.any(1).tolist() == [False, True, False, True]
    assert data.scale == (0, 10) and data.layout.codes == (" bad", " good")


# ---- what is held out


def test_no_prompt_is_on_both_sides(module):
    lines = [Judgement(f"q {word}", ("a",), score=(0.5,)) for word in "abcdeq" for _ in range(3)]
    data = module(lines, val_share=0.34)
    groups = torch.cat([batch.group for batch in held_out(data)])
    assert len(groups) == 6 and len(data.rows) == 12  # two of six prompts, with three lines each
    sides = read_prompts(data.rows), set().union(*map(read_prompts, held_out(data)))
    assert not sides[0] & sides[1] and len(sides[0] | sides[1]) == 6


def test_the_split_does_not_depend_on_seed_or_order(module):
    lines = prompts(12)
    first, second = (
        module(lines, val_share=0.25, seed=0),
        module(lines[::-1], name="other.jsonl", val_share=0.25, seed=1),
    )
    assert read_prompts(first.rows) == read_prompts(second.rows) and len(read_prompts(first.rows)) == 9


def test_files_of_two_rounds_may_share_ids_but_no_judgement(module, tmp_path):
    """Files of two runs of `predict` share ids, because both sample replies to the same prompts."""
    first, second = str(tmp_path / "first.jsonl"), str(tmp_path / "second.jsonl")
    lines = [replace(judgement, id=f"train-{i}") for i, judgement in enumerate(prompts(3))]
    write(first, lines)
    write(second, [replace(lines[0], responses=("a b", "d")), lines[1]])
    for knob in ("path", "val_path"):
        with pytest.raises(ValueError, match=f"{second}:2: id: 'train-1' is also in {first}:2"):
            module([Judgement("e", ("a", "b"), ranking="A > B")], **{knob: [first, second]})
    write(second, [replace(lines[0], responses=("a b", "d"))])
    assert len(module(lines, path=[first, second]).rows) == 2 * 4


def test_held_out_rows_have_the_layout_of_the_others(module, tmp_path):
    """Threshold and codes come from the training scores 0 and 1: .6 is not kept, but is in the better half."""
    write(tmp_path / "held.jsonl", [Judgement("d", ("a b", "c"), score=(0.6, 1.0), ranking="B > A")])
    data = module(
        prompts(4),
        val_path=str(tmp_path / "held.jsonl"),
        keep=Keep(share=0.5),
        control_codes=(" a", " e"),
    )
    (batch,) = held_out(data)
    assert set(batch.extra) == set(data.rows.extra) and batch.extra["scored"].all()
    assert batch.expert_mask.any(1).tolist() == [False, True] and batch.score.tolist() == pytest.approx([0.6, 1.0])
    assert batch.rewards is None and data.rows.rewards is not None
    assert batch.obs[:, 1].tolist() == [7, 7] and batch.rank.tolist() == [1, 0]


def test_held_out_batches_split_no_group_and_are_as_many_on_every_rank(module, tmp_path):
    lines = [Judgement(f"d {a} {b} {c}", ("a", "b"), (0, 1)) for a in WORDS for b in WORDS for c in WORDS]
    write(tmp_path / "held.jsonl", lines)
    knobs = {"val_path": str(tmp_path / "held.jsonl")}
    batches_by_rank = [held_out(module(prompts(4), world_size=2, rank=rank, **knobs)) for rank in (0, 1)]
    assert [len(batches) for batches in batches_by_rank] == [2, 2]
    assert all((batch.group.bincount()[batch.group] == 2).all() for batches in batches_by_rank for batch in batches)
    groups = [batch.group for batches in batches_by_rank for batch in batches]
    assert torch.cat(groups).sort().values.tolist() == [i for i in range(125) for _ in (0, 1)]


def test_the_test_is_on_its_own_file_or_on_the_validation(module, tmp_path):
    write(tmp_path / "test.jsonl", [Judgement("e", ("a",), (0.5,))])
    data = module(prompts(4), val_share=0.25)
    assert [len(batch) for batch in data.test_dataloader()[0]] == [2]
    data = module(prompts(4), val_share=0.25, test_path=str(tmp_path / "test.jsonl"))
    assert [len(batch) for batch in data.test_dataloader()[0]] == [1] and len(held_out(data)[0]) == 2
    assert module(prompts(4)).val_dataloader() == module(prompts(4)).test_dataloader() == []


def test_a_prompt_that_is_learned_from_is_not_held_out(module, tmp_path):
    write(tmp_path / "held.jsonl", [Judgement("e", ("a",), (0.5,)), prompts(1)[0]])
    for name in ("val_path", "test_path"):
        with pytest.raises(ValueError, match=f"{name}: .*held.jsonl:2: prompt: also in .*feedback.jsonl:1"):
            module(prompts(2), **{name: str(tmp_path / "held.jsonl")})


def test_one_prompt_cannot_be_split(module):
    with pytest.raises(ValueError, match="val_share: got 0.5, but there is only one prompt"):
        module([Judgement("q", ("a",), (0.5,))] * 2, val_share=0.5)


# ---- several files, digests, checkpoints


def test_several_files_are_one_data_set(module, tmp_path):
    write(tmp_path / "more.jsonl", [Judgement("e", ("a", "b"), ranking="A > B")])
    data = module(prompts(2), path=[str(tmp_path / "feedback.jsonl"), str(tmp_path / "more.jsonl")])
    assert data.rows.group.tolist() == [0, 0, 1, 1, 2, 2]
    assert data.rows.extra["scored"].tolist() == [True] * 4 + [False] * 2


def test_the_digest_is_that_of_the_content(module, tmp_path):
    data = module(prompts(2))
    path = tmp_path / "feedback.jsonl"
    assert data.data_digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert module(prompts(2), name="copy.jsonl").data_digest == data.data_digest
    assert module(prompts(3)).data_digest != data.data_digest


def test_a_run_goes_on_with_its_own_files_and_tokenizer_only(module):
    state = module(prompts(2)).state_dict()
    module(prompts(2)).load_state_dict(state)
    resumed = module(prompts(3))
    with pytest.raises(ValueError, match="path: the files have changed"):
        resumed.load_state_dict(state)
    resumed.trainer.state = SimpleNamespace(fn="test")
    resumed.load_state_dict(state)
    resumed.tokenizer = WordTokenizer().fit(["a b c d e q r"])
    with pytest.raises(ValueError, match="tokenizer: it differs"):
        resumed.load_state_dict(state)


# ---- what is refused


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"val_share": 1.0}, "val_share: got 1.0"),
        ({"val_share": 0.5, "val_path": "x"}, "remove one of the two"),
        ({"control_codes": ("a",)}, "control_codes: got .*two or more different"),
        ({"control_codes": ("a", "a")}, "control_codes"),
        ({"control_codes": ("a", "")}, "control_codes"),
        (
            {"use": ("steps",)},
            "use: got .steps., but .*feedback.jsonl has only the fields prompt, responses, score",
        ),
        ({"context": 3}, "lines are wrong\n.*feedback.jsonl:1: 2 tokens of the prompt and 3 of the reply are more"),
        ({"path": "none.jsonl"}, "path: there is no file none.jsonl"),
        ({"expected_score": 2.0}, "expected_score: got 2.0"),
        ({"expected_score": 1.0, "use": ("score",)}, "expected_score: .*`use` must include expected"),
        ({"critique_prompt": "{prompt}"}, "critique_prompt: placeholder {response} is missing"),
        ({"critique_prompt": "{prompt} {response} {score}"}, "critique_prompt: unknown placeholder {score}"),
        ({"critique_prompt": "{prompt} {response"}, "critique_prompt: .*; write {{ and }} for literal braces"),
    ],
)
def test_knobs_that_cannot_be_are_refused(module, knobs, message):
    with pytest.raises(ValueError, match=message):
        module(prompts(2), **knobs)


@pytest.mark.parametrize("knobs", [{"keep": Keep(share=0.5)}, {"control_codes": ("a", "b")}], ids=lambda x: list(x)[0])
def test_what_goes_by_the_score_needs_one(module, knobs):
    with pytest.raises(ValueError, match=f"{list(knobs)[0]}: it needs scores, and no reply in"):
        module([Judgement("q", ("a", "b"), ranking="A > B")], **knobs)


def test_bad_lines_are_skipped_if_asked(tmp_path, tokenizer):
    path = tmp_path / "feedback.jsonl"
    write(path, prompts(2))
    with open(path, "a") as file:
        file.write("x\n")
    with pytest.raises(ValueError, match=":3: not JSON"):
        FeedbackDataModule(str(path), tokenizer).setup("fit")
    data = FeedbackDataModule(str(path), tokenizer, on_bad="skip")
    with pytest.warns(UserWarning, match="skipped: .*:3: not JSON"):
        data.setup("fit")
    assert len(data.rows) == 4


def test_a_text_that_the_tokenizer_has_not_is_skipped_if_asked(module):
    """The second line's expected response and a held-out prompt have an unknown word."""
    strange = Judgement("q e", ("a",), score=(0.0,), expected="a zebra")
    lines = [prompts(1)[0], strange, prompts(5)[4]]
    with pytest.raises(ValueError, match=r"feedback.jsonl:2: the tokenizer has no token for 'zebra'"):
        module(lines)
    with pytest.warns(UserWarning, match=r"skipped: .*feedback.jsonl:2: the tokenizer has no token for 'zebra'"):
        data = module(lines, on_bad="skip")
    assert len(data.rows) == 4 and data.rows.group.tolist() == [0, 0, 1, 1]
    data.collect(None, None)
    assert data.counters["feedback_calls"] == 2 * (2 + 1)  # nothing of the second line
    with pytest.raises(ValueError, match="zebra"):
        module([strange], on_bad="skip")


def test_what_is_skipped_sets_no_threshold(module):
    """The best half of the four replies is c and zebra; the best half of the three readable ones is b and c."""
    scores = {"a": 0.25, "b": 0.5, "c": 0.75, "zebra": 1.0}
    lines = [Judgement("q", (x,), score=(score,)) for x, score in scores.items()]
    with pytest.warns(UserWarning, match="zebra"):
        data = module(lines, on_bad="skip", use=("expected",), keep=Keep(share=0.5))
    assert data.rows.actions[:, 0].tolist() == [4, 5] and data.rows.expert_mask.any(1).all()


def test_a_held_out_text_is_skipped_too(module, tmp_path):
    write(tmp_path / "val.jsonl", [*prompts(6)[5:], Judgement("zebra", ("a",), score=(1.0,))])
    with pytest.warns(UserWarning, match=r"val.jsonl:2: the tokenizer has no token for 'zebra'"):
        data = module(prompts(2), val_path=str(tmp_path / "val.jsonl"), on_bad="skip")
    assert len(data.held_out["val"]) == 2


# ---- expected responses as injected rows


LUFFY = {"relative": False, "baseline": "shared_group_mean", "normalize_advantages": False, "gamma": 1.0}


def test_an_expected_response_joins_its_group_with_a_score(module):
    """R = .25 and 1 have the mean .625: A = −.375 for the reply and .375 for the expected response, on every token."""
    data = module([Judgement("q", ("a b",), score=(0.25,), expected="c")], expected_score=1.0)
    rows = data.rows
    assert rows.score.tolist() == [0.25, 1] and rows.rewards.sum(1).tolist() == [0.25, 1]
    assert rows.mask.any(1).tolist() == [True, False] and torch.equal(rows.expert_mask[1], rows.valid[1])
    actor = ShapedInjectionPolicy(policy=GRUPolicy(9, 8), **LUFFY)
    prepared = actor.prepare(data.collect(actor, None))
    assert prepared.advantages[0][rows.mask[0]].tolist() == [-0.375] * 3
    assert prepared.advantages[1][rows.valid[1]].tolist() == [0.375] * 2


@pytest.mark.parametrize("kind", [ShapedInjectionPolicy, UnweightedInjectionPolicy])
def test_a_policy_learns_what_was_expected_by_injection(module, kind):
    knobs = LUFFY if kind is ShapedInjectionPolicy else {"gamma": 1.0, "baseline": "shared_group_mean"}
    data = module([Judgement("q", ("a",), score=(0.0,), expected="c")], expected_score=1.0)
    torch.manual_seed(0)
    actor = kind(policy=GRUPolicy(9, 8), optimizer=lambda p: torch.optim.Adam(p, 0.05), **knobs)
    quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
    L.Trainer(accelerator="cpu", max_epochs=40, **quiet).fit(actor, datamodule=data)
    reply, *_ = actor.reply(torch.tensor([[8]]), torch.tensor([1]), stop=(1,), max_new=2, deterministic=True)
    assert reply.tolist() == [[5, 1]]


def test_without_a_score_nothing_is_injected(module):
    """With reward 0, the policy would unlearn the expected response."""
    data = module([Judgement("q", ("a",), score=(0.5,), expected="c")])
    for actor in (
        ShapedInjectionPolicy(policy=GRUPolicy(9, 8), **LUFFY),
        UnweightedInjectionPolicy(policy=GRUPolicy(9, 8)),
        JointPolicy(policy=GRUPolicy(9, 8), divergence="nll", baseline="shared_group_mean"),
        FilteredJointPolicy(policy=GRUPolicy(9, 8), divergence="nll"),
    ):
        with pytest.raises(ValueError, match="score: .*expected_score"):
            actor.prepare(data.collect(actor, None))
    scored = module([Judgement("q", ("a",), score=(0.5,), expected="c")], expected_score=1.0)
    assert FilteredJointPolicy(policy=GRUPolicy(9, 8), divergence="nll").prepare(scored.rows).expert_mask[1].any()


def test_the_scale_of_scores_is_declared(module):
    with pytest.raises(ValueError, match="score: 7.0 is outside the scale 0 to 1"):
        module([Judgement("q", ("a",), (7.0,))])
    assert module([Judgement("q", ("a",), (7.0,))], scale=(0, 10)).rows.score.tolist() == [7]


def test_rankings_that_say_nothing_are_told(module):
    with pytest.warns(UserWarning, match="1 rankings have only ties; the first is .*feedback.jsonl:3"):
        module([*prompts(2), Judgement("e", ("a", "b"), ranking="A = B")])


def test_a_tokenizer_is_made_from_the_task_or_from_what_is_learned_from(module, tokenizer):
    """The two lines have the words a, b, c and q."""
    task = SimpleNamespace(corpus=lambda: iter(["a b c d e q r"]))
    assert module(prompts(2), tokenizer=WordTokenizer(), task=task).vocabulary == 10
    assert module(prompts(2), tokenizer=WordTokenizer()).vocabulary == 7
    ready = module(prompts(2), tokenizer=tokenizer, task=task)
    assert ready.vocabulary == 9 and ready.tokenizer_digest == tokenizer.digest
