"""Dialogues of several turns by a chat template: a small random Llama with ten templates."""

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import numpy as np
import pytest
import torch

pytest.importorskip("tokenizers")
pytest.importorskip("transformers")

from data_modules.feedback.rows import Layout  # noqa: E402
from data_modules.judgements.files import read  # noqa: E402
from data_modules.text import FolderTokenizer, TextDataModule  # noqa: E402
from data_modules.text.environment import Case, Outcome  # noqa: E402
from data_modules.text.episode import Turn  # noqa: E402
from data_modules.text.prompts import Chat, PromptFormat  # noqa: E402
from lightning_nlf.networks import DecoderShape, TransformerPolicy  # noqa: E402
from lightning_nlf.objectives import ReinforcePolicy  # noqa: E402
from tests.data_modules.text.chats import SHAPES, Shape, folder  # noqa: E402

STOP = {"gemma": ("<end_of_turn>",), "plain": ("<turn>",)}  # templates whose turns do not end with eos
SAYS = ("and so ?", "  how\nare <|im_end|> you </s>", "never asked")


@dataclass
class Talk:
    count: int = 0

    def reply(self, text, finished):
        self.count += 1
        return Outcome(float(len(text) % 3), text=SAYS[self.count - 1], over=self.count == 3)


class Questions:
    """Three turns, whatever the replies."""

    turns = 3

    def cases(self, split):
        return [Case(f"{split}-{word}", f"what is {word} ?") for word in ("it", "that")]

    def begin(self, case):
        return Talk()

    def corpus(self):
        return iter(())

    def expected(self, case):
        return None


def llama(data, context=512):
    """Large weights: a nearly uniform model would hide rows in the wrong order. Stop tokens are more likely."""
    torch.manual_seed(0)
    shape = DecoderShape(
        data.tokenizer.size, layers=2, heads=2, width=16, context=context, family="llama", init_std=0.35
    )
    policy = TransformerPolicy(shape)
    with torch.no_grad():
        policy.decoder.embed.weight[list(data.stops)] *= 3
    return ReinforcePolicy(policy=policy, optimizer=torch.optim.Adam)


def module(path, stop=(), **how):
    tokenizer = FolderTokenizer(path)
    settings = {"prompts": 2, "replies": 8, "max_new": 12, "chat": True, "stop": stop}
    data = TextDataModule(Questions(), tokenizer=tokenizer, **(settings | how))
    data.trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    data.setup("fit")
    return data


def collected(data, actor):
    return data.collect(actor, np.random.default_rng(1))


def whole(batch, row):
    """The ids of a row, and which of them were sampled."""
    length = int(batch.valid[row].nonzero()[-1]) + 2
    ids = torch.cat([batch.obs[row, :1], batch.actions[row]])[:length]
    return ids.tolist(), torch.cat([torch.tensor([False]), batch.mask[row]])[:length].tolist()


def parts(sampled):
    """Start and end (exclusive) of each reply."""
    edges = [place for place in range(1, len(sampled)) if sampled[place] != sampled[place - 1]] + [len(sampled)]
    return list(zip(edges[::2], edges[1::2], strict=True))


def users(*texts):
    """The messages before a reply; the assistant's messages between them do not matter."""
    chat = [{"role": "user", "content": texts[0]}]
    for text in texts[1:]:
        chat += [{"role": "assistant", "content": "so"}, {"role": "user", "content": text}]
    return chat


