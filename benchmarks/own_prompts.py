"""What critiques and expected responses change in a real instruct model: does it name a source when asked for one?

    pip install -e '.[text]' gguf
    python benchmarks/own_prompts.py                   # the cells that `results/own_prompts.json` does not have yet
    python benchmarks/own_prompts.py --only sft --seeds 1

The model is SmolLM2-135M-Instruct (`benchmarks/smollm2.py` fetches it), the yamls are those of `conf/chat`, the prompts
the 64 conversations of `side_by_side/source_questions.py`; 24 others, about foods and nutrients that no training prompt
is about, are held out. A cell is one fit with one seed, as a user would run it, with one thread. Its figures are those
of the run's own comparison of the start and the policy on held-out prompts (`exhibits/changed.jsonl`, greedy): the
share of replies that name a source, that name one of the foods, their tokens and how different they are.
The endpoint is transformers' own server, on this machine, with the same model. Writes `results/own_prompts.{json,md}`.
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
from benchmarks.intervals import mean_interval
from benchmarks.side_by_side.source_questions import names_a_source, names_food, write_files
from data_modules.judgements.files import read
from data_modules.judgements.schema import Judgement

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
MADE_OF_FILE = ["--data.val_share", "0", "--data.val_path", "my/held_out.jsonl"]
PROMPTS = ["--data.task.val_share", "0", "--data.task.val_path", "my/held_out.jsonl", "--data.task.test_share", "0"]
# 64 attempts, as many as there are prompts
FEW = ["--trainer.max_epochs", "4", "--trainer.check_val_every_n_epoch", "4"]
PEOPLE = ["--data.critic", "data_modules.feedback.FileCritic", "--data.critic.path", "my/feedback.jsonl"]
ENDPOINT = ["--data.critic", "data_modules.feedback.providers.EndpointCritic"]
PATIENT = ["--data.critic.endpoint.concurrency", "1", "--data.critic.endpoint.timeout", "600"]  # one core serves
ARMS = {  # the yaml, and what is set beside it
    "sft": ("sft", MADE_OF_FILE),
    "ilf, its own critiques": ("ilf", FEW + PROMPTS),
    "ilf, an endpoint's critiques": ("ilf", FEW + PROMPTS + ENDPOINT + PATIENT),
    "ilf, people's critiques": ("ilf", FEW + PROMPTS + PEOPLE),
    "sdpo, its own critiques": ("sdpo", FEW + PROMPTS),
    "sdpo, people's critiques": ("sdpo", FEW + PROMPTS + PEOPLE),
}
COLUMNS = {"source": "names a source", "food": "names a food", "length": "tokens", "distinct_2": "distinct-2"}


def measured(arm: str, seed: int, model: Path, extra: Sequence[str] = ()) -> dict[str, Any]:
    """The figures of one cell, of the start and of the policy.

    Args: extra: flags of the fit.

    Raises:
        RuntimeError: the fit failed; with the last lines that it wrote.
    """
    name, flags = ARMS[arm]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        shutil.copytree(ROOT / "conf", folder / "conf")
        write_files(folder / "my")
        (folder / "my" / "model").symlink_to(model)
        with served(model, folder) if "endpoint" in arm else nothing() as url:
            critic = ["--data.critic.endpoint.url", url, "--data.critic.endpoint.model", str(model)] if url else []
            command = [
                sys.executable,
                "-m",
                "lightning_nlf",
                "fit",
                "--config",
                f"conf/chat/{name}.yaml",
                *flags,
                *critic,
            ]
            command += ["--seed_everything", str(seed), "--data.evaluation_prompts", "24", *extra]
            done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError("\n".join((done.stdout + done.stderr).splitlines()[-15:]))
        run = folder / "outputs" / f"{name}-seed{seed}"
        lines = read(run / "exhibits" / "changed.jsonl")
        figures = last_metrics(run / "journal.jsonl")
        shares = {side: figures_of(lines, i) for i, side in enumerate(("start", "policy"))}
        shares["start"]["distinct_2"] = figures["val/start_distinct_2"]
        shares["policy"]["distinct_2"] = figures["val/distinct_2"]
        disk = sum(path.stat().st_size for path in (folder / "outputs").rglob("*") if path.is_file())
        calls = {measure: figures.get(measure, 0) for measure in ("feedback_calls", "critiques")}
    return shares | {"disk": disk} | calls


def figures_of(lines: Sequence[Judgement], place: int) -> dict[str, float]:
    """Shares of replies and their mean length in tokens.  place: in the responses of each line."""
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
    """transformers' own server with the model, on loopback, by its url."""
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
            for line in process.stdout:  # until it is up, or has given up
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
        for arm in options.only:
            if f"{arm}/{seed}" in result["cells"]:
                continue
            print(f"{arm}, seed {seed}", flush=True)
            result["cells"][f"{arm}/{seed}"] = measured(arm, seed, model)
            result["machine"] = f"{os.cpu_count()} cores of {platform.machine()}, one thread"
            path.write_text(json.dumps(result, indent=1) + "\n")
            note = (
                "Greedy replies to 24 held-out conversations, mean and 95 % t interval over seeds; "
                f"SmolLM2-135M-Instruct with LoRA; {result['machine']}; `python benchmarks/own_prompts.py`."
            )
            (RESULTS / "own_prompts.md").write_text(f"{table(result['cells'])}\n\n{note}\n", encoding="utf-8")
    print(table(result["cells"]))


if __name__ == "__main__":
    main()
