"""Book-keeping of an arm's cells by Optuna: one trial per cell, over all tuning seeds."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from lightning_nlf.studies.cells import plan
from lightning_nlf.studies.choice import Score, score
from lightning_nlf.studies.runs import Result, digest
from lightning_nlf.studies.scores import lower_is_better
from lightning_nlf.studies.spec import Arm, Range, Study

_DRAWS = 20  # of random cells, before the first one that was not drawn yet is taken


class Trials:
    """The cells of one arm in the storage. Only a process that holds the tuning's lock may use it.

    An open trial belongs to no process: any one goes on with it. Its user attributes are `cell`; `judged`, the number
    of seeds after which the pruner let it go on; and `score` when it has ended.
    """

    def __init__(self, study: Study, arm: Arm, storage: Any) -> None:
        self.study, self.arm, self.storage = study, arm, storage
        self.plan = digest(plan(study, arm))
        sizes = [len(values) for values in arm.grid.values() if not isinstance(values, Range)]
        combinations = math.prod(sizes) if len(sizes) == len(arm.grid) else math.inf
        self.total = int(min(study.search.cells or combinations, combinations))
        import optuna

        # GridSampler stops its study after the last cell, which only a study that Optuna itself runs allows.
        self.optuna = self._study(optuna.samplers.RandomSampler())
        self.id = storage.get_study_id_from_name(self.optuna.study_name)

    def open(self) -> list[Any]:
        """Trials with seeds that have not ended, the oldest first."""
        return [trial for trial in self.with_cell() if not trial.state.is_finished()]

    def with_cell(self) -> list[Any]:
        """Trials with a cell, the oldest first."""
        return [trial for trial in self._all() if "cell" in trial.user_attrs]

    def ended(self) -> list[Any]:
        """Trials with a score: all their seeds have ended, or they were pruned."""
        return [trial for trial in self._all() if "score" in trial.user_attrs and trial.state.is_finished()]

    def exhausted(self) -> bool:
        """Whether every cell has been asked for."""
        return len(self._digests()) >= self.total

    def ask(self) -> bool:
        """Open a new cell; False if there is none."""
        for trial in self._all():
            if not trial.state.is_finished() and "cell" not in trial.user_attrs:  # its process died
                self._draw(trial.number)
                return True
        draws = 0
        while not self.exhausted():
            if draws == _DRAWS:
                self.optuna.enqueue_trial(self._first_left())
            if self._draw(None):
                return True
            draws += 1
        return False

    def report(self, number: int, results: Sequence[Result]) -> None:
        """Report the results of a cell's first seeds, in the order of the seeds. End it if it is complete or pruned."""
        trial_id = self._id(number)
        trial = self.storage.get_trial(trial_id)
        for count in range(trial.user_attrs.get("judged", 0) + 1, len(results) + 1):
            value = score(results[:count], self.study)
            self.storage.set_trial_intermediate_value(trial_id, count, value.finite())
            if count == len(self.study.tune):
                self._end(number, value, "COMPLETE")
            elif self._pruned(trial_id):
                self._end(number, value, "PRUNED")
                return
            else:
                self.storage.set_trial_user_attr(trial_id, "judged", count)

    def _end(self, number: int, value: Score, state: str) -> None:
        from optuna.trial import TrialState

        self.storage.set_trial_user_attr(self._id(number), "score", asdict(value))
        self.optuna.tell(number, value.finite() if state == "COMPLETE" else None, state=TrialState[state])

    def _pruned(self, trial_id: int) -> bool:
        pruner = self._pruner()
        return pruner.prune(self._study(self.optuna.sampler, pruner), self.storage.get_trial(trial_id))

    def _draw(self, number: int | None) -> bool:
        """Draw a cell, for a trial that has none or a new one; False if an earlier trial has the cell."""
        from optuna import Trial
        from optuna.trial import TrialState

        study = self._study(self._sampler(len(self._all()) if number is None else number), self._pruner())
        trial = study.ask() if number is None else Trial(study, self._id(number))
        cell = {key: self._suggest(trial, key, values) for key, values in self.arm.grid.items()}
        if digest(cell) in self._digests():
            self.optuna.tell(trial.number, state=TrialState.FAIL)
            return False
        trial.set_user_attr("cell", cell)
        return True

    def _suggest(self, trial: Any, key: str, values: Sequence[Any] | Range) -> Any:
        """A value of a key. Optuna sees the position in a list, because values may be lists themselves."""
        if isinstance(values, Range):
            return trial.suggest_float(key, values.low, values.high, log=values.log)
        if all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
            return values[trial.suggest_int(key, 0, len(values) - 1)]
        return values[trial.suggest_categorical(key, range(len(values)))]

    def _first_left(self) -> Mapping[str, int]:
        """Positions of the first combination that no trial has. Only a finite grid repeats draws."""
        digests = self._digests()
        lists = {key: values for key, values in self.arm.grid.items() if not isinstance(values, Range)}
        for positions in itertools.product(*(range(len(values)) for values in lists.values())):
            choice = dict(zip(lists, positions, strict=True))
            if digest({key: lists[key][position] for key, position in choice.items()}) not in digests:
                return choice
        raise AssertionError("every cell has been drawn")

    def _sampler(self, number: int) -> Any:
        """A sampler for the trial with this number. Its draws do not depend on the process that asks."""
        from optuna import samplers

        seed = (int(self.plan, 16) + number) % 2**32
        if self.study.search.sampler == "random":
            return samplers.RandomSampler(seed=seed)
        if self.study.search.sampler == "tpe":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return samplers.TPESampler(seed=seed, constant_liar=True)
        lists = {
            key: list(range(len(values))) for key, values in self.arm.grid.items() if not isinstance(values, Range)
        }
        return samplers.GridSampler(lists, seed=0)

    def _pruner(self) -> Any:
        from optuna import pruners

        match self.study.search.pruner:
            case "median":
                return pruners.MedianPruner()
            case "halving":
                return pruners.SuccessiveHalvingPruner(min_resource=1)
            case "hyperband":
                return pruners.HyperbandPruner(min_resource=1, max_resource=len(self.study.tune))
        return pruners.NopPruner()

    def _study(self, sampler: Any, pruner: Any = None) -> Any:
        import optuna

        return optuna.create_study(
            storage=self.storage,
            study_name=f"{self.arm.name} {self.plan}",
            direction="minimize" if lower_is_better(self.study) else "maximize",
            sampler=sampler,
            pruner=pruner or optuna.pruners.NopPruner(),
            load_if_exists=True,
        )

    def _id(self, number: int) -> int:
        return self.storage.get_trial_id_from_study_id_trial_number(self.id, number)

    def _all(self) -> list[Any]:
        return self.optuna.get_trials(deepcopy=False)

    def _digests(self) -> set[str]:
        return {digest(trial.user_attrs["cell"]) for trial in self.with_cell()}
