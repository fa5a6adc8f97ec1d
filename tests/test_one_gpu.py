"""The script that measures decoding, DPO and PPO on one GPU: its byte counts, and a run on a CPU with tiny shapes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lightning_nlf.networks import DecoderShape, TransformerPolicy
from tests.gpu import one_part

SCRIPT = Path(__file__).parent / "gpu" / "one_gpu.py"


def run(folder, *words):
    """The exit code, what was printed, and the JSON file."""
    command = [sys.executable, str(SCRIPT), "--cpu", "--out", "gpu.json", *words]
    process = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    path = folder / "gpu.json"
    return process.returncode, process.stdout, json.loads(path.read_text()) if path.is_file() else None


@pytest.mark.parametrize(
    ("size", "count"),
    [
        ("124M", 124_439_808),  # the number that the papers and cards of these models give
        ("135M", 134_515_008),
        ("1B", 1_235_814_400),
    ],
)
def test_shapes_have_the_sizes_of_the_published_models(size, count):
    with torch.device("meta"):
        policy = TransformerPolicy(DecoderShape(**one_part.shape_of(size, cpu=False)))
    assert sum(x.numel() for x in policy.parameters()) == count


def test_bytes_are_those_counted_by_hand():
    """At 135M, a layer keeps 4 · 576 + 2 · (9 + 3) · 64 + 4 · 1536 = 9,984 numbers of each token."""
    weights, per_token = 134_515_008, 30 * 9_984
    cache = 30 * 64 * (2 * 3) * (64 + 128) * 64  # layers, rows, keys and values, columns, width
    assert one_part.bytes_needed("decode-135M") == (4 + 2) * weights + 2 * 2 * cache == 1_373_321_088
    rows = 4 * per_token * 8 * 512
    assert one_part.bytes_needed("dpo-135M") == 5 * 4 * weights + rows == 7_597_635_840
    assert one_part.bytes_needed("dpo-135M-lora") == 4 * weights + rows == 5_445_395_712
    # 1B: (4 · 2048 + 2 · (32 + 8) · 64 + 4 · 8192) · 16 layers
    assert one_part.bytes_needed("dpo-1B") == 5 * 4 * 1_235_814_400 + 4 * 737_280 * 8 * 512 == 36_795_883_520


@pytest.mark.slow
def test_a_part_that_fails_leaves_its_reason(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    code, printed, figures = run(tmp_path, "--weights", str(tmp_path), "--only", "decode-135M")
    assert code == 1 and "| decode-135M | error: " in printed
    assert "config.json" in figures["parts"]["decode-135M"]["error"]


def test_weights_must_be_a_folder_of_a_model(tmp_path):
    code, printed, figures = run(tmp_path, "--weights", "nowhere")
    assert code == 2 and "error: --weights: nowhere has no config.json" in printed and figures is None


def test_a_part_that_does_not_fit_is_skipped(monkeypatch):
    monkeypatch.setattr(one_part, "bytes_needed", lambda part, cpu: 2**60)
    assert one_part.run_part("dpo-1B", None, cpu=True)["skipped"].startswith("needs about 1073741824.0 GiB")


@pytest.mark.slow
def test_the_script_runs_on_a_cpu(tmp_path):
    parts = ["decode-135M", "ppo-135M-lora", "dpo-1B"]
    code, printed, figures = run(tmp_path, "--only", *parts)
    assert code == 0, printed
    assert list(figures["parts"]) == parts
    assert figures["torch"] == torch.__version__ and figures["seed"] == 0 and "CPU" in figures["device"]
    names = [["without graphs", "with graphs"], ["sampling", "training"], ["training"]]
    for (part, result), kinds in zip(figures["parts"].items(), names, strict=True):
        assert "error" not in result and result["precision"] == "bf16-mixed" and result["seconds"] > 0
        assert list(result["tokens_per_second"]) == list(result["intervals_95"]) == list(result["peak_bytes"]) == kinds
        for kind, values in result["tokens_per_second"].items():
            middle, low, high = result["intervals_95"][kind]
            assert len(values) >= 3 and 0 < low <= middle <= high and f"| {part} | {kind} | " in printed
    assert figures["parts"]["decode-135M"]["equal_rows_float32"] == "4 of 4"
    assert figures["parts"]["ppo-135M-lora"]["optimizer_steps"] == 6 * 2  # iterations, passes
