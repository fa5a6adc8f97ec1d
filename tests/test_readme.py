"""Everything the README says to do is done here, in an empty folder beside a copy of `conf/`."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_nlf.cli.command_line import main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)


def shell(command, folder):
    """The command as a user types it, with this environment's python; fails the test with what it printed."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    python = os.environ.get("PYTHONPATH")
    environ = os.environ | {"PATH": path, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), python]))}
    done = subprocess.run(command, shell=True, cwd=folder, env=environ, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder with the yamls, in which the main job has been run by the README's own command."""
    folder = tmp_path_factory.mktemp("project")
    shutil.copytree(ROOT / "conf", folder / "conf")
    install_and_fit = blocks("bash")[0]
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
    said = shell("python -m lightning_nlf test --config conf/injection.yaml --ckpt_path best", project)
    (value,) = re.findall(r"test/return\s+│\s+([\d.,]+)", said)
    assert float(value.replace(",", "")) >= 950


@pytest.mark.slow
def test_the_main_job_is_in_mlflow(project):
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{project}/outputs/mlflow.db")
    (experiment,) = [e for e in client.search_experiments() if e.name == "lightning_nlf"]
    runs = client.search_runs([experiment.experiment_id])
    (run,) = [run for run in runs if run.info.run_name == "injection-seed0"]
    assert run.info.status == "FINISHED" and run.data.metrics["val/return"] >= 950
    assert {"env_steps", "iteration", "expert_steps", "labels", "train/imitation"} <= run.data.metrics.keys()
    assert {"checkpoint/best_sha256", "checkpoint/last_sha256"} <= run.data.tags.keys()
    logged = {
        artifact.path
        for folder in ("", "checkpoints", "exhibits", "provenance", "raw")
        for artifact in client.list_artifacts(run.info.run_id, folder)
    }
    names = ["checkpoints/best.ckpt", "checkpoints/last.ckpt", "exhibits/evaluation.gif", "exhibits/learning_curve.png"]
    names += ["provenance/command.txt", "provenance/packages.txt", "raw/injection.yaml", "config.yaml"]
    assert set(names) <= logged


@pytest.mark.slow
def test_the_five_lines_balance_the_pole_in_plain_gymnasium(project):
    (code,) = [block for block in blocks("python") if "gymnasium.make" in block]
    (project / "five_lines.py").write_text(code)
    assert float(shell("python five_lines.py", project)) >= 950


@pytest.mark.slow
def test_the_commands_on_a_finished_run(project):
    """Each line of the second block, but the page server, which is only asked what it would start."""
    (block,) = [block for block in blocks("bash") if "--ckpt_path last" in block]
    lines = [line.split("  #")[0].split(" #")[0].strip() for line in block.splitlines()]
    assert len(lines) == 5
    for line in lines:
        shell(line + " --print" if ".tracking ui" in line else line, project)
    assert "return" in shell(lines[2], project)


@pytest.mark.slow
def test_rlhf_in_six_commands(tmp_path):
    """Each of them, the fits cut down to seconds; what the last one says of the policy is there."""
    shutil.copytree(ROOT / "conf", tmp_path / "conf")
    (block,) = [block for block in blocks("bash") if "conf/rlhf/sft.yaml" in block]
    lines = [line.split("  #")[0].strip() for line in block.replace("\\\n", " ").splitlines()]
    assert [line.split()[2] for line in lines] == ["lightning_nlf", "lightning_nlf", "data_modules.feedback"] + [
        "lightning_nlf"
    ] * 3
    short = "--trainer.max_epochs 1 --trainer.check_val_every_n_epoch 1"
    for line in lines:
        said = shell(f"{line} {short}" if " fit " in line else line, tmp_path)
    assert "test/true_reward" in said
    assert (tmp_path / "outputs/rlhf_ppo-seed0/huggingface/model.safetensors").is_file()


@pytest.mark.slow
def test_an_objective_in_three_steps(project):
    (code,) = [block for block in blocks("python") if "FrugalPolicy" in block]
    (yaml,) = [block for block in blocks("yaml") if "frugal.FrugalPolicy" in block]
    (command,) = [block for block in blocks("bash") if "frugal.yaml" in block]
    (project / "frugal.py").write_text(code)
    (project / "frugal.yaml").write_text(yaml)
    shell(f"{command.strip()} --config conf/debug.yaml", project)
    (journal,) = (project / "outputs").glob("frugal*/journal.jsonl")
    assert '"train/force"' in journal.read_text()


def test_every_yaml_the_readme_names_is_there():
    named = set(re.findall(r"conf/[\w/]+\.yaml", README))
    assert len(named) > 10
    assert [name for name in sorted(named) if not (ROOT / name).is_file()] == []


def test_every_yaml_has_a_row_in_the_readme():
    yamls = {path.relative_to(ROOT).as_posix() for path in (ROOT / "conf").rglob("*.yaml")}
    assert [name for name in sorted(yamls) if name not in README] == []


FITS = sorted(set(re.findall(r"`python -m lightning_nlf (fit [^`]+)`", README)))


@pytest.mark.parametrize("command", [command for command in FITS if "outputs/" not in command])
def test_the_commands_of_the_table_of_rows_build(command, monkeypatch):
    """With another word misspelt, or a knob that is gone, they would not. Some need another run first."""
    monkeypatch.chdir(ROOT)
    (source,) = re.findall(r"--config (\S+)", command)
    if re.search(r"^[^#]*outputs/", (ROOT / source).read_text(), re.M):
        pytest.skip("its expert, or what it starts from, has to be trained first")
    main(command.split(), run=False)


def results(name):
    return (ROOT / "benchmarks" / "results" / f"{name}.md").read_text().strip().split("\n\n")


@pytest.mark.parametrize("name", ["configs", "speed", "bodies", "speedup", "rlhf", "maze"])
def test_tables_in_the_readme_are_those_of_the_results_files(name):
    """To the letter as the benchmark wrote them; the long list of what was tuned stays where it is."""
    tables = [part for part in results(name) if part.startswith("|") and "chosen of 16 cells" not in part]
    assert tables and [table for table in tables if table not in README] == []


def test_the_claims_of_speed_in_the_readme_are_those_that_were_measured():
    assert results("throughput")[0] in README and results("text_speed")[0] in README


def test_every_yaml_says_what_it_reached():
    """The header quotes the figure of its row in the results files, or says that there is none yet."""
    tables = ("configs", "bodies", "speedup", "rlhf", "process", "maze")
    parts = [part for name in tables for part in results(name) if part.startswith("|")]
    rows = [row for part in parts for row in re.findall(r"^\| ([\w/]+) \|(.*)\|$", part, re.M)]
    figures: dict[str, list[str]] = {}
    for name, columns in rows:
        if (ROOT / f"conf/{name}.yaml").is_file():
            figures.setdefault(name, re.findall(r"\S+ \[\S+ \S+\]", columns))
    yamls = {path.relative_to(ROOT / "conf").with_suffix("").as_posix() for path in (ROOT / "conf").rglob("*.yaml")}
    assert figures.keys() <= yamls
    for name in yamls - {"debug"}:
        text = (ROOT / f"conf/{name}.yaml").read_text().split("seed_everything")[0]
        header = " ".join(line.lstrip("# ") for line in text.splitlines())
        assert figures.get(name, ["Not measured yet"])[0] in header, name


@pytest.mark.parametrize("name", ["joint", "injection", "dagger", "bc"])
def test_yamls_claim_the_lower_bounds_of_the_study(name):
    summary = json.loads((ROOT / "benchmarks" / "results" / "speedup.json").read_text())["summary"][f"{name}/all"]
    mode, sampled = (summary[measure]["corrected"][1] for measure in ("sust", "sto"))
    claim = f"at least {mode:.0f}× tuned REINFORCE, as it samples {sampled:.0f}×"
    assert claim in (ROOT / "conf" / f"{name}.yaml").read_text()


def test_pictures_are_there():
    for picture in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README):
        assert (ROOT / picture).is_file(), picture
