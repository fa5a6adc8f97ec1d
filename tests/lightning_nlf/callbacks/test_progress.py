from __future__ import annotations

import io
import os
import re
import sys
import threading
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from data_modules.text import DemonstrationsDataModule, PositiveReviews, TextDataModule, WordTokenizer
from lightning_nlf.callbacks import Exhibits, FitProgress, LastCheckpoint, progress, progress_display, throughput
from lightning_nlf.callbacks.progress_display import Pace
from lightning_nlf.networks import GRUPolicy
from lightning_nlf.objectives import ImitationPolicy, ReinforcePolicy
from lightning_nlf.tracking.logger import MLflowJournalLogger
from lightning_nlf.tracking.shipper import Shipper

TIMES = r"\d:\d\d:\d\d elapsed(, \d:\d\d:\d\d left)?"


def test_lines_where_there_is_no_terminal(fit: Any, capsys: pytest.CaptureFixture[str]) -> None:
    fit.pendulum(3, [FitProgress(every_seconds=0)], every=2)
    lines = capsys.readouterr().out.splitlines()
    number = r"[\d.]+"
    returns = [rf" · return {number}", rf" · return {number} · validation {number}, sampled {number}"]
    for number_done, line, standing in zip((1, 2, 3), lines[:3], (*returns, returns[1]), strict=True):
        assert re.fullmatch(rf"run {number_done}/3{standing} · [\d,]+ env steps, [\d,]+/s · {TIMES}", line), line
    assert lines[3] == "" and lines[4].startswith("Finished: 3 iterations in 0:00:0")
    assert lines[5].startswith("  return ")
    assert lines[6:] == [f"  run folder: {fit.folder}", ""]  # without MLflow there are no metrics to view
    assert "\x1b" not in "".join(lines)


