"""Preference reward models: Bradley-Terry, ties by Rao-Kupper or Davidson, and Plackett-Luce for whole rankings."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_nlf.batch import Batch
from lightning_nlf.maths.means import mean_or_zero
from lightning_nlf.maths.preferences import (
    Pairs,
    bradley_terry_loss,
    davidson_log_probs,
    outcome_loss,
    pairs,
    plackett_luce_loss,
    rao_kupper_log_probs,
)
from lightning_nlf.maths.steps import row_sums
from lightning_nlf.numbers import NonNegative, Positive
from lightning_nlf.objective import Evaluation, Objective, Term
from lightning_nlf.rewards.preference_module import PreferenceModule


def win_or_lose(difference: Tensor) -> Tensor:
    """Log-probabilities of (win, tie, lose) without ties: log σ(d), −∞, log σ(−d).  (P,) → (P, 3)"""
    win, lose = F.logsigmoid(difference), F.logsigmoid(-difference)
    return torch.stack([win, torch.full_like(win, -torch.inf), lose], -1)


def rewards_of(now: Evaluation) -> Tensor:
    """The reward of each reply, (B,); 0 for replies that were not scored."""
    assert now.values is not None
    return row_sums(now.values, now.where)


def ranked_pairs(batch: Batch) -> Pairs:
    """All pairs of ranked replies to the same prompt."""
    assert batch.group is not None and batch.rank is not None
    return pairs(batch.group, batch.rank)


class BradleyTerryObjective(Objective):
    """Bradley-Terry loss on every pair of replies to one prompt without a tie. Ties are ignored.

    Args:
        margin: required difference between two rewards, per unit of difference between the teacher's scores (`score`).

    Raises:
        ValueError: a margin is set, and a ranked row has no score.
    """

    needs: tuple[type, ...] = (PreferenceModule,)
    reports: tuple[str, ...] = ("bradley_terry",)

    def __init__(self, margin: NonNegative = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.margin = margin

    def win_log_probs(self, difference: Tensor) -> Tensor:
        return win_or_lose(difference)

    def select(self, batch: Batch) -> Batch:
        """With a `margin`, refuse ranked rows without a score. All rows are kept."""
        if self.margin and (batch.score is None or batch.rank is None or batch.score[batch.rank >= 0].isnan().any()):
            raise ValueError("margin: it needs a `score` for every ranked reply; add scores, or set margin to 0")
        return batch

    def terms(self, batch: Batch, now: Evaluation) -> Iterator[Term]:
        ranked = ranked_pairs(batch)
        margin = self.margin * ranked.difference(batch.score) if self.margin and batch.score is not None else 0.0
        loss = bradley_terry_loss(ranked.difference(rewards_of(now)), ranked.tie, margin)
        yield Term("bradley_terry", loss, "strict_pairs")


class TieObjective(Objective):
    """Loss on every pair of replies to one prompt, including ties: −log P of the teacher's judgement.

    The tie parameter is the network `tie` of the module, so that `network_lr: {tie: 0.01}` sets its learning rate.
    An evaluation logs `tie_likelihood`, the mean probability of a tie over the pairs that are ties.

    Args:
        start: initial raw value of the tie parameter.
        learn_tie: whether the tie parameter is trained.
    """

    needs: tuple[type, ...] = (PreferenceModule,)
    term: str
    measures: tuple[str, ...] = ("tie_likelihood",)

    def __init__(self, start: float, learn_tie: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.tie = nn.ParameterDict({"raw": nn.Parameter(torch.tensor(start), requires_grad=learn_tie)})

    def win_log_probs(self, difference: Tensor) -> Tensor:
        raise NotImplementedError

    def terms(self, batch: Batch, now: Evaluation) -> Iterator[Term]:
        ranked = ranked_pairs(batch)
        loss = outcome_loss(self.win_log_probs(ranked.difference(rewards_of(now))), ranked.tie)
        yield Term(self.term, loss, "pairs")

    def measure(self, stage: str, batch: Batch, now: Evaluation) -> None:
        ranked = ranked_pairs(batch)
        probability = self.win_log_probs(ranked.difference(rewards_of(now))[ranked.tie])[:, 1].exp()
        self.log_mean(stage, "tie_likelihood", mean_or_zero(probability), ranked.tie.sum())


class RaoKupperObjective(TieObjective):
    """Ties by Rao-Kupper: a reply wins only if it is better by more than log θ.

    Args:
        theta: θ, above 1. With `learn_tie`, this is the initial value of θ. Equal replies tie with probability (θ −
            1)/(θ + 1).
        learn_tie: whether θ is trained.

    Raises:
        ValueError: θ is not above 1.
    """

    term = "rao_kupper"
    reports: tuple[str, ...] = ("rao_kupper",)

    def __init__(self, theta: Positive = 2.0, learn_tie: bool = True, **kwargs: Any) -> None:
        if not theta > 1:
            raise ValueError(f"theta: got {theta}, must be above 1; for no ties, use BradleyTerryReward")
        start = math.log(math.expm1(math.log(theta)))
        super().__init__(start=start, learn_tie=learn_tie, **kwargs)

    @property
    def log_theta(self) -> Tensor:
        """log θ, (), above 0."""
        return F.softplus(self.tie["raw"])

    def win_log_probs(self, difference: Tensor) -> Tensor:
        return rao_kupper_log_probs(difference, self.log_theta)

    def terms(self, batch: Batch, now: Evaluation) -> Iterator[Term]:
        yield Term("theta", self.log_theta.detach().exp(), None, logged_only=True)


class DavidsonObjective(TieObjective):
    """Ties by Davidson: P(tie) is 2ν times the geometric mean of P(win) and P(lose).

    Args:
        nu: ν, above 0. With `learn_tie`, this is the initial value of ν. Equal replies tie with probability ν/(1 + ν).
        learn_tie: whether ν is trained.

    Raises:
        ValueError: ν is not above 0.
    """

    term = "davidson"
    reports: tuple[str, ...] = ("davidson",)

    def __init__(self, nu: Positive = 0.5, learn_tie: bool = True, **kwargs: Any) -> None:
        if not nu > 0:
            raise ValueError(f"nu: got {nu}, must be above 0; for no ties, use BradleyTerryReward")
        super().__init__(start=math.log(nu), learn_tie=learn_tie, **kwargs)

    def win_log_probs(self, difference: Tensor) -> Tensor:
        return davidson_log_probs(difference, self.tie["raw"])

    def terms(self, batch: Batch, now: Evaluation) -> Iterator[Term]:
        yield Term("nu", self.tie["raw"].detach().exp(), None, logged_only=True)


class PlackettLuceObjective(Objective):
    """Plackett-Luce: a whole ranking as repeated choices of the best remaining reply.

    Tied replies may come in any order.
    """

    needs: tuple[type, ...] = (PreferenceModule,)
    reports: tuple[str, ...] = ("plackett_luce",)

    def win_log_probs(self, difference: Tensor) -> Tensor:
        return win_or_lose(difference)

    def terms(self, batch: Batch, now: Evaluation) -> Iterator[Term]:
        assert batch.group is not None and batch.rank is not None
        yield Term("plackett_luce", plackett_luce_loss(rewards_of(now), batch.group, batch.rank), "rankings")


class BradleyTerryReward(BradleyTerryObjective, PreferenceModule):
    """Pairwise preference reward model, Bradley-Terry: the log-odds of a win are the difference of the rewards."""


class RaoKupperReward(RaoKupperObjective, PreferenceModule):
    """Pairwise preference reward model with ties, Rao-Kupper: a threshold on the difference of the rewards."""


class DavidsonReward(DavidsonObjective, PreferenceModule):
    """Pairwise preference reward model with ties, Davidson: the parameter ν sets the probability of ties."""


class PlackettLuceReward(PlackettLuceObjective, PreferenceModule):
    """Reward model for whole rankings, Plackett-Luce: repeated choices with odds e^reward."""
