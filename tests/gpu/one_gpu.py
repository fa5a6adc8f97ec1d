"""Decoding, DPO and PPO of language models on one GPU, by one command: `python tests/gpu/one_gpu.py`.

Meant for a data-centre GPU; stops after ten minutes. Prints tokens/s and peak memory as a table, and writes JSON:

- decode: greedy replies with CUDA graphs and without: whether they are equal in float32, and their speed in bf16;
- dpo, ppo: conf/chat/{dpo,ppo}.yaml by the command line in bf16-mixed, of all weights and with LoRA.

Each part runs in a process of its own. If a part fails or takes too long, its row has one line with the reason, and the
file the end of its output. A part that needs more memory than the GPU has is skipped. Exits with code 1 if a part
failed. Not run on a GPU so far.

Models have random weights in the shapes of GPT-2 (124M), SmolLM2 (135M) and Llama 3.2 (1B); `--weights FOLDER` reads a
model for the parts of 135M. `--cpu` runs the same code with tiny shapes on a CPU, to find mistakes in the script.
There, a recording takes the place of a CUDA graph, and the figures mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch

from lightning_nlf.studies.statistics import geometric_mean_interval, interval_text

PARTS = ("decode-124M", "decode-135M", "decode-1B", "dpo-135M", "ppo-135M", "dpo-135M-lora", "ppo-135M-lora", "dpo-1B")
PART_SCRIPT = Path(__file__).with_name("one_part.py")
SECONDS, PART_SECONDS = 600, 180  # limits of all parts together, and of one
ERROR = re.compile(r"[\w.]*(Error|Exception)\b|error: ")  # the last line is not always the reason


def in_a_process(part: str, options: argparse.Namespace, seconds: float) -> dict[str, Any]:
    """Figures of a part, which runs in a process of its own. If it fails, `error` is one line, and `output` its end."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "part.json"
        command = [sys.executable, str(PART_SCRIPT), part, str(path), *["--cpu"] * options.cpu]
        command += ["--weights", options.weights] if options.weights else []
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        process = subprocess.Popen(command, start_new_session=True, **pipes)
        try:
            lines = [line for line in process.communicate(timeout=max(seconds, 1))[0].splitlines() if line.strip()]
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # with the fit that it started
            process.wait()
            lines = [f"error: took more than {seconds:.0f} s"]
        success = process.returncode == 0 and path.is_file()
        errors = [line for line in lines if ERROR.match(line)] or lines or ["no output"]
        figures = json.loads(path.read_text()) if success else {"error": errors[-1], "output": lines[-30:]}
    speeds = figures.get("tokens_per_second", {})
    intervals = {name: geometric_mean_interval(values) for name, values in speeds.items()}
    return figures | {"intervals_95": intervals, "seconds": round(time.perf_counter() - began, 1)}


def table(results: dict[str, dict[str, Any]]) -> str:
    lines = [
        "| part | what | tokens/s, 95 % interval | peak memory, GiB | seconds |",
        "| --- | --- | --- | --- | --- |",
    ]
    for part, figures in results.items():
        for name, interval in figures["intervals_95"].items():
            peak = figures["peak_bytes"][name]
            memory = "–" if peak is None else f"{peak / 2**30:.2f}"
            lines.append(f"| {part} | {name} | {interval_text(interval)} | {memory} | {figures['seconds']} |")
        for name in ("equal_rows_float32", "skipped", "error"):
            if name in figures:
                lines.append(f"| {part} | {name.replace('_', ' ')}: {figures[name]} | | | {figures['seconds']} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--weights", metavar="FOLDER", help="model for the parts of 135M, such as SmolLM2-135M-Instruct"
    )
    parser.add_argument("--cpu", action="store_true", help="tiny shapes on a CPU")
    parser.add_argument("--out", default="gpu.json", help="file for the figures (default: gpu.json)")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help=", ".join(PARTS))
    options = parser.parse_args()
    if not options.cpu and not torch.cuda.is_available():
        parser.error("needs a GPU; --cpu runs the script with tiny shapes on a CPU")
    if options.weights and not (Path(options.weights) / "config.json").is_file():
        parser.error(f"--weights: {options.weights} has no config.json; give a folder in the Hugging Face layout")
    device = "CPU, stand-in for graphs" if options.cpu else torch.cuda.get_device_name()
    machine = {"device": device, "torch": torch.__version__, "cuda": torch.version.cuda, "seed": 0}
    print(", ".join(f"{name} {value}" for name, value in machine.items()), flush=True)
    results, until = {}, time.monotonic() + SECONDS
    for part in options.only:
        results[part] = in_a_process(part, options, min(PART_SECONDS, until - time.monotonic()))
        print(f"{part}: {results[part]['seconds']} s {results[part].get('error', '')}", flush=True)
        Path(options.out).write_text(json.dumps(machine | {"parts": results}, indent=1) + "\n")
    print(f"\n{table(results)}\n\nwritten to {options.out}")
    return int(any("error" in figures for figures in results.values()))


if __name__ == "__main__":
    sys.exit(main())
