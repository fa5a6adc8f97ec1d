"""Prompt files: how they are split, which errors they have, and training without a rule that scores replies."""

import json
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("tokenizers")

from data_modules.judgements.schema import Message  # noqa: E402
from data_modules.text import ModelUser, PromptFile, TextDataModule, WordTokenizer  # noqa: E402
from lightning_nlf.batch import MissingField  # noqa: E402
from lightning_nlf.language.shape import DecoderShape  # noqa: E402
from lightning_nlf.networks import TransformerPolicy  # noqa: E402
from lightning_nlf.objectives import ReinforcePolicy  # noqa: E402

QUESTIONS = [f"what is {word} ?" for word in "abcdefghij"]


def write(path, *lines):
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return str(path)


@pytest.fixture
def file(tmp_path):
    return write(tmp_path / "prompts.jsonl", *({"prompt": question} for question in QUESTIONS))


def texts(task, split):
    return {case.text for case in task.cases(split)}


def test_the_split_goes_by_the_prompts_and_not_by_their_order(file, tmp_path):
    """Ten prompts, shares .2 and .1: two and one are held out; a prompt that occurs twice stays in one split."""
    task = PromptFile(file, val_share=0.2, test_share=0.1)
    sides = [texts(task, split) for split in ("train", "val", "test")]
    assert [len(side) for side in sides] == [7, 2, 1] and set.union(*sides) == set(QUESTIONS)
    again = write(tmp_path / "again.jsonl", *({"prompt": question} for question in reversed(QUESTIONS * 2)))
    reordered = PromptFile(again, val_share=0.2, test_share=0.1)
    assert [texts(reordered, split) for split in ("train", "val", "test")] == sides
    assert len(reordered.cases("val")) == 4


def test_a_line_without_an_id_is_named_by_its_prompt(tmp_path):
    path = write(tmp_path / "p.jsonl", {"prompt": "a", "id": "mine"}, {"prompt": "b"}, {"prompt": "b"}, {"prompt": "c"})
    cases = PromptFile(path, val_share=0, test_share=0).cases("train")
    ids = [case.id for case in cases]
    assert ids[0] == "mine" and ids[2] == f"{ids[1]}-2" and len(set(ids)) == 4
    alone = write(tmp_path / "q.jsonl", {"prompt": "c"})
    assert PromptFile(alone, val_share=0, test_share=0).cases("train")[0].id == ids[3]


def test_what_a_judge_must_know_and_what_the_teacher_would_say_come_along(tmp_path):
    chat = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    path = write(
        tmp_path / "p.jsonl",
        {"prompt": chat, "expected": "yes", "facts": {"reference": "it is"}},
        {"prompt": "plain", "responses": ["r"], "score": 0.5, "source": "people"},
    )
    task = PromptFile(path, val_share=0, test_share=0)
    first, second = task.cases("train")
    assert first.facts == {"reference": "it is"} and first.text == "system: s\n\nuser: u" and second.text == "plain"
    assert [task.expected(case) for case in (first, second)] == ["yes", None]
    assert task.demonstrations("train") == [(first.prompt, "yes")]
    assert task.begin(first).reply("anything", True).reward is None


@pytest.mark.parametrize(
    "lines, message",
    [
        ([{"text": "a"}], r"p.jsonl:1: text: unknown field; known fields: prompt, .*prompt: is missing"),
        ([{"prompt": "a"}, "{"], r"p.jsonl:2: not JSON"),
        ([{"prompt": "a", "facts": "b"}], r"p.jsonl:1: facts: must be an object like"),
        ([{"prompt": "a", "id": "x"}, {"prompt": "b", "id": "x"}], r"p.jsonl:2: id: 'x' is also on line 1"),
        ([{"prompt": [{"role": "assistant", "content": "a"}]}], r"p.jsonl:1: prompt: its last message is"),
        (["[1]"], r"p.jsonl"),
    ],
)  # fmt: skip
def test_a_line_that_is_wrong_is_named(tmp_path, lines, message):
    task = PromptFile(write(tmp_path / "p.jsonl", *lines))
    with pytest.raises(ValueError, match=message):
        task.cases("train")


def test_a_held_out_prompt_that_is_trained_on_is_refused(tmp_path, file):
    held_out = write(tmp_path / "val.jsonl", {"prompt": "new"}, {"prompt": QUESTIONS[3]})
    with pytest.raises(ValueError, match=rf"val.jsonl:2: prompt: is also in {file}:4"):
        PromptFile(file, val_path=held_out, test_share=0).cases("train")
    with pytest.raises(ValueError, match="leave nothing to train on"):
        PromptFile(file, val_share=0.5, test_share=0.5)
    with pytest.raises(ValueError, match="there is no file"):
        PromptFile("nowhere.jsonl").cases("train")


# ---- dialogues


@dataclass
class Counting:
    """A user who asks again until there are 5 messages."""

    def next_message(self, messages):
        return None if len(messages) >= 5 else f"and {len(messages)} ?"


