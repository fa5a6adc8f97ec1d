"""Invalid answers of a server are refused, requested again and never cached; valid ones are used."""

import asyncio
import json
import math

import pytest

from data_modules.feedback.providers.answer import IMPOSSIBLE, Answer, excerpt, label_log_probs, parsed, token_counts
from data_modules.feedback.providers.client import Cache, Client
from data_modules.feedback.providers.comparisons import ListwiseQuestion, PreferenceQuestion
from data_modules.feedback.providers.model_judge import ModelJudge
from data_modules.feedback.providers.questions import CritiqueQuestion, ScoreQuestion
from data_modules.judgements.schema import Judgement

GOOD = (
    '{"choices": [{"message": {"content": "1"}, "finish_reason": "stop", "logprobs": {"content": [{"top_logprobs": '
    '[{"token": "1", "logprob": -0.5}, {"token": "2", "logprob": -1.5}]}]}}], '
    '"usage": {"prompt_tokens": 10, "completion_tokens": 1}}'
)
# what stands in a good answer, and what a spoilt one has instead
SPOILT = [
    ('"logprob": -0.5', '"logprob": NaN'),
    ('"logprob": -0.5', '"logprob": Infinity'),
    ('"logprob": -0.5', '"logprob": 1.5'),
    ('"logprob": -0.5', '"logprob": 1e308'),
    ('"logprob": -0.5', '"logprob": true'),
    ('"logprob": -0.5', '"logprob": "-0.5"'),
    ('"logprob": -0.5', '"logprob": null'),
    ('"logprob": -0.5', '"logprob": [-0.5]'),
    ('"logprob": -0.5', '"lp": -0.5'),
    ('"logprob": -0.5', '"logprob": 0'),  # the probabilities add up to more than 1
    ('"token": "1"', '"token": 1'),
    ('"token": "1"', '"token": null'),
    ('"top_logprobs": [', '"top": ['),
    ('[{"token": "1"', '[7, {"token": "1"'),
    ('"content": "1"', '"content": "half \\ud83d"'),
    ('"content": "1"', '"content": 1'),
    ('"content": "1"', '"content": ["1"]'),
    ('"content": "1"', '"content": ' + "[" * 2000 + "]" * 2000),
    ('{"content": "1"}', '"1"'),
    ('{"content": "1"}', "null"),
    ('"message"', '"msg"'),
    ('{"choices": [{', '{"choices": [null, {'),
    ('{"choices": [{', '{"choices": [], "others": [{'),
    ('{"choices": ', '{"choices": null, "others": '),
    ('{"choices": ', '{"others": '),
    ('"prompt_tokens": 10', '"prompt_tokens": Infinity'),
    ('"prompt_tokens": 10', '"prompt_tokens": NaN'),
    ('"prompt_tokens": 10', '"prompt_tokens": -10'),
    ('"prompt_tokens": 10', '"prompt_tokens": 1.5'),
    ('"prompt_tokens": 10', '"prompt_tokens": 1e12'),
    ('"prompt_tokens": 10', '"prompt_tokens": ' + "9" * 4000),
    ('"prompt_tokens": 10', '"prompt_tokens": ' + "9" * 5000),
    ('"prompt_tokens": 10', '"prompt_tokens": true'),
    ('"prompt_tokens": 10', '"prompt_tokens": "10"'),
    ('"completion_tokens": 1', '"completion_tokens": -1'),
    ('"usage": {', '"usage": [], "others": {'),
    (GOOD, "[" * 100_000),
    (GOOD, "[" * 900 + "]" * 900),
    (GOOD, '{"a":' * 900 + "1" + "}" * 900),
    (GOOD, "null"),
    (GOOD, "NaN"),
    (GOOD, "[]"),
    (GOOD, '"1"'),
]
NAMES = [f"{old[:20]}->{new[:28]}" for old, new in SPOILT]


def spoilt(old, new):
    assert GOOD.count(old) == 1
    return GOOD.replace(old, new)


def test_a_good_answer_is_read_and_read_again():
    answer = Answer.of(json.loads(GOOD))
    assert answer == Answer("1", ({"1": -0.5, "2": -1.5},), 10, 1)
    assert Answer.of(json.loads(json.dumps(answer.as_json(), allow_nan=False))) == answer
    cut = Answer("wor", cut="length")
    assert Answer.of(cut.as_json()) == cut


