from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from lightning_nlf.batch import Batch
from lightning_nlf.callbacks import Exhibits, LastCheckpoint, exhibits
from lightning_nlf.callbacks.episode_lines import episodes


@pytest.fixture(autouse=True)
def cheap_gifs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace GIFs with a stub, because other tests cover them."""

    def exhibits(self: Any, folder: Path) -> list[Path]:
        path = folder / "episode.gif"
        path.write_bytes(b"GIF89a")
        return [path]

    monkeypatch.setattr("data_modules.pendulum.PendulumDataModule.exhibits", exhibits)


def by_step(fit: Any) -> dict[int, dict[str, float]]:
    """All logged metrics by step. A name that is logged twice at a step must have one value."""
    merged: dict[int, dict[str, float]] = {}
    for step, metrics in fit.logger.metrics:
        for name, value in metrics.items():
            assert merged.setdefault(step, {}).setdefault(name, value) == value, name
    return merged


def test_counters_stand_beside_the_metrics_of_their_iteration(fit: Any) -> None:
    _, _, data_module = fit.pendulum(4, [Exhibits()], every=2)
    steps = by_step(fit)
    assert sorted(steps) == [0, 1, 2, 3]
    for number, metrics in steps.items():
        assert metrics["iteration"] == number + 1
        assert {"env_steps", "expert_steps", "labels", "train/return", "train/length", "train/loss"} <= set(metrics)
        assert ("val/return" in metrics and "val/return_sampled" in metrics) == (number in (1, 3))
    assert steps[3]["env_steps"] == data_module.counters["env_steps"] > steps[0]["env_steps"] > 0
    assert steps[3]["train/return"] == data_module.statistics["return"]


def test_the_curve_of_a_resumed_run_covers_the_whole_history(fit: Any) -> None:
    fit.pendulum(3, [Exhibits(), LastCheckpoint()])
    callback = Exhibits()
    fit.pendulum(5, [callback, LastCheckpoint()], resume=fit.folder / "checkpoints/last.ckpt")
    steps = by_step(fit)
    cost = [steps[number]["env_steps"] for number in range(5)]
    assert callback.history.unit == "environment steps"
    assert callback.history.series("train") == (cost, [steps[number]["train/return"] for number in range(5)])
    for name in ("val/return", "val/return_sampled"):
        assert callback.history.series(name) == (cost, [steps[number][name] for number in range(5)])
    assert fit.folder / "exhibits/learning_curve.png" in fit.logger.artifacts
    assert fit.folder / "exhibits/episode.gif" in fit.logger.artifacts


def test_a_module_without_counters_is_drawn_against_optimizer_steps(fit: Any) -> None:
    callback = Exhibits()
    fit.scripted([(1, 2), (3, 4)], [callback])
    assert callback.history.unit == "optimizer steps"
    assert callback.history.series("val/return") == ([1, 2], [1, 3])
    assert callback.history.series("val/return_sampled") == ([1, 2], [2, 4])
    assert (fit.folder / "exhibits/learning_curve.png").exists()


def test_a_fit_that_shows_nothing_leaves_no_empty_folder(fit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Exhibits, "_curves", lambda self, folder: [])
    fit.scripted([(1, 2)], [Exhibits()])
    assert fit.folder.exists() and not (fit.folder / "exhibits").exists()


def test_exhibits_that_fail_are_one_warning(fit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any) -> None:
        raise RuntimeError("no context")

    monkeypatch.setattr("data_modules.pendulum.PendulumDataModule.exhibits", broken)
    monkeypatch.setattr(exhibits, "draw", broken)
    with pytest.warns(UserWarning) as caught:
        trainer, _, _ = fit.pendulum(2, [Exhibits(every_seconds=0)])
    assert trainer.current_epoch == 2
    messages = [str(warning.message) for warning in caught if "no context" in str(warning.message)]
    assert messages == [
        "could not make the learning curve: RuntimeError: no context",
        "could not make the DataModule's exhibits: RuntimeError: no context",
    ]


def test_a_run_that_fails_is_exhibited_and_marked(fit: Any, failing_at: Any) -> None:
    with pytest.raises(RuntimeError, match="on purpose"):
        fit.pendulum(5, [Exhibits(), failing_at(2)])
    assert (fit.folder / "exhibits/learning_curve.png").exists()
    assert (fit.folder / "exhibits/episode.gif").exists()
    assert fit.logger.endings[0] == "failed"


def test_exhibits_wait_for_their_time(fit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A validation every second and 3 s between exhibits, which take no time: exhibits are made at 3 and 6 s."""
    now = 0.0
    times: list[float] = []
    monkeypatch.setattr(exhibits.time, "monotonic", lambda: now)
    monkeypatch.setattr(exhibits, "draw", lambda history, path, title: times.append(now) or path)

    class Clock(L.Callback):
        def on_train_epoch_start(self, *args: Any) -> None:
            nonlocal now
            now += 1

    fit.scripted([(0, 0)] * 7, [Clock(), Exhibits(every_seconds=3)])
    assert times == [3, 6, 7]  # and at the end
    with pytest.raises(ValueError, match="every_seconds: got -1"):
        Exhibits(-1)