@pytest.mark.parametrize("uri", [None, "http://me:secret@127.0.0.1:9"])
def test_the_summary_says_where_the_run_can_be_seen(
    fit: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, uri: str | None
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(Shipper, "start", lambda self: None)
    monkeypatch.setattr(Shipper, "close", lambda self, *seconds: 0)
    fit.logger = MLflowJournalLogger(str(fit.folder), tracking_uri=uri)
    fit.scripted([(0, 0)], [FitProgress()])
    command = f"python -m lightning_nlf.tracking ui {fit.folder.parent}"
    assert f"\n  view the metrics: {'http://127.0.0.1:9' if uri else command}\n" in capsys.readouterr().out


def test_a_rehearsal_has_no_folder_to_look_at(fit: Any, capsys: pytest.CaptureFixture[str]) -> None:
    fit.scripted([(0, 0)], [FitProgress()], fast_dev_run=True)
    out = capsys.readouterr().out
    assert "Finished" in out and "run folder" not in out and "view the metrics" not in out


def test_lines_come_seldom(fit: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """An iteration per second and a line every 10 s: after iterations 1, 11 and 21, and after the last."""
    now = 0.0
    for module in (progress, progress_display):
        monkeypatch.setattr(module.time, "monotonic", lambda: now)

    class Clock(L.Callback):
        def on_train_epoch_start(self, *args: Any) -> None:
            nonlocal now
            now += 1

    fit.scripted([(7, 6)] * 25, [Clock(), FitProgress()])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("run ")]
    assert lines == [
        "run 1/25 · loss -0 · validation 7, sampled 6 · 0:00:01 elapsed, 0:00:24 left",
        "run 11/25 · loss -10 · validation 7, sampled 6 · 0:00:11 elapsed, 0:00:14 left",
        "run 21/25 · loss -20 · validation 7, sampled 6 · 0:00:21 elapsed, 0:00:04 left",
        "run 25/25 · loss -24 · validation 7, sampled 6 · 0:00:25 elapsed",
    ]


def test_a_resumed_run_counts_on(fit: Any, capsys: pytest.CaptureFixture[str]) -> None:
    fit.scripted([(0, 0)] * 2, [LastCheckpoint()])
    resume = fit.folder / "checkpoints/last.ckpt"
    fit.scripted([(0, 0)] * 5, [FitProgress(every_seconds=0)], resume=resume)
    out = capsys.readouterr().out
    assert re.findall(r"^run (\d)/5", out, re.MULTILINE) == ["3", "4", "5"]
    assert "Finished: 3 iterations" in out


def test_what_stopped_a_fit_is_said(fit: Any, failing_at: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError, match="on purpose"):
        fit.scripted([(0, 0)] * 5, [FitProgress(), failing_at(2)])
    out = capsys.readouterr().out
    assert "\nStopped by RuntimeError: 2 iterations in" in out and "run folder: " in out


def test_a_fit_that_fails_at_once_has_no_folder_to_look_at(
    fit: Any, failing_at: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(RuntimeError, match="on purpose"):
        fit.scripted([(0, 0)] * 5, [FitProgress(), failing_at(0)])
    out = capsys.readouterr().out
    assert "\nStopped by RuntimeError: 0 iterations in" in out and "run folder" not in out


def test_the_time_left_follows_the_last_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    """10 iterations of 10 s, then 10 of 20 s. In the last 60 s the pace is 20 s per iteration, and 5 are left."""
    now = 0.0
    monkeypatch.setattr(progress_display.time, "monotonic", lambda: now)
    pace = Pace(total=25, first=0)
    assert pace.times() == "0:00:00 elapsed"
    for iteration in range(1, 21):
        now += 10 if iteration <= 10 else 20
        pace.count(iteration)
    assert pace.times() == "0:05:00 elapsed, 0:01:40 left"
    now += 30  # within the next iteration the clock goes on
    assert pace.times() == "0:05:30 elapsed, 0:01:10 left"
    endless = Pace(total=None, first=0)
    now += 7
    endless.count(1)
    assert endless.times() == "0:00:07 elapsed"


def test_a_bar_on_a_terminal(fit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    master, slave = os.openpty()
    output: list[bytes] = []

    def read() -> None:
        try:
            while part := os.read(master, 65536):
                output.append(part)
        except OSError:
            pass  # on Linux, the other end was closed

    reader = threading.Thread(target=read)
    reader.start()
    with io.TextIOWrapper(os.fdopen(slave, "wb"), encoding="utf-8") as terminal:
        monkeypatch.setattr(sys, "stdout", terminal)
        monkeypatch.setenv("TERM", "xterm-256color")
        monkeypatch.setenv("COLUMNS", "80")
        fit.scripted([(1000, 900)] * 3, [FitProgress()])
        monkeypatch.undo()
    reader.join(timeout=10)
    os.close(master)
    text = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", b"".join(output).decode())
    assert "\x1b[?25l" in b"".join(output).decode() and "\x1b[?25h" in b"".join(output).decode()  # cursor off and on
    lines = [line.rstrip() for line in text.replace("\r", "\n").split("\n")]
    assert any(re.fullmatch(rf"run ━+ 3/3 {TIMES}", line) for line in lines), text
    assert "  loss -2 · validation 1,000, sampled 900" in lines
    end = next(number for number, line in enumerate(lines) if line.startswith("Finished"))
    assert max(map(len, lines[:end])) <= 80


def test_stages_end_with_a_table(fit: Any, capsys: pytest.CaptureFixture[str]) -> None:
    trainer, module, data_module = fit.pendulum(1, [FitProgress()])
    capsys.readouterr()
    for stage, title in ((trainer.validate, "Validation"), (trainer.test, "Test")):
        stage(module, data_module)
        out = capsys.readouterr().out
        assert out.count("return_sampled") == 1 and "DataLoader" not in out  # Lightning's own table is not shown
        assert out.startswith(title)
    trainer.predict(module, data_module)
    out = capsys.readouterr().out
    assert out.startswith("Prediction") and re.search(r"episodes, sampled +│ +2 ", out)


def test_a_prediction_ends_with_where_it_is(fit: Any, capsys: pytest.CaptureFixture[str]) -> None:
    trainer, module, data_module = fit.pendulum(1, [FitProgress(), Exhibits()])
    capsys.readouterr()
    trainer.predict(module, data_module)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("predictions: ")]
    assert Path(line.removeprefix("predictions: ")).resolve() == fit.folder.resolve() / "predictions" / "episodes.jsonl"


def test_other_ranks_say_nothing(fit: Any, capsys: pytest.CaptureFixture[str]) -> None:
    bar = FitProgress(every_seconds=0)
    bar.disable()
    fit.scripted([(0, 0)], [bar])
    assert capsys.readouterr().out == ""
    with pytest.raises(ValueError, match="every_seconds: got -1"):
        FitProgress(-1)


class Counted(TextDataModule):
    """A data module whose collection takes two seconds of the clock."""

    def __init__(self, clock: Any, **knobs: Any) -> None:
        super().__init__(**knobs)
        self.clock = clock

    def collect(self, *args: Any) -> Any:
        self.clock[0] += 2
        return super().collect(*args)


def test_language_is_counted_in_tokens(
    fit: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An iteration collects n tokens in 2 s, and trains on them three times in 3 s: n/2 and n tokens per second.

    A validation, which takes 100 s here, does not count.
    """
    clock = [0.0]
    monkeypatch.setattr(throughput.time, "monotonic", lambda: clock[0])

    class Seconds(L.Callback):
        def on_train_batch_start(self, *args: Any) -> None:
            clock[0] += 1

        def on_validation_start(self, *args: Any) -> None:
            clock[0] += 100

    torch.manual_seed(0)
    module = ReinforcePolicy(policy=GRUPolicy(vocabulary=288, width=4))
    knobs = {"prompts": 4, "replies": 2, "passes": 3, "max_new": 4, "evaluation_prompts": 2}
    data = Counted(clock, task=PositiveReviews(), tokenizer=WordTokenizer(), **knobs)
    fit.trainer(3, [FitProgress(every_seconds=0), Seconds()]).fit(module, data)
    line = capsys.readouterr().out.splitlines()[3]
    match = re.search(r" · ([\d,]+) tokens · ([\d,]+) tokens/s collected · ([\d,]+) tokens/s trained · ", line)
    assert match, line
    tokens, collected, trained = (int(x.replace(",", "")) for x in match.groups())
    assert tokens == data.counters["env_steps"] > 0
    assert (collected, trained) == (round(tokens / 6), round(tokens * 3 / 9))


def test_demonstrations_are_counted_in_tokens(fit: Any, capsys: pytest.CaptureFixture[str]) -> None:
    module = ImitationPolicy(policy=GRUPolicy(vocabulary=288, width=4), divergence="nll")
    data = DemonstrationsDataModule(WordTokenizer(), PositiveReviews(), rows=8)
    fit.folder = fit.folder / "outputs/chat/sft-seed0"  # the run has the same name here as in MLflow
    fit.trainer(1, [FitProgress(every_seconds=0)], limit_val_batches=0).fit(module, data)
    plan, line = capsys.readouterr().out.splitlines()[:2]
    assert re.fullmatch(
        r"chat/sft-seed0: 8 rows and \d+ tokens per iteration · 1 optimizer step in 1 iteration · about 0:00:0\d", plan
    )
    assert line.startswith("chat/sft-seed0 1/1 · ")
    assert re.search(rf"loss [\d.]+ · {data.counters['tokens']} tokens · [\d,]+ tokens/s trained · ", line), line


def test_held_out_rows_come_before_what_is_played() -> None:
    """Without rewards there is no return, and the line shows the first two metrics of held-out rows."""
    bar = FitProgress()
    names = ("length", "length_sampled", "finished", "finished_sampled", "imitation", "accuracy", "perplexity")
    bar._metrics = {f"val/{name}": float(number) for number, name in enumerate(names)}
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    assert bar._standing(trainer) == "val/imitation 4 · val/accuracy 5"
    bar._metrics = {name: value for name, value in bar._metrics.items() if "length" in name}
    assert bar._standing(trainer) == "val/length 0 · val/length_sampled 1"


def test_equal_values_have_the_name_of_the_best_checkpoint() -> None:
    """An imitation without a schedule equals its divergence: the line says `val/imitation`, as best.ckpt does."""
    bar = FitProgress()
    bar._metrics = {"val/divergence": 2.0, "val/accuracy": 0.5, "val/perplexity": 3.0, "val/imitation": 2.0}
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer.strategy.connect(ImitationPolicy(policy=GRUPolicy(vocabulary=288, width=4), divergence="nll"))
    assert bar._standing(trainer) == "val/imitation 2 · val/accuracy 0.5"
    bar._metrics["val/accuracy"] = float("nan")  # held-out rows without a pair, for example
    assert bar._standing(trainer) == "val/imitation 2 · val/perplexity 3"
    bar._metrics["val/accuracy"] = 0.5
    trainer.strategy.connect(ReinforcePolicy(policy=GRUPolicy(vocabulary=288, width=4)))
    assert bar._standing(trainer) == "val/divergence 2 · val/accuracy 0.5"
