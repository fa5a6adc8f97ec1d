"""Client of a failing server: no question is asked twice, and no paid answer is lost."""

import ast
import asyncio
import itertools
import math
import multiprocessing
import sys
import threading
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest

from data_modules.feedback.providers.answer import Unanswered
from data_modules.feedback.providers.client import Cache, Client, Stopped, content_key, waited_for
from data_modules.feedback.providers.endpoint import Endpoint

ROOT = Path(__file__).parents[4]


def ask(client, *prompts, **how):
    """Concurrent answers, with an exception in place of each failed one."""

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
    cached = "".join(path.read_text() for path in (tmp_path / "cache").rglob("*.json"))
    assert cached and "secret-1" not in cached + repr(client.endpoint) + str(vars(client.endpoint))
    monkeypatch.delenv("JUDGE_KEY")
    with pytest.raises(ValueError, match="endpoint.key_variable: the environment variable JUDGE_KEY is not set"):
        ask(client, "say")


@pytest.mark.parametrize("status", [400, 401, 404, 500])
def test_a_server_that_repeats_the_key_tells_nobody(server, endpoint, monkeypatch, status):
    monkeypatch.setenv("JUDGE_KEY", "secret-1")
    server.says(server.Fault(status, body="x" * 295 + "secret-1 is wrong"))
    try:
        text = str(ask(Client(endpoint(key_variable="JUDGE_KEY", retries=0)), "say"))
    except ValueError as error:
        text = str(error)
    assert f"HTTP {status}" in text and "secre" not in text


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"url": "localhost:8000"}, "endpoint.url: got 'localhost:8000'"),
        ({"url": "https://me:secret-1@localhost/v1"}, "endpoint.url: includes a password"),
        ({"concurrency": 0}, "endpoint.concurrency: got 0"),
        ({"retries": -1}, "endpoint.retries: got -1"),
        ({"timeout": 0.0}, "endpoint.timeout: got 0.0 seconds"),
        ({"max_calls": -1}, "endpoint.max_calls: got -1"),
        ({"longest_wait": math.inf}, "endpoint.longest_wait: got inf"),
        ({"longest_wait": 121.0}, "endpoint.longest_wait: got 121"),
        ({"url": "http://"}, "endpoint.url: got 'http://': it has no host name"),
        ({"url": "http://a:b/v1"}, "endpoint.url: got 'http://a:b/v1'"),
        ({"options": {"top_p": math.nan}}, "endpoint.options: cannot be sent as JSON"),
    ],
)
def test_knobs_that_are_wrong(knobs, message):
    with pytest.raises(ValueError, match=message):
        Endpoint(**({"url": "http://127.0.0.1/v1", "model": "judge"} | knobs))


def test_no_more_at_a_time_than_allowed(server, endpoint):
    """Exactly three of eight questions are under way at the same time."""
    together, sizes, inside = threading.Barrier(3), [], []
    server.lock = threading.Semaphore(100)  # answers may overlap

    def answer(body):
        inside.append(1)
        sizes.append(len(inside))
        if len(sizes) <= 3:
            together.wait(10)
        inside.pop()
        return server.chat("1")

    server.answer = answer
    ask(Client(endpoint(concurrency=3)), *map(str, range(8)))
    assert len(sizes) == 8 and max(sizes) == 3


# ---- faults


@pytest.mark.parametrize("status", [408, 409, 429, 500, 503])
def test_it_tries_again_after_a_server_error(server, endpoint, status):
    server.says(server.Fault(status), server.Fault(status), server.chat("now"))
    client = Client(endpoint())
    (answer,) = ask(client, "say")
    assert answer.text == "now" and len(server.requests) == 3
    assert client.counters["calls"] == 3 and client.counters["retries"] == 2


@pytest.mark.parametrize(
    "kind",
    [
        {"drop": True},
        {"body": "<html>"},
        {"body": '{"error": "busy"}'},
        {"body": "[1"},
        {"body": '{"choices": [{"text": ["1"]}]}'},
        {"body": "[" * 100_000},
        {"body": '{"choices": [{"text": "1"}]}', "cut": 9},
        {"body": ""},
        {"body": '{"choices": [{"text": "1"}]}', "headers": {"Content-Encoding": "gzip"}},
        {"body": " " * (2**24 + 1)},
        {"body": "1", "headers": {"Content-Type": "application/json; charset=hex"}},
        {"status": 503, "body": "1", "headers": {"Content-Type": "text/html; charset=hex"}},
    ],
)
def test_it_tries_again_after_a_broken_answer(server, endpoint, kind):
    server.says(server.Fault(**kind), server.chat("now"))
    assert ask(Client(endpoint()), "say")[0].text == "now" and len(server.requests) == 2