@pytest.mark.parametrize(("old", "new"), SPOILT, ids=NAMES)
def test_a_spoilt_answer_is_refused_in_one_short_line(old, new):
    with pytest.raises(ValueError) as error:
        Answer.of(parsed(spoilt(old, new).encode()))
    assert len(str(error.value)) < 400 and "\n" not in str(error.value) and error.type is not UnicodeEncodeError


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"logprob": -1.5', '"logprob": -Infinity'),
        ('"logprob": -1.5', '"logprob": -9999.0'),
        ('"logprob": -1.5', '"logprob": -' + "9" * 400),
        ('"prompt_tokens": 10', '"prompt_tokens": 10.0'),
        ('"prompt_tokens": 10', '"prompt_tokens": null'),
        ('"usage": {', '"usage": null, "others": {'),
        ('"token": "2"', '"token": "\\ud83d"'),  # half of a surrogate pair, which a byte token may be
        ('"content": "1"', '"content": null'),
        ('"content": "1"', '"content": "1", "refusal": NaN'),
    ],
)
def test_what_servers_rightly_write_is_read(old, new):
    answer = Answer.of(parsed(spoilt(old, new).encode()))
    assert answer.text in ("1", "") and answer.alternatives[0]["1"] == -0.5
    assert all(IMPOSSIBLE < x <= 0 for step in answer.alternatives for x in step.values())
    json.dumps(answer.as_json(), allow_nan=False, ensure_ascii=False).encode()


def test_rounding_is_forgiven_and_never_above_a_probability_of_one():
    """A probability of 1 may come as log-probability 10⁻⁶; two tokens with the same text and .6 and .4 give 1."""
    body = json.loads(GOOD)
    steps = body["choices"][0]["logprobs"]["content"]
    steps[0]["top_logprobs"] = [{"token": "1", "logprob": 1e-6}]
    assert Answer.of(body).alternatives == ({"1": 0.0},)
    steps[0]["top_logprobs"] = [{"token": "1", "logprob": math.log(p)} for p in (0.6, 0.4)]
    assert Answer.of(body).alternatives[0]["1"] == pytest.approx(0, abs=1e-12)


def test_a_label_that_is_impossible_is_none():
    body = json.loads(GOOD.replace("-1.5", "-Infinity"))
    assert label_log_probs(Answer.of(body), ("1", "2")) == [-0.5, -math.inf]


def test_a_count_is_a_whole_number():
    assert token_counts({"usage": {"prompt_tokens": 7}}) == (7, 0) and token_counts({}) == (0, 0)


def test_an_excerpt_is_short_and_escaped():
    deep = []
    for _ in range(100_000):
        deep = [deep]
    for value in ("x" * 10**6, ["x" * 10**6] * 1000, deep, "\x1b[31m\n", {"a": deep}):
        assert len(excerpt(value)) < 5000 and excerpt(value).isprintable()


# ---- through a server


@pytest.mark.parametrize(("old", "new"), SPOILT, ids=NAMES)
def test_one_spoilt_answer_takes_no_other_with_it_and_is_not_kept(server, endpoint, prompt_of, tmp_path, old, new):
    """The second of three comparisons gets no valid answer: it is left out and listed, and a rerun asks again."""
    lines = [Judgement(f"q {i}", ("a", "b"), where=f"f:{i}") for i in range(3)]
    bad = server.Fault(body=spoilt(old, new))
    right = server.chat("1", [{"1": 0.75, "2": 0.25}])
    server.answer = lambda body: bad if "q 1" in prompt_of(body) else right
    judge = ModelJudge(endpoint(retries=1), [PreferenceQuestion()])
    completed, account = judge.complete(lines, int)
    assert [line.preference for line in completed] == [pytest.approx(0.5), None, pytest.approx(0.5)]
    (left_out,) = account.left_out
    assert left_out.startswith("f:1: invalid answer: ") and left_out.endswith(", 2 times")
    assert account.counters["calls"] == len(server.requests) == 4 + 2 * 2 and account.stopped is None
    cached = [path.read_text() for path in (tmp_path / "cache").rglob("*.json")]
    assert len(cached) == 4 and {json.dumps(json.loads(text)) for text in cached} == {
        json.dumps(Answer.of(right).as_json())
    }
    server.answer = lambda body: right
    again, account = judge.complete(lines, int)
    assert all(line.preference == pytest.approx(0.5) for line in again) and account.counters["calls"] == 2


@pytest.mark.parametrize(("old", "new"), SPOILT, ids=NAMES)
def test_a_spoilt_answer_in_an_old_cache_is_asked_again(server, endpoint, tmp_path, old, new):
    lines = [Judgement("q", ("a", "b"))]
    server.says(json.loads(GOOD))
    judge = ModelJudge(endpoint(), [PreferenceQuestion()])
    judge.complete(lines, int)
    paths = sorted((tmp_path / "cache").rglob("*.json"))
    for path in paths:
        path.write_text(spoilt(old, new))
    (line,), account = judge.complete(lines, int)
    assert line.preference == pytest.approx(0.5) and account.counters == {
        "calls": 2, "cached": 0, "retries": 0, "prompt_tokens": 20, "completion_tokens": 2,
    }  # fmt: skip
    assert all(Answer.of(json.loads(path.read_text())).text == "1" for path in paths) and len(paths) == 2


def ask(client, prompt):
    async def ask_once():
        async with client:
            return await client.ask(prompt, 5)

    return asyncio.run(ask_once())


