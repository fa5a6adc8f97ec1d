"""Memory and time of fine-tuning a 135M model on a CPU, compared with TRL: SFT and DPO, full and LoRA.

    pip install -e '.[text,benchmark]' gguf
    python benchmarks/own_model.py                # cells that `results/own_model.json` does not have yet
    python benchmarks/own_model.py --again        # all cells; about an hour on a quiet core
    python benchmarks/own_model.py --again --only 'dpo-*/trl*' sft-full/decoder

The model is SmolLM2-135M-Instruct (`benchmarks/smollm2.py` fetches it; `--model FOLDER` uses another copy). A cell is a
fit in a process of its own with one thread in fp32: 4 rows or 4 pairs of about 280 tokens per optimizer step, one
warm-up step and two timed steps. Our side is `python -m lightning_nlf fit` with a yaml, including checkpoint and
export; TRL saves nothing. Neither logs to a store. Both sides compute the reference's log-probabilities of all pairs
before training. TRL runs in three modes: with gradient checkpointing (its default), without it, and with it one row or
pair at a time, four per step (its leanest mode). Ours uses `rows_per_batch` of one row or pair, and
`checkpoint_activations`. LoRA has r 8 on the query and value projections on both sides. The loss of a second step
(`check-…`) must agree on both sides to 0.001, or the figures mean nothing.

Peak memory is the resident set of the process. Time is CPU time and wall time. Other work on the machine affects both,
so times are printed only if the load was below one when each cell began. Writes `results/own_model.{json,md}`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.side_by_side import own_model_ours, own_model_report

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
LORA = {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]}
TIMED = {"rows": 4, "steps": 3, "count": 12, "lr": 1e-5}
CHECKED = {"rows": 2, "steps": 2, "count": 2, "lr": 1e-5}  # the same rows in every step
SIDES = ("trl", "trl-open", "trl-lean", "decoder", "huggingface")  # open: no gradient checkpointing; lean: row by row


@dataclass(frozen=True)
class Cell:
    """One fit; `objective` is "sft" or "dpo", `weights` "full" or "lora", and `side` one of SIDES."""

    objective: str
    weights: str
    side: str
    check: bool = False

    @property
    def name(self) -> str:
        return f"{'check-' * self.check}{self.objective}-{self.weights}/{self.side}"

    def settings(self, model: str) -> dict[str, Any]:
        """Settings of the cell in the form that both sides take."""
        return (CHECKED if self.check else TIMED) | {
            "objective": self.objective,
            "model": model,
            "lora": LORA if self.weights == "lora" else None,
            "checkpointing": self.side in ("trl", "trl-lean"),
            "per_batch": 1 if self.side == "trl-lean" else None,
        }

    def command(self, model: str, folder: Path) -> list[str]:
        settings = self.settings(model)
        if self.side.startswith("trl"):
            return [sys.executable, "-m", "benchmarks.side_by_side.own_model_trl", json.dumps(settings)]
        return own_model_ours.command(self.side, settings, folder)


def cells() -> Iterator[Cell]:
    """All cells; the checks come last, because they matter only together with the figures."""
    for check in (False, True):
        for objective in ("sft", "dpo"):
            for weights in ("full",) if check else ("full", "lora"):
                for side in SIDES[1:] if check else SIDES:
                    yield Cell(objective, weights, side, check)


def measured(cell: Cell, model: str) -> dict[str, Any]:
    """Run one cell and return its figures.

    Raises:
        RuntimeError: the process failed; the message is the end of its output.
    """
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
        load = os.getloadavg()[0]
        with log.open("w") as file:
            process = subprocess.Popen(
                cell.command(model, Path(folder)), cwd=folder, env=environment, stdout=file, stderr=subprocess.STDOUT
            )
            _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        lines = log.read_text().splitlines()
        if process.returncode:
            raise RuntimeError("\n".join(lines[-15:]))
        steps = Path(folder) / own_model_ours.FIGURES
        figures = json.loads(steps.read_text() if steps.is_file() else lines[-1])
    machine = f"{os.cpu_count()} cores of {platform.machine()}, {figures.pop('capability')}"
    return figures | {"process_peak_kib": usage.ru_maxrss, "load": round(load, 1), "machine": machine}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=["*"], metavar="CELL", help="names of cells, or patterns with *")
    parser.add_argument("--again", action="store_true", help="measure existing cells again")
    parser.add_argument("--model", default=os.environ.get("LIGHTNING_NLF_REAL_MODEL"), help="folder of the model")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the results")
    options = parser.parse_args()
    chosen = [cell for pattern in options.only for cell in cells() if fnmatchcase(cell.name, pattern)]
    if not chosen:
        parser.error(f"--only {' '.join(options.only)}: the cells are {', '.join(cell.name for cell in cells())}")
    path = options.results / "own_model.json"
    results = json.loads(path.read_text()) if path.is_file() else {}
    if (load := os.getloadavg()[0]) > 0.5:
        print(f"the machine is busy (load {load:.1f}): times will be too long")
    for cell in chosen:
        if cell.name in results and not options.again:
            continue
        try:
            results[cell.name] = measured(cell, options.model or fetched())
        except RuntimeError as error:
            print(f"{cell.name}: failed:\n{error}", file=sys.stderr)
            continue
        print(f"{cell.name}: {own_model_report.line(results[cell.name])}", flush=True)
        path.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
    text = own_model_report.report_text(results)
    print(f"\n{text}")
    path.with_suffix(".md").write_text(text)


def fetched() -> str:
    """Fetch the model in a separate process, because a child process inherits its parent's peak memory."""
    command = [sys.executable, str(ROOT / "benchmarks" / "smollm2.py")]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1]


if __name__ == "__main__":
    main()