def test_a_dialogue_ends_where_the_context_has_no_room_for_another_reply(tmp_path):
    """Rows are as long as with a larger context, or as long as fits with `max_new` tokens of another reply."""
    data = module(folder(tmp_path, SHAPES["chatml"], "bytes"))
    large = collected(data, llama(data))
    starts = [[begin for begin, _ in parts(whole(large, row)[1])] for row in range(len(large))]
    context = sorted(begins[-1] for begins in starts)[len(large) // 2] + data.conversation.max_new - 1
    small = collected(data, llama(data, context))
    complete = []
    for row, begins in enumerate(starts):
        ids, sampled = whole(small, row)
        assert ids == whole(large, row)[0][: len(ids)]
        room = [begin + data.conversation.max_new <= context + 1 for begin in begins]  # the last token is not read
        assert [begin for begin, _ in parts(sampled)] == [
            begin for begin, fits in zip(begins, room, strict=True) if fits
        ]
        complete.append(all(room))
    assert True in complete and False in complete


@pytest.mark.parametrize("name", SHAPES)
def test_a_row_is_opening_replies_and_turns(name, tmp_path):
    """Sampled tokens keep their place; all other tokens are the template's, and are read."""
    data = module(folder(tmp_path, SHAPES[name], "bytes"), STOP.get(name, ()))
    actor = llama(data)
    batch = collected(data, actor)
    ended = []
    for row in range(len(batch)):
        ids, sampled = whole(batch, row)
        replies = parts(sampled)
        question = f"what is {'it' if data.cases['train'][0].ids == ids[: replies[0][0]] else 'that'} ?"
        assert ids[: replies[0][0]] == data.tokenizer.encode_chat(users(question)) and len(replies) == 3
        for turn, ((_, stop), (start, _)) in enumerate(zip(replies, replies[1:], strict=False)):
            last = ids[stop - 1] if ids[stop - 1] in data.stops else None
            chat = users(question, *SAYS[:turn])
            assert ids[stop:start] == data.tokenizer.encode_turn(SAYS[turn], chat, last)
            ended.append(last is not None)
    assert 0 < sum(ended) < len(ended)  # some replies end, and some are cut off
    with torch.no_grad():
        now = actor.policy(batch.obs).log_prob(batch.actions)
    torch.testing.assert_close(now[batch.mask], batch.log_probs[batch.mask], rtol=0, atol=1e-4)


def test_a_window_as_long_as_the_dialogue_sees_all_of_it(tmp_path):
    """Each row begins with the row before it; the last one is the whole dialogue from the same seeds."""
    data = module(folder(tmp_path, SHAPES["chatml"], "bytes"))
    parted = module(data.tokenizer.path, window=3)
    actor = llama(data)
    dialogues, rows = collected(data, actor), collected(parted, actor)
    for row in range(len(dialogues)):
        first, second, third = (whole(rows, 3 * row + turn)[0] for turn in range(3))
        assert third[: len(second)] == second and second[: len(first)] == first
        assert third == whole(dialogues, row)[0]


def test_a_window_is_a_chat_of_its_own_that_starts_with_what_was_asked_last(tmp_path):
    """Rows two and three with a window of two turns: from the first message on, and then without it."""
    data = module(folder(tmp_path, SHAPES["mistral"], "bytes"), window=2, replies=2)
    actor = llama(data)
    batch = collected(data, actor)
    encode_turn = data.tokenizer.encode_turn
    for episode in range(4):
        rows = [whole(batch, 3 * episode + turn) for turn in range(3)]
        read = [ids[: sampled.index(True)] for ids, sampled in rows]
        replies = [ids[len(front) :] for (ids, _), front in zip(rows, read, strict=True)]
        ends = [reply[-1] if reply[-1] in data.stops else None for reply in replies]
        (question,) = (prompt.case.prompt for prompt in data.cases["train"] if prompt.ids == read[0])
        assert read[1] == read[0] + replies[0] + encode_turn(SAYS[0], users(question), ends[0])
        opening = data.tokenizer.encode_chat(users(SAYS[0]))
        assert read[2] == opening + replies[1] + encode_turn(SAYS[1], users(SAYS[0]), ends[1])
    torch.testing.assert_close(actor.evaluate(batch).log_probs, batch.log_probs, rtol=0, atol=1e-4)


# ---- files and pages


def predicted(data, actor):
    data.trainer = SimpleNamespace(world_size=1, global_rank=0, lightning_module=actor, default_root_dir="run")
    (batch,) = data.predict_dataloader()[0]
    return batch, data.records(batch)


@pytest.mark.parametrize("window", [None, 2])
def test_a_prediction_has_a_line_for_each_reply_with_the_messages_before_it(window, tmp_path):
    """Two prompts with three dialogues each: one line for each reply that follows no empty message."""
    path = folder(tmp_path, SHAPES["chatml"], "bytes")
    data = module(path, chat=Chat("I want nothing"), replies=3, predict_split="train", window=window, prompt_suffix="!")
    batch, lines = predicted(data, llama(data))
    system, expected = {"role": "system", "content": "I want nothing"}, []
    for row in range(len(batch)):
        ids, sampled = whole(batch, row)
        name = f"train-{('it', 'that')[row // 3]}/{row % 3}"
        questions = [f"what is {('it', 'that')[row // 3]} ?", *SAYS]
        texts = []
        for turn, (start, stop) in enumerate(parts(sampled)):
            first = 0 if window is None else max(turn - window + 1, 0)
            chat = [system]
            for text, reply in zip(questions[first:turn], texts[first:], strict=True):
                chat += [{"role": "user", "content": text}, {"role": "assistant", "content": reply}]
            chat.append({"role": "user", "content": questions[turn]})
            reply = ids[start:stop]
            finished = reply[-1] in data.stops
            texts.append(data.tokenizer.decode(reply[: len(reply) - finished]))
            if all(text.strip() for text in texts[first:]):
                earned = batch.rewards[row, start - 1 : stop - 1].sum().item()
                expected.append(
                    (f"{name}/{turn + 1}", chat, [texts[-1]], [earned], [finished], [reply], name, turn + 1)
                )
    assert 12 < len(expected) < 18
    inside = ("finished", "tokens", "episode", "turn")
    records = [
        [line[x] for x in ("id", "prompt", "responses", "score")] + [line["meta"][x] for x in inside] for line in lines
    ]
    assert [tuple(record) for record in records] == expected
    assert len({line["id"] for line in lines}) == len(lines)
    assert {(line["source"], line["meta"]["run"], line["meta"]["tokenizer"]) for line in lines} == {
        ("rule", Path.cwd().joinpath("run").name, data.tokenizer.digest)
    }


class PaysTokens:
    """1 for each token of a reply, and −7 for each token that is only read."""

    def score(self, batch):
        return torch.where(batch.valid, 1.0, -7.0)


def test_the_score_of_a_line_is_what_its_reply_earned(tmp_path):
    path = folder(tmp_path, SHAPES["chatml"], "bytes")
    data = module(path, predict_split="train", reward=PaysTokens())
    actor = llama(data)
    data.trainer = SimpleNamespace(
        world_size=1, global_rank=0, lightning_module=actor, default_root_dir="run",
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
    )  # fmt: skip
    (batch,) = data.predict_dataloader()[0]
    lines = data.records(batch)
    assert len(lines) > 20 and len({line["score"][0] for line in lines}) > 3
    for line in lines:
        assert line["score"] == [len(line["meta"]["tokens"][0])]


def test_lines_of_a_dialogue_are_feedback_that_can_be_read(tmp_path):
    data = module(folder(tmp_path, SHAPES["llama3"], "bytes"), replies=2, predict_split="train")
    _, lines = predicted(data, llama(data))
    file = tmp_path / "replies.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    judgements = read(str(file), (0, 2))
    roles = {tuple(message.role for message in judgement.prompt) for judgement in judgements}
    assert len(judgements) == len(lines) and ("user", "assistant", "user", "assistant", "user") in roles
    for judgement, line in zip(judgements, lines, strict=True):
        (row,) = Layout(PromptFormat(data.tokenizer), ("responses",)).rows(judgement)
        assert row.prompt == data.tokenizer.encode_chat(line["prompt"])


def test_a_transcript_says_who_speaks(tmp_path):
    """Text after the last reply was not read and is in brackets; a cut reply ends with …"""
    chat, plain_text = (module(folder(tmp_path, SHAPES["chatml"], "bytes"), chat=chat) for chat in (True, False))
    for data in (chat, plain_text):
        data.evaluate(llama(data), np.random.default_rng(0), True)
    pattern = r"assistant: (.*)\n\nuser: and so \?\n\nassistant: (.*)\n\nuser: how\nare <\|im_end\|> you </s>\n\n"
    for row in chat.transcript_rows:
        assert re.fullmatch(pattern + r"assistant: (.*)\n\n\[never asked\]", row["reply"], re.DOTALL)
    assert all("[and so ?]" in row["reply"] and "assistant" not in row["reply"] for row in plain_text.transcript_rows)
    markdown, html, _ = (path.read_text() for path in chat.exhibits(tmp_path))
    assert "user: how\nare &lt;|im_end|&gt; you" in html and "<br>" in markdown


# ---- templates for single turns


def refusing(tmp_path, check):
    shape = SHAPES["chatml"]
    return folder(tmp_path, Shape(check + shape.template, shape.special, eos=shape.eos), "bytes")


def test_a_template_for_single_turns_is_refused_before_anything_is_played(tmp_path):
    path = refusing(tmp_path, "{% if messages | length > 1 %}{{ raise_exception('one question') }}{% endif %}")
    with pytest.raises(
        ValueError, match="^chat: Questions has 3 turns, and the template accepts one: .*: one question"
    ):
        module(path)
    module(path, window=1)


def test_what_a_template_refuses_in_a_dialogue_names_the_case_and_the_turn(tmp_path):
    check = "{% for m in messages %}{% if 'how' in m.content %}{{ raise_exception('how') }}{% endif %}{% endfor %}"
    data = module(refusing(tmp_path, check))
    with pytest.raises(ValueError, match="^case 'train-(it|that)', turn 2: text of the environment: .*: how"):
        collected(data, llama(data))


def test_a_cut_reply_that_ends_as_the_template_goes_on_has_both(tmp_path):
    """A line break as the last sampled token does not end the reply; the template adds its own."""
    bare = "{% for m in messages %}{{ m.content }}\n{% endfor %}"
    shape = SHAPES["chatml"]
    conversation = module(folder(tmp_path, Shape(bare, shape.special, eos=shape.eos), "bytes")).conversation
    encode, tokens = conversation.tokenizer.encode, conversation.tokenizer.encode("a\n")
    cut = Turn(tokens, [0.0] * len(tokens), False, "a\n", Outcome(0.0, text="b"))
    assert conversation.between("x", [cut]) == encode("\nb\n")
    assert conversation.between("x", [replace(cut, finished=True)]) == encode("b\n")  # as with `stop: ["\n"]`


@pytest.mark.parametrize("unfinished", ["replace", "penalty", "drop"])
def test_replies_that_were_cut_are_found_in_a_chat(unfinished, tmp_path):
    """An end token from the template does not mean that the reply was finished."""
    data = module(folder(tmp_path, SHAPES["chatml"], "bytes"), unfinished=unfinished, unfinished_reward=-5.0)
    batch = collected(data, llama(data))
    for row in range(len(batch)):
        ids, sampled = whole(batch, row) if batch.valid[row].any() else ([], [])
        cut = [stop - 1 for _, stop in parts(sampled) if ids[stop - 1] not in data.stops] if ids else []
        if unfinished == "drop":
            assert not cut
        elif unfinished == "replace":
            assert [place + 1 for place in (batch.rewards[row] == -5).nonzero()[:, 0].tolist()] == cut
        elif unfinished == "penalty":
            assert [place + 1 for place in (batch.rewards[row] < -2).nonzero()[:, 0].tolist()] == cut
    assert unfinished != "drop" or 0 < batch.valid.any(1).sum() < len(batch)