@pytest.mark.parametrize("fault", [{"hang": True}, {"body": '{"choices', "stall": 5}, {"drip": 0.02}])
def test_it_tries_again_when_the_time_is_up(server, endpoint, fault):
    """The timeout covers the full answer, whether nothing, a part, or single bytes arrive."""
    server.says(server.Fault(headers={"Content-Length": "1000000"}, **fault), server.chat("now"))
    client = Client(endpoint(timeout=0.3))
    assert ask(client, "say")[0].text == "now" and client.counters["retries"] == 1


def test_what_fails_for_good_is_said(server, endpoint):
    """One question uses up its retries; the other one is still answered. Four requests are sent."""
    server.answer = lambda body: (
        server.Fault(500, "out of memory") if body["messages"][0]["content"] == "bad" else server.chat("fine")
    )
    client = Client(endpoint(retries=2))
    bad, good = ask(client, "bad", "good")
    assert isinstance(bad, Unanswered) and str(bad) == "HTTP 500: out of memory, 3 times"
    assert good.text == "fine" and client.counters["calls"] == 4 == len(server.requests)


def test_a_question_that_the_server_cannot_take_is_not_repeated(server, endpoint):
    server.says(server.Fault(400, "the prompt is too long"))
    (error,) = ask(Client(endpoint()), "say")
    assert isinstance(error, Unanswered) and "too long" in str(error) and len(server.requests) == 1


@pytest.mark.parametrize(("status", "knob"), [(401, "endpoint.key_variable"), (403, "key_variable"), (404, "judge")])
def test_what_is_wrong_for_all_questions_is_the_users_mistake(server, endpoint, status, knob):
    server.says(server.Fault(status, "no"))
    (error,) = ask(Client(endpoint()), "say")
    assert isinstance(error, ValueError) and knob in str(error) and len(server.requests) == 1


@pytest.mark.parametrize("status", [403, 404])
def test_a_question_that_is_refused_after_others_were_answered_stops_nobody(server, endpoint, status):
    """Some servers refuse single questions after others were answered; a refused key stops all at any time."""
    server.says(server.chat("fine"), server.Fault(status, "moderated"), server.chat("fine"), server.Fault(401, "no"))
    first, second, third, last = ask(Client(endpoint(concurrency=1)), *"abcd")
    assert (first.text, third.text) == ("fine", "fine") and isinstance(last, ValueError)
    assert isinstance(second, Unanswered) and str(second) == f"HTTP {status}: moderated"


def test_nobody_at_home_stops_all(server, endpoint):
    server.server.server_close()  # the port is free again
    client = Client(endpoint(retries=1, concurrency=1))
    errors = ask(client, "a", "b", "c")
    assert all(isinstance(error, Stopped) for error in errors)
    assert "endpoint.url: no server answers at http://127.0.0.1" in client.budget.stopped
    assert client.counters["retries"] == 1  # only the first question was retried


def test_waits_grow(server, endpoint, waits):
    """Half a second, doubled each time up to eight, minus a random part of up to a quarter."""
    server.says(server.Fault(500))
    ask(Client(endpoint(retries=6)), "say")
    longest = [0.5, 1, 2, 4, 8, 8]
    assert len(waits) == 6 and all(0.75 * limit <= wait <= limit for wait, limit in zip(waits, longest, strict=True))


def in_seconds(seconds):
    return format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)


DATE_IN_AN_HOUR = (in_seconds(3600), 3400)


@pytest.mark.parametrize(("retry_after", "least"), [("9", 9), ("2.5", 2.5), DATE_IN_AN_HOUR], ids=["9", "2.5", "date"])
def test_retry_after_is_waited_for(server, endpoint, waits, retry_after, least):
    """Seconds or a date, up to the longest allowed wait; a date in an hour is too long."""
    server.says(server.Fault(429, headers={"Retry-After": retry_after}), server.chat("now"))
    client = Client(endpoint())
    (answer,) = ask(client, "say")
    if least > 60:
        assert isinstance(answer, Stopped) and waits == [] and "endpoint.longest_wait" in client.budget.stopped
    else:
        assert answer.text == "now" and waits == [least]


@pytest.mark.parametrize("status", [408, 409, 429, 503])
@pytest.mark.parametrize("retry_after", ["inf", "99999999", "1e999", "61", "Fri, 31 Dec 9999 23:59:59 GMT"])
def test_a_server_that_asks_for_ever_stops_all_like_a_spent_budget(server, endpoint, waits, status, retry_after):
    server.says(server.Fault(status, headers={"Retry-After": retry_after}))
    client = Client(endpoint(concurrency=1))
    errors = ask(client, "a", "b")
    assert all(isinstance(error, Stopped) for error in errors) and len(server.requests) == 1 and waits == []
    assert (
        "endpoint.longest_wait: the server asks for a wait of" in client.budget.stopped
        and "\n" not in client.budget.stopped
    )