def test_what_an_older_version_kept_is_still_read(server, endpoint, tmp_path):
    """Full server JSON, cached under the request's SHA-256: printf '{"max_tokens":5,"messages":[{"content":"say",
    "role":"user"}],"model":"judge","seed":0,"temperature":0.0}' | sha256sum, without the line break.
    """
    key = "04e960d2fa5b6bda9f35f6a2805ed80bb480f1d2da6d0ca66f3fcaaa23bd019a"
    whole = {"id": "x", "object": "chat.completion", "created": 1, "model": "judge", **json.loads(GOOD)}
    Cache(tmp_path / "cache").put(key, whole)
    assert ask(Client(endpoint()), "say") == Answer("1", ({"1": -0.5, "2": -1.5},), 10, 1) and not server.requests


def test_negative_tokens_extend_no_budget(server, endpoint, prompt_of):
    """Every second answer claims −1000 tokens; the others have 12 each, so three of them spend the budget of 30."""
    bad = server.Fault(body=GOOD.replace('"prompt_tokens": 10', '"prompt_tokens": -1000'))
    right = server.chat("1", [{"1": 0.75, "2": 0.25}])
    server.answer = lambda body: bad if len(server.requests) % 2 else right
    judge = ModelJudge(endpoint(max_tokens=30, concurrency=1), [PreferenceQuestion()])
    _, account = judge.complete([Judgement(f"q {i}", ("a", "b")) for i in range(8)], int)
    assert account.stopped == "endpoint.max_tokens: the budget of 30 tokens is spent" and len(server.requests) == 6


def test_one_answer_without_log_probabilities_is_asked_again_and_not_kept(server, endpoint, prompt_of, tmp_path):
    """One missing answer is left out; a server that never gives log-probabilities is an error."""
    lines = [Judgement(f"q {i}", ("a", "b"), where=f"f:{i}") for i in range(3)]
    right = server.chat("1", [{"1": 0.75, "2": 0.25}])
    server.answer = lambda body: server.chat("1") if "q 2" in prompt_of(body) else right
    completed, account = ModelJudge(endpoint(concurrency=1), [PreferenceQuestion()]).complete(lines, int)
    assert [line.preference for line in completed] == [pytest.approx(0.5)] * 2 + [None] and len(account.left_out) == 1
    assert "f:2: votes: the server gives no log-probabilities" in account.left_out[0]
    assert len(list((tmp_path / "cache").rglob("*.json"))) == 4
    server.says(server.chat("1"))
    with pytest.raises(ValueError, match="the server gives no log-probabilities; set votes to sample answers instead"):
        ModelJudge(endpoint(cache=None), [PreferenceQuestion()]).complete(lines, int)


@pytest.mark.parametrize("reason", ["length", "content_filter"])
def test_half_a_critique_is_none(server, endpoint, reason):
    """A truncated critique is left out; a complete number counts even if the answer was cut off."""
    answer = server.chat("It names no sou")
    answer["choices"][0]["finish_reason"] = reason
    server.says(answer)
    (line,), account = ModelJudge(endpoint(), [CritiqueQuestion()]).complete([Judgement("q", ("a",), where="f:1")], int)
    assert line.critique is None and account.left_out[0].startswith(f"f:1: the answer was cut off ({reason})")
    answer["choices"][0]["message"]["content"] = "10"
    (line,), _ = ModelJudge(endpoint(), [ScoreQuestion()]).complete([Judgement("q", ("a",))], int)
    assert line.score == (1.0,)


@pytest.mark.parametrize("empty", ["", " \n", None])
def test_an_empty_answer_is_asked_again_and_not_kept(server, endpoint, tmp_path, empty):
    server.says(server.chat(empty), server.chat("10"))
    (line,), account = ModelJudge(endpoint(), [ScoreQuestion()]).complete([Judgement("q", ("a",))], int)
    assert line.score == (1.0,) and account.counters["calls"] == 2
    assert len(list((tmp_path / "cache").rglob("*.json"))) == 1


def test_a_question_that_is_no_text_takes_no_other_with_it(server, endpoint):
    server.says(server.chat("10"))
    lines = [Judgement("half \ud83d", ("a",), where="f:1"), Judgement("q", ("a",), where="f:2")]
    completed, account = ModelJudge(endpoint(), [ScoreQuestion()]).complete(lines, int)
    assert [line.score for line in completed] == [None, (1.0,)]
    assert account.left_out == ["f:1: the question has half a surrogate pair, which cannot be sent"]


def test_a_very_long_answer_makes_no_long_message(server, endpoint):
    questions = [ScoreQuestion(), ListwiseQuestion()]
    server.says(server.chat("> " * 10**6))
    _, account = ModelJudge(endpoint(), questions).complete([Judgement("q", ("a", "b"), where="f:1")], int)
    assert len(account.left_out) == 3 and all(len(reason) < 500 for reason in account.left_out)
