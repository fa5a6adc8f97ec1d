"""Sums step by step: each step is judged by what is left of the sum."""

from dataclasses import replace

import pytest
import torch

from data_modules.tasks.sums import ArithmeticSteps
from data_modules.text.conversation import Conversation
from data_modules.text.environment import Case
from data_modules.text.episode import Prompt
from data_modules.text.rows import as_rows
from data_modules.text.tokenizer import WordTokenizer
from data_modules.text.transcript import replies_by_prompt

CASE = Case("sum", "3 + 4 * 2 - 5 =", {"expression": ("3", "+", "4", "*", "2", "-", "5"), "value": 6})
RIGHT = "4 * 2 = 8 . 3 + 8 = 11 . 11 - 5 = 6 ."


@pytest.fixture(scope="module")
def task():
    return ArithmeticSteps(sums=400, draws=2)


def labels_and_reward(task, reply, finished=True):
    outcome = task.begin(CASE).reply(reply, finished)
    return [step["label"] for step in task.steps(CASE, reply)], outcome.reward


def test_the_right_working_is_right(task):
    assert task.expected(CASE) == RIGHT
    assert task.steps(CASE, RIGHT) == [{"end": 11, "label": 1}, {"end": 24, "label": 1}, {"end": 37, "label": 1}]
    outcome = task.begin(CASE).reply(RIGHT, finished=True)
    assert outcome.reward == 1 and outcome.parts == {"answer": 1, "steps": 1, "finished": 1} and outcome.over
    assert task.critique(CASE, RIGHT, 0) is None


@pytest.mark.parametrize(
    ("reply", "labels", "reward"),
    [
        ("4 * 2 = 9 . 3 + 9 = 12 . 12 - 5 = 7 .", [0, 1, 1], 0),  # right steps after a wrong number
        ("3 + 4 = 7 . 7 * 2 = 14 . 14 - 5 = 9 .", [0, 1, 1], 0),  # the sum before the product: the value is 9, not 6
        ("4 * 2 = 8 . 8 - 5 = 3 . 3 + 3 = 6 .", [1, 1, 1], 1),  # another order with the same value
        ("4 * 2 = 9 . 3 + 9 = 11 . 11 - 5 = 6 .", [0, 0, 1], 1),  # two mistakes that cancel: the answer is right
        ("4 * 2 = 8 . 3 + 8 = 11 .", [1, 1], 0),  # unfinished working
        ("4 * 2 = 8 . 3 + 8 = 11 . 11 - 5 = 6", [1, 1], 0),  # the last step has no full stop
        ("4 * 2 = 8 . 3 + 8 = 11 . 11 - 5 = 6 . 6 + 1 = 7 .", [1, 1, 1, 0], 0),  # a step too many
        ("4 * 2 = 8 . the answer is 6 .", [1, 0], 0),
        ("4 * 3 = 12 . 4 * 2 = 8 . 3 + 8 = 11 . 11 - 5 = 6 .", [0, 1, 1, 1], 1),  # a step of another sum is ignored
        ("", [], 0),
        (". = . + 5 = .", [0, 0, 0], 0),
    ],
)
def test_steps_and_answer_are_judged_apart(task, reply, labels, reward):
    assert labels_and_reward(task, reply) == (labels, reward)
    share = sum(labels) / len(labels) if labels else 0
    assert task.begin(CASE).reply(reply, True).parts["steps"] == pytest.approx(share)


def test_a_reply_that_was_cut_has_no_answer(task):
    outcome = task.begin(CASE).reply(RIGHT, finished=False)
    assert outcome.reward == 0 and outcome.parts == {"answer": 0, "steps": 1, "finished": 0}


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        ("4 * 2 = 9 .", ["step 1", "4 * 2", "8"]),
        ("4 * 2 = 8 . 3 + 8 = 12 .", ["step 2", "3 + 8", "11"]),
        ("3 + 4 = 7 .", ["step 1", "4 * 2", "first"]),
        ("4 * 2 = 8 . 3 + 8 = 11 .", []),
        ("4 * 2 = 8 . no .", ["step 2"]),
        ("4 * 2 = 99 . 3 + 99 = 5 .", ["step 1", "4 * 2", "8"]),
        ("2 - 5 = 1 .", ["step 1", "2 - 5"]),
    ],
)
def test_a_critique_points_at_the_first_wrong_step_in_words_of_the_corpus(task, reply, words):
    tokenizer = WordTokenizer().fit(task.corpus())
    critiques = {task.critique(CASE, reply, seed) for seed in range(20)}
    assert len(critiques) == 2 and task.critique(CASE, reply, 7) == task.critique(CASE, reply, 7)
    for text in critiques:
        assert all(word in text for word in words)
        tokenizer.encode(text)


