"""Effect of critiques and expected responses on a real instruct model: does it name a source when asked for one?

    pip install -e '.[text]' gguf
    python benchmarks/own_prompts.py                   # cells that `results/own_prompts.json` does not have yet
    python benchmarks/own_prompts.py --only sft --seeds 1

The model is SmolLM2-135M-Instruct (`benchmarks/smollm2.py` fetches it), the yamls are those in `conf/chat`, and the
prompts are the 64 conversations of `side_by_side/source_questions.py`. 24 more conversations, about foods and nutrients
that no training prompt is about, are held out. A cell is one fit with one seed and one thread, run like a user would
run it, after a preceding fit if it needs one (`own_prompts_arms.py`). Its figures come from the run's comparison of the
start and the policy on held-out prompts (`exhibits/changed.jsonl`, greedy): the share of replies that name a source,
the share that names one of the foods, their length in tokens and their diversity.

To keep a cell within minutes, fits that sample replies use fewer of them than their yamls, some with larger steps.
People are simulated by a rule: half of a score is for a source, half for a right food. The judge of `ppo, a judge` is
the same model on this machine (`LocalJudge`) and is given the expected response. The endpoint is the server of
transformers on this machine with the same model. Writes `results/own_prompts.{json,md}`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import smollm2
from benchmarks.own_prompts_arms import ARMS, OVERLAYS, STEPS
from benchmarks.side_by_side.source_questions import names_a_source, names_food, reviewed, write, write_files
from data_modules.judgements.files import read
from data_modules.judgements.schema import Judgement
from lightning_nlf.studies.statistics import mean_interval

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
COLUMNS = {"source": "names a source", "food": "names a food", "length": "tokens", "distinct_2": "distinct-2"}


def measured(
    arm: str, seed: int, model: Path, extra: Sequence[str] = (), steps_folder: Path | None = None
) -> dict[str, Any]:
    """Figures of the start and of the policy for one cell.

    Args: extra: flags of the fit; steps_folder: folder for preceding fits, which arms with the same seed can share.

    Raises:
        RuntimeError: the fit failed; the message is the end of its output.
    """
    cell = ARMS[arm]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        shutil.copytree(ROOT / "conf", folder / "conf")
        write_files(folder / "my")
        (folder / "my" / "model").symlink_to(model)
        for name, text in OVERLAYS.items():
            (folder / name).write_text(text)
        if cell.after is not None:
            step_before(cell.after, seed, folder, folder / "before" if steps_folder is None else steps_folder)
        with served(model, folder) if cell.endpoint else nothing() as url:
            critic = ["--data.critic.endpoint.url", url, "--data.critic.endpoint.model", str(model)] if url else []
            every = [*cell.flags, *critic, "--data.evaluation_prompts", "24", "--run_dir", "outputs/cell", *extra]
            run("fit", cell.yaml, seed, folder, every)
        run_folder = folder / "outputs" / "cell"
        lines = read(run_folder / "exhibits" / "changed.jsonl")
        figures = last_metrics(run_folder / "journal.jsonl")
        shares = {side: figures_of(lines, i) for i, side in enumerate(("start", "policy"))}
        shares["start"]["distinct_2"] = figures["val/start_distinct_2"]
        shares["policy"]["distinct_2"] = figures["val/distinct_2"]
        disk = sum(path.stat().st_size for path in (folder / "outputs").rglob("*") if path.is_file())
        calls = {measure: figures.get(measure, 0) for measure in ("feedback_calls", "critiques")}
    return shares | {"disk": disk} | calls


def run(verb: str, name: str, seed: int, folder: Path, flags: Sequence[str]) -> None:
    """Run `python -m lightning_nlf` with a yaml of `conf/chat`.  Raises RuntimeError: it failed."""
    command = [sys.executable, "-m", "lightning_nlf", verb, "--config", f"conf/chat/{name}.yaml", *flags]
    command += ["--seed_everything", str(seed)]
    process = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True)
    if process.returncode:
        raise RuntimeError("\n".join((process.stdout + process.stderr).splitlines()[-15:]))


def step_before(step: str, seed: int, folder: Path, steps_folder: Path) -> None:
    """Run the preceding step of an arm unless `steps_folder` has it, and link it to where the arm looks for it."""
    verb, name, flags = STEPS[step]
    step_folder = steps_folder / f"{step}-seed{seed}"
    outputs = folder / "outputs"
    if not step_folder.exists():
        run(verb, name, seed, folder, [*flags, "--run_dir", "outputs/step"])
        steps_folder.mkdir(parents=True, exist_ok=True)
        shutil.move(outputs / "step", step_folder)
        shutil.rmtree(outputs)
    outputs.mkdir(exist_ok=True)
    if step == "reviews":
        write(folder / "my" / "reviews.jsonl", reviewed(read(step_folder / "predictions" / "replies.jsonl")))
    else:
        link = outputs / "chat" / f"{step}-seed{seed}"
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(step_folder.resolve())


def figures_of(lines: Sequence[Judgement], place: int) -> dict[str, float]:
    """Shares of replies and their mean length in tokens.  Args: place: index of the response in each line."""
    texts = [line.responses[place] for line in lines]
    return {
        "source": sum(map(names_a_source, texts)) / len(texts),
        "food": sum(map(names_food, (line.id for line in lines), texts)) / len(texts),
        "length": sum(len(line.meta["tokens"][place]) for line in lines) / len(lines),
    }


def last_metrics(journal: Path) -> dict[str, float]:
    values: dict[str, float] = {}
    for line in journal.read_text().splitlines():
        record = json.loads(line)
        if record["kind"] == "metrics":
            values |= record["values"]
    return values


def environment() -> dict[str, str]:
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}


@contextmanager
def nothing() -> Iterator[None]:
    yield None


@contextmanager
def served(model: Path, folder: Path) -> Iterator[str]:
    """Start the server of transformers with the model on loopback; yields its url."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    start = "from transformers.cli.transformers import main; main()"
    command = [sys.executable, "-c", start, "serve", str(model), "--host", "127.0.0.1", "--port", str(port)]
    with (folder / "server.log").open("w+") as log:
        process = subprocess.Popen(
            [*command, "--device", "cpu"],
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert process.stdout is not None
        try:
            for line in process.stdout:  # until the server runs or exits
                log.write(line)
                if "Uvicorn running" in line:
                    break
            else:
                raise RuntimeError("the server did not start")
            os.set_blocking(process.stdout.fileno(), False)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.terminate()
            process.wait(timeout=30)


def table(cells: dict[str, Any]) -> str:
    head = ["arm", *(f"{name}: start → policy" for name in COLUMNS.values()), "critiques", "disk, MB", "seeds"]
    lines = [f"| {' | '.join(head)} |", "| --- " * len(head) + "|"]
    for arm in ARMS:
        rows = [cell for name, cell in cells.items() if name.rpartition("/")[0] == arm]
        if not rows:
            continue
        columns = []
        for measure in COLUMNS:
            start, policy = ([row[side][measure] for row in rows] for side in ("start", "policy"))
            middle, low, high = mean_interval(policy)
            digits = 1 if measure == "length" else 2
            bounds = f" [{low:.{digits}f}, {high:.{digits}f}]" if len(rows) > 1 else ""
            columns.append(f"{sum(start) / len(start):.{digits}f} → {middle:.{digits}f}{bounds}")
        columns += [f"{rows[0]['critiques']:.0f}", f"{max(row['disk'] for row in rows) / 1e6:,.0f}", str(len(rows))]
        lines.append(f"| {arm} | {' | '.join(columns)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(ARMS), default=list(ARMS), metavar="ARM")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    model = smollm2.folder().resolve()
    path = RESULTS / "own_prompts.json"
    result = json.loads(path.read_text()) if path.is_file() else {"cells": {}}
    for seed in range(options.seeds):
        with tempfile.TemporaryDirectory() as steps_folder:
            for arm in options.only:
                if f"{arm}/{seed}" in result["cells"]:
                    continue
                print(f"{arm}, seed {seed}", flush=True)
                result["cells"][f"{arm}/{seed}"] = measured(arm, seed, model, steps_folder=Path(steps_folder))
                write_results(result)
    print(table(result["cells"]))


def write_results(result: dict[str, Any]) -> None:
    result["machine"] = f"{os.cpu_count()} cores of {platform.machine()}, one thread"
    (RESULTS / "own_prompts.json").write_text(json.dumps(result, indent=1) + "\n")
    note = (
        "Greedy replies to 24 held-out conversations, mean and 95 % t interval over seeds; "
        f"SmolLM2-135M-Instruct with LoRA; {result['machine']}; `python benchmarks/own_prompts.py`."
    )
    (RESULTS / "own_prompts.md").write_text(f"{table(result['cells'])}\n\n{note}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