@pytest.mark.parametrize("retry_after", ["nan", "-5", "soon", "", "Fri, 99 Foo 2020", "Mon, 01 Jan 1990 00:00:00 GMT"])
def test_a_retry_after_that_means_nothing_is_as_none(server, endpoint, waits, retry_after):
    server.says(server.Fault(429, headers={"Retry-After": retry_after}), server.chat("now"))
    assert ask(Client(endpoint()), "say")[0].text == "now" and 0.375 <= waits[0] <= 0.5


def test_how_long_is_too_long_is_a_knob(server, endpoint, waits):
    server.says(server.Fault(429, headers={"Retry-After": "100"}), server.chat("now"))
    assert ask(Client(endpoint(longest_wait=120.0)), "say")[0].text == "now" and waits == [100]


# ---- protection of the key


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirection_is_not_followed(server, endpoint, monkeypatch, status):
    monkeypatch.setenv("JUDGE_KEY", "secret-1")
    elsewhere = server.url.replace("127.0.0.1", "localhost")
    server.says(server.Fault(status, headers={"Location": f"{elsewhere}/chat/completions"}))
    (error,) = ask(Client(endpoint(key_variable="JUDGE_KEY")), "say")
    assert isinstance(error, ValueError) and "endpoint.url" in str(error) and elsewhere in str(error)
    assert len(server.paths) == 1 and "secret-1" not in str(error)


def test_what_the_environment_has_for_another_server_is_not_sent(server, endpoint, monkeypatch):
    for name in ("API_KEY", "ADMIN_KEY", "ORG_ID", "PROJECT_ID"):
        monkeypatch.setenv(f"OPENAI_{name}", "secret-2")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "Authorization: Bearer secret-2")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    ask(Client(endpoint()), "say")
    assert server.headers and "secret-2" not in str(server.headers[0])
    monkeypatch.setenv("JUDGE_KEY", "secret-1")
    ask(Client(endpoint(key_variable="JUDGE_KEY", cache=None)), "say")
    assert server.headers[1]["Authorization"] == "Bearer secret-1" and "secret-2" not in str(server.headers[1])


def test_the_proxy_of_the_environment_is_asked(server, endpoint, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", server.url.removesuffix("/v1"))
    for host, no_proxy in (("judge.invalid", ""), ("127.0.0.1:9", "127.0.0.1")):
        monkeypatch.setenv("NO_PROXY", no_proxy)
        ask(Client(endpoint(url=f"http://{host}/v1", retries=0, cache=None)), "say")
    assert server.paths == ["http://judge.invalid/v1/chat/completions"]


def test_a_key_that_no_header_can_hold_is_not_told(server, endpoint, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "secret-1\nX: secret-2")
    with pytest.raises(ValueError, match="endpoint.key_variable: JUDGE_KEY has characters") as error:
        ask(Client(endpoint(key_variable="JUDGE_KEY")), "say")
    assert "secret" not in str(error.value) and not server.requests


def test_an_answer_that_repeats_the_key_is_not_kept_nor_logged(server, endpoint, monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("JUDGE_KEY", "secret-1")
    caplog.set_level("DEBUG")
    server.says(server.chat("your key is secret-1"), server.chat("fine"))
    client = Client(endpoint(key_variable="JUDGE_KEY"))
    assert ask(client, "say")[0].text == "fine" and client.counters["retries"] == 1
    cached = "".join(path.read_text() for path in (tmp_path / "cache").rglob("*.json"))
    assert "fine" in cached and "secret-1" not in cached + caplog.text


def test_what_a_server_writes_is_shown_on_one_line_without_escapes(server, endpoint):
    server.says(server.Fault(400, "red \x1b[31m\nand\r\x00" + "x" * 1000))
    (error,) = ask(Client(endpoint()), "say")
    assert str(error).isprintable() and len(str(error)) < 400 and "\\x1b[31m and" in str(error)


def test_without_openai_it_names_the_extra(endpoint, monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    monkeypatch.delitem(sys.modules, "data_modules.feedback.providers.connection", raising=False)
    with pytest.raises(ValueError, match=r"pip install 'lightning_nlf\[judge\]'"):
        ask(Client(endpoint()), "say")


def test_openai_is_imported_only_when_somebody_is_asked():
    """Only `connection` and `transport` import it at the top, and no file imports these two at the top."""
    lazy = {"connection", "transport"}
    for path in (ROOT / "data_modules" / "feedback").rglob("*.py"):
        tops = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)]
        names = [
            name for node in tops for name in (getattr(node, "module", None), *(alias.name for alias in node.names))
        ]
        last = {str(name).split(".")[-1] for name in names}
        assert path.stem in lazy or not last & {"openai", "httpx2", *lazy}, path


# ---- cache


def test_a_second_run_asks_nothing(server, endpoint):
    server.says(server.chat("once", [{"a": 0.5, "b": 0.5}]))
    first = ask(Client(endpoint()), "a", "b", alternatives=2)
    client = Client(endpoint(url=server.url + "/"))
    assert ask(client, "a", "b", alternatives=2) == first and len(server.requests) == 2
    assert client.counters["calls"] == 0 and client.counters["cached"] == 2


def test_samples_are_several_though_the_server_takes_no_seed(server, endpoint):
    """Three votes at a positive temperature are three answers."""
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
    key = content_key({"b": [2], "a": 1})
    assert key == "0855bfc20eb6cfaa4be7d6b510c63dd22997718bddadcb1a4915cec3a16145b9"


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
    """While two processes write the same answer repeatedly, a reader sees only complete files."""
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=put_many, args=(tmp_path,)) for _ in range(2)]
    for writer in writers:
        writer.start()
    reads = 0
    while any(writer.is_alive() for writer in writers):
        path = tmp_path / "ab" / "abc.json"
        if path.exists():
            assert Cache(tmp_path).get("abc")["text"] == "x" * 2000
            reads += 1
    assert reads and [path.name for path in (tmp_path / "ab").iterdir()] == ["abc.json"]


