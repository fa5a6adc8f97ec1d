"""Every arm is read as `fit` reads it, with each value of its grid, before anything runs."""

from pathlib import Path

import pytest

from lightning_nlf.cli.errors import ConfigurationError
from lightning_nlf.studies.check import cells_with_each_value
from lightning_nlf.studies.reader import check, read
from lightning_nlf.studies.spec import Arm, Range

ROOT = Path(__file__).parents[3]
STUDY = """\
baseline: reinforce
metric: val/return
seeds: {tune: 0-1, report: 1000}
settings: {few: {data.episodes: 1}}
arms:
  reinforce:
    yaml: conf/pendulum/reinforce.yaml
    changes: {trainer.max_epochs: 2}
    grid: {model.lr: [0.01, 0.02]}
"""


@pytest.fixture(autouse=True)
def root(monkeypatch):
    monkeypatch.chdir(ROOT)  # yamls are read from the working directory


def test_few_cells_contain_each_value():
    arm = Arm("a", (), {}, {"x": (1, 2, 3), "y": (4, 5), "z": Range(0.1, 1)})
    assert [tuple(cell.values()) for cell in cells_with_each_value(arm)] == [(1, 4, 0.1), (2, 5, 1), (3, 5, 1)]
    assert list(cells_with_each_value(Arm("a", ()))) == [{}]


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("model.lr:", "model.lrr:", "arms.reinforce.grid.model.lrr (FILE, line 9): ReinforcePolicy has no such key"),
        ("0.02", "fast", "arms.reinforce.grid.model.lr (FILE, line 9): expected a number above 0 or null, got 'fast'"),
        ("max_epochs", "epochs", "arms.reinforce.changes.trainer.epochs (FILE, line 8): "),
        ("episodes: 1", "episodes: x", "settings.few.data.episodes (FILE, line 4): expected "),
        ("force.yaml", "force.yaml --model.x 1", "arms.reinforce/few (FILE): --model.x: "),
    ],
)
def test_a_key_or_value_that_fit_refuses(tmp_path, old, new, message):
    file = tmp_path / "speed.yaml"
    file.write_text(STUDY.replace(old, new))
    with pytest.raises(ConfigurationError) as error:
        check(read(str(file)))
    assert str(error.value).startswith(message.replace("FILE", str(file)))


def test_a_study_that_fit_accepts(tmp_path):
    file = tmp_path / "speed.yaml"
    file.write_text(STUDY)
    check(read(str(file)))
