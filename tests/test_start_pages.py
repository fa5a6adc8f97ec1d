"""The pages of docs/start, done as they say in an empty folder with `conf/`."""

import re
import shlex
import shutil

import pytest

from lightning_nlf.cli.command_line import main
from tests.documents import ROOT, commands, page_blocks, run_page, shell
from tests.my_folder import my_folder

CONTROL = ROOT / "docs/start/control.md"
LANGUAGE = ROOT / "docs/start/language.md"
COMPARE = ROOT / "docs/start/compare.md"


def blocks(page, language):
    return [block.text for block in page_blocks(page.read_text()) if block.language == language]


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder with the yamls, in which the main job has been run by the page's command."""
    folder = tmp_path_factory.mktemp("project")
    shutil.copytree(ROOT / "conf", folder / "conf")
    install_and_fit = blocks(CONTROL, "bash")[0]
    assert install_and_fit.startswith("pip install -e . && ")
    shell(install_and_fit.split("&&")[1], folder)
    return folder


@pytest.mark.slow
def test_the_main_job_leaves_what_the_table_says(project):
    run = project / "outputs" / "injection-seed0"
    for name in ("best.ckpt", "last.ckpt"):
        assert (run / "checkpoints" / name).is_file()
    for name in ("config.yaml", "raw/injection.yaml", "exhibits/learning_curve.png", "journal.jsonl"):
        assert (run / name).stat().st_size > 0
    assert len(list((run / "exhibits").glob("*.gif"))) == 2 and list((run / "provenance").iterdir())


@pytest.mark.slow
def test_the_main_job_balances_the_pole(project):
    """Ten deterministic episodes of the best policy, on the seeds that are kept for the end."""
    output = shell("python -m lightning_nlf test --config conf/injection.yaml --ckpt_path best", project)
    (value,) = re.findall(r"test/return\s+│\s+([\d.,]+)", output)
    assert float(value.replace(",", "")) >= 950


def logged_run(folder, name):
    """A client of the folder's database, and the one run of this name."""
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{folder}/outputs/mlflow.db")
    (experiment,) = [e for e in client.search_experiments() if e.name == "lightning_nlf"]
    (run,) = [run for run in client.search_runs([experiment.experiment_id]) if run.info.run_name == name]
    return client, run


def artifacts(client, run, *folders):
    return {artifact.path for folder in folders for artifact in client.list_artifacts(run.info.run_id, folder)}


@pytest.mark.slow
def test_the_main_job_is_in_mlflow(project):
    client, run = logged_run(project, "injection-seed0")
    assert run.info.status == "FINISHED" and run.data.metrics["val/return"] >= 950
    assert {"env_steps", "iteration", "expert_steps", "labels", "train/imitation"} <= run.data.metrics.keys()
    assert {"checkpoint/best_sha256", "checkpoint/last_sha256"} <= run.data.tags.keys()
    logged = artifacts(client, run, "", "checkpoints", "exhibits", "provenance", "raw")
    names = ["checkpoints/best.ckpt", "checkpoints/last.ckpt", "exhibits/evaluation.gif", "exhibits/learning_curve.png"]
    names += ["provenance/command.txt", "provenance/packages.txt", "raw/injection.yaml", "config.yaml"]
    assert set(names) <= logged


@pytest.mark.slow
def test_the_five_lines_balance_the_pole_in_plain_gymnasium(project):
    (code,) = [block for block in blocks(CONTROL, "python") if "gymnasium.make" in block]
    (project / "five_lines.py").write_text(code)
    assert float(shell("python five_lines.py", project)) >= 950


@pytest.mark.slow
def test_the_commands_on_a_finished_run(project):
    """Each line of the block. The page server is not started: `--print` shows what it would start."""
    _, describe, block = blocks(CONTROL, "bash")
    assert "over expert_mask" in shell(describe, project)
    lines = commands(block)
    assert len(lines) == 5
    for line in lines:
        shell(line + " --print" if ".tracking ui" in line else line, project)
    assert "return" in shell(lines[2], project)


