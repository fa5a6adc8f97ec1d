"""Training throughput compared with stable-baselines3, gymnasium and envpool, side by side on one and two cores.

    pip install -e '.[benchmark]'
    python benchmarks/throughput.py                             # everything; 15 minutes on two cores
    python benchmarks/throughput.py --only training/sb3-default  # one row, or all whose names begin with this

Rows of a section take turns (A B A B …), five times each, in processes bound to one or two cores. The tables show
medians with minimum and maximum. Ratios are of geometric means, with the 95 % t interval of their logarithm, paired by
repeat if the rows took turns; a claim is the bound of its interval.
Without --only it writes `results/throughput.{json,md,png}`.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterable
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.side_by_side.pinned import Pinned, Row

START_SECONDS = 5.0  # to start a process, including imports

STANDS = {
    "name": "pendulum/reinforce",
    "changes": {"data.episodes": 256, "model.lr": 1e-4},
    "epochs": 1,
}
STANDS |= {"stands": True}
# stable-baselines3's defaults: rollouts of 2048 steps, ten passes over 32 minibatches of 64 steps, two layers of 64
SAME = {"data.episodes": 32, "data.min_steps": 2048, "data.minibatches": 32, "data.passes": 10, "model.lam": 0.95}
SAME |= {"model.lr": 3e-4, "model.gamma": 0.99, "model.value_clip": None}
SAME |= {f"model.{network}.init_args.hidden": [64, 64] for network in ("policy", "value")}
PPO = {"name": "pendulum/ppo", "changes": {}, "epochs": 30}


def training(cores: int) -> Iterable[Row]:
    scratch = {"name": "pendulum/reinforce", "changes": {"data.episodes": 256}, "epochs": 10, "again": True}
    same_sizes = {"name": "pendulum/ppo", "changes": SAME, "epochs": 4}
    ours = "ours.training"
    yield Row("training/ours-reinforce", "REINFORCE, 256 episodes of 1000 steps", ours, 3.8, cores, STANDS)
    yield Row("training/ours-scratch", "REINFORCE, 256 episodes, its first 10 iterations", ours, 2.0, cores, scratch)
    yield Row("training/ours-ppo", "PPO, `conf/pendulum/ppo.yaml`", ours, 1.7, cores, PPO)
    yield Row("training/ours-same", "PPO with the sizes of the peer's default", ours, 1.5, cores, same_sizes)
    for name, title, seconds, rollouts in (
        ("default", "stable-baselines3 PPO, its default", 2.5, 2),
        ("zoo", "stable-baselines3 PPO, rl-zoo's settings", 1.4, 64),
        ("vector", "stable-baselines3 PPO, 64 environments", 1.4, 1),
        ("lean", "stable-baselines3 PPO, 256 of envpool's, one gradient step", 2.1, 3),
    ):
        # a second thread makes small batches slower
        threads = [1, 2] if cores == 2 and name in ("vector", "lean") else [1]
        arguments = {"settings": name, "rollouts": rollouts, "threads": threads}
        seconds *= len(threads)
        yield Row(f"training/sb3-{name}", title, "peers.training", seconds, cores, arguments)


def stepping(cores: int) -> Iterable[Row]:
    for kind, envs, title in (
        ("single", 1, "gymnasium, one environment"),
        ("sync", 64, "gymnasium, SyncVectorEnv of 64"),
        ("envpool", 8, "envpool, 8"),
        ("envpool", 64, "envpool, 64"),
        ("envpool", 256, "envpool, 256"),
    ):
        arguments: dict[str, Any] = {"kind": kind, "envs": envs}
        yield Row(f"stepping/{kind}-{envs}", title, "peers.stepping", 0.6, cores, arguments)
    apart = "gymnasium, one environment in a process for each core"
    yield Row("stepping/processes", apart, "peers.processes", 12.0, cores, {"count": cores})
    for envs in (64, 256):
        yield Row(f"stepping/ours-{envs}", f"InvertedPendulum, {envs}", "ours.stepping", 0.6, cores, {"envs": envs})
    for envs in (64, 256):
        arguments = {"envs": envs, "policy": "network"}
        title = f"InvertedPendulum, {envs}, the law as a network in torch"
        yield Row(f"stepping/ours-{envs}-network", title, "ours.stepping", 0.6, cores, arguments)


def solving() -> Iterable[Row]:
    for key, title, name, changes in (
        ("reinforce", "REINFORCE, `conf/pendulum/reinforce.yaml`", "pendulum/reinforce", {}),
        ("eight", "the same with 8 episodes an update", "pendulum/reinforce", {"data.episodes": 8}),
        ("injection", "`conf/injection.yaml`", "injection", {}),
    ):
        arguments = {"name": name, "changes": changes}
        yield Row(f"solving/ours-{key}", title, "ours.solving", 2.5, 1, arguments, times=2)
    for settings, title, seconds in (("default", "its default", 17.0), ("zoo", "rl-zoo's settings", 12.0)):
        arguments = {"settings": settings}
        yield Row(f"solving/sb3-{settings}", f"stable-baselines3 PPO, {title}", "peers.solving", seconds, 1, arguments)


def starting() -> Iterable[Row]:
    for name, words, seconds in (("help", ["--help"], 0.1), ("fit-help", ["fit", "--help"], 3.5)):
        title = f"`{' '.join(words)}`"
        yield Row(f"starting/{name}", title, "startup.help_shown", seconds, 2, {"words": words})
    first = "main job, to its first training step"
    yield Row("starting/first-step", first, "startup.first_training_step", 6.0, 2)
    yield Row("starting/main-job", "main job, to its end", "startup.main_job", 17.0, 2)
    collected = "stable-baselines3 PPO: import, construction, first rollout"
    yield Row("starting/sb3", collected, "startup.peer_collected", 3.5, 2)


def stepwise() -> Iterable[Row]:
    for kind, title, seconds in (
        ("plain", "a loop in torch alone", 0.6),
        ("trainer", "Trainer, no logger", 3.0),
        ("logger", "Trainer with our logger, every 10 steps", 4.0),
        ("command", "the command line's Trainer with all its callbacks", 4.5),
    ):
        yield Row(f"step/{kind}", title, "ours.step", seconds, 1, {"kind": kind})


def shares() -> Iterable[Row]:
    for cores in (1, 2):
        yield Row("shares/reinforce", "REINFORCE, 256 episodes", "ours.shares", 10.0, cores, STANDS, times=0)
    learning = {"name": "pendulum/reinforce", "changes": {}, "epochs": 60}
    yield Row(
        "shares/learning",
        "first 60 iterations of `conf/pendulum/reinforce.yaml`",
        "ours.shares",
        4.0,
        1,
        learning,
        times=0,
    )
    yield Row("shares/ppo", "PPO, `conf/pendulum/ppo.yaml`", "ours.shares", 3.0, 1, PPO, times=0)


def rows() -> list[Row]:
    on_both = [row for section in (training, stepping) for cores in (1, 2) for row in section(cores)]
    return [*on_both, *solving(), *starting(), *stepwise(), *shares()]


def measured(chosen: list[Row], repeats: int) -> dict[str, list[dict[str, Any]]]:
    """Figures of each call, by key. Rows of one section with equal numbers of cores take turns."""
    calls_by_row: dict[str, list[dict[str, Any]]] = {row.key: [] for row in chosen}
    number, count = 0, sum(row.calls(repeats) for row in chosen)
    for _, group in groupby(chosen, lambda row: (row.section, row.cores)):
        turn = list(group)
        processes = {row.process: Pinned(row.cores) for row in turn}
        try:
            for repeat in range(repeats):
                for row in turn:
                    have = len(calls_by_row[row.key])
                    for i in range(have, row.calls(repeat + 1)):
                        figures = processes[row.process](row.call, repeat=i, **row.arguments)
                        calls_by_row[row.key].append(figures)
                        number += 1
                        print(f"{number}/{count} {row.key} {figures['value']:,.2f}", flush=True)
        finally:
            for process in processes.values():
                process.close()
    return calls_by_row


def expected_minutes(chosen: list[Row], repeats: int) -> float:
    processes = {(row.section, *row.process) for row in chosen}
    return (sum(row.seconds * row.calls(repeats) for row in chosen) + START_SECONDS * len(processes)) / 60


def stop(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="a section or a row, by the beginning of its name")
    parser.add_argument("--repeats", type=int, default=5, help="repeats of each measurement (in `solving`: seeds)")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results", help="folder to write into")
    options = parser.parse_args()
    chosen = [row for row in rows() if row.key.startswith(options.only)]
    if not chosen:
        stop(f"--only {options.only}: the rows are {', '.join(dict.fromkeys(row.name for row in rows()))}")
    peers = [row for row in chosen if row.process[0] == "peers" or row.name.endswith("sb3")]
    missing = [name for name in ("stable_baselines3", "envpool") if find_spec(name) is None]
    if peers and missing:
        stop(f"{' and '.join(missing)} not installed, for {peers[0].name} and others: pip install -e '.[benchmark]'")
    print(f"{len(chosen)} rows, about {expected_minutes(chosen, options.repeats):.0f} minutes on quiet cores")
    if (load := os.getloadavg()[0]) > 0.5:
        print(f"the machine is busy (load {load:.1f}): figures will be too low")
    started = time.monotonic()
    calls_by_row = measured(chosen, options.repeats)

    from benchmarks.side_by_side import report  # imported after the measurements, so as not to affect them

    text = report.report_text(chosen, calls_by_row, options.repeats, load, None if options.only else options.results)
    print(f"\n{text}\n{(time.monotonic() - started) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