def test_the_user_goes_on_with_the_follow_ups_and_then_as_the_user_does(tmp_path):
    """Replies y1, y2, y3 to x with the follow-up f: [x, y1, f, y2, "and 4 ?", y3], and there it ends."""
    path = write(tmp_path / "p.jsonl", {"prompt": "x", "follow_ups": ["f"]}, {"prompt": "z"})
    scripted = PromptFile(path, val_share=0, test_share=0)
    case, unscripted = scripted.cases("train")
    assert scripted.turns == 2
    dialogue = scripted.begin(case)
    first, second = dialogue.reply("y1", True), dialogue.reply("y2", True)
    assert (first.text, first.over, first.reward) == ("f", False, None) and second.over
    assert scripted.begin(unscripted).reply("y1", True).over

    task = PromptFile(path, val_share=0, test_share=0, user=Counting(), turns=3)
    dialogue = task.begin(case)
    outcomes = [dialogue.reply(text, True) for text in ("y1", "y2", "y3")]
    assert [outcome.text for outcome in outcomes] == ["f", "and 4 ?", ""] and outcomes[-1].over
    roles = [(message.role, message.content) for message in dialogue.messages]
    assert roles[1::2] == [("assistant", text) for text in ("y1", "y2", "y3")]
    with pytest.raises(ValueError, match="turns: more than 1 turn needs a `user`"):
        PromptFile(path, turns=3)
    with pytest.raises(ValueError, match="p.jsonl:1: follow_ups: must be a list"):
        PromptFile(write(tmp_path / "p.jsonl", {"prompt": "x", "follow_ups": "f"})).cases("train")


@dataclass
class Parrot:
    """A `Replier` with a fixed reply, which stores what it read."""

    tokens: list[int]
    prompts: list[list[int]] = field(default_factory=list)

    def reply(self, ids, lengths, state=None, **how):
        self.prompts += [row[:length] for row, length in zip(ids.tolist(), lengths.tolist(), strict=True)]
        tokens = torch.tensor([self.tokens] * len(ids))
        return tokens, torch.zeros(tokens.shape), torch.full((len(ids),), len(self.tokens)), None


@pytest.mark.parametrize("text, message", [("why so ?", "why so ?"), ("bye .", None), ("", None)])
def test_a_model_plays_the_user_and_may_end_the_dialogue(text, message):
    words = WordTokenizer().fit(["user: assistant: x y why so ? bye . say: then"])
    parrot = Parrot([*words.encode(text), words.eos])
    user = ModelUser(parrot, words, instruction="{conversation} then say:", end="bye !")
    exchange = [Message("user", "x"), Message("assistant", "y")]
    assert user.next_message(exchange) == message
    assert parrot.prompts == [words.encode("user: x assistant: y then say:")]


# ---- without scores


def data_with(file, model, **how):
    """A data module with a model, as in a Trainer."""
    knobs = {"prompts": 3, "replies": 2, "max_new": 4, "evaluation_prompts": 1} | how
    data = TextDataModule(PromptFile(file), tokenizer=WordTokenizer(), **knobs)
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    data.trainer = SimpleNamespace(
        world_size=1, global_rank=0, lightning_module=model, strategy=strategy, testing=False,
        accumulate_grad_batches=1, default_root_dir="run",
    )  # fmt: skip
    data.setup("fit")
    return data


@pytest.fixture
def model():
    torch.manual_seed(0)
    shape = DecoderShape(vocabulary=96, layers=1, heads=2, width=16, context=64)
    return ReinforcePolicy(policy=TransformerPolicy(shape))


def test_where_nobody_pays_a_batch_has_no_rewards_and_policy_gradient_says_so(file, model):
    data = data_with(file, model)
    batch = data.collect(model, np.random.default_rng(0))
    assert batch.rewards is None and batch.score is None and batch.group.tolist() == [0, 0, 1, 1, 2, 2]
    assert "return" not in data.statistics and "no_spread" not in data.statistics
    assert data.statistics["length"] > 0 and data.counters["feedback_calls"] == 0
    with pytest.raises(MissingField, match="no rewards"):
        model.prepare(batch)


def test_where_nobody_pays_an_evaluation_has_no_return_and_a_prediction_no_score(file, model):
    data = data_with(file, model)
    evaluated = data.evaluate(model, np.random.default_rng(0), True)
    assert evaluated.rewards is None and set(evaluated.metrics) == {"length", "finished"}
    assert "score" not in data.transcript_rows[0] and "parts" not in data.transcript_rows[0]
    (loader,) = data.predict_dataloader()
    lines = [line for batch in loader for line in data.records(batch)]
    assert lines and all("score" not in line and "source" not in line for line in lines)
    assert all(len(line["responses"]) == len(line["meta"]["tokens"]) for line in lines)


def test_the_best_of_several_needs_somebody_who_pays(file, model):
    data = data_with(file, model, best_of=2)
    with pytest.raises(MissingField, match="best_of: nothing scores the replies"):
        list(data.predict_dataloader()[0])
