"""KTO: learning from replies that somebody found good or bad, each for itself."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lightning_nlf.batch import Batch
from lightning_nlf.functional import masked_mean, row_sums
from lightning_nlf.modules import PolicyModule
from lightning_nlf.numbers import NonNegative, Number, Positive
from lightning_nlf.objective import Evaluation, Terms
from lightning_nlf.objectives.direct_preference import reply_steps
from lightning_nlf.objectives.held_out import HeldOutObjective
from lightning_nlf.objectives.reference import ReferenceObjective


def kto_losses(
    log_ratios: Tensor,
    desirable: Tensor,
    baseline: Tensor,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Tensor:
    """λ_D (1 − σ(β(r − z₀))) for the good, λ_U (1 − σ(β(z₀ − r))) for the bad: §4 of https://arxiv.org/abs/2402.01306.

    Args: log_ratios (B,): r = log π/π_ref of a reply; desirable (B,) bool; baseline (): z₀.  Returns (B,).
    """
    side = torch.where(desirable, 1.0, -1.0)
    weight = torch.where(desirable, desirable_weight, undesirable_weight)
    return weight * torch.sigmoid(-beta * side * (log_ratios - baseline))


def mismatched(batch: Batch) -> Batch:
    """Each row's reply behind the prompt of the next group; of the next row, where there are no groups.

    The prompt is what comes before the first reply step; rows without a reply give none, and have nothing to say.
    Raises: ValueError: the rows are no text.
    """
    if batch.obs.ndim != 2 or batch.obs.is_floating_point():
        raise ValueError("KTO compares with replies to other prompts: it needs rows of token ids, one prompt in front")
    steps, donors = reply_steps(batch), next_prompts(batch)
    width = steps.shape[1]
    columns = torch.arange(1, width + 1, device=steps.device)
    ends = (steps * columns).max(1).values
    starts = (steps * columns.flip(0)).max(1).values.neg() + width  # (B,) of the reply, for its own prompt …
    moved = starts[donors, None]  # (B, 1) … and for the other one
    place = torch.arange(int((moved[:, 0] + ends - starts).max().clamp(min=1)), device=steps.device)  # (T',)
    source = place - moved + starts[:, None]  # (B, T') the column of the row that comes to stand here
    inside = (place >= moved) & (source < width)
    source, other = source.clamp(0, width - 1), place.clamp(max=width - 1).expand_as(source)

    def spliced(x: Tensor, prompt: Tensor) -> Tensor:
        return torch.where(prompt, x[donors].gather(1, other), x.gather(1, source))

    said = inside & steps.gather(1, source)
    # The state of the first reply step is still the prompt's: its last token.
    return Batch(spliced(batch.obs, place <= moved), spliced(batch.actions, place < moved), valid=said, mask=said)


def next_prompts(batch: Batch) -> Tensor:
    """(B,) the first row with a reply of the next group that has one; the next such row, where there are no groups."""
    rows = torch.arange(len(batch), device=batch.mask.device)
    replied = reply_steps(batch).any(1)
    if not replied.any():
        return rows
    groups, of = (rows if batch.group is None else batch.group).unique(return_inverse=True)
    first = torch.full_like(groups, len(batch))
    first = first.scatter_reduce(0, of[replied], rows[replied].to(groups.dtype), "amin")
    present = first < len(batch)
    donors = first[present]
    return donors[present.cumsum(0)[of] % len(donors)]


def judged(batch: Batch, threshold: float | None) -> tuple[Tensor, Tensor]:
    """Which rows are good and which are bad, both (B,) bool.

    By `extra["label"]`, or by whether the score is at least `threshold`. Of rows without a score (NaN) expected
    responses are good, and others neither.
    Raises: ValueError: there is neither.
    """
    replied = reply_steps(batch).any(1)
    if threshold is None:
        if "label" not in batch.extra:
            raise ValueError("threshold: without labels (extra.label) say from which score on a row is good")
        return replied & batch.extra["label"].bool(), replied & ~batch.extra["label"].bool()
    if batch.score is None:
        raise ValueError(f"threshold: {threshold} divides scores, and the batch has none")
    expected = replied & ~batch.mask.any(1) & batch.score.isnan()
    return replied & (batch.score >= threshold) | expected, replied & (batch.score < threshold)


class KTOObjective(ReferenceObjective, HeldOutObjective):
    """`kto_losses`. z₀ is KL(π ‖ π_ref) from replies behind other prompts, in the mean over the replies of a
    micro-batch on all ranks, kept above 0: as in the paper, and the one number here that depends on how rows are cut.

    Args:
        beta: β, how soon a reply is good or bad enough.
        desirable_weight, undesirable_weight: λ_D and λ_U; the paper wants λ_D·n_D / (λ_U·n_U) between 1 and 3/2.
        threshold: a row is good from this score on; without it by `extra["label"]`.
    """

    measured = ("kto", "chosen_reward", "rejected_reward")
    held_out_losses: tuple[str, ...] = ("kto",)

    def __init__(
        self,
        beta: Positive = 0.1,
        desirable_weight: NonNegative = 1.0,
        undesirable_weight: NonNegative = 1.0,
        threshold: Number | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not beta > 0:
            raise ValueError(f"beta: got {beta}, must be above 0")
        self.beta, self.threshold = beta, threshold
        self.desirable_weight, self.undesirable_weight = desirable_weight, undesirable_weight

    def complete(self, batch: Batch) -> Batch:
        batch = self.with_reference(super().complete(batch))
        good, bad = judged(batch, self.threshold)
        view = mismatched(batch)
        view = replace(view, ref_log_probs=self.referred(view))
        found = {"desirable": good, "undesirable": bad, "judged": good | bad}
        return replace(batch, view=view, extra=batch.extra | found)

    def terms(self, batch: Batch, now: Evaluation) -> Terms:
        assert batch.ref_log_probs is not None
        good, bad = batch.extra["desirable"], batch.extra["undesirable"]
        log_ratios = row_sums(now.log_probs - batch.ref_log_probs, reply_steps(batch))
        baseline = self.baseline(batch)
        losses = kto_losses(log_ratios, good, baseline, self.beta, self.desirable_weight, self.undesirable_weight)
        rewards = self.beta * log_ratios.detach()
        now.notes |= {
            "chosen_reward": masked_mean(rewards, good, batch.totals.get("desirable")),
            "rejected_reward": masked_mean(rewards, bad, batch.totals.get("undesirable")),
            "baseline_kl": baseline,
        }
        now.over |= {"kto": "judged", "chosen_reward": "desirable", "rejected_reward": "undesirable"}
        return super().terms(batch, now) | {"kto": masked_mean(losses, good | bad, batch.totals.get("judged"))}

    @torch.no_grad()
    def baseline(self, batch: Batch) -> Tensor:
        """z₀, ()."""
        view = batch.view
        assert view is not None and view.ref_log_probs is not None, "prepare comes first"
        log_ratios = row_sums(self.evaluate(view).log_probs - view.ref_log_probs, view.mask)
        replies = self.sum_over_ranks(view.mask.any(1).sum().to(log_ratios.dtype))
        return (self.sum_over_ranks(log_ratios.sum()) / replies.clamp(min=1)).clamp(min=0)


class KTOPolicy(KTOObjective, PolicyModule):
    """A policy that learned from replies that were found good or bad."""
