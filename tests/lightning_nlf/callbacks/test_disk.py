"""A fit whose files would not fit on the disk is refused before training."""

from __future__ import annotations

import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch

from data_modules.text import TokenTaskDataModule
from lightning_nlf.callbacks import BestCheckpoint, DiskSpace, HuggingFaceExport, LastCheckpoint
from lightning_nlf.cli.command_line import main
from lightning_nlf.networks import DecoderShape, LoRA, TransformerPolicy
from lightning_nlf.objectives import ReinforcePolicy

ROOT = Path(__file__).parents[3]
Usage = namedtuple("Usage", "total used free")
SHAPE = DecoderShape(vocabulary=12, layers=2, heads=2, width=16, context=32, family="llama", hidden=32)
# embedding 12·16; per layer: q, k, v and out 4·16², MLP 3·16·32, two norms; and the final norm
WEIGHTS = 4 * (12 * 16 + 2 * (4 * 256 + 3 * 512 + 2 * 16) + 16)
ADDITIONS = 4 * 2 * 2 * (2 * 16 + 16 * 2)  # two layers with two adapters of rank 2 in each


def fitted(fit: Any, policy: TransformerPolicy, callbacks: list[Any], **options: Any) -> None:
    torch.manual_seed(0)
    module = ReinforcePolicy(policy=policy, optimizer=lambda p: torch.optim.Adam(p))
    data = TokenTaskDataModule(prompts=8, replies=4, evaluation_prompts=1)
    fit.trainer(1, [*callbacks, DiskSpace()], **options).fit(module, data)


def room(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**12, 0, free))


@pytest.mark.parametrize("lora", [False, True])
def test_as_much_as_is_written_is_enough_and_a_tenth_less_is_not(
    lora: bool, fit: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """last.ckpt has weights and two moments, and exists twice while it is replaced. best.ckpt has only the weights."""
    TransformerPolicy(SHAPE).export(tmp_path / "start", torch.bfloat16)
    policy = TransformerPolicy(weights=str(tmp_path / "start"), lora=LoRA(r=2) if lora else None)
    trained = ADDITIONS if lora else WEIGHTS
    export = WEIGHTS // 2 + (ADDITIONS if lora else 0)  # in bfloat16
    needed = 2 * 3 * trained + trained + export
    everything = [LastCheckpoint(), BestCheckpoint(), HuggingFaceExport()]
    room(monkeypatch, int(0.9 * needed))
    with pytest.raises(
        ValueError, match=r"^run_dir: not enough disk space: \S+ GB are free in .*run, and this fit needs"
    ):
        fitted(fit, policy, everything)
    assert not fit.folder.exists()
    room(monkeypatch, needed + 10 * 20)  # the module also has buffers: experience and two means
    fitted(fit, policy, everything)


def test_files_that_are_replaced_are_not_counted_twice(fit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fitted(fit, TransformerPolicy(SHAPE), [LastCheckpoint()])
    room(monkeypatch, 3 * WEIGHTS + 200)  # room for the new file while the old one exists
    fitted(fit, TransformerPolicy(SHAPE), [LastCheckpoint()])
    shutil.rmtree(fit.folder)
    with pytest.raises(ValueError, match="GB are free in"):
        fitted(fit, TransformerPolicy(SHAPE), [LastCheckpoint()])


def test_a_rehearsal_and_a_fit_that_leaves_nothing_need_no_room(fit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    room(monkeypatch, 0)
    fitted(fit, TransformerPolicy(SHAPE), [LastCheckpoint(), HuggingFaceExport()], fast_dev_run=True)
    fitted(fit, TransformerPolicy(SHAPE), [])


def test_the_command_line_says_so_in_one_line_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    room(monkeypatch, 10_000)
    with pytest.raises(SystemExit) as ending:
        main(["fit", "--config", str(ROOT / "conf/tokens/joint.yaml"), "--run_dir", str(tmp_path / "run")])
    assert ending.value.code == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("error: run_dir: not enough disk space: 0.00 GB are free in ")
    assert line.endswith("Free some space, or set --run_dir to a folder on another disk")
    assert not (tmp_path / "run").exists()
