"""The choice of run folder and checkpoint, without running anything."""

from pathlib import Path

import pytest

from lightning_nlf.cli import run_folder
from lightning_nlf.cli.errors import ConfigurationError
from lightning_nlf.cli.saved_config import SaveRunConfig


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in (*run_folder._RANKS, run_folder._FOLDER_VARIABLE):
        monkeypatch.setenv(name, "")  # and so back to what it was, at the end of the test


DEFAULT = Path("outputs/injection-seed0")


def a_run(folder: Path, *checkpoints: str) -> Path:
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").write_text("{}")
    for name in checkpoints:
        (folder / "checkpoints" / f"{name}.ckpt").touch()
    return folder


@pytest.mark.parametrize(
    ("configs", "folder"),
    [
        (["conf/injection.yaml", "conf/overlays/debug.yaml"], "injection+debug-seed3"),
        (["conf/answers/injection.yaml"], "answers/injection-seed3"),
        (["/home/me/conf/old/conf/answers/mine/injection.yaml", "fast.yaml"], "answers/mine/injection+fast-seed3"),
        (["my/frugal.yaml"], "frugal-seed3"),
        ([], "run-seed3"),
    ],
)
def test_a_run_folder_is_named_by_the_path_below_conf(configs, folder):
    assert run_folder.default_folder(configs, 3) == Path("outputs") / folder


def test_fresh_fits_take_the_next_free_folder():
    folders = [run_folder.resolve("fit", None, None, DEFAULT)[0] for _ in range(3)]
    assert [folder.name for folder in folders] == ["injection-seed0", "injection-seed0-2", "injection-seed0-3"]


def test_a_released_folder_is_free_again():
    folder, _ = run_folder.resolve("fit", None, None, DEFAULT)
    run_folder.release(folder)
    assert not folder.exists()
    assert run_folder.resolve("fit", None, None, DEFAULT)[0] == DEFAULT


def test_no_empty_folder_stays_below_outputs():
    folder, _ = run_folder.resolve("fit", None, None, Path("outputs/reviews/dpo-seed0"))
    run_folder.release(folder)
    assert not Path("outputs").exists()


def test_release_keeps_what_a_run_wrote():
    folder, _ = run_folder.resolve("fit", None, None, DEFAULT)
    (folder / "journal.jsonl").write_text("{}")
    run_folder.release(folder)
    assert (folder / "journal.jsonl").exists()


def test_named_folder_with_a_run_is_refused_and_says_what_to_do():
    a_run(Path("mine"), "last")
    with pytest.raises(ConfigurationError, match="mine already holds a run.*--ckpt_path last.*--run_dir"):
        run_folder.resolve("fit", "mine", None, DEFAULT)
    checkpoint = a_run(Path("other"), "last") / "checkpoints" / "last.ckpt"
    with pytest.raises(ConfigurationError, match="already holds a run"):
        run_folder.resolve("fit", "mine", str(checkpoint), DEFAULT)


@pytest.mark.parametrize("run_dir", [None, "outputs/injection-seed0"])
@pytest.mark.parametrize("name", ["last", "best"])
def test_checkpoint_names_are_files_of_the_run(run_dir, name):
    a_run(DEFAULT, "last", "best")
    for stage in ("fit", "test"):
        folder, file = run_folder.resolve(stage, run_dir, name, DEFAULT)
        assert (folder, file) == (DEFAULT, f"outputs/injection-seed0/checkpoints/{name}.ckpt")


def test_several_runs_are_ambiguous_and_all_named():
    for suffix in ("", "-2", "-10"):
        a_run(DEFAULT.with_name(DEFAULT.name + suffix), "last")
    a_run(DEFAULT.with_name(DEFAULT.name + "0"), "last")  # seed 00 is another name, so not a candidate
    with pytest.raises(ConfigurationError, match="injection-seed0, .*injection-seed0-2, .*injection-seed0-10. "):
        run_folder.resolve("fit", None, "last", DEFAULT)
    assert run_folder.resolve("fit", str(DEFAULT), "last", DEFAULT)[0] == DEFAULT


