"""Asking a server that fails in every way there is: nothing is asked twice, nothing that was paid for is lost."""

import asyncio
import multiprocessing
import threading
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from data_modules.feedback.providers.answer import Unanswered
from data_modules.feedback.providers.cache import Cache, content_key
from data_modules.feedback.providers.client import Client, Stopped, waited_for
from data_modules.feedback.providers.endpoint import Endpoint


def ask(client, *prompts, **how):
    """The answers side by side; an exception in the place of one that failed."""

    async def every():
        async with client:
            asking = (client.ask(prompt, 5, **how) for prompt in prompts)
            return await asyncio.gather(*asking, return_exceptions=True)

    return asyncio.run(every())


# ---- what is sent and what comes back


def test_a_chat_is_asked_and_counted(server, endpoint, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "secret-1")
    server.says(server.chat("hello", [{"hello": 0.75, " hi": 0.25}], tokens=(7, 3)))
    client = Client(endpoint(key_variable="JUDGE_KEY", options={"top_p": 0.9, "max_tokens": None, "max_new": 4}))
    (answer,) = ask(client, "say", temperature=0.5, seed=3, alternatives=2)
    assert server.paths == ["/v1/chat/completions"]
    assert server.requests == [
        {
            "model": "judge",
            "messages": [{"role": "user", "content": "say"}],
            "temperature": 0.5,
            "seed": 3,
            "logprobs": True,
            "top_logprobs": 2,
            "top_p": 0.9,
            "max_new": 4,
        }
    ]
    assert server.headers[0]["Authorization"] == "Bearer secret-1"
    assert answer.text == "hello" and answer.alternatives[0] == pytest.approx({"hello": -0.2876821, " hi": -1.3862944})
    assert client.counters == {"calls": 1, "cached": 0, "retries": 0, "prompt_tokens": 7, "completion_tokens": 3}


def test_a_model_that_does_not_chat(server, endpoint):
    server.says(server.completion("1", [{"1": 0.5, "2": 0.25}]))
    (answer,) = ask(Client(endpoint(completions=True)), "Preferred=", alternatives=2)
    assert server.paths == ["/v1/completions"]
    assert server.requests[0]["prompt"] == "Preferred=" and server.requests[0]["logprobs"] == 2
    assert answer.text == "1" and answer.alternatives[0] == pytest.approx({"1": -0.6931472, "2": -1.3862944})


def test_the_key_is_nowhere_to_be_read(server, endpoint, monkeypatch, tmp_path):
    monkeypatch.setenv("JUDGE_KEY", "secret-1")
    client = Client(endpoint(key_variable="JUDGE_KEY"))
    ask(client, "say")
    kept = "".join(path.read_text() for path in (tmp_path / "cache").rglob("*.json"))
    assert kept and "secret-1" not in kept + repr(client.endpoint) + str(vars(client.endpoint))
    monkeypatch.delenv("JUDGE_KEY")
    with pytest.raises(ValueError, match="endpoint.key_variable: the environment has no JUDGE_KEY"):
        ask(client, "say")


@pytest.mark.parametrize("status", [400, 401, 404, 500])
def test_a_server_that_repeats_the_key_tells_nobody(server, endpoint, monkeypatch, status):
    monkeypatch.setenv("JUDGE_KEY", "secret-1")
    server.says(server.Fault(status, body="x" * 295 + "secret-1 is wrong"))
    try:
        told = str(ask(Client(endpoint(key_variable="JUDGE_KEY", retries=0)), "say"))
    except ValueError as error:
        told = str(error)
    assert f"HTTP {status}" in told and "secre" not in told


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"url": "localhost:8000"}, "endpoint.url: got 'localhost:8000'"),
        ({"url": "https://me:secret-1@localhost/v1"}, "endpoint.url: it holds a password"),
        ({"concurrency": 0}, "endpoint.concurrency: got 0"),
        ({"retries": -1}, "endpoint.retries: got -1"),
        ({"timeout": 0.0}, "endpoint.timeout: got 0.0 seconds"),
        ({"max_calls": -1}, "endpoint.max_calls: got -1"),
    ],
)
def test_knobs_that_are_wrong(knobs, message):
    with pytest.raises(ValueError, match=message):
        Endpoint(**({"url": "http://127.0.0.1/v1", "model": "judge"} | knobs))


def test_no_more_at_a_time_than_allowed(server, endpoint):
    """Three of eight questions arrive together, and no more: they wait for each other, and none comes on top."""
    together, most, inside = threading.Barrier(3), [], []
    server.lock = threading.Semaphore(100)  # answers may overlap

    def answer(body):
        inside.append(1)
        most.append(len(inside))
        if len(most) <= 3:
            together.wait(10)
        inside.pop()
        return server.chat("1")

    server.answer = answer
    ask(Client(endpoint(concurrency=3)), *map(str, range(8)))
    assert len(most) == 8 and max(most) == 3


