"""KTO: learn from single replies that are labelled good or bad."""

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
from lightning_nlf.objective import Best, Evaluation, Objective, Term
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
    """KTO loss: λ_D (1 − σ(β(r − z₀))) for good replies and λ_U (1 − σ(β(z₀ − r))) for bad ones.

    Source: §4 of https://arxiv.org/abs/2402.01306.
    Args: log_ratios (B,): r = log π/π_ref of a reply; desirable (B,) bool; baseline (): z₀.  Returns (B,).
    """
    check_shapes(1, log_ratios=log_ratios, desirable=desirable)
    check_shapes(0, baseline=baseline)
    side = torch.where(desirable, 1.0, -1.0)
    weight = torch.where(desirable, desirable_weight, undesirable_weight)
    return weight * torch.sigmoid(-beta * side * (log_ratios - baseline))


def mismatched(batch: Batch) -> Batch:
    """Put each row's reply after the prompt of the next group, or of the next row if there are no groups.

    A prompt is everything before the first reply step. Rows without a reply give no prompt and have no reply steps.
    Raises: ValueError: the rows are not text.
    """
    if batch.obs.ndim != 2 or batch.obs.is_floating_point():
        raise ValueError("KTO compares with replies to other prompts; it needs rows of token ids, prompt first")
    steps, donors = reply_steps(batch), next_prompts(batch)
    width = steps.shape[1]
    columns = torch.arange(1, width + 1, device=steps.device)
    ends = (steps * columns).max(1).values
    starts = (steps * columns.flip(0)).max(1).values.neg() + width  # (B,) start of the reply after its own prompt
    moved = starts[donors, None]  # (B, 1) start of the reply after the other prompt
    place = torch.arange(int((moved[:, 0] + ends - starts).max().clamp(min=1)), device=steps.device)  # (T',)
    source = place - moved + starts[:, None]  # (B, T') the column of the row that moves here
    inside = (place >= moved) & (source < width)
    source, prompt_place = source.clamp(0, width - 1), place.clamp(max=width - 1).expand_as(source)

    def spliced(x: Tensor, prompt: Tensor) -> Tensor:
        return torch.where(prompt, x[donors].gather(1, prompt_place), x.gather(1, source))

    reply = inside & steps.gather(1, source)
    # The state at the first reply step is the last token of the prompt.
    return Batch(spliced(batch.obs, place <= moved), spliced(batch.actions, place < moved), valid=reply, mask=reply)


def next_prompts(batch: Batch) -> Tensor:
    """For each row, the first row with a reply in the next group, (B,). Without groups, the next row with a reply."""
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


def good_and_bad(batch: Batch, threshold: float | None) -> tuple[Tensor, Tensor]:
    """The good rows and the bad rows, both (B,) bool.

    Rows are classified by `extra["label"]`, or by whether the score is at least `threshold`. If the score is NaN, an
    expected response is good, and any other row is neither good nor bad.
    Raises: ValueError: the batch has neither labels nor scores.
    """
    replied = reply_steps(batch).any(1)
    if threshold is None:
        if "label" not in batch.extra:
            raise ValueError("threshold: the batch has no labels (extra.label); set the score from which a row is good")
        return replied & batch.extra["label"].bool(), replied & ~batch.extra["label"].bool()
    if batch.score is None:
        raise ValueError(f"threshold: got {threshold}, but the batch has no scores; add scores or labels")
    expected = replied & ~batch.mask.any(1) & batch.score.isnan()
    return replied & (batch.score >= threshold) | expected, replied & (batch.score < threshold)


class KTOObjective(Objective):
    """KTO: learning from replies that are labelled good or bad (`kto_loss`). Needs a `ReferenceObjective`.

    z₀ is KL(π ‖ π_ref) of replies after other prompts, averaged over the replies of a micro-batch on all ranks, and at
    least 0. This follows the paper. It means that z₀ depends on how rows are split into micro-batches. KTO cannot be
    combined with a `TeacherObjective`, which uses the view of a batch for something else.

    Args:
        beta: β of `kto_loss`. With a larger β, the loss saturates at a smaller log-ratio.
        desirable_weight, undesirable_weight: weights λ_D and λ_U of good and bad replies. With n_D good and n_U bad
            replies, the paper keeps λ_D·n_D / (λ_U·n_U) between 1 and 3/2.
        threshold: a reply is good if its score is at least this value. None: `extra["label"]` is used.
    """

    needs: tuple[type, ...] = (ReferenceObjective,)
    excludes: tuple[type, ...] = (TeacherObjective,)
    best: Best = ("kto", "min")
    feedback: tuple[str, ...] = ("score",)
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
        """Set the batch's view: each reply after the prompt of another group (`mismatched`)."""
        view = mismatched(batch)
        return replace(batch, view=replace(view, ref_log_probs=self.reference_log_probs(view, view.mask)))

    def masks(self, batch: Batch) -> Batch:
        """Add the masks `desirable` and `undesirable` of rows, and their union `judged`."""
        good, bad = good_and_bad(batch, self.threshold)
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
        """The reference point z₀, ()."""
        view = batch.view
        assert view is not None, "prepare comes first"
        log_ratio = row_sums(log_ratios(view, self.evaluate(view)), view.mask)
        replies = self.sum_over_ranks(view.mask.any(1).sum().to(log_ratio.dtype))
        return (self.sum_over_ranks(log_ratio.sum()) / replies.clamp(min=1)).clamp(min=0)


class KTOPolicy(KTOObjective, ReferenceObjective, PolicyModule):
    """KTO policy, trained on replies labelled good or bad."""
