from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient

from lightning_nlf.cli.command_line import main
from lightning_nlf.modules import ObjectiveModule
from lightning_nlf.tracking.journal import Journal
from lightning_nlf.tracking.registry import ChecksumError, fetch_registered, register, sha256

ROOT = Path(__file__).parents[3]


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "outputs" / "run"
    journal = Journal(folder)
    journal.start(experiment="e", run_name="r")
    journal.append("end", status="FINISHED")
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "best.ckpt").write_bytes(b"weights one")
    (folder / "config.yaml").write_text("seed: 1\n")
    return folder


@pytest.fixture
def uri(tmp_path):
    return f"sqlite:///{tmp_path}/outputs/mlflow.db"


def test_sha256_of_abc(tmp_path):
    """FIPS 180-2, appendix B.1."""
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.mark.slow
def test_two_versions_of_one_run_come_back_as_they_were(run, uri):
    assert register(run, "pendulum") == 1
    (run / "checkpoints" / "best.ckpt").write_bytes(b"weights two")
    assert register(run, "pendulum") == 2
    first = fetch_registered("models:/pendulum/1", uri)
    best = fetch_registered("models:/pendulum@champion", uri)
    assert (first.name, first.read_bytes()) == ("best.ckpt", b"weights one")
    assert best.read_bytes() == b"weights two"
    assert best.with_name("config.yaml").read_text() == "seed: 1\n"
    client = MlflowClient(uri, uri)
    version = client.get_model_version("pendulum", "2")
    assert version.tags["sha256"] == sha256(best)
    assert client.get_run(version.run_id).data.tags["sha256/best.ckpt"] == sha256(best)


@pytest.mark.parametrize("name", ["checkpoints/best.ckpt", "config.yaml"])
def test_file_behind_a_link_out_of_the_run_folder_is_not_registered(run, tmp_path, name):
    (tmp_path / "secret").write_text("secret")
    (run / name).unlink()
    (run / name).symlink_to(tmp_path / "secret")
    with pytest.raises(ValueError, match=f"{name} is a link out of the run folder"):
        register(run, "pendulum")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["best.ckpt", "config.yaml"])
def test_tampered_file_is_refused_and_not_kept(run, uri, tmp_path, name):
    register(run, "pendulum")
    (file,) = (tmp_path / "outputs" / "mlartifacts").rglob(name)
    file.write_bytes(b"weights, changed")
    with pytest.raises(ChecksumError, match=f"{name} of pendulum version 1 is not the file that was registered"):
        fetch_registered("models:/pendulum@champion", uri)
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


@pytest.mark.slow
def test_tampered_copy_in_the_cache_is_fetched_again(run, uri):
    register(run, "pendulum")
    fetch_registered("models:/pendulum/1", uri).write_bytes(b"changed")
    assert fetch_registered("models:/pendulum/1", uri).read_bytes() == b"weights one"


@pytest.mark.slow
def test_version_that_register_did_not_make_is_refused(run, uri):
    register(run, "pendulum")
    client = MlflowClient(uri, uri)
    client.set_model_version_tag("pendulum", "1", "checkpoint", "../../best.ckpt")
    with pytest.raises(ValueError, match="names no checkpoint"):
        fetch_registered("models:/pendulum/1", uri)
    client.delete_model_version_tag("pendulum", "1", "sha256")
    with pytest.raises(ValueError, match="has no checksums"):
        fetch_registered("models:/pendulum/1", uri)


@pytest.mark.slow
def test_round_trip_through_a_server(run, server):
    assert register(run, "pendulum", alias="best", tracking_uri=server.uri) == 1
    assert fetch_registered("models:/pendulum@best", server.uri).read_bytes() == b"weights one"


@pytest.mark.slow
def test_trained_policy_comes_back_and_acts_the_same(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(ROOT)
    run_dir = tmp_path / "outputs" / "run"
    configs = [word for name in ("injection", "overlays/debug") for word in ("--config", f"conf/{name}.yaml")]
    main(["fit", *configs, "--run_dir", str(run_dir), "--data.horizon", "50", "--data.evaluation_episodes", "2"])
    register(run_dir, "pendulum")
    fetched = fetch_registered("models:/pendulum@champion", f"sqlite:///{tmp_path}/outputs/mlflow.db")
    assert fetched.is_relative_to(tmp_path / "cache")
    obs = torch.randn(2, 3, 4)
    paths = (fetched, run_dir / "checkpoints" / "best.ckpt")
    modules = [ObjectiveModule.load_from_checkpoint(path, map_location="cpu") for path in paths]
    means = [module.policy(obs).mean for module in modules]
    assert torch.equal(*means) and means[0].shape == (2, 3, 1)


@pytest.mark.slow
def test_no_store_and_unknown_names_are_told_in_one_line(run, uri, monkeypatch, tmp_path):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(
        ValueError, match=r"^models:/x@y: this folder has no outputs/mlflow.db; set MLFLOW_TRACKING_URI$"
    ):
        fetch_registered("models:/x@y")
    assert not list((tmp_path / "empty").iterdir())
    monkeypatch.chdir(tmp_path)
    register(run, "pendulum")
    for text in ("models:/nobody@champion", "models:/pendulum@nobody", "models:/pendulum/7"):
        with pytest.raises(ValueError, match=f"^{text}: [^\\n]+$"):
            fetch_registered(text)


def test_missing_files_are_named_before_anything_is_sent(run, uri):
    with pytest.raises(FileNotFoundError, match="checkpoints/last.ckpt is missing"):
        register(run, "pendulum", checkpoint="last")
    assert not (run / "mlflow.json").exists()


@pytest.mark.parametrize("text", ["pendulum", "models:/pendulum", "models:/pendulum@a/1", "runs:/abc/best.ckpt"])
def test_other_names_are_refused(tmp_path, uri, text, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs").mkdir()
    with pytest.raises(ValueError, match="models:/NAME@ALIAS"):
        fetch_registered(text, uri)