# ---- budgets


def test_calls_run_out_and_a_rerun_asks_what_is_missing(server, endpoint):
    server.answer = lambda body: server.chat(body["messages"][0]["content"].upper())
    client = Client(endpoint(max_calls=2, concurrency=1))
    first, second, *rest = ask(client, *"abcd")
    assert (first.text, second.text) == ("A", "B") and all(isinstance(error, Stopped) for error in rest)
    assert client.budget.stopped == "endpoint.max_calls: the budget of 2 calls is spent"
    again = ask(Client(endpoint(max_calls=2)), *"abcd")
    assert [answer.text for answer in again] == ["A", "B", "C", "D"] and len(server.requests) == 4


def test_tokens_run_out(server, endpoint):
    """12 tokens per answer: after the second one, 24 of 20 are spent."""
    client = Client(endpoint(max_tokens=20, concurrency=1))
    answers = ask(client, *"abc")
    assert [isinstance(answer, Stopped) for answer in answers] == [False, False, True]
    assert (
        client.budget.stopped == "endpoint.max_tokens: the budget of 20 tokens is spent" and len(server.requests) == 2
    )


@pytest.mark.parametrize("fault", [{"status": 500}, {"status": 400}, {"drop": True}, {"body": "{"}])
@pytest.mark.parametrize("budget", range(1, 6))
def test_every_request_that_goes_out_is_taken_off_the_budget(server, endpoint, fault, budget):
    """Failed requests and retries count too: the server receives exactly as many requests as the budget allows."""
    turns = itertools.count()
    server.answer = lambda body: server.chat("1") if next(turns) % 3 == 2 else server.Fault(**fault)
    client = Client(endpoint(max_calls=budget, concurrency=3))
    ask(client, *"abcdefghijkl")
    assert len(server.requests) == budget == client.counters["calls"]
    assert client.budget.stopped == f"endpoint.max_calls: the budget of {budget} calls is spent"


def test_a_server_that_counts_no_tokens_cannot_keep_a_budget_of_them(server, endpoint):
    server.says(server.chat("1", tokens=(0, 0)))
    client = Client(endpoint(max_tokens=20, concurrency=1))
    first, second = ask(client, "a", "b")
    assert first.text == "1" and isinstance(second, Stopped) and "max_calls instead" in client.budget.stopped


def test_what_is_cached_is_free(server, endpoint):
    ask(Client(endpoint()), "a")
    cached_answer, fresh = ask(Client(endpoint(max_calls=0)), "a", "b")
    assert cached_answer.text == "1" and isinstance(fresh, Stopped)


def test_an_answer_is_waited_for_within_a_running_loop_too():
    """A notebook runs its cells in an event loop."""

    async def answer():
        return 3

    async def cell():
        return waited_for(answer())

    assert waited_for(answer()) == asyncio.run(cell()) == 3


def test_ctrl_c_ends_what_a_notebook_waits_for(monkeypatch):
    """The answer never comes; Ctrl-C cancels the task in the other thread, so that the thread ends."""
    ended = []

    async def answer():
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    async def cell():
        waited_for(answer())

    def interrupted(future, timeout=None):
        monkeypatch.undo()
        with pytest.raises(TimeoutError):
            future.result(0.2)
        raise KeyboardInterrupt

    monkeypatch.setattr("concurrent.futures.Future.result", interrupted)
    with pytest.raises(KeyboardInterrupt):
        asyncio.run(cell())
    assert ended == [True]
