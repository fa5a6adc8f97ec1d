"""Rewards of replies from how sure a teacher is that one is better than another."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_nlf.batch import Batch
from lightning_nlf.maths.means import check_shapes
from lightning_nlf.maths.preferences import Pairs
from lightning_nlf.objective import Evaluation, Objective, Term
from lightning_nlf.rewards.preference_module import PreferenceModule
from lightning_nlf.rewards.preference_reward import ranked_pairs, rewards_of, win_or_lose


def soft_preference_loss(difference: Tensor, probability: Tensor) -> Tensor:
    """−[p log σ(d) + (1 − p) log σ(−d)]: the cross-entropy to soft labels, § 2.2 of https://arxiv.org/abs/2309.00267.

    It is least where σ(d) = p; at p = 1 it is the loss of Bradley-Terry.
    Args: difference (P,) d of two rewards; probability (P,) p that the first is the better.  Returns (P,).
    """
    check_shapes(1, difference=difference, probability=probability)
    return -(probability * F.logsigmoid(difference) + (1 - probability) * F.logsigmoid(-difference))


def soft_labels(ranked: Pairs, preference: Tensor | None) -> Tensor:
    """The probability that `better` is better, (P,): what the teacher said, else 1, or .5 of a tie.

    Args: preference (B,): of each row that it is better than the other one of its group; NaN where nobody said.
    """
    hard = torch.where(ranked.tie, 0.5, 1.0)
    if preference is None:
        return hard
    said = preference[ranked.better]
    return torch.where(said.isnan(), hard, said)


class SoftPreferenceObjective(Objective):
    """Every ranked pair of replies to one prompt, by `extra["preference"]` (B,) where that is known."""

    needs: tuple[type, ...] = (PreferenceModule,)
    reports: tuple[str, ...] = ("soft_preference",)

    def win_log_probs(self, difference: Tensor) -> Tensor:
        return win_or_lose(difference)

    def terms(self, batch: Batch, now: Evaluation) -> Iterator[Term]:
        ranked = ranked_pairs(batch)
        labels = soft_labels(ranked, batch.extra.get("preference"))
        yield Term("soft_preference", soft_preference_loss(ranked.difference(rewards_of(now)), labels), "pairs")


class SoftPreferenceReward(SoftPreferenceObjective, PreferenceModule):
    """Bradley-Terry that is no surer than its teacher: a distilled AI labeller's reward model."""