def test_rendering_takes_at_most_a_fiftieth_of_the_time(fit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exhibit takes 0.25 s, so the next one waits for 12.5 s. An iteration takes 1 s.

    The first is made at 1 s, and the second is due at 1.25 + 12.5 = 13.75 s. Validations end at 2.25, 3.25 … 14.25 s.
    """
    now = 0.0
    times: list[float] = []
    monkeypatch.setattr(exhibits.time, "monotonic", lambda: now)

    def slow(history: Any, path: Path, title: str) -> Path:
        nonlocal now
        times.append(now)
        now += 0.25
        return path

    monkeypatch.setattr(exhibits, "draw", slow)

    class Clock(L.Callback):
        def on_train_epoch_start(self, *args: Any) -> None:
            nonlocal now
            now += 1

    fit.scripted([(0, 0)] * 16, [Clock(), Exhibits(every_seconds=0)])
    assert times == [1, 14.25, 16.5]  # the last at the end


def test_a_rehearsal_leaves_no_files(fit: Any) -> None:
    fit.pendulum(1, [Exhibits()], fast_dev_run=True)
    assert not fit.folder.exists()


def test_a_prediction_writes_a_line_an_episode(fit: Any) -> None:
    trainer, module, data_module = fit.pendulum(1, [Exhibits()])
    for _ in range(2):  # the second replaces the first
        trainer.predict(module, data_module)
    path = fit.folder / "predictions/episodes.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["who"] for line in lines] == ["deterministic"] * 2 + ["sampled"] * 2
    for line in lines:
        assert set(line) == {"who", "return", "length", "terminated"}
        assert line["length"] - line["return"] == line["terminated"]  # reward 1 per step, but 0 when it falls
    assert path in fit.logger.artifacts and fit.folder / "predictions/episode.gif" in fit.logger.artifacts


def test_episodes_of_a_batch() -> None:
    """Rewards after the end of a row do not count: 1 + 2 + 3 and 4."""
    valid = torch.tensor([[True, True, True], [True, False, False]])
    rewards = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    batch = Batch(torch.zeros(2, 3, 1), torch.zeros(2, 3, 1), valid, valid, rewards=rewards)
    assert episodes(batch, "sampled") == [
        {"who": "sampled", "length": 3, "return": 6.0},
        {"who": "sampled", "length": 1, "return": 4.0},
    ]


def test_text_is_shown_at_every_validation(fit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures wait for `every_seconds`, but text exhibits do not."""
    iterations: list[int] = []

    def exhibits(self: Any, folder: Path) -> list[Path]:
        iterations.append(self.counters["iteration"])
        path = folder / "transcript.md"
        path.write_text("words")
        return [path]

    monkeypatch.setattr("data_modules.pendulum.PendulumDataModule.exhibits", exhibits)
    fit.pendulum(4, [Exhibits()], every=2)
    assert iterations == [4]  # at the end alone
    monkeypatch.setattr("data_modules.pendulum.PendulumDataModule.exhibits_text", True, raising=False)
    fit.pendulum(4, [Exhibits()], every=2)
    assert iterations == [4, 2, 4, 4]
    assert fit.logger.artifacts.count(fit.folder / "exhibits/transcript.md") == 4
