"""`judge` on the command line with a scripted server: soft labels, budgets, resuming, server faults, user errors."""

import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import yaml

from data_modules.feedback.__main__ import main
from data_modules.feedback.providers.model_judge import ModelJudge
from data_modules.feedback.providers.questions import CritiqueQuestion, ExpectedQuestion, ScoreQuestion
from data_modules.judgements.files import read, write
from data_modules.judgements.schema import Judgement
from data_modules.text import SourcedAnswers

CONF = Path(__file__).parents[4] / "conf" / "providers"
PREFERENCE = "data_modules.feedback.providers.PreferenceQuestion"
SCORE = "data_modules.feedback.providers.ScoreQuestion"
LINES = [Judgement(f"q {i}", ("good", "bad"), meta={"n": i}) for i in range(4)]


@pytest.fixture
def judge(server, tmp_path, capsys):
    """Function that runs the command on lines and returns the exit code, the written judgements and the output."""

    def run(lines, *questions, flags=(), **knobs):
        if lines is not None:
            write(tmp_path / "in.jsonl", lines)
        defaults = {"url": server.url, "model": "judge", "cache": str(tmp_path / "cache")}
        config = {
            "class_path": "data_modules.feedback.providers.ModelJudge",
            "init_args": {"endpoint": defaults | knobs, "questions": [{"class_path": path} for path in questions]},
        }
        (tmp_path / "judge.yaml").write_text(yaml.safe_dump(config))
        out = tmp_path / "out.jsonl"
        arguments = ["judge", str(tmp_path / "in.jsonl"), "--config", str(tmp_path / "judge.yaml"), "--out", str(out)]
        code = main([*arguments, *flags])
        printed = capsys.readouterr()
        return code, read(out) if out.exists() else None, printed.out + printed.err

    return run


def confident(server, prompt_of):
    """Answers: good wins with .9 if it comes first and with .7 if it comes second, so .8."""

    def answer(body):
        p_one = 0.9 if "Response 1 - good" in prompt_of(body) else 0.3
        return server.chat("1", [{"1": p_one, "2": 1 - p_one}])

    return answer


def test_soft_labels_are_written(server, judge, prompt_of):
    server.answer = confident(server, prompt_of)
    code, lines, output = judge(LINES, PREFERENCE)
    assert code == 0 and [line.preference for line in lines] == pytest.approx([0.8] * 4)
    assert {line.ranking for line in lines} == {"A > B"} and {line.source for line in lines} == {"judge"}
    assert [line.meta for line in lines] == [{"n": i} for i in range(4)]
    assert "feedback added to 4 of 4 prompts (8 calls, 0 cached, 0 retries, 80 prompt tokens, 16 completion" in output
    code, again, output = judge(None, PREFERENCE)
    assert again == lines and len(server.requests) == 8 and "(0 calls, 8 cached" in output


def test_a_budget_stops_cleanly_and_a_rerun_asks_what_is_missing(server, judge, prompt_of):
    """Five answers give two complete comparisons; the fifth stays in the cache, and the rerun asks the other three."""
    server.answer = confident(server, prompt_of)
    code, lines, output = judge(LINES, PREFERENCE, max_calls=5, concurrency=1)
    assert code == 0 and "stopped: endpoint.max_calls: the budget of 5 calls is spent; run the same command" in output
    preferences = [line.preference is not None for line in lines]
    assert 1 <= sum(preferences) <= 2 and len(lines) == 4 and lines[preferences.index(False)] in LINES
    code, lines, _ = judge(None, PREFERENCE, max_calls=5, concurrency=1)
    assert code == 0 and all(line.preference == pytest.approx(0.8) for line in lines) and len(server.requests) == 8


def test_what_cannot_be_read_is_listed_and_the_rest_is_judged(server, judge, prompt_of):
    server.answer = lambda body: server.chat("eight" if "q 2" in prompt_of(body) else "10")
    code, lines, output = judge(LINES, SCORE)
    assert code == 0 and [line.score for line in lines] == [(1.0, 1.0), (1.0, 1.0), None, (1.0, 1.0)]
    assert "2 left out:" in output and "in.jsonl:3: score: 'eight' is not a number from 1 to 10" in output


def test_errors_of_all_kinds_lose_nothing(server, judge, prompt_of):
    """Each question fails once, in different ways; in the end all are judged."""
    kinds = [{"status": 500}, {"status": 429, "headers": {"Retry-After": "0.01"}}, {"drop": True}, {"body": "{"}]
    failed = set()
    answer = confident(server, prompt_of)

    def flaky(body):
        if (prompt := prompt_of(body)) not in failed:
            failed.add(prompt)
            return server.Fault(**kinds[len(failed) % 4])
        return answer(body)

    server.answer = flaky
    code, lines, printed = judge(LINES, PREFERENCE)
    assert code == 0 and all(line.preference == pytest.approx(0.8) for line in lines) and "8 retries" in printed


