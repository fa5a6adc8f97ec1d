"""Tuning of the arms of a study: which runs are next, and which cell of each grid is chosen."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from importlib.util import find_spec
from typing import Any

from lightning_nlf.cli.errors import EXTRAS, ConfigurationError
from lightning_nlf.studies.cells import FILE, Cells, finite
from lightning_nlf.studies.choice import Score
from lightning_nlf.studies.runs import Result, Run, load
from lightning_nlf.studies.spec import Arm, Study
from lightning_nlf.studies.storage import lock, storage
from lightning_nlf.studies.trials import Trials


class Tuning:
    """Cells of all arms: asks Optuna for them, scores them on the tuning seeds, and freezes the best one per arm.

    Everything is on the disk, so any number of processes can tune the same study, and each can be killed at any time.

    Args:
        study: The study.
        widen: Allow that an arm is tuned again after its report runs had started. The report then says so.

    Raises:
        ConfigurationError: What an arm's choice depends on (grid, changes, yaml, search, tuning seeds) changed after
            its report runs had started; or Optuna is not installed.
    """

    def __init__(self, study: Study, widen: bool = False) -> None:
        self.study = study
        if any(arm.grid for arm in study.arms.values()) and find_spec("optuna") is None:
            raise ConfigurationError(
                f"{study.file}: a grid needs Optuna: pip install 'lightning_nlf[{EXTRAS['optuna']}]'"
            )
        self.cells = Cells(study)
        self._results: dict[str, Result] = {}
        self._arms: dict[str, Trials] = {}
        for arm in study.arms.values():
            if widen:
                with self._lock():
                    self.cells.widen(arm)
            else:
                self.cells.check(arm)

    def next_runs(self, arm: str, ahead: int) -> list[Run]:
        """Tuning runs of an arm that have not ended, those to start first in front.

        Args:
            arm: Name of the arm.
            ahead: New cells are opened while there are fewer runs than this.
        """
        if self.chosen(arm) is not None:
            return []
        with self._lock():
            trials = self._trials(arm)
            self._settle(trials)
            while len(runs := self._missing(trials, ahead)) < ahead and trials.ask():
                self._settle(trials)
            self._freeze(trials)
        return runs

    def finish(self, result: Result) -> None:
        """Count the result of a tuning run. Results on the disk count without this call, at the next `next_runs`."""
        run = result.run
        if run.stage != "tune" or self.chosen(run.arm) is not None:
            return
        self._results[run.name] = result
        with self._lock():
            trials = self._trials(run.arm)
            self._settle(trials)
            self._freeze(trials)

    def chosen(self, arm: str) -> dict[str, Any] | None:
        """The frozen cell of an arm; None while it is being tuned; empty for an arm without a grid."""
        if not self.study.arms[arm].grid:
            return {}
        record = self.cells.frozen(self.study.arms[arm])
        return None if record is None else dict(record["cell"])

    def results(self, arm: str) -> list[Result]:
        """Results of all tuning runs of an arm so far, in the order of the cells and seeds."""
        if not self.study.arms[arm].grid:
            return []
        with self._lock():
            trials = self._trials(arm)
            runs = [run for trial in trials.with_cell() for run in self._runs(trials.arm, trial)]
        return [result for run in runs if (result := self._result(run)) is not None]

    def best(self, arm: str) -> float | None:
        """Score of the best cell whose seeds have all ended; None before there is one, or if it is not solved."""
        if not self.study.arms[arm].grid:
            return None
        with self._lock():
            rows = self._ranked(self._trials(arm))
        return rows[0]["score"] if rows else None

    def report_runs(self, arm: str) -> list[Run]:
        """The report runs of an arm, of its frozen cell; none while it is being tuned."""
        cell = self.chosen(arm)
        return [] if cell is None else [Run(arm, "report", cell, seed) for seed in self.study.report]

    def remarks(self) -> list[str]:
        """Sentences for the report: which arms were tuned again, and which cells are at an edge of their grid."""
        return self.cells.remarks()

    def record(self) -> dict[str, Any]:
        """How the cells were chosen, for the committed JSON."""
        return self.cells.record()

    @contextmanager
    def _lock(self) -> Iterator[None]:
        self.study.folder.mkdir(parents=True, exist_ok=True)
        with lock(self.study.folder / FILE):
            yield

    @cached_property
    def _storage(self) -> Any:
        return storage(self.study.folder)

    def _trials(self, arm: str) -> Trials:
        if arm not in self._arms:
            self._arms[arm] = Trials(self.study, self.study.arms[arm], self._storage)
        return self._arms[arm]

    def _runs(self, arm: Arm, trial: Any) -> list[Run]:
        return [Run(arm.name, "tune", trial.user_attrs["cell"], seed) for seed in self.study.tune]

    def _result(self, run: Run) -> Result | None:
        if run.name not in self._results:
            result = load(run.folder(self.study))
            if result is None:
                return None
            self._results[run.name] = result
        return self._results[run.name]

    def _settle(self, trials: Trials) -> None:
        """Report all results to the open trials: of each, those of its first seeds, up to the first one missing."""
        for trial in trials.open():
            results = []
            for run in self._runs(trials.arm, trial):
                result = self._result(run)
                if result is None:
                    break
                results.append(result)
            trials.report(trial.number, results)

    def _missing(self, trials: Trials, ahead: int) -> list[Run]:
        """Runs of the open trials without a result. With a pruner, only the next one of each, if these are enough."""
        rows = [[run for run in self._runs(trials.arm, t) if self._result(run) is None] for t in trials.open()]
        if self.study.search.pruner == "none" or (trials.exhausted() and len(rows) < ahead):
            return [run for row in rows for run in row]
        return [run for row in rows for run in row[:1]]

    def _freeze(self, trials: Trials) -> None:
        """Write the best cell, once every cell has ended."""
        if trials.exhausted() and not trials.open() and self.cells.frozen(trials.arm) is None:
            rows = self._ranked(trials)
            self.cells.freeze(trials.arm, rows[0]["cell"], rows)

    def _ranked(self, trials: Trials) -> list[dict[str, Any]]:
        """Cells that have ended, the best first; pruned ones last. Of equal cells, the first by its values is first."""
        rows = []
        for trial in trials.ended():
            score, pruned = Score(**trial.user_attrs["score"]), trial.state.name == "PRUNED"
            positions = tuple(trial.params[key] for key in trials.arm.grid)
            rows.append(((pruned, -score.seeds if pruned else 0, *score.rank(self.study), positions), trial, score))
        rows.sort(key=lambda row: row[0])
        return [
            {
                "cell": trial.user_attrs["cell"],
                "score": finite(score.value),
                "failures": score.failures,
                "seeds": score.seeds,
                "pruned": trial.state.name == "PRUNED",
            }
            for _, trial, score in rows
        ]
