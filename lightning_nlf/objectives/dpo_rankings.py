"""DPO for rankings (Plackett-Luce), and for pairs with ties (Rao-Kupper, Davidson)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_nlf.batch import Batch
from lightning_nlf.maths.preferences import (
    Pairs,
    davidson_log_probs,
    outcome_loss,
    plackett_luce_loss,
    rao_kupper_log_probs,
)
from lightning_nlf.modules import PolicyModule
from lightning_nlf.numbers import Positive
from lightning_nlf.objective import Evaluation, Term
from lightning_nlf.objectives.dpo import DPOObjective
from lightning_nlf.objectives.reference import ReferenceObjective


class RankedDPOObjective(DPOObjective):
    """DPO on the whole ranking of each group (Plackett-Luce): appendix A.3 of https://arxiv.org/abs/2305.18290.

    The loss sums over all orders of tied replies (see `plackett_luce_loss`).
    """

    compared_over = "rankings"

    def preference_losses(self, fitness: Tensor, ranked: Pairs, batch: Batch) -> Tensor:
        assert batch.group is not None and batch.rank is not None
        return plackett_luce_loss(self.beta * fitness, batch.group, batch.rank)


class TiedDPOObjective(DPOObjective):
    """DPO that also learns from ties, which are pairs of about equally good replies: https://arxiv.org/abs/2409.17431.

    The tie parameter is the network `tie` of the module, so that `network_lr: {tie: 0.01}` sets its learning rate.

    Args: start: initial raw value of the tie parameter; learn_tie: whether the tie parameter is trained.
    """

    compared_over = "pairs"

    def __init__(self, start: float, learn_tie: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.tie = nn.ParameterDict({"raw": nn.Parameter(torch.tensor(start), requires_grad=learn_tie)})

    def outcome_log_probs(self, difference: Tensor) -> Tensor:
        """Log-probabilities of (win, tie, lose) for the difference of two implicit rewards.  (P,) → (P, 3)"""
        raise NotImplementedError

    def preference_losses(self, fitness: Tensor, ranked: Pairs, batch: Batch) -> Tensor:
        return outcome_loss(self.outcome_log_probs(self.beta * ranked.difference(fitness)), ranked.tie)


class RaoKupperDPOObjective(TiedDPOObjective):
    """DPO with ties by Rao-Kupper: a reply wins only if it is better by more than log θ.

    Args: theta: θ, above 1. With `learn_tie`, this is the initial value of θ.
    """

    def __init__(self, theta: Positive = 2.0, learn_tie: bool = True, **kwargs: Any) -> None:
        if not theta > 1:
            raise ValueError(f"theta: got {theta}, must be above 1; for a model without ties, use DPOPolicy")
        super().__init__(start=math.log(theta - 1), learn_tie=learn_tie, **kwargs)  # log θ = softplus(raw) > 0

    def outcome_log_probs(self, difference: Tensor) -> Tensor:
        return rao_kupper_log_probs(difference, F.softplus(self.tie["raw"]))

    def terms(self, batch: Batch, now: Evaluation) -> Iterator[Term]:
        yield Term("theta", F.softplus(self.tie["raw"].detach()).exp(), None, logged_only=True)


class DavidsonDPOObjective(TiedDPOObjective):
    """DPO with ties by Davidson: P(tie) is 2ν times the geometric mean of P(win) and P(lose).

    Args: nu: ν, above 0. With `learn_tie`, this is the initial value of ν.
    """

    def __init__(self, nu: Positive = 0.5, learn_tie: bool = True, **kwargs: Any) -> None:
        if not nu > 0:
            raise ValueError(f"nu: got {nu}, must be above 0; for a model without ties, use DPOPolicy")
        super().__init__(start=math.log(nu), learn_tie=learn_tie, **kwargs)

    def outcome_log_probs(self, difference: Tensor) -> Tensor:
        return davidson_log_probs(difference, self.tie["raw"])

    def terms(self, batch: Batch, now: Evaluation) -> Iterator[Term]:
        yield Term("nu", self.tie["raw"].detach().exp(), None, logged_only=True)


class RankedDPOPolicy(RankedDPOObjective, ReferenceObjective, PolicyModule):
    """DPO policy, trained on whole rankings."""


class RaoKupperDPOPolicy(RaoKupperDPOObjective, ReferenceObjective, PolicyModule):
    """DPO policy for comparisons with ties, by Rao-Kupper."""


class DavidsonDPOPolicy(DavidsonDPOObjective, ReferenceObjective, PolicyModule):
    """DPO policy for comparisons with ties, by Davidson."""
