"""Several real processes tune one study on the same disk; some are killed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_nlf.studies.reader import read
from lightning_nlf.studies.runs import Point, Result
from lightning_nlf.studies.tuning import Tuning

ROOT = Path(__file__).parents[3]
STUDY = """\
baseline: joint
metric: val/return
seeds: {tune: 0-2, report: 1000}
search: SEARCH
arms:
  joint:
    yaml: fit.yaml
    grid: {model.lr: [1, 2, 3, 4], model.hidden: [8, 16]}
"""
WORKER = """
import json, os, signal, sys
from lightning_nlf.studies.cells import Cells
from lightning_nlf.studies.reader import read
from lightning_nlf.studies.runs import Point, Result
from lightning_nlf.studies.tuning import Tuning

write = Cells.freeze
def freeze(*args):
    with open("frozen", "a") as file:
        file.write("x")
    write(*args)
Cells.freeze = freeze

study, left = read("speed.yaml"), int(sys.argv[1])
tuning = Tuning(study)
import optuna.samplers, optuna.pruners, optuna.storages.journal
print("ready", flush=True)
input()
while tuning.chosen("joint") is None:
    for run in tuning.next_runs("joint", 2):
        folder = run.folder(study)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            os.close(os.open(folder / "claim", os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            continue
        print(run.name, flush=True)
        result = Result(run, (Point({}, float(run.cell["model.lr"] % 4 + run.cell["model.hidden"] / 100)),))
        result.save(folder)
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
        tuning.finish(result)
        break
print(json.dumps(tuning.chosen("joint")))
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("fit.yaml").write_text("trainer: {max_epochs: 3}\n")


def outputs(ends):
    """Lines of workers that start at once. Args: ends: for each, after how many results it is killed; 0: never."""
    words = [sys.executable, "-c", WORKER]
    workers = [
        subprocess.Popen([*words, str(n)], stdin=-1, stdout=-1, stderr=-1, text=True, env={"PYTHONPATH": str(ROOT)})
        for n in ends
    ]
    assert [worker.stdout.readline() for worker in workers] == ["ready\n"] * len(workers)
    for worker in workers:
        worker.stdin.write("\n")
        worker.stdin.flush()
    texts = [worker.communicate(timeout=120) for worker in workers]
    assert all(not error for _, error in texts), texts
    return [out.splitlines() for out, _ in texts]


def trials(study):
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    storage = JournalStorage(JournalFileBackend(str(study.folder / "optuna.log")))
    (name,) = optuna.get_all_study_names(storage)
    return optuna.load_study(study_name=name, storage=storage).get_trials()


@pytest.mark.slow
@pytest.mark.parametrize("search", ["{sampler: grid}", "{sampler: random, cells: 8}"])
def test_processes_at_once_ask_for_each_cell_once_and_freeze_once(search):
    Path("speed.yaml").write_text(STUDY.replace("SEARCH", search))
    lines = outputs([0, 0, 0])
    runs = [name for out in lines for name in out[:-1]]
    assert len(runs) == len({*runs}) == 8 * 3
    assert {out[-1] for out in lines} == {json.dumps({"model.lr": 3, "model.hidden": 16})}
    cells = [json.dumps(trial.user_attrs["cell"]) for trial in trials(read("speed.yaml")) if "cell" in trial.user_attrs]
    assert len(cells) == len({*cells}) == 8
    assert Path("frozen").read_text() == "x"


@pytest.mark.slow
def test_a_process_goes_on_with_the_cells_of_killed_ones():
    Path("speed.yaml").write_text(STUDY.replace("SEARCH", "{sampler: grid}"))
    lines = outputs([3, 5])  # both are killed between a result and its book-keeping
    assert [len(out) for out in lines] == [3, 5]
    study = read("speed.yaml")
    tuning, runs = Tuning(study), [name for out in lines for name in out]
    while tuning.chosen("joint") is None:
        for run in tuning.next_runs("joint", 1)[:1]:
            runs.append(run.name)
            result = Result(run, (Point({}, float(run.cell["model.lr"] == 3)),))
            run.folder(study).mkdir(parents=True, exist_ok=True)
            result.save(run.folder(study))
            tuning.finish(result)
    assert len(runs) == len({*runs}) == 8 * 3
    assert len(trials(study)) == 8