def test_what_is_there_is_asked_anew_only_when_told(server, judge):
    server.says(server.chat("10"))
    half_scored = [Judgement("q", ("a", "b"), score=(0.25, None), source="ann")]
    _, (line,), _ = judge(half_scored, SCORE)
    assert line.score == (0.25, 1.0) and line.source == "ann" and line.meta == {"said_by": {"score": "judge"}}
    _, (line,), _ = judge(None, SCORE, flags=["--replace"])
    assert line.score == (1.0, 1.0) and line.source == "judge" and line.meta == {}


def test_several_questions_share_one_budget_and_one_line(server, endpoint, prompt_of):
    words = {"Rate": "10", "Say": "No source.", "Write": "As per the USDA …"}
    server.answer = lambda body: server.chat(words[prompt_of(body).split()[0]])
    judge = ModelJudge(endpoint(), [ScoreQuestion(), CritiqueQuestion(), ExpectedQuestion()])
    assert judge.gives == ("score", "critique", "expected")
    (line,), account = judge.complete([Judgement("q", ("a",))], int)
    assert (line.score, line.critique, line.expected) == ((1.0,), ("No source.",), "As per the USDA …")
    assert account.counters["calls"] == 3
    with pytest.raises(ValueError, match="questions: the list is empty"):
        ModelJudge(endpoint(), [])


# ---- errors of the user and of the server


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--set", "endpoint.concurency=2"], "concurency"),
        (["--set", "endpoint.concurrency=0"], "endpoint.concurrency: Expected a whole number from 1 to 2147483647."),
        (["--set", "model"], "--set: got 'model', must be like endpoint.model=judge"),
        (["--set", "endpoint.model=["], "--set: endpoint.model: '[' is not valid yaml"),
        (["--set", "endpoint.model=" + "[" * 3000], "is not valid yaml: it is nested too deeply"),
        (["--set", "endpoint.url.host=x"], "--set: endpoint.url.host: url is not a mapping"),
        (["--set", "endpoint.key_variable=NO_SUCH_KEY"], "the environment variable NO_SUCH_KEY is not set"),
    ],
)
def test_a_mistake_is_one_message(judge, flags, message):
    code, lines, output = judge(LINES, SCORE, flags=flags)
    assert code == 2 and lines is None and message in output and "Traceback" not in output


def test_a_config_that_is_not_there(tmp_path, capsys):
    write(tmp_path / "in.jsonl", LINES)
    arguments = ["judge", str(tmp_path / "in.jsonl"), "--out", str(tmp_path / "out.jsonl"), "--config"]
    assert main([*arguments, str(tmp_path / "nowhere.yaml")]) == 2
    assert "--config: the file" in capsys.readouterr().err
    (tmp_path / "list.yaml").write_text("[1, 2]")
    assert main([*arguments, str(tmp_path / "list.yaml")]) == 2 and "must be a mapping" in capsys.readouterr().err


@pytest.mark.parametrize(("status", "message"), [(401, "refuses the key"), (404, "does not exist")])
def test_a_refusal_stops_at_once(server, judge, status, message):
    server.says(server.Fault(status, "no"))
    code, lines, output = judge(LINES * 5, SCORE, concurrency=2)
    assert code == 2 and lines is None and message in output and len(server.requests) <= 4


def test_nobody_at_home(server, judge):
    server.server.server_close()
    code, lines, output = judge(LINES, SCORE, retries=1)
    assert code == 2 and lines is None and "endpoint.url: no server answers at" in output


def test_nothing_that_could_be_read_at_all(server, judge):
    server.says(server.chat("fine"))
    code, lines, output = judge(LINES[:1], SCORE)
    assert code == 2 and lines is None and "2 left out:" in output and "'fine' is not a number" in output


