"""Metrics of critiques and revisions: gain and cost, at evaluations and for each round of training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import get_args

import numpy as np
import torch
from torch import Tensor

from data_modules.text.critics import Acting, Critic, CriticOfGivenReplies, Reviser
from data_modules.text.critique_rows import CritiqueRows
from data_modules.text.episode import Episode
from data_modules.text.labelling import Labeller, densities
from data_modules.text.model_critic import ModelCritic
from data_modules.text.policy_average import PolicyAverage
from data_modules.text.revision import Review, Revision
from data_modules.text.task_module import TextTaskDataModule
from data_modules.text.teacher import Teacher, Words
from data_modules.text.writer import Placed
from lightning_nlf.batch import Actor, Replier
from lightning_nlf.maths.steps import row_sums


class RevisionFigures(TextTaskDataModule):
    """Metrics of a policy whose replies are criticised and revised. Subclasses set the attributes."""

    teacher: Teacher
    rows: CritiqueRows
    critic: Critic | None
    reviser: Replier | Reviser | None
    scope: dict[str, str]
    scored: bool

    @cached_property
    def pays(self) -> bool:
        """Whether replies have a score, from the task's rule or from `reward`."""
        if self.reward is not None:
            return True
        case = self.cases["train"][0].case
        return self.task.begin(case).reply("", True).reward is not None

    @cached_property
    def revises(self) -> bool:
        """Whether a round makes revisions, either to learn from or to log their gain."""
        return bool({"revisions", "pairs", "hindsight"} & set(self.rows.learn)) or self.pays

    def model_metrics(
        self, actor: Actor, rng: np.random.Generator, episodes: list[Episode], deterministic: bool
    ) -> dict[str, Tensor]:
        """Scores after one revision: with the critique, with the critique of a different reply, and with the placebo.

        These scores exist only if replies have scores, and if the critic accepts new replies. Sampled replies also have
        the metric `drift`, if there is a scope and a reviser with log-probabilities.
        """
        measured: dict[str, Tensor] = {}
        if self.pays and not isinstance(self.critic, CriticOfGivenReplies):
            measured = self._revised(actor, rng, episodes, deterministic)
        if self.scope and not deterministic and isinstance(self.reviser, Labeller):
            measured["drift"] = self._drift(self.reviser, episodes)
        return measured

    def _revised(
        self, actor: Actor, rng: np.random.Generator, episodes: list[Episode], deterministic: bool
    ) -> dict[str, Tensor]:
        """`revised`, `revised_shuffled` and `revised_placebo`, (episodes,) each, from one call of the critic."""
        acting, reviser = self._acting(actor), self._reviser(actor)
        critiques = self.teacher.critiques(acting, episodes, rng)
        measured: dict[str, Tensor] = {}
        for words in get_args(Words):
            after = self.teacher.outcome(acting, reviser, episodes, critiques, words, rng, deterministic)
            name = "revised" if words == "task" else f"revised_{words}"
            measured[name] = torch.tensor([episode.score for episode in self._pay(after)])
        return measured

    def _drift(self, start: Labeller, episodes: list[Episode]) -> Tensor:
        """log π(y|x) − log π₀(y|x) of replies out of scope, (episodes,), NaN in scope; mean ≈ KL(π ‖ π₀)."""
        batch, _ = self.conversation.batch(episodes)
        assert batch.log_probs is not None
        start_log_probs = densities(batch, start, batch.valid, self.trainer.strategy.root_device)
        inside = torch.tensor([self._in_scope(episode) for episode in episodes])
        return torch.where(inside, torch.nan, row_sums(batch.log_probs - start_log_probs, batch.valid))

    # ---- logs of a round of training

    def _costs(self) -> dict[str, int]:
        """The cost of critic and reviser so far, by counter name."""
        costs = {} if self.critic is None else {f"critic_{name}": x for name, x in self.critic.counters.items()}
        if isinstance(self.reviser, Reviser):
            costs |= {f"reviser_{name}": x for name, x in self.reviser.counters.items()}
        return costs

    def _count(self, before: dict[str, int], spent: int, critiques: int, calls: int) -> None:
        costs = {name: cost - before[name] for name, cost in self._costs().items()}
        spent += costs.get("critic_tokens", 0) + costs.get("reviser_tokens", 0)
        self.count(env_steps=spent, critiques=critiques, feedback_calls=calls, **costs)

    def _log_round(self, reviews: Sequence[Review], revisions: Sequence[Revision], too_long: int, rows: int) -> None:
        """Log averages over all ranks, in addition to the attempts' metrics.  too_long: rows left out, of `rows`."""
        wrong = [review for review in reviews if review.critique is not None]
        revised = {id(revision.review) for revision in revisions}
        unrevised = [review for review in wrong if (id(review) not in revised if self.revises else review.ids is None)]
        sums = {
            "gain": (sum(revision.gain for revision in revisions), len(revisions)),
            "criticised": (len(wrong), len(reviews)),
            "unrevised": (len(unrevised), len(wrong)),
            "left_out": (too_long, rows),
            "unheard": (sum(not review.has_answer for review in reviews), len(reviews)),
        }
        totals = self._sum_over_ranks(torch.tensor(list(sums.values()), dtype=torch.float64))
        shares = dict(zip(sums, (totals[:, 0] / totals[:, 1].clamp(min=1)).tolist(), strict=True))
        if not self.pays:
            del shares["gain"]
        self.statistics |= shares
        if shares["unrevised"] > 0:
            self._warn_once(
                "some criticised replies are not revised (their share is train/unrevised): they spell a special token, "
                f"the context of {self.context} has no room for prompt, reply, critique and revision, or the reviser "
                "gave no answer"
            )
        if shares["unheard"] > 0:
            self._warn_once("the critic gave no answer to some replies (their share is train/unheard): none is revised")
        if shares["left_out"] > 0:
            self._warn_once(
                f"some rows exceed the context of {self.context} and are left out (their share is train/left_out)"
            )

    # ---- for training too

    @property
    def averages(self) -> list[PolicyAverage]:
        """The moving averages of the policy that are used as critic or reviser."""
        models = [model.model for model in (self.critic, self.reviser) if isinstance(model, ModelCritic)]
        return [model for model in (self.reviser, *models) if isinstance(model, PolicyAverage)]

    def _acting(self, actor: Actor) -> Acting:
        for average in self.averages:
            average.bind(actor)
        return self.teacher.acting(actor, self.trainer.strategy.root_device)

    def _reviser(self, actor: Actor) -> Replier | Reviser:
        if self.reviser is None:
            return actor
        return self.reviser if isinstance(self.reviser, Reviser) else self._placed(self.reviser)

    def _placed(self, model: Replier) -> Placed:
        return Placed(model, self.trainer.strategy.root_device)

    def _in_scope(self, attempt: Episode) -> bool:
        return all(attempt.prompt.case.facts.get(name) == value for name, value in self.scope.items())

    def _pay(self, episodes: list[Episode]) -> list[Episode]:
        """Score the episodes with `reward`; if `reward` is None, return them unchanged."""
        if self.reward is None or not episodes:
            return episodes
        rows, of = self.conversation.batch(episodes)
        batch = self._rewarded(rows, episodes, of)
        assert batch.rewards is not None
        scores = row_sums(batch.rewards, batch.valid).tolist()
        return [episode.with_score(score) for episode, score in zip(episodes, scores, strict=True)]

    def _pay_revisions(self, revisions: list[Revision]) -> list[Revision]:
        if not self.scored:
            return revisions
        scored = self._pay([revision.episode for revision in revisions])
        return [replace(revision, episode=episode) for revision, episode in zip(revisions, scored, strict=True)]
