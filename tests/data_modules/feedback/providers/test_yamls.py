"""The yaml of direct RLAIF on the command line, with a scripted judge."""

from pathlib import Path

import pytest

from lightning_nlf.cli.command_line import main

CONF = Path(__file__).parents[4] / "conf"
QUIET = [
    "--trainer.logger",
    "false",
    "--trainer.enable_progress_bar",
    "false",
    "--config",
    str(CONF / "overlays" / "debug.yaml"),
]


@pytest.mark.slow
def test_direct_rlaif_runs_by_its_yaml(server, tmp_path, monkeypatch, prompt_of):
    """The judge always answers 9 with .5 and 0 with .5, so every reply has the reward .5."""
    monkeypatch.chdir(tmp_path)
    server.says(server.chat("9", [{"9": 0.5, "0": 0.5}]))
    few = ["--trainer.max_epochs", "1", "--trainer.check_val_every_n_epoch", "1", "--data.minibatches", "1"]
    start = str(CONF / "reviews" / "sft.yaml")
    main(["fit", "--config", start, *QUIET, *few, "--data.rows", "64", "--run_dir", "outputs/reviews/sft-seed0"])
    judge = ["--data.reward.endpoint.url", server.url, "--data.reward.endpoint.cache", str(tmp_path / "cache")]
    config = str(CONF / "reviews" / "rlaif_direct.yaml")
    cli = main(["fit", "--config", config, *QUIET, *few, *judge, "--run_dir", "outputs/rlaif"])
    assert cli.trainer.callback_metrics["val/return"] == pytest.approx(0.5)
    assert cli.datamodule.statistics["return"] == pytest.approx(0.5)
    assert server.requests and server.requests[0]["model"].startswith("Qwen")
    assert "from 0 (worst) to 9 (best)" in prompt_of(server.requests[0])
