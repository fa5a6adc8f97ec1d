"""The same objectives on other bodies: PPO from scratch against PPO with an expert, jointly and by injection.

    python benchmarks/bodies.py [--seeds 10] [--only hopper:joint]

An expert is `conf/bodies/<body>_ppo.yaml` on seed 0, run to its end by the command line; the best of its validations
is kept. Then every arm, `conf/bodies/<body>_<arm>.yaml` with that expert, trains on seeds 1000, 1001, … (the yamls were
tuned on 0–2) with one budget of environment steps, the expert's included and the evaluation's not. Every so many steps
10 deterministic episodes are played on seeds of their own; a run reaches a threshold at the first of three of these in
a row that are at least there, and stops when it has reached the last one. One that does not get there counts as
infinite, and as the whole budget where PPO's steps stand in a ratio's numerator: so the ratio is a lower bound. The
training of the expert is not in the arms' steps; the table has it.
Finished runs are kept in `outputs/benchmarks/bodies` and not repeated. Writes `results/bodies.{json,md,png}`.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import platform
import subprocess
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ.setdefault("OMP_NUM_THREADS", "1")

from benchmarks.intervals import Interval, mean_interval, median_interval, ratio_interval, shown  # noqa: E402

RUNS = Path("outputs/benchmarks/bodies")
RESULTS = Path(__file__).parent / "results"
ARMS = ("ppo", "joint", "injection")
TIMES, EPISODES = 3, 10
EXPERT_EPISODES = 50


@dataclass(frozen=True)
class Body:
    """What is asked of one body."""

    budget: int  # environment steps of a run
    every: int  # environment steps between evaluations
    thresholds: dict[str, float]  # by name; a share of the expert's return where it is at most 1
    seconds: dict[str, float]  # of a run of each arm, for the estimate

    def returns(self, expert: float) -> dict[str, float]:
        return {name: share * expert if share <= 1 else share for name, share in self.thresholds.items()}


BODIES = {
    "double_pendulum": Body(60_000, 2_000, {"9000": 9000.0}, {"ppo": 30, "joint": 15, "injection": 18}),
    "hopper": Body(
        100_000,
        5_000,
        {"a third of the expert": 1 / 3, "half of the expert": 0.5},
        {"ppo": 60, "joint": 25, "injection": 25},
    ),
}
EXPERT_SECONDS = {"double_pendulum": 60, "hopper": 150}


def command_of(body: str, arm: str, seeds: int) -> str:
    return f"python benchmarks/bodies.py --only {body}:{arm} --seeds {seeds}"


# ---- one run


def expert_of(body: str) -> tuple[Path, dict[str, float]]:
    """The checkpoint; and what it reaches in 50 episodes, deterministic and sampled, after how many steps."""
    folder = RUNS / f"{body}_expert"
    figures = folder / "figures.json"
    checkpoint = folder / "checkpoints" / "best.ckpt"
    if not figures.is_file():
        command = [sys.executable, "-m", "lightning_nlf", "fit", "--config", f"conf/bodies/{body}_ppo.yaml"]
        command += ["--run_dir", str(folder), "--ckpt_path", "last", "--trainer.enable_progress_bar", "false"]
        subprocess.run(command, check=True, capture_output=True)
        cli = built(body, "ppo", 0, None, ["--data.evaluation_episodes", str(EXPERT_EPISODES)])
        from lightning_nlf.modules import ObjectiveModule

        module = ObjectiveModule.load_from_checkpoint(checkpoint)
        cli.datamodule.trainer = cli.trainer
        sampled, deterministic = (evaluated(cli.datamodule, module, 10**9 + mode, bool(mode)) for mode in (0, 1))
        best_after = float(module.experience)
        figures.write_text(json.dumps({"return": deterministic, "return_sampled": sampled, "best_after": best_after}))
    return checkpoint, json.loads(figures.read_text())


def built(body: str, arm: str, seed: int, expert: Path | None, flags: list[str] | None = None) -> Any:
    """The yaml as the command line builds it, without a logger, checkpoints and callbacks."""
    from lightning_nlf.cli.command_line import main

    args = ["fit", "--config", f"conf/bodies/{body}_{arm}.yaml", "--seed_everything", str(seed), *(flags or [])]
    args += ["--run_dir", str(RUNS / "none"), "--trainer.max_epochs", "1000000", "--trainer.limit_val_batches", "0"]
    args += [f"--trainer.{x}=false" for x in ("logger", "enable_progress_bar", "enable_checkpointing")]
    if arm != "ppo":
        args += ["--data.expert.checkpoint", str(expert)]
    cli = main(args, run=False)
    cli.trainer.callbacks[:] = []
    return cli


def evaluated(data: Any, module: Any, stream: int, deterministic: bool) -> float:
    """Mean return of evaluation episodes that no other `stream` plays, without a trace in what follows."""
    import torch

    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(stream)
        batch = data.evaluate(module, np.random.default_rng([data.seed, 77, stream]), deterministic)
    return float(batch.rewards.sum(1).mean())


def run(body: str, arm: str, seed: int, expert: Path, goal: float) -> dict[str, Any]:
    """The curve of one training through the Trainer, until `goal` is reached or the budget is spent."""
    import lightning as L

    spec = BODIES[body]

    class Curve(L.Callback):
        def __init__(self) -> None:
            self.points: list[tuple[int, int, float]] = []  # environment steps, labels, return
            self.due = spec.every

        def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            data: Any = trainer.datamodule  # type: ignore[attr-defined]
            steps, labels = data.counters["env_steps"], data.counters["labels"]
            if steps >= self.due:
                self.due = (steps // spec.every + 1) * spec.every
                self.points.append((steps, labels, evaluated(data, pl_module, steps, True)))
            trainer.should_stop = steps >= spec.budget or first_of(self.points, goal) is not None

    started, curve = time.monotonic(), Curve()
    cli = built(body, arm, seed, expert)
    cli.trainer.callbacks[:] = [curve]
    cli.trainer.fit(cli.model, cli.datamodule)
    return {
        "body": body,
        "arm": arm,
        "seed": seed,
        "seconds": round(time.monotonic() - started, 1),
        "curve": curve.points,
    }


def first_of(points: list[tuple[int, int, float]], threshold: float) -> int | None:
    """Which is the first of three evaluations in a row that are at least `threshold`."""
    good = [value >= threshold for *_, value in points]
    return next((i for i in range(len(good) - TIMES + 1) if all(good[i : i + TIMES])), None)


def reached(points: list[tuple[int, int, float]], threshold: float) -> dict[str, float]:
    """Environment steps, and expert labels, by then; infinite steps and all labels if never."""
    first = first_of(points, threshold)
    steps, labels, _ = points[-1 if first is None else first]
    return {"steps": math.inf if first is None else steps, "labels": labels}


# ---- the tables


def ratio(own: list[float], scratch: list[float], budget: int) -> Interval:
    """Geometric mean of PPO's steps over that of an arm's, with Welch's interval of the logarithms.

    PPO's unreached thresholds count as the budget: a lower bound. An arm that failed has no mean: 0.
    """
    if not all(map(math.isfinite, own)):
        return 0.0, 0.0, math.inf
    return ratio_interval([min(steps, budget) for steps in scratch], own)


def tables(rows: list[dict[str, Any]], experts: dict[str, dict[str, float]]) -> str:
    lines = ["| expert | return, deterministic | sampled | environment steps to it |", "| --- | --- | --- | --- |"]
    for body, figures in experts.items():
        columns = [figures[name] for name in ("return", "return_sampled", "best_after")]
        lines.append(f"| {body} | {' | '.join(f'{x:,.0f}' for x in columns)} |")
    lines += ["", "| row | threshold | reached | environment steps | expert labels by then | times faster than PPO |"]
    lines += ["| --- | --- | --- | --- | --- | --- |"]
    for body in experts:
        for name, threshold in BODIES[body].returns(experts[body]["return"]).items():
            scratch = of_arm(rows, body, "ppo", name, "steps")
            for arm in ARMS:
                steps = of_arm(rows, body, arm, name, "steps")
                if not steps:
                    continue
                solved = sum(map(math.isfinite, steps))
                cells = [name if name.isdigit() else f"{name}: {threshold:,.0f}"]
                cells += [f"{solved}/{len(steps)}", shown(median_interval(steps))]
                cells += [shown(median_interval(of_arm(rows, body, arm, name, "labels")))]
                faster = "" if arm == "ppo" or not scratch else shown(ratio(steps, scratch, BODIES[body].budget), 1)
                lines.append(f"| bodies/{body}_{arm} | {' | '.join(cells)} | {faster} |")
    return "\n".join(lines)


def of_arm(rows: list[dict[str, Any]], body: str, arm: str, threshold: str, what: str) -> list[float]:
    return [row["reached"][threshold][what] for row in rows if (row["body"], row["arm"]) == (body, arm)]


def draw(rows: list[dict[str, Any]], experts: dict[str, dict[str, float]], path: Path) -> None:
    """Mean return against environment steps, with a 95 % band of t intervals.

    A run that stopped stays where it was; from where half of them have, the line is dotted.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    figure = Figure(figsize=(10, 4), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    for axes, body in zip(figure.subplots(1, len(experts), squeeze=False)[0], experts, strict=True):
        spec = BODIES[body]
        grid = np.arange(spec.every, spec.budget + 1, spec.every)
        for arm, colour in zip(ARMS, ("#64748b", "#2563eb", "#f97316"), strict=True):
            curves = [row["curve"] for row in rows if (row["body"], row["arm"]) == (body, arm)]
            if not curves:
                continue
            x = np.array([np.interp(grid, *np.array(curve)[:, [0, 2]].T) for curve in curves])
            low, high = np.array([mean_interval(values)[1:] for values in x.T]).T
            going_on = grid <= np.median([curve[-1][0] for curve in curves])
            axes.plot(grid[going_on], x.mean(0)[going_on], color=colour, label=arm, linewidth=2)
            axes.plot(grid, x.mean(0), color=colour, linewidth=1, linestyle=(0, (1, 3)))
            axes.fill_between(grid[going_on], low[going_on], high[going_on], color=colour, alpha=0.2, linewidth=0)
        axes.axhline(experts[body]["return"], color="black", linestyle=":", linewidth=1, label="expert")
        axes.set_title(body, loc="left")
        axes.set_xlabel("environment steps")
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("return, 10 deterministic episodes")
    figure.supxlabel("dotted: most runs have reached the last threshold and stopped", x=1, ha="right", fontsize=8)
    figure.axes[0].legend(frameon=False)
    figure.savefig(path)


# ---- all of it


def finished(body: str, arm: str, seed: int) -> Path:
    return RUNS / f"{body}_{arm}-{seed}.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--only", default="", help="one row, body:arm; the results files are left as they are")
    options = parser.parse_args()
    only = options.only.split(":") if options.only else None
    jobs = [(body, arm) for body in BODIES for arm in ARMS if only is None or [body, arm] == only]
    if not jobs:
        parser.error(f"--only {options.only}: one of {', '.join(f'{body}:{arm}' for body in BODIES for arm in ARMS)}")
    todo = [(body, arm, 1000 + i) for i in range(options.seeds) for body, arm in jobs]
    left = [job for job in todo if not finished(*job).is_file()]
    untrained = {body for body, _ in jobs if not (RUNS / f"{body}_expert" / "figures.json").is_file()}
    seconds = sum(BODIES[body].seconds[arm] for body, arm, _ in left) + sum(EXPERT_SECONDS[body] for body in untrained)
    steps = sum(BODIES[body].budget for body, *_ in left)
    print(f"{len(left)} of {len(todo)} runs to do, at most {steps:,} environment steps, and {len(untrained)} experts:")
    print(f"about {seconds / 60:.0f} minutes on one core", flush=True)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    rows: list[dict[str, Any]] = []
    experts: dict[str, dict[str, float]] = {}
    checkpoints: dict[str, Path] = {}
    for done, (body, arm, seed) in enumerate(todo, 1):
        if body not in experts:
            checkpoints[body], experts[body] = expert_of(body)
            print(f"expert of {body}: {experts[body]}", flush=True)
        returns = BODIES[body].returns(experts[body]["return"])
        file = finished(body, arm, seed)
        if not file.is_file():
            row = run(body, arm, seed, checkpoints[body], max(returns.values()))
            file.write_text(json.dumps(row))
        row = json.loads(file.read_text())
        row["reached"] = {name: reached(row["curve"], threshold) for name, threshold in returns.items()}
        rows.append(row)
        print(f"{done}/{len(todo)} {body} {arm} {seed}: {row['reached']} {row['seconds']} s", flush=True)
    text = report(rows, experts, options.seeds)
    print(text)
    if only is None:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "bodies.json").write_text(
            json.dumps({"machine": machine(), "experts": experts, "runs": rows}) + "\n"
        )
        (RESULTS / "bodies.md").write_text(text)
        draw(rows, experts, RESULTS / "bodies.png")


def machine() -> str:
    return f"one of {os.cpu_count()} cores of {platform.machine()}, one thread"


def report(rows: list[dict[str, Any]], experts: dict[str, dict[str, float]], seeds: int) -> str:
    commands = "\n".join(f"    {command_of(body, arm, seeds)}" for body in experts for arm in ARMS)
    budgets = ", ".join(f"{body} {BODIES[body].budget:,}" for body in experts)
    note = (
        f"Median and 95 % interval of order statistics over seeds 1000–{999 + seeds}; times faster: ratio of geometric "
        f"means with the 95 % t interval of its logarithm; budgets in environment steps: {budgets}; "
    )
    note += f"{machine()}; `python benchmarks/bodies.py`."
    return f"{tables(rows, experts)}\n\n{note}\n\n{commands}\n"


if __name__ == "__main__":
    main()