def begun(server, tmp_path, answer, end):
    """Judge four lines in a process, and call `end(process)` while the fourth answer is under way.

    Returns: the command, the finished process, and its standard error.
    """
    write(tmp_path / "in.jsonl", LINES)
    endpoint = {"url": server.url, "model": "judge", "cache": str(tmp_path / "cache"), "concurrency": 1}
    init_args = {"endpoint": endpoint, "questions": [{"class_path": PREFERENCE}]}
    config = {"class_path": "data_modules.feedback.providers.ModelJudge", "init_args": init_args}
    (tmp_path / "judge.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "data_modules.feedback", "judge", str(tmp_path / "in.jsonl")]
    command += ["--config", str(tmp_path / "judge.yaml"), "--out", str(tmp_path / "out.jsonl")]
    process = []

    def hanging(body):
        if len(server.requests) == 4:
            end(process[0])
            return server.Fault(hang=True)
        return answer(body)

    server.answer = hanging
    with server.lock:  # no answers before `process` is set
        process.append(subprocess.Popen(command, cwd=CONF.parents[1], stdout=subprocess.PIPE, stderr=subprocess.PIPE))
    _, printed = process[0].communicate(timeout=120)
    assert len(server.requests) == 4
    server.answer = answer
    return command, process[0], printed.decode()


def test_a_judge_that_was_killed_goes_on(server, tmp_path, prompt_of):
    """The killed process wrote nothing; its three cached answers are not requested again."""
    command, process, _ = begun(server, tmp_path, confident(server, prompt_of), subprocess.Popen.kill)
    assert process.returncode != 0 and not (tmp_path / "out.jsonl").exists()
    assert main(command[3:]) == 0
    assert all(line.preference == pytest.approx(0.8) for line in read(tmp_path / "out.jsonl"))
    assert len(server.requests) == 4 + 5


@pytest.mark.slow
def test_ctrl_c_keeps_what_was_judged_and_says_so_in_one_line(server, tmp_path, prompt_of):
    """Three answers are one complete comparison and half of another; only the complete one is written."""
    interrupt = partial(subprocess.Popen.send_signal, sig=signal.SIGINT)
    command, process, printed = begun(server, tmp_path, confident(server, prompt_of), interrupt)
    assert process.returncode == 130
    assert printed == "stopped: by Ctrl-C; run the same command again to continue\n"
    preferences = [line.preference for line in read(tmp_path / "out.jsonl")]
    assert preferences == [pytest.approx(0.8), None, None, None]
    assert main(command[3:]) == 0 and len(server.requests) == 4 + 5
    assert all(line.preference == pytest.approx(0.8) for line in read(tmp_path / "out.jsonl"))


def test_ctrl_c_before_anything_was_judged_writes_nothing(server, judge, monkeypatch):
    def interrupted(coroutine):
        coroutine.close()
        raise KeyboardInterrupt

    monkeypatch.setattr("data_modules.feedback.providers.model_judge.waited_for", interrupted)
    code, lines, output = judge(LINES, SCORE)
    assert (code, lines, output) == (130, None, "stopped: by Ctrl-C\n")


# ---- the yamls


def test_the_rlaif_judge_of_the_yaml(server, tmp_path, prompt_of, capsys):
    """Its question has the paper's form; the address and the model come from the command line."""
    server.says(server.chat("2", [{"1": 0.25, "2": 0.75}]))
    write(tmp_path / "in.jsonl", [Judgement("this museum was a letdown", (". it was good .", ". it was bad ."))])
    flags = ["--set", f"endpoint.url={server.url}", "--set", "endpoint.model=small", "--set", "endpoint.cache=null"]
    arguments = ["judge", str(tmp_path / "in.jsonl"), "--config", str(CONF / "judge.yaml"), *flags]
    assert main([*arguments, "--out", str(tmp_path / "out.jsonl")]) == 0
    (line,) = read(tmp_path / "out.jsonl")
    assert line.preference == pytest.approx(0.5) and line.source == "small"
    _, question = sorted(map(prompt_of, server.requests))  # good comes first
    assert question.startswith("A good continuation") and "\n\n»»»» Example »»»»\n\nBeginning - this phone" in question
    assert question.endswith("\n\nContinuation 2 - . it was bad .\n\nPreferred Continuation=")
    assert "Preferred Continuation=2\n\n»»»» Follow the instructions and the example(s) above »»»»\n\n" in question


def test_a_rule_by_yaml(tmp_path):
    config = {
        "class_path": "data_modules.feedback.providers.RuleProvider",
        "init_args": {"task": {"class_path": "data_modules.text.SourcedAnswers"}},
    }
    (tmp_path / "rule.yaml").write_text(yaml.safe_dump(config))
    case = SourcedAnswers().cases("train")[0]
    write(tmp_path / "in.jsonl", [Judgement(case.prompt, ("no idea .",))])
    arguments = ["judge", str(tmp_path / "in.jsonl"), "--config", str(tmp_path / "rule.yaml")]
    assert main([*arguments, "--out", str(tmp_path / "out.jsonl")]) == 0
    (line,) = read(tmp_path / "out.jsonl")
    assert line.source == "rule" and line.score[0] < 0.5 and line.critique[0] and line.expected
