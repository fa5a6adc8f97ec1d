"""Conversion of judgements into rows with one layout for all kinds of feedback."""

from dataclasses import replace

import pytest
import torch

from data_modules.feedback.rows import Layout
from data_modules.feedback.selection import Keep, code_of
from data_modules.judgements.schema import Judgement, Message, Step
from data_modules.text import FolderTokenizer, Wording
from data_modules.text.prompts import PromptFormat
from data_modules.text.tokenizer import BPETokenizer
from tests.data_modules.text.chats import SHAPES, folder

ALL = ("score", "ranking", "steps", "expected")
FULL = Judgement("q a", ("b", "c d"), score=(0.25, 1.0), ranking="B > A", expected="e", where="f:1")
STEPS = Judgement("q", ("b c",), steps=((Step(1, 1.0), Step(3, 0.5)),), where="f:2")


def batch_of(layout, *judgements):
    scores = sorted(x for judgement in judgements for x in judgement.score or () if x is not None)
    layout = replace(layout, scores=scores)
    return layout.batch([group for judgement in judgements if (group := layout.rows(judgement))])


def test_a_batch_by_hand(tokenizer):
    """Ids: <eos> 1, a 3, b 4, c 5, d 6, e 7, q 8. A row's action at t is token t + 1; . marks prompt tokens.

    q a | b <eos>     8 3 4 1    obs 8 3 4    actions 3 4 1    valid . x x      reward .25 at the end
    q a | c d <eos>   8 3 5 6 1  obs 8 3 5 6  actions 3 5 6 1  valid . x x x    reward 1 at the end
    q a | e <eos>     8 3 7 1    obs 8 3 7    actions 3 7 1    valid . x x      expected
    q | b c <eos>     8 4 5 1    obs 8 4 5    actions 4 5 1    valid x x x      steps end at b and at c
    """
    batch = batch_of(Layout(PromptFormat(tokenizer), ALL), FULL, STEPS)
    decided = torch.tensor([[0, 1, 1, 0], [0, 1, 1, 1], [0, 1, 1, 0], [1, 1, 1, 0]]).bool()
    actions = torch.tensor([[3, 4, 1, 0], [3, 5, 6, 1], [3, 7, 1, 0], [4, 5, 1, 0]])
    inside = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 1, 0]]).bool()
    obs = torch.tensor([[8, 3, 4, 0], [8, 3, 5, 6], [8, 3, 7, 0], [8, 4, 5, 0]])
    assert torch.equal(batch.obs[inside], obs[inside]) and torch.equal(batch.actions[inside], actions[inside])
    assert torch.equal(batch.valid, decided)
    expected = torch.tensor([False, False, True, False])[:, None]
    learner = (
        decided & ~expected & torch.tensor([[1, 1, 1, 1]] * 3 + [[1, 1, 0, 0]]).bool()
    )  # in the last row only step ends
    assert torch.equal(batch.mask, learner) and torch.equal(batch.expert_mask, decided & expected)
    assert torch.equal(batch.expert_actions, batch.actions)
    assert batch.rewards.tolist() == [[0, 0, 0.25, 0], [0, 0, 0, 1], [0, 0, 0, 0], [1, 0.5, 0, 0]]
    assert batch.extra["step_ends"].int().tolist() == [[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [1, 1, 0, 0]]
    assert batch.final_obs.tolist() == [1, 1, 1, 1] and batch.terminated.all()
    assert batch.group.tolist() == [0, 0, 0, 1] and batch.rank.tolist() == [1, 0, -1, -1]
    assert batch.score[:2].tolist() == [0.25, 1] and batch.score[2:].isnan().all()
    assert batch.extra["scored"].tolist() == [True, True, False, False]
    assert batch.extra["finished"].all() and batch.log_probs is None


def test_the_steps_of_a_reply_are_paid_instead_of_its_score(tokenizer):
    judgement = Judgement("q", ("b c",), score=(0.75,), steps=((Step(1, -1.0),),))
    batch = batch_of(Layout(PromptFormat(tokenizer), ALL), judgement)
    assert batch.rewards.tolist() == [[-1, 0, 0]] and batch.score.tolist() == [0.75]
    assert batch.mask.tolist() == [[True, True, True]]
    batch = batch_of(Layout(PromptFormat(tokenizer), ("steps",)), judgement)
    assert batch.mask.tolist() == [[True, False, False]] and batch.valid.all()
    batch = batch_of(Layout(PromptFormat(tokenizer), ("score",)), judgement)
    assert batch.rewards.tolist() == [[0, 0, 0.75]] and "step_ends" not in batch.extra


def test_no_token_goes_across_the_end_of_a_step():
    """Byte-pair encoding merges "ab", except if a step ends after the a."""
    tokenizer = BPETokenizer(259).fit(["ab ab ab"])
    assert len(tokenizer.encode("abab")) == 2
    judgement = Judgement("q", ("abab",), steps=((Step(3, 1.0), Step(4, 0.0)),))
    batch = batch_of(Layout(PromptFormat(tokenizer), ("steps",)), judgement)
    assert [tokenizer.decode([i]) for i in batch.actions[0, :-1].tolist()] == ["ab", "a", "b"]
    assert batch.extra["step_ends"].tolist() == [[False, True, True, False]]


@pytest.mark.parametrize(
    ("use", "learner", "imitated"),
    [
        (("score",), [1, 1], [0, 0]),
        (("ranking",), [1, 1], [0, 0]),
        (("steps",), [1], [0]),
        (("expected",), [0], [1]),
        (("ranking", "expected"), [1, 1, 0], [0, 0, 1]),
        (("responses",), [1, 1, 1], [0, 0, 0]),
    ],
)
def test_only_what_is_used_makes_rows(tokenizer, use, learner, imitated):
    batch = batch_of(Layout(PromptFormat(tokenizer), use), FULL, STEPS)
    assert batch.mask.any(1).int().tolist() == learner and batch.expert_mask.any(1).int().tolist() == imitated
    assert (batch.rank >= 0).any() == ("ranking" in use)
    assert batch.extra["scored"].any() == ("score" in use) == (not batch.score.isnan().all())


def test_one_response_may_have_a_score_and_another_none(tokenizer):
    judgement = Judgement("q", ("a", "b"), score=(None, 0.5))
    batch = batch_of(Layout(PromptFormat(tokenizer), ("score",)), judgement)
    assert batch.obs[:, 1].tolist() == [4]
    batch = batch_of(Layout(PromptFormat(tokenizer), ("score", "responses")), judgement)
    assert batch.extra["scored"].tolist() == [False, True] and batch.mask.any(1).all()


def test_a_reply_that_was_cut_off_does_not_stop(tokenizer):
    cut = Judgement("q", ("a", "b"), score=(0.0, 1.0), meta={"finished": [False, True]})
    batch = batch_of(Layout(PromptFormat(tokenizer), ALL), cut)
    assert batch.valid.sum(1).tolist() == [1, 2] and batch.final_obs.tolist() == [3, 1]
    assert batch.extra["finished"].tolist() == [False, True]
    assert batch.rewards.tolist() == [[0, 0], [0, 1]]
    for wrong in ("yes", [True], [0, 1]):
        with pytest.raises(ValueError, match="^f:3: meta: finished must be true or false"):
            batch_of(
                Layout(PromptFormat(tokenizer), ALL),
                Judgement("q", ("a", "b"), (0, 1), meta={"finished": wrong}, where="f:3"),
            )


@pytest.mark.parametrize(
    ("judgement", "message"),
    [
        (Judgement("q x", ("b",), (1.0,), where="f:7"), "^f:7: the tokenizer has no token for 'x'"),
        (Judgement("q", ("b",), (1.0,), expected="a b c", where="f:7"), "^f:7: 1 tokens of the prompt and 4 of the"),
        (Judgement("q", ("b  c",), steps=((Step(1, 1), Step(3, 1)),), where="f:7"), "^f:7: steps: '  ' has no token"),
        (Judgement((Message("user", "q"),), ("b",), (1.0,), where="f:7"), "^f:7: the prompt is a list of messages"),
    ],
)
def test_what_makes_no_row_is_said_of_its_line(tokenizer, judgement, message):
    with pytest.raises(ValueError, match=message):
        Layout(PromptFormat(tokenizer), ALL, context=4).rows(judgement)


def test_a_row_may_fill_the_context(tokenizer):
    (row,) = Layout(PromptFormat(tokenizer), ALL, context=4).rows(Judgement("q", expected="a b"))
    assert len(row.prompt) + len(row.reply) == 4


# ---- what is imitated


SCORED = [Judgement("q", ("a", "b"), score=(0.9, 0.8)), Judgement("q q", ("c", "d"), score=(0.1, 0.2))]


@pytest.mark.parametrize(
    ("keep", "imitated"),
    [
        (Keep(above=0.2), [1, 1, 0, 1]),
        (Keep(share=0.25), [1, 0, 0, 0]),
        (Keep(share=0.5), [1, 1, 0, 0]),
        (Keep(share=0.51), [1, 1, 0, 1]),
        (Keep(share=0.5, per_prompt=True), [1, 0, 0, 1]),
        (Keep(share=0.5, per_prompt=True, above=0.5), [1, 0, 0, 0]),
    ],
)
def test_good_replies_are_kept_as_expected_ones(tokenizer, keep, imitated):
    batch = batch_of(Layout(PromptFormat(tokenizer), ("score",), keep=keep), *SCORED)
    assert batch.expert_mask.any(1).int().tolist() == imitated
    assert torch.equal(batch.mask, batch.valid)
    alone = batch_of(Layout(PromptFormat(tokenizer), ("expected",), keep=keep), *SCORED)
    assert len(alone) == sum(imitated) and not alone.mask.any() and torch.equal(alone.expert_mask, alone.valid)
    assert alone.rewards is None and alone.score.isnan().all()


def test_ties_with_the_last_that_is_kept_are_kept():
    assert Keep(share=0.5).threshold([0, 1, 1, 1], []) == 1
    assert Keep(share=1.0).threshold([0.5, 1], []) == 0.5
    assert Keep(share=0.2).threshold([0.1 * i for i in range(10)], []) == 0.8  # two of ten, not three by rounding


@pytest.mark.parametrize(
    ("knobs", "message"),
    [({}, "keep: needs"), ({"share": 0}, "keep.share: got 0"), ({"above": 1, "per_prompt": True}, "keep.per_prompt")],
)
def test_a_choice_that_is_none_is_refused(knobs, message):
    with pytest.raises(ValueError, match=message):
        Keep(**knobs)


def test_codes_split_the_scores_in_equal_parts():
    """The mid-quantiles of 1, 2, 3, 4 are 1/8, 3/8, 5/8, 7/8."""
    codes = [code_of(score, [1, 2, 3, 4], ["low", "high"]) for score in (0, 1, 2, 3, 4, 9)]
    assert codes == ["low", "low", "low", "high", "high", "high"]
    assert [code_of(x, [1, 2, 3, 4], "abcd") for x in (1, 2, 3, 4)] == ["a", "b", "c", "d"]


@pytest.mark.parametrize("count", [1, 5, 9])
def test_a_binary_score_has_one_code_each(count):
    scores = [0.0] * (10 - count) + [1.0] * count
    assert [code_of(score, scores, ["bad", "good"]) for score in (0.0, 1.0)] == ["bad", "good"]


def test_a_code_stands_between_prompt_and_reply(tokenizer):
    """Prompts end with the codes d (worst) or e; the expected response has the best code, unscored replies none."""
    judgements = [*SCORED, Judgement("q", ("a",), ranking="A"), Judgement("q", expected="c")]
    batch = batch_of(Layout(PromptFormat(tokenizer), ALL, codes=(" d", " e")), *judgements)
    prompts = [batch.obs[i, : int(batch.valid[i].int().argmax()) + 1].tolist() for i in range(len(batch))]
    assert prompts == [[8, 7], [8, 7], [8, 8, 6], [8, 8, 6], [8], [8, 7]]
    assert batch.expert_mask.any(1).tolist() == [True, True, True, True, False, True]
    kept_batch = batch_of(Layout(PromptFormat(tokenizer), ALL, codes=(" d", " e"), keep=Keep(above=0.8)), *SCORED)
    assert kept_batch.expert_mask.any(1).tolist() == [True, True, False, False]


def test_what_was_sampled_is_not_tokenised_again(tokenizer):
    """No text encodes to <unk> 2, so the sampled ids must be used; with another tokenizer they are ignored."""
    meta = {"tokens": [[4, 2, 1]], "tokenizer": tokenizer.digest}
    judgement = Judgement("q", ("b c",), score=(0.5,), meta=meta)
    assert batch_of(Layout(PromptFormat(tokenizer), ALL), judgement).actions.tolist() == [[4, 2, 1]]
    foreign = replace(judgement, meta=meta | {"tokenizer": "of another"})
    assert batch_of(Layout(PromptFormat(tokenizer), ALL), foreign).actions.tolist() == [[4, 5, 1]]
    with pytest.raises(ValueError, match="meta: tokens must be a list of ids for each response"):
        Layout(PromptFormat(tokenizer), ALL).rows(replace(judgement, meta=meta | {"tokens": [[4], [5]]}))


def test_steps_end_at_the_tokens_that_were_sampled(tokenizer):
    """b and c are single tokens; the rest of the response is not in the vocabulary and cannot be encoded."""
    meta = {"tokens": [[4, 5, 2, 1]], "tokenizer": tokenizer.digest}
    text = tokenizer.decode([4, 5, 2])
    judgement = Judgement("q", (text,), steps=((Step(1, 1.0), Step(3, 0.5)),), meta=meta)
    batch = batch_of(Layout(PromptFormat(tokenizer), ("steps",)), judgement)
    assert batch.actions.tolist() == [[4, 5, 2, 1]]
    assert batch.extra["step_ends"].tolist() == [[True, True, False, False]]
    assert batch.rewards.tolist() == [[1, 0.5, 0, 0]]
    changed = replace(judgement, responses=(text + " b c d e",), steps=((Step(len(text) + 4, 1.0),),))
    with pytest.raises(ValueError, match="steps: they do not fit the tokens in meta"):
        Layout(PromptFormat(tokenizer), ("steps",)).rows(changed)


# ---- preferences and critiques


def test_a_preference_is_that_of_each_row(tokenizer):
    """A is better with probability .3, so B has rank 0; at .5 they tie. A ranking takes precedence."""
    lines = [
        Judgement("q", ("a", "b"), preference=0.3),
        Judgement("q", ("a", "b"), preference=0.5),
        Judgement("q", ("a", "b"), preference=0.3, ranking="A > B"),
        Judgement("q", ("a", "b"), ranking="B > A"),
    ]
    batch = batch_of(Layout(PromptFormat(tokenizer), ("ranking", "preference")), *lines)
    assert batch.rank.tolist() == [1, 0, 0, 0, 0, 1, 1, 0] and batch.mask.any(1).all()
    assert batch.extra["preference"][:6].tolist() == pytest.approx([0.3, 0.7, 0.5, 0.5, 0.3, 0.7])
    assert batch.extra["preference"][6:].isnan().all()
    alone = batch_of(Layout(PromptFormat(tokenizer), ("preference",)), *lines)
    assert alone.rank.tolist() == [1, 0, 0, 0, 1, 0]
    assert "preference" not in batch_of(Layout(PromptFormat(tokenizer), ("ranking",)), *lines).extra


def test_a_critique_is_predicted_behind_prompt_and_reply(tokenizer):
    """With the template "{prompt} e {response} d", the critique c of q a | b becomes q a e b d | c <eos>.

    The second reply has no feedback. The scored reply is another row of the same group.
    """
    line = Judgement("q a", ("b", "c d"), score=(0.5, None), critique=("c", None), where="f:1")
    layout = Layout(PromptFormat(tokenizer), ("score", "critique"), critique_prompt="{prompt} e {response} d")
    batch = batch_of(layout, line)
    assert batch.extra["critique"].tolist() == [False, True] and batch.group.tolist() == [0, 0]
    assert batch.obs[1].tolist() == [8, 3, 7, 4, 6, 5] and batch.actions[1, 4:].tolist() == [5, 1]
    assert batch.expert_mask.sum(1).tolist() == [0, 2] and batch.mask.sum(1).tolist() == [2, 0]
    assert batch.rank.tolist() == [-1, -1] and batch.extra["scored"].tolist() == [True, False]
    assert batch.rewards[1].sum() == 0
    assert "critique" not in batch_of(Layout(PromptFormat(tokenizer), ("score",)), line).extra
    with pytest.raises(ValueError, match="^f:1: 5 tokens of the prompt and 2 of the reply are more than the "):
        replace(layout, context=6).rows(line)


def test_on_a_chat_template_a_critique_is_predicted_as_a_turn_of_the_conversation(tmp_path):
    """[user x, assistant y, user "what is wrong with it?"], with the yaml's wording if it has any."""
    model = FolderTokenizer(folder(tmp_path, SHAPES["chatml"], "bytes"))
    line = Judgement("what is it", ("nothing",), critique=("so much",))
    mine = Wording(criticise="Is it so? Else say {praise}")
    for asks, wording in ((None, Wording()), (mine, mine)):
        (row,) = Layout(PromptFormat(model), ("critique",), critique_prompt=asks).rows(line)
        question = wording.criticise.format(praise=wording.praise)
        turns = [("user", "what is it"), ("assistant", "nothing"), ("user", question)]
        assert row.prompt == model.encode_chat([{"role": role, "content": text} for role, text in turns])
        assert row.reply == [*model.encode("so much"), model.eos]
    (row,) = Layout(PromptFormat(model), ("critique",), critique_prompt="{prompt} | {response}").rows(line)
    assert row.prompt == model.encode_chat([{"role": "user", "content": "what is it | nothing"}])
    (row,) = Layout(PromptFormat(model, False), ("critique",)).rows(line)
    assert row.prompt == model.encode_prompt("what is it answer : nothing critique :")


def test_the_last_message_of_a_chat_is_put_into_the_critique_prompt(tokenizer):
    read = []
    tokenizer.encode_chat = lambda messages: read.append(messages) or [8]
    line = Judgement((Message("system", "a"), Message("user", "b")), ("c",), critique=("d",))
    Layout(PromptFormat(tokenizer), ("critique",), critique_prompt="{prompt} | {response}").rows(line)
    assert read == [[{"role": "system", "content": "a"}, {"role": "user", "content": "b | c"}]]
