import shutil
import subprocess

import pytest

from lightning_nlf.tracking import provenance
from lightning_nlf.tracking.provenance import command_line, gather, git_state, host, installed_packages


def git(folder, *arguments):
    settings = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "init.defaultBranch=trunk"]
    process = subprocess.run(["git", *settings, *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return process.stdout.strip()


@pytest.fixture
def repository(tmp_path):
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    git(tmp_path, "init")
    (tmp_path / "code.py").write_text("old\n")
    git(tmp_path, "add", "code.py")
    git(tmp_path, "commit", "-m", "first")
    return tmp_path


def test_clean_repository_has_commit_and_branch_and_no_patch(repository):
    commit = git(repository, "rev-parse", "HEAD")
    assert git_state(repository) == {"git.txt": f"commit: {commit}\nbranch: trunk\nchanged: nothing\n"}


def test_patch_gives_the_changed_code_back(repository):
    (repository / "code.py").write_text("new\n")
    (repository / "untracked.py").write_text("x\n")
    state = git_state(repository)
    assert " M code.py\n?? untracked.py\n" in state["git.txt"]
    assert "-old\n+new\n" in state["git.patch"]
    git(repository, "checkout", "code.py")
    subprocess.run(["git", "apply"], cwd=repository, input=state["git.patch"], text=True, check=True)
    assert (repository / "code.py").read_text() == "new\n"


def test_long_patch_is_cut_and_says_so(repository, monkeypatch):
    monkeypatch.setattr(provenance, "LONGEST_PATCH", 100)
    (repository / "code.py").write_text("new\n" * 1000)
    patch = git_state(repository)["git.patch"]
    assert len(patch) < 200 and "cut" in patch


def test_no_repository_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_state(tmp_path) == {"git.txt": "no git repository with a commit\n"}
    monkeypatch.setenv("PATH", "")
    assert git_state(tmp_path) == {"git.txt": "no git repository with a commit\n"}


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["/opt/env/bin/python", "-m", "lightning_nlf", "fit"], "python -m lightning_nlf fit"),
        (
            ["/opt/env/bin/python3", "/opt/env/bin/nlf", "fit", "--config", "my file"],
            "python3 nlf fit --config 'my file'",
        ),
        (["python", "/home/me/train.py"], "python /home/me/train.py"),
        ([], ""),
    ],
)
def test_command_line_is_what_was_typed(words, text):
    assert command_line(words) == text


def test_packages_are_sorted_and_have_versions():
    lines = installed_packages().splitlines()
    assert lines == sorted(lines, key=lambda line: line.split("==")[0])
    assert any(line.startswith("pytest==") for line in lines)
    assert all(line.count("==") == 1 for line in lines)


def test_host_names_python_torch_and_processor():
    text = host()
    assert {line.split(":")[0] for line in text.splitlines()} >= {"host", "system", "cpu", "memory", "python", "torch"}


def test_gather_has_a_file_for_each(repository):
    (repository / "code.py").write_text("new\n")
    files = gather(repository)
    assert files.keys() == {"command.txt", "packages.txt", "host.txt", "git.txt", "git.patch"}
    assert all(text.endswith("\n") for text in files.values())