def test_fit_from_last_begins_where_there_is_none():
    assert run_folder.resolve("fit", None, "last", DEFAULT) == (DEFAULT, None)
    assert run_folder.resolve("fit", "mine", "last", DEFAULT) == (Path("mine"), None)


@pytest.mark.parametrize(
    "stage, ckpt_path", [("fit", "best"), ("test", "best"), ("validate", "last"), ("predict", "no/such.ckpt")]
)
def test_missing_checkpoint_is_an_error(stage, ckpt_path):
    with pytest.raises(ConfigurationError, match="ckpt_path: .*does not exist"):
        run_folder.resolve(stage, None, ckpt_path, DEFAULT)


def test_missing_checkpoint_names_those_that_are_there():
    a_run(DEFAULT, "last")
    with pytest.raises(ConfigurationError, match=r"best\.ckpt does not exist; \S+checkpoints has last\.ckpt"):
        run_folder.resolve("test", None, "best", DEFAULT)


def test_a_checkpoint_file_brings_its_run_along():
    file = a_run(Path("elsewhere"), "best") / "checkpoints" / "best.ckpt"
    assert run_folder.resolve("test", None, str(file), DEFAULT) == (Path("elsewhere"), str(file))


def test_a_stage_without_a_checkpoint_does_not_write_into_a_training_run():
    a_run(DEFAULT, "last")
    assert run_folder.resolve("validate", None, None, DEFAULT)[0].name == "injection-seed0-validate"


def test_other_ranks_follow_the_first(monkeypatch):
    first, _ = run_folder.resolve("fit", None, None, DEFAULT)
    a_run(first)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert run_folder.resolve("fit", None, None, DEFAULT)[0] == first.absolute()
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert run_folder.resolve("fit", None, None, DEFAULT)[0].name == "injection-seed0-2"


def save_config(folder: Path, text: str, raw: str = "raw") -> None:
    Path("a.yaml").write_text(raw)
    SaveRunConfig(folder, text, ["a.yaml"]).save()


def test_config_is_kept_raw_and_resolved():
    save_config(DEFAULT, "gamma: 1\n")
    assert (DEFAULT / "config.yaml").read_text() == "gamma: 1\n"
    assert (DEFAULT / "raw" / "a.yaml").read_text() == "raw"


def test_a_resume_keeps_another_config_beside_the_first():
    save_config(DEFAULT, "gamma: 1\nckpt_path: null\n")
    save_config(DEFAULT, "gamma: 1\nckpt_path: last.ckpt\n")  # the same run
    assert not (DEFAULT / "config-resumed-1.yaml").exists()
    save_config(DEFAULT, "gamma: 2\n", "second")
    save_config(DEFAULT, "gamma: 3\n", "third")
    save_config(DEFAULT, "gamma: 3\n", "third")
    texts = {path.name: path.read_text() for path in DEFAULT.glob("*.yaml")}
    assert texts["config-resumed-1.yaml"] == "gamma: 2\n" and texts["config-resumed-2.yaml"] == "gamma: 3\n"
    assert texts["config.yaml"].startswith("gamma: 1\n") and len(texts) == 3
    assert (DEFAULT / "raw" / "a.yaml").read_text() == "raw"
    assert (DEFAULT / "raw" / "resumed-2" / "a.yaml").read_text() == "third"


def test_a_config_that_cannot_be_written_is_a_mistake():
    Path("taken").touch()
    with pytest.raises(ConfigurationError, match="run_dir: taken cannot be written"):
        save_config(Path("taken"), "gamma: 1\n")


def test_two_yamls_of_one_name_are_both_kept(tmp_path):
    files = [tmp_path / "x" / "a.yaml", tmp_path / "y" / "a.yaml"]
    for file in files:
        file.parent.mkdir()
        file.write_text(file.parent.name)
    SaveRunConfig(DEFAULT, "{}", [str(file) for file in files]).save()
    assert sorted(path.read_text() for path in (DEFAULT / "raw").iterdir()) == ["x", "y"]
