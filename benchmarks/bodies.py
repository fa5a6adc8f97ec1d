"""PPO from scratch against joint training and injection with an expert, on the double pendulum and the hopper.

    python benchmarks/bodies.py [--seeds 10] [--only hopper:joint]

An expert is the best validated policy of `conf/bodies/<body>_ppo.yaml` on seed 0, trained to the end by the command
line. Every arm, `bodies/<body>_<arm>` of the index of `conf/` with that expert, then trains on seeds 1000, 1001, …
(the yamls were tuned on 0–2) with a fixed budget of environment steps, including the expert's and excluding the
evaluation's. At fixed intervals 10 deterministic episodes are evaluated on separate seeds. A run reaches a threshold
at the first of three consecutive evaluations at or above it, and stops when it has reached the last threshold. A run
that never reaches it counts as infinite. PPO's unreached thresholds count as the full budget in the numerator of a
ratio, so the ratio is a lower bound. The arms' steps do not include the training of the expert; the table lists it
separately. Finished runs are kept in `outputs/benchmarks/bodies` and not repeated. Writes
`results/bodies.{json,md,png}`.
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

from lightning_nlf.moved_yamls import arguments  # noqa: E402
from lightning_nlf.studies.statistics import Interval, interval_text, mean_interval, median_interval, ratio_interval  # noqa: E402

RUNS = Path("outputs/benchmarks/bodies")
RESULTS = Path(__file__).parent / "results"
ARMS = ("ppo", "joint", "injection")
TIMES, EPISODES = 3, 10
EXPERT_EPISODES = 50


@dataclass(frozen=True)
class Body:
    """Settings of one body."""

    budget: int  # environment steps per run
    every: int  # environment steps between evaluations
    thresholds: dict[str, float]  # returns by name; values up to 1 are shares of the expert's return
    seconds: dict[str, float]  # duration of a run by arm, for the estimate

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
    """The expert's checkpoint, with its returns over 50 episodes (deterministic and sampled) and training steps."""
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
    """Command line object of a yaml, without logger, checkpoints and callbacks."""
    from lightning_nlf.cli.command_line import main

    args = ["fit", *arguments(Path("conf"), f"bodies/{body}_{arm}"), "--seed_everything", str(seed), *(flags or [])]
    args += ["--run_dir", str(RUNS / "none"), "--trainer.max_epochs", "1000000", "--trainer.limit_val_batches", "0"]
    args += [f"--trainer.{x}=false" for x in ("logger", "enable_progress_bar", "enable_checkpointing")]
    if arm != "ppo":
        args += ["--data.expert.checkpoint", str(expert)]
    cli = main(args, run=False)
    cli.trainer.callbacks[:] = []
    return cli


def evaluated(data: Any, module: Any, stream: int, deterministic: bool) -> float:
    """Mean return of evaluation episodes that depend on `stream`; the generators' states are restored afterwards."""
    import torch

    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(stream)
        batch = data.evaluate(module, np.random.default_rng([data.seed, 77, stream]), deterministic)
    return float(batch.rewards.sum(1).mean())


def run(body: str, arm: str, seed: int, expert: Path, goal: float) -> dict[str, Any]:
    """Learning curve of one training by the Trainer, until `goal` is reached or the budget is spent."""
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
    """Index of the first of three consecutive evaluations that are at least `threshold`; None if there are none."""
    good = [value >= threshold for *_, value in points]
    return next((i for i in range(len(good) - TIMES + 1) if all(good[i : i + TIMES])), None)


def reached(points: list[tuple[int, int, float]], threshold: float) -> dict[str, float]:
    """Environment steps and expert labels when the threshold is reached; infinite steps and all labels if never."""
    first = first_of(points, threshold)
    steps, labels, _ = points[-1 if first is None else first]
    return {"steps": math.inf if first is None else steps, "labels": labels}


# ---- the tables


def ratio(arm_steps: list[float], scratch: list[float], budget: int) -> Interval:
    """Geometric mean of PPO's steps divided by that of an arm, with Welch's interval of the logarithms.

    PPO's unreached thresholds count as the budget, so this is a lower bound. If a run of the arm failed, it is 0.
    """
    if not all(map(math.isfinite, arm_steps)):
        return 0.0, 0.0, math.inf
    return ratio_interval([min(steps, budget) for steps in scratch], arm_steps)


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
                cells += [f"{solved}/{len(steps)}", interval_text(median_interval(steps))]
                cells += [interval_text(median_interval(of_arm(rows, body, arm, name, "labels")))]
                faster = (
                    "" if arm == "ppo" or not scratch else interval_text(ratio(steps, scratch, BODIES[body].budget), 1)
                )
                lines.append(f"| bodies/{body}_{arm} | {' | '.join(cells)} | {faster} |")
    return "\n".join(lines)


def of_arm(rows: list[dict[str, Any]], body: str, arm: str, threshold: str, figure: str) -> list[float]:
    return [row["reached"][threshold][figure] for row in rows if (row["body"], row["arm"]) == (body, arm)]


def draw(rows: list[dict[str, Any]], experts: dict[str, dict[str, float]], path: Path) -> None:
    """Mean return against environment steps, with a 95 % band of t intervals.

    A stopped run keeps its last return. The line is dotted where more than half of the runs have stopped.
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


# ---- main


def finished(body: str, arm: str, seed: int) -> Path:
    return RUNS / f"{body}_{arm}-{seed}.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--only", default="", help="run only one row, body:arm, and keep the results files")
    options = parser.parse_args()
    only = options.only.split(":") if options.only else None
    jobs = [(body, arm) for body in BODIES for arm in ARMS if only is None or [body, arm] == only]
    if not jobs:
        names = ", ".join(f"{body}:{arm}" for body in BODIES for arm in ARMS)
        parser.error(f"--only: got {options.only}, must be one of {names}")
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
    for number, (body, arm, seed) in enumerate(todo, 1):
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
        print(f"{number}/{len(todo)} {body} {arm} {seed}: {row['reached']} {row['seconds']} s", flush=True)
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