# ---- faults


@pytest.mark.parametrize("status", [429, 500, 503])
def test_it_tries_again_after_a_server_error(server, endpoint, status):
    server.says(server.Fault(status), server.Fault(status), server.chat("now"))
    client = Client(endpoint())
    (answer,) = ask(client, "say")
    assert answer.text == "now" and len(server.requests) == 3
    assert client.counters["calls"] == 1 and client.counters["retries"] == 2


@pytest.mark.parametrize(
    "kind",
    [
        {"drop": True},
        {"body": "<html>"},
        {"body": '{"error": "busy"}'},
        {"body": "[1"},
        {"body": '{"choices": [{"text": ["1"]}]}'},
    ],
)
def test_it_tries_again_after_a_broken_answer(server, endpoint, kind):
    server.says(server.Fault(**kind), server.chat("now"))
    assert ask(Client(endpoint()), "say")[0].text == "now" and len(server.requests) == 2


def test_it_tries_again_when_the_time_is_up(server, endpoint):
    server.says(server.Fault(hang=True), server.chat("now"))
    client = Client(endpoint(timeout=0.2))
    assert ask(client, "say")[0].text == "now" and client.counters["retries"] == 1


def test_what_fails_for_good_is_said_and_costs_nothing(server, endpoint):
    """Its retries are used up; the other question is answered all the same."""
    server.answer = lambda body: (
        server.Fault(500, "out of memory") if body["messages"][0]["content"] == "bad" else server.chat("fine")
    )
    client = Client(endpoint(retries=2))
    bad, good = ask(client, "bad", "good")
    assert isinstance(bad, Unanswered) and str(bad) == "HTTP 500: out of memory, 3 times"
    assert good.text == "fine" and client.counters["calls"] == 1 and len(server.requests) == 4


def test_a_question_that_the_server_cannot_take_is_not_repeated(server, endpoint):
    server.says(server.Fault(400, "the prompt is too long"))
    (error,) = ask(Client(endpoint()), "say")
    assert isinstance(error, Unanswered) and "too long" in str(error) and len(server.requests) == 1


@pytest.mark.parametrize(("status", "knob"), [(401, "endpoint.key_variable"), (403, "key_variable"), (404, "judge")])
def test_what_is_wrong_for_all_questions_is_the_users_mistake(server, endpoint, status, knob):
    server.says(server.Fault(status, "no"))
    (error,) = ask(Client(endpoint()), "say")
    assert isinstance(error, ValueError) and knob in str(error) and len(server.requests) == 1


def test_nobody_at_home_stops_all(server, endpoint):
    server.server.server_close()  # the port is free again
    client = Client(endpoint(retries=1, concurrency=1))
    errors = ask(client, "a", "b", "c")
    assert all(isinstance(error, Stopped) for error in errors)
    assert "endpoint.url: nobody answers at http://127.0.0.1" in client.stopped
    assert client.counters["retries"] == 1  # of the first question alone


def test_waits_grow_and_are_never_shorter_than_the_server_asks(endpoint):
    """½ · 2^n · [½, 1] seconds: n = 3 is 2 to 4."""
    client = Client(endpoint(backoff=0.5))
    waits = [client._wait(3, None) for _ in range(200)]
    assert 2 <= min(waits) < 2.5 and 3.5 < max(waits) <= 4
    assert client._wait(0, 7.0) == 7.0 and client._wait(5, 0.1) >= 8


def test_retry_after_in_seconds_or_as_a_date():
    assert _retry_after({"Retry-After": "2.5"}) == 2.5 and _retry_after({}) is None
    then = datetime.now(UTC) + timedelta(seconds=60)
    assert 55 < _retry_after({"Retry-After": format_datetime(then, usegmt=True)}) <= 60
    assert _retry_after({"Retry-After": format_datetime(then - timedelta(hours=1), usegmt=True)}) == 0
    assert _retry_after({"Retry-After": "soon"}) is None


def test_retry_after_is_waited_for(server, endpoint, monkeypatch):
    waited = []

    async def sleep(seconds):
        waited.append(seconds)

    monkeypatch.setattr("data_modules.feedback.providers.client.asyncio.sleep", sleep)
    server.says(server.Fault(429, headers={"Retry-After": "9"}), server.chat("now"))
    assert ask(Client(endpoint()), "say")[0].text == "now" and waited == [9.0]


# ---- cache