@pytest.mark.slow
def test_rlhf_in_six_commands(tmp_path):
    """Each of them, the fits cut down to seconds; the figures of the last one are there."""
    shutil.copytree(ROOT / "conf", tmp_path / "conf")
    (block,) = [block for block in blocks(LANGUAGE, "bash") if "conf/reviews/sft.yaml" in block]
    lines = commands(block)
    assert [line.split()[2] for line in lines] == ["lightning_nlf", "lightning_nlf", "data_modules.feedback"] + [
        "lightning_nlf"
    ] * 3
    short = "--trainer.max_epochs 1 --trainer.check_val_every_n_epoch 1"
    for line in lines:
        output = shell(f"{line} {short}" if " fit " in line else line, tmp_path)
    assert "test/true_reward" in output
    assert (tmp_path / "outputs/reviews/ppo-seed0/huggingface/model.safetensors").is_file()
    client, run = logged_run(tmp_path, "reviews/ppo-seed0")
    assert run.info.status == "FINISHED"
    names = {"kl", "beta", "clip_fraction", "explained_variance", "finished", "true_reward", "loss"}
    metrics = {f"train/{name}" for name in names} | {"val/true_reward", "val/return_sampled", "val/kl_sampled"}
    assert metrics | {"env_steps", "iteration", "feedback_calls"} <= run.data.metrics.keys()
    assert run.data.metrics["train/beta"] > 0 and 0 <= run.data.metrics["train/clip_fraction"] <= 1
    digests = dict(
        line.split(": ")
        for line in (tmp_path / "outputs/reviews/ppo-seed0/provenance/data.txt").read_text().splitlines()
    )
    assert digests.keys() == {"data_digest", "tokenizer_digest"} and digests.items() <= run.data.tags.items()
    logged = artifacts(client, run, "exhibits", "exhibits/transcripts", "huggingface", "checkpoints", "provenance")
    tables = {"exhibits/transcript.html", "exhibits/transcript.md", "exhibits/transcripts/iteration-00001.html"}
    model = {"huggingface/config.json", "huggingface/model.safetensors", "huggingface/tokenizer.json"}
    assert tables | model | {"checkpoints/last.ckpt", "provenance/data.txt"} <= logged
    _, tuned = logged_run(tmp_path, "reviews/sft-seed0")
    assert {"val/imitation", "val/return", "val/part/sentiment", "train/imitation"} <= tuned.data.metrics.keys()
    assert tuned.data.tags["tokenizer_digest"] == digests["tokenizer_digest"]
    assert tuned.data.tags["data_digest"] != digests["data_digest"]
    assert "exhibits/transcript.html" in artifacts(client, tuned, "exhibits")


def test_the_other_commands_of_the_language_page_build(monkeypatch, capsys):
    """They need the run of the first commands, and are only read."""
    monkeypatch.chdir(ROOT)
    _, _, *rest = blocks(LANGUAGE, "bash")
    lines = [line for block in rest for line in commands(block) if line]
    assert len(lines) == 2
    for line in lines:
        with pytest.raises(SystemExit) as ending:
            main([*shlex.split(line)[3:], "--print_config"])
        assert ending.value.code == 0, capsys.readouterr().err


@pytest.mark.slow
def test_two_ways_of_using_feedback_are_compared(tmp_path):
    """The six commands, on a small model, with fewer seeds and steps than the page has."""
    shutil.copytree(ROOT / "conf", tmp_path / "conf")
    my_folder(tmp_path)
    page = COMPARE.read_text()
    for words, fewer in {"steps: 24": "steps: 2", "tune: 0-1, report: 100-105": "tune: 0, report: 100-101"}.items():
        assert page.count(words) == 1
        page = page.replace(words, fewer)
    run_page(page, tmp_path)
    folder = tmp_path / "outputs/studies/study"
    report = (folder / "report.md").read_text()
    assert "| sft |" in report and "| mixed |" in report and "no claim is made from 2 seeds" in report
    assert (folder / "report.png").is_file() and len(list(folder.glob("old/*"))) == 2
