"""Rewards of replies from rankings of them: Bradley-Terry, ties by Rao-Kupper or Davidson, whole rankings."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MeanMetric

from lightning_nlf.batch import Batch
from lightning_nlf.functional import row_sums
from lightning_nlf.numbers import NonNegative, Positive
from lightning_nlf.objective import Evaluation, Objective, Terms
from lightning_nlf.preferences import (
    bradley_terry_loss,
    davidson_log_probs,
    outcome_loss,
    pairs,
    plackett_luce_loss,
    rao_kupper_log_probs,
)
from lightning_nlf.reward_module import PreferenceModule


def win_or_lose(difference: Tensor) -> Tensor:
    """log P of (win, tie, lose) where there are no ties: log σ(d), −∞, log σ(−d).  (P,) → (P, 3)"""
    win, lose = F.logsigmoid(difference), F.logsigmoid(-difference)
    return torch.stack([win, torch.full_like(win, -torch.inf), lose], -1)


def rewards_of(now: Evaluation) -> Tensor:
    """The reward of each reply, (B,); 0 of one that was not judged."""
    assert now.values is not None
    return row_sums(now.values, now.where)


class BradleyTerryObjective(Objective):
    """Every strict pair of replies to one prompt, from one reward a reply; ties say nothing.

    Args:
        margin: by how much, for each unit that the teacher's scores (`score`) differ, the rewards are to differ more.

    Raises:
        ValueError: a margin, and a ranked row without a score.
    """

    counted = "strict_pairs"

    def __init__(self, margin: NonNegative = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.margin = margin

    def win_log_probs(self, difference: Tensor) -> Tensor:
        return win_or_lose(difference)

    def prepare(self, batch: Batch) -> Batch:
        batch = super().prepare(batch)
        if self.margin and (batch.score is None or batch.rank is None or batch.score[batch.rank >= 0].isnan().any()):
            raise ValueError("margin: it is taken from scores, and not every ranked reply has one (`score`)")
        return batch

    def terms(self, batch: Batch, now: Evaluation) -> Terms:
        assert batch.group is not None and batch.rank is not None
        found = pairs(batch.group, batch.rank)
        margin = self.margin * found.difference(batch.score) if self.margin and batch.score is not None else 0.0
        total = batch.totals.get(self.counted)
        now.over["bradley_terry"] = self.counted
        loss = bradley_terry_loss(found.difference(rewards_of(now)), found.tie, margin, total)
        return super().terms(batch, now) | {"bradley_terry": loss}


class TieObjective(Objective):
    """Every pair of replies to one prompt, ties too: −log P of what the teacher said of it.

    The tie parameter is the network `tie` of the module, so `network_lr: {tie: 0.01}` gives it a pace of its own.
    Logs of an evaluation: `tie_likelihood`, the mean probability of a tie where there is one.

    Args:
        learn_tie: else the parameter stays as it is given.
    """

    counted = "pairs"
    term: str

    def __init__(self, start: float, learn_tie: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.tie = nn.ParameterDict({"raw": nn.Parameter(torch.tensor(start), requires_grad=learn_tie)})
        self.tie_likelihood = MeanMetric()

    def win_log_probs(self, difference: Tensor) -> Tensor:
        raise NotImplementedError

    def terms(self, batch: Batch, now: Evaluation) -> Terms:
        assert batch.group is not None and batch.rank is not None
        found = pairs(batch.group, batch.rank)
        log_probs = self.win_log_probs(found.difference(rewards_of(now)))
        now.over[self.term] = self.counted
        loss = outcome_loss(log_probs, found.tie, batch.totals.get(self.counted))
        return super().terms(batch, now) | {self.term: loss}

    def compared(self, stage: str, difference: Tensor, tie: Tensor) -> None:
        super().compared(stage, difference, tie)
        self.tie_likelihood.update(self.win_log_probs(difference[tie])[:, 1].exp())
        self.log(f"{stage}/tie_likelihood", self.tie_likelihood, batch_size=len(tie))


class RaoKupperObjective(TieObjective):
    """Ties by Rao-Kupper: whoever is not better by more than log θ has not won.

    Args:
        theta: θ, above 1, or where it starts. Equal replies are a tie with probability (θ − 1)/(θ + 1).
        learn_tie: else θ stays.

    Raises:
        ValueError: θ is not above 1.
    """

    term = "rao_kupper"

    def __init__(self, theta: Positive = 2.0, learn_tie: bool = True, **kwargs: Any) -> None:
        if not theta > 1:
            raise ValueError(f"theta: got {theta}, must be above 1; at 1 there are no ties: use BradleyTerryReward")
        start = math.log(math.expm1(math.log(theta)))
        super().__init__(start=start, learn_tie=learn_tie, **kwargs)

    @property
    def log_theta(self) -> Tensor:
        """(), above 0."""
        return F.softplus(self.tie["raw"])

    def win_log_probs(self, difference: Tensor) -> Tensor:
        return rao_kupper_log_probs(difference, self.log_theta)

    def terms(self, batch: Batch, now: Evaluation) -> Terms:
        now.notes["theta"] = self.log_theta.detach().exp()
        return super().terms(batch, now)


class DavidsonObjective(TieObjective):
    """Ties by Davidson: as likely as ν times twice the geometric mean of a win and a loss.

    Args:
        nu: ν, above 0, or where it starts. Equal replies are a tie with probability ν/(1 + ν).
        learn_tie: else ν stays.

    Raises:
        ValueError: ν is not above 0.
    """

    term = "davidson"

    def __init__(self, nu: Positive = 0.5, learn_tie: bool = True, **kwargs: Any) -> None:
        if not nu > 0:
            raise ValueError(f"nu: got {nu}, must be above 0; at 0 there are no ties: use BradleyTerryReward")
        super().__init__(start=math.log(nu), learn_tie=learn_tie, **kwargs)

    def win_log_probs(self, difference: Tensor) -> Tensor:
        return davidson_log_probs(difference, self.tie["raw"])

    def terms(self, batch: Batch, now: Evaluation) -> Terms:
        now.notes["nu"] = self.tie["raw"].detach().exp()
        return super().terms(batch, now)


class PlackettLuceObjective(Objective):
    """Whole rankings, the best chosen first, then the best of the rest; tied replies come in any order."""

    counted = "rankings"

    def win_log_probs(self, difference: Tensor) -> Tensor:
        return win_or_lose(difference)

    def terms(self, batch: Batch, now: Evaluation) -> Terms:
        assert batch.group is not None and batch.rank is not None
        now.over["plackett_luce"] = self.counted
        loss = plackett_luce_loss(rewards_of(now), batch.group, batch.rank, batch.totals.get(self.counted))
        return super().terms(batch, now) | {"plackett_luce": loss}


class BradleyTerryReward(BradleyTerryObjective, PreferenceModule):
    """The log-odds that one reply is better than another are the difference of their rewards."""


class RaoKupperReward(RaoKupperObjective, PreferenceModule):
    """The same with ties, by a threshold on the difference."""


class DavidsonReward(DavidsonObjective, PreferenceModule):
    """The same with ties, by a weight of their own."""


class PlackettLuceReward(PlackettLuceObjective, PreferenceModule):
    """A ranking is a series of choices, each with the odds e^reward."""