def test_a_second_run_asks_nothing(server, endpoint):
    server.says(server.chat("once", [{"a": 0.5, "b": 0.5}]))
    first = ask(Client(endpoint()), "a", "b", alternatives=2)
    client = Client(endpoint(url=server.url + "/"))
    assert ask(client, "a", "b", alternatives=2) == first and len(server.requests) == 2
    assert client.counters["calls"] == 0 and client.counters["cached"] == 2


def test_samples_are_several_though_the_server_takes_no_seed(server, endpoint):
    """Three votes at a temperature are three answers."""
    client = Client(endpoint(options={"seed": None}))
    for seed in (0, 1, 2, 2):
        ask(client, "a", temperature=1.0, seed=seed)
    assert len(server.requests) == 3 and not any("seed" in body for body in server.requests)


@pytest.mark.parametrize("change", [{"seed": 1}, {"temperature": 0.5}, {"alternatives": 1}])
def test_another_question_is_another_question(server, endpoint, change):
    ask(Client(endpoint()), "a")
    ask(Client(endpoint()), "a", **change)
    ask(Client(endpoint(model="other")), "a")
    assert len(server.requests) == 3


def test_the_same_question_side_by_side_is_paid_once(server, endpoint):
    client = Client(endpoint())
    ask(client, *["same"] * 6)
    assert len(server.requests) == 1 and client.counters["calls"] == 1 and client.counters["cached"] == 5


def test_without_a_cache_nothing_is_kept(server, endpoint, tmp_path):
    for _ in range(2):
        ask(Client(endpoint(cache=None)), "a")
    assert len(server.requests) == 2 and not (tmp_path / "cache").exists()


def test_the_key_is_the_sha256_of_the_sorted_content():
    """printf '{"a":1,"b":[2]}' | sha256sum"""
    found = content_key({"b": [2], "a": 1})
    assert found == "0855bfc20eb6cfaa4be7d6b510c63dd22997718bddadcb1a4915cec3a16145b9"


def test_half_a_file_is_no_answer(tmp_path):
    cache = Cache(tmp_path)
    cache.put("abc", {"x": "ü"})
    assert cache.get("abc") == {"x": "ü"} and cache.get("abd") is None
    next(tmp_path.rglob("abc.json")).write_text('{"x": ')
    assert cache.get("abc") is None


def put_many(folder):
    for round_ in range(200):
        Cache(folder).put("abc", {"round": round_, "text": "x" * 2000})


def test_processes_share_a_folder(tmp_path):
    """While two of them write the same answer over and over, a reader sees whole ones only."""
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=put_many, args=(tmp_path,)) for _ in range(2)]
    for writer in writers:
        writer.start()
    seen = 0
    while any(writer.is_alive() for writer in writers):
        path = tmp_path / "ab" / "abc.json"
        if path.exists():
            assert Cache(tmp_path).get("abc")["text"] == "x" * 2000
            seen += 1
    assert seen and [path.name for path in (tmp_path / "ab").iterdir()] == ["abc.json"]


# ---- budgets


def test_calls_run_out_and_a_rerun_asks_what_is_missing(server, endpoint):
    server.answer = lambda body: server.chat(body["messages"][0]["content"].upper())
    client = Client(endpoint(max_calls=2, concurrency=1))
    first, second, *rest = ask(client, *"abcd")
    assert (first.text, second.text) == ("A", "B") and all(isinstance(error, Stopped) for error in rest)
    assert client.stopped == "endpoint.max_calls: the budget of 2 calls is spent"
    again = ask(Client(endpoint(max_calls=2)), *"abcd")
    assert [answer.text for answer in again] == ["A", "B", "C", "D"] and len(server.requests) == 4


def test_tokens_run_out(server, endpoint):
    """12 tokens an answer: after the second there are 24 of 20."""
    client = Client(endpoint(max_tokens=20, concurrency=1))
    answers = ask(client, *"abc")
    assert [isinstance(answer, Stopped) for answer in answers] == [False, False, True]
    assert client.stopped == "endpoint.max_tokens: the budget of 20 tokens is spent" and len(server.requests) == 2


def test_what_failed_is_not_taken_off_the_budget(server, endpoint):
    server.says(server.Fault(400), server.chat("fine"))
    client = Client(endpoint(max_calls=1, concurrency=1))
    failed, answered = ask(client, "a", "b")
    assert not isinstance(failed, Stopped) and answered.text == "fine" and client.counters["calls"] == 1


def test_what_is_cached_is_free(server, endpoint):
    ask(Client(endpoint()), "a")
    known, fresh = ask(Client(endpoint(max_calls=0)), "a", "b")
    assert known.text == "1" and isinstance(fresh, Stopped)


def test_an_answer_is_waited_for_within_a_running_loop_too():
    """As in a notebook, whose cells run in one."""

    async def answer():
        return 3

    async def cell():
        return waited_for(answer())

    assert waited_for(answer()) == asyncio.run(cell()) == 3
