"""Claims of folders, by real processes: one owner at a time, also when several take over a dead claim at once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lightning_nlf.studies import claims
from lightning_nlf.studies.claims import holder, take

ROOT = Path(__file__).parents[3]
# Waits for a line, claims all folders, prints which it has, and keeps them until its input is closed.
CLAIMANT = """
import sys
from pathlib import Path
from lightning_nlf.studies.claims import take
print("ready", flush=True)
sys.stdin.readline()
claims = [take(Path(folder)) for folder in sys.argv[1:]]
print("".join("1" if claim else "0" for claim in claims), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    processes = []

    def run(*folders: Path) -> subprocess.Popen[str]:
        words = [sys.executable, "-c", CLAIMANT, *map(str, folders)]
        environ = os.environ | {"PYTHONPATH": str(ROOT)}
        process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environ)
        processes.append(process)
        return process

    yield run
    for process in processes:
        process.kill()
        process.communicate()


def claimed(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


@pytest.mark.parametrize("dead", [False, True])
def test_processes_that_race_for_folders_get_each_once(tmp_path: Path, start: Callable, dead: bool) -> None:
    """Four processes, 100 folders, all unclaimed or all with the claim of a process that was killed."""
    folders = [tmp_path / str(number) for number in range(100)]
    if dead:
        first = start(*folders)
        go(first)
        assert (claimed(first), claimed(first)) == ("ready", "1" * 100)
        first.kill()
        first.wait()
    racers = [start(*folders) for _ in range(4)]
    assert [claimed(racer) for racer in racers] == ["ready"] * 4
    for racer in racers:
        go(racer)
    won = [claimed(racer) for racer in racers]
    assert [sum(map(int, column)) for column in zip(*won, strict=True)] == [1] * 100


def test_a_claim_of_this_machine_ends_with_its_process(tmp_path: Path, start: Callable) -> None:
    process = start(tmp_path)
    go(process)
    assert (claimed(process), claimed(process)) == ("ready", "1")
    assert take(tmp_path) is None
    assert (holder(tmp_path) or {})["pid"] == process.pid
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert holder(tmp_path) is None
    claim = take(tmp_path)
    assert claim is not None and claim.file.name == "claim-2.json"


def test_a_released_claim_is_free_and_a_kept_one_is_not(tmp_path: Path) -> None:
    claim = take(tmp_path)
    assert claim is not None and take(tmp_path) is None
    with claim:
        pass
    assert holder(tmp_path) is None
    assert take(tmp_path) is not None


@pytest.mark.parametrize("content", ['{"host": "elsewhere", "pid": 1, "process_started": 1.0}', ""])
def test_a_claim_elsewhere_dies_after_a_minute_of_silence(tmp_path: Path, content: str) -> None:
    """Also one without content, because its process was killed before it wrote."""
    file = tmp_path / "claim.json"
    file.write_text(content)
    now = time.time()
    os.utime(file, (now, now - 50))
    assert take(tmp_path) is None
    os.utime(file, (now, now - 70))
    assert take(tmp_path) is not None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["claim-2.json", "claim.json"]


def test_the_owner_touches_its_claim(tmp_path: Path, until: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "BEAT_SECONDS", 0.01)
    claim = take(tmp_path)
    assert claim is not None
    os.utime(claim.file, (0, 0))
    until(lambda: claim.file.stat().st_mtime > 0)
    assert not claim.is_lost


def test_an_owner_that_was_suspended_sees_that_it_lost(
    tmp_path: Path, until: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "BEAT_SECONDS", 0.01)
    claim = take(tmp_path)
    assert claim is not None
    (tmp_path / "claim-2.json").write_text(json.dumps({"host": "elsewhere"}))
    until(lambda: claim.is_lost)
    claim.release()
    assert take(tmp_path) is None  # the new owner keeps the folder
