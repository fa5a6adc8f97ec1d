"""KTO: learning from replies that somebody found good or bad, each for itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lightning_nlf.batch import Batch
from lightning_nlf.maths.means import check_shapes
from lightning_nlf.maths.steps import row_sums
from lightning_nlf.modules import PolicyModule
from lightning_nlf.numbers import NonNegative, Number, Positive
from lightning_nlf.objective import Evaluation, Objective, Term
from lightning_nlf.objectives.direct_preference import reply_steps
from lightning_nlf.objectives.dpo import log_ratios
from lightning_nlf.objectives.reference import ReferenceObjective
from lightning_nlf.objectives.self_distillation import TeacherObjective


def kto_loss(
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
    check_shapes(1, log_ratios=log_ratios, desirable=desirable)
    check_shapes(0, baseline=baseline)
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


class KTOObjective(Objective):
    """`kto_loss`. z₀ is KL(π ‖ π_ref) from replies behind other prompts, in the mean over the replies of a
    micro-batch on all ranks, kept above 0: as in the paper, and the one number here that depends on how rows are cut.

    Joined with a `ReferenceObjective`. A teacher needs the view for something else.

    Args:
        beta: β, how soon a reply is good or bad enough.
        desirable_weight, undesirable_weight: λ_D and λ_U; the paper wants λ_D·n_D / (λ_U·n_U) between 1 and 3/2.
        threshold: a row is good from this score on; without it by `extra["label"]`.
    """

    needs: tuple[type, ...] = (ReferenceObjective,)
    excludes: tuple[type, ...] = (TeacherObjective,)
    reports: tuple[str, ...] = ("kto", "chosen_reward", "rejected_reward")

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

    def annotate(self, batch: Batch) -> Batch:
        """Each reply behind another prompt, as the batch's view."""
        view = mismatched(batch)
        return replace(batch, view=replace(view, ref_log_probs=self.reference_log_probs(view, view.mask)))

    def masks(self, batch: Batch) -> Batch:
        """`desirable` and `undesirable` rows, and `judged`, both."""
        good, bad = judged(batch, self.threshold)
        return batch.with_masks(desirable=good, undesirable=bad, judged=good | bad)

    def terms(self, batch: Batch, now: Evaluation) -> Iterator[Term]:
        good = batch.masks["desirable"]
        log_ratio = row_sums(log_ratios(batch, now), reply_steps(batch))
        baseline = self.reference_point(batch)
        losses = kto_loss(log_ratio, good, baseline, self.beta, self.desirable_weight, self.undesirable_weight)
        rewards = self.beta * log_ratio.detach()
        yield Term("chosen_reward", rewards, "desirable", logged_only=True)
        yield Term("rejected_reward", rewards, "undesirable", logged_only=True)
        yield Term("baseline_kl", baseline, None, logged_only=True)
        yield Term("kto", losses, "judged")

    @torch.no_grad()
    def reference_point(self, batch: Batch) -> Tensor:
        """z₀, ()."""
        view = batch.view
        assert view is not None, "prepare comes first"
        log_ratio = row_sums(log_ratios(view, self.evaluate(view)), view.mask)
        replies = self.sum_over_ranks(view.mask.any(1).sum().to(log_ratio.dtype))
        return (self.sum_over_ranks(log_ratio.sum()) / replies.clamp(min=1)).clamp(min=0)


class KTOPolicy(KTOObjective, ReferenceObjective, PolicyModule):
    """A policy that learned from replies that were found good or bad."""
