"""Process and outcome reward models: figures of judges, choice of cells, and paired gains."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks import process
from benchmarks.side_by_side import process_report
from benchmarks.side_by_side.process_runs import area_under_curve, best_of
from lightning_nlf.moved_yamls import arguments


def row(method, seed, reward, **fields):
    return {"method": method, "seed": seed, "cell": {}, "true_reward": reward, "sampled_tokens": 9} | fields


def test_the_area_under_the_curve_by_hand():
    """Right at .9 and .4, wrong at .4 and .1: three of four pairs are won and one is a tie, 3.5 / 4."""
    score, right = np.array([0.9, 0.4, 0.4, 0.1]), np.array([True, True, False, False])
    assert area_under_curve(score, right) == pytest.approx(0.875)
    assert area_under_curve(-score, right) == pytest.approx(0.125)


def test_the_best_of_neighbours_and_the_mean_of_equals():
    """n = 2: 2 beats 1 and is wrong, two tied ones with one right give ½: mean .25. n = 4: the two at 3 give ½."""
    score, right = np.array([1.0, 2.0, 3.0, 3.0]), np.array([1.0, 0.0, 1.0, 0.0])
    assert best_of(2, score, right) == pytest.approx(0.25)
    assert best_of(4, score, right) == pytest.approx(0.5)
    assert best_of(1, score, right) == pytest.approx(right.mean())


def test_the_kl_weight_with_the_highest_reward_on_the_tuning_seed_is_chosen(monkeypatch):
    """The fresh seeds, where another cell would win, do not count."""
    rewards = {0.03: 0.2, 0.1: 0.4, 0.3: 0.3}
    rows = [row("ppo_steps", 0, reward, cell={"model.beta": beta}) for beta, reward in rewards.items()]
    rows.append(row("ppo_steps", 1000, 1.0, cell={"model.beta": 0.3}))
    monkeypatch.setattr(process, "read_rows", lambda path: rows)
    assert process.best_cells(["ppo_steps"]) == {"ppo_steps": {"model.beta": 0.1}}


def test_gains_are_paired_by_seed():
    """Starts .5 and .7, ends .6 and .8: a gain of .1 on both, although the starts differ by .2."""
    figures = {"kl": 1.0, "length": 18.0, "finished": 1.0}
    rows = [row(method, seed, reward, **figures) for method, seed, reward in (
        ("start", 1, 0.5), ("start", 2, 0.7), ("ppo_outcome", 1, 0.6), ("ppo_outcome", 2, 0.8)
    )]  # fmt: skip
    assert process_report.policies(rows)["ppo_outcome"]["gain"] == pytest.approx((0.1, 0.1, 0.1))
    assert process_report.policies(rows[2:])["ppo_outcome"].get("gain") is None  # no start, no gain


def test_a_judge_is_ahead_of_the_outcome_model_by_seed():
    def figures_of(process_best, outcome_best):
        keys = dict.fromkeys(process_report.JUDGED, 0.5)
        return {"process, min": keys | {"best_of_16": process_best}, "outcome": keys | {"best_of_16": outcome_best}}

    rows = [
        {"method": "judges", "seed": seed, "judges": figures_of(*best)}
        for seed, best in enumerate([(0.6, 0.4), (0.9, 0.7)])
    ]
    assert process_report.judges(rows)["process, min"]["ahead"] == pytest.approx((0.2, 0.2, 0.2))


def test_every_method_names_a_yaml():
    for name, method in process.METHODS.items():
        path = arguments(process.HERE.parent / "conf", str(method.get("yaml")))[1]
        assert Path(path).is_file() == (name not in ("judges", "start"))
        assert len(process.grid(name)) == (3 if "yaml" in method else 1)
