"""Small studies without files, and runs with given validations."""

import math
from pathlib import Path

import pytest

from lightning_nlf.studies.runs import Point, Result, Run
from lightning_nlf.studies.spec import Arm, Study


@pytest.fixture
def study_of(tmp_path):
    """Study of arms `base` and `joint` (or `names`), with budgets by counter; further arguments as `Study`."""

    def build(names=("base", "joint"), budgets=None, seeds=range(100, 106), starts=None, settings=("",), **changes):
        limits = {"env_steps": 1000} if budgets is None else budgets
        arms, baselines = {}, {}
        for setting in settings:
            for method in names:
                name = f"{method}/{setting}" if setting else method
                arms[name] = Arm(name, ("--config", f"conf/{method}.yaml"), budgets=limits, setting=setting)
                baselines[name] = f"{names[0]}/{setting}" if setting else names[0]
        seeds = tuple(seeds)
        return Study(
            "demo",
            Path("demo.yaml"),
            tmp_path,
            arms,
            baselines,
            "val/return",
            (0, 1),
            seeds,
            starts or {seed: seed for seed in (0, 1, *seeds)},
            **changes,
        )

    return build


@pytest.fixture
def run_of():
    """Run with a validation every 100 environment steps and 10 optimizer steps."""

    def build(values, arm="joint", seed=100, stage="report", failure="", cell=None, **details):
        points = tuple(
            Point({"env_steps": 100.0 * i, "optimizer_steps": 10.0 * i, "iteration": float(i)}, float(value))
            for i, value in enumerate(values, 1)
        )
        return Result(Run(arm, stage, cell or {}, seed), points, failure, **details)

    return build


@pytest.fixture
def solved_at(run_of):
    """Run whose metric reaches 1 at so many environment steps, a multiple of 100; never if infinite."""

    def build(steps, arm="joint", seed=100, **details):
        count = 10 if math.isinf(steps) else int(steps // 100)
        return run_of([0.0] * (count - 1) + [0.0 if math.isinf(steps) else 1.0], arm, seed, **details)

    return build
