"""Small networks use one thread unless the user sets the number."""

from pathlib import Path

import pytest
import torch
from torch import nn

from lightning_nlf.cli import command_line, threads

CONF = Path(__file__).parents[3] / "conf"


@pytest.fixture(autouse=True)
def two_threads(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("width", "expected"), [(99, 1), (100, 2)])
def test_as_many_as_suit_the_network(width, expected):
    """A layer of 1000 × `width` weights and `width` biases has 99,099 or 100,100 parameters."""
    with threads.fitting(nn.Linear(1000, width)):
        assert torch.get_num_threads() == expected
    assert torch.get_num_threads() == 2


def test_omp_num_threads_takes_precedence(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    with threads.fitting(nn.Linear(1, 1)):
        assert torch.get_num_threads() == 2


def test_they_are_given_back_after_a_failure():
    with pytest.raises(ZeroDivisionError), threads.fitting(nn.Linear(1, 1)):
        raise ZeroDivisionError
    assert torch.get_num_threads() == 2


def test_the_main_job_has_one(monkeypatch, tmp_path):
    threads_seen = []
    monkeypatch.setattr(
        command_line.NothingLeft, "on_train_start", lambda *arguments: threads_seen.append(torch.get_num_threads())
    )
    monkeypatch.chdir(tmp_path)
    words = ["fit", "--config", str(CONF / "injection.yaml"), "--trainer.fast_dev_run", "1"]
    command_line.main([*words, "--trainer.enable_progress_bar", "false", "--trainer.logger", "false"])
    assert threads_seen == [1] and torch.get_num_threads() == 2