def test_the_splits_share_no_prompt_and_are_always_the_same(task):
    prompts = {split: [case.prompt for case in task.cases(split)] for split in ("train", "val", "test")}
    assert [len(group) for group in prompts.values()] == [320, 40, 40]
    assert len({prompt for group in prompts.values() for prompt in group}) == 400
    again = ArithmeticSteps(sums=400, draws=2)
    assert all(again.cases(split) == task.cases(split) for split in prompts)
    assert again.demonstrations("train") == task.demonstrations("train")
    assert ArithmeticSteps(seed=1, sums=400).cases("train") != task.cases("train")


def test_every_expected_working_earns_the_reward(task):
    for case in task.cases("test"):
        assert task.begin(case).reply(task.expected(case), True).reward == 1
        assert eval(case.prompt.rstrip("=")) == case.facts["value"]


@pytest.mark.parametrize("wrong", [0.0, 0.3])
def test_demonstrations_have_their_share_of_wrong_steps(wrong):
    """Of about 4,000 steps; in a few no mistake is possible, and the standard error is .007."""
    task = ArithmeticSteps(wrong=wrong)
    demonstrations = task.demonstrations("train")
    labels = []
    for case, (prompt, reply) in zip(task.cases("train"), demonstrations, strict=True):
        assert prompt == case.prompt
        labels += [step["label"] for step in task.steps(case, reply)]
    assert 1 - sum(labels) / len(labels) == pytest.approx(wrong, abs=0.03)


def test_a_tokenizer_from_the_corpus_reads_it_all(task):
    tokenizer = WordTokenizer().fit(task.corpus())
    for prompt, reply in task.demonstrations("test"):
        assert tokenizer.decode(tokenizer.encode(reply)) == reply and tokenizer.encode(prompt)
    assert len(tokenizer.encode(".")) == 1  # one id ends a step


@pytest.mark.parametrize(("knob", "value"), [("wrong", 1.5), ("numbers", 2), ("sums", 5), ("draws", 0)])
def test_a_knob_out_of_range_is_refused_by_name(knob, value):
    with pytest.raises(ValueError, match=f"^{knob}: got {value}"):
        ArithmeticSteps(**{knob: value})


def test_more_numbers_make_longer_sums():
    def longest(numbers):
        return max(len(case.prompt) for case in ArithmeticSteps(sums=400, numbers=numbers).cases("train"))

    assert longest(3) < longest(4) < longest(6)


def test_no_number_is_above_the_largest():
    """In sums, in their right working, and in working with mistakes."""
    small = ArithmeticSteps(sums=200, largest=12, wrong=0.5)
    for split in ("train", "val", "test"):
        texts = [small.expected(case) for case in small.cases(split)] + [r for _, r in small.demonstrations(split)]
        numbers = [int(word) for text in texts for word in text.split() if word.isdigit()]
        assert max(numbers) <= 12
    assert max(case.facts["value"] for case in ArithmeticSteps(sums=200).cases("train")) > 12


def test_more_sums_than_there_are_of_small_numbers_are_refused():
    """There are fewer than 3,000 sums of three numbers from 1 to 9 whose results are at most 10."""
    with pytest.raises(ValueError, match="sums: got 3000, but there are fewer .*raise largest"):
        ArithmeticSteps(sums=3000, numbers=3, largest=10).cases("train")


def test_a_prediction_has_the_labels_of_the_steps():
    """The first reply is right, the second has a wrong last step, the third has no steps, nor has the fourth prompt."""
    tokenizer = WordTokenizer().fit(ArithmeticSteps(sums=10).corpus())
    replies = [RIGHT, "4 * 2 = 8 . 3 + 8 = 12 .", "7", "7"]
    prompts = [Prompt(replace(CASE, id=name), tokenizer.encode(CASE.prompt)) for name in ("one", "two")]
    ids = [[*tokenizer.encode(reply), tokenizer.eos] for reply in replies]
    batch = as_rows([prompts[0].ids] * 4, ids)
    batch = replace(batch, group=torch.tensor([0, 0, 0, 1]), rewards=torch.zeros(batch.mask.shape))
    conversation = Conversation(ArithmeticSteps(sums=10), tokenizer, max_new=40)
    first, second = replies_by_prompt(batch, prompts, conversation)
    wrong = [{"end": 11, "label": 1}, {"end": 24, "label": 0}]
    right = [{"end": end, "label": 1} for end in (11, 24, 37)]
    assert first["steps"] == [right, wrong, None] and "steps" not in second
