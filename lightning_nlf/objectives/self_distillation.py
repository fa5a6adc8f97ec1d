"""Self-distillation teacher: a moving average of the policy that reads the learner's replies after the feedback."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from lightning_nlf.batch import Batch
from lightning_nlf.compatibility import replaceable
from lightning_nlf.modules import PolicyModule
from lightning_nlf.networks import Policy
from lightning_nlf.numbers import Share
from lightning_nlf.objective import Objective

CHUNK = 64  # rows at a time in `prepare`, because the logits of a whole collection would not fit in memory


def follow(teacher: nn.Module, policy: nn.Module, rate: float) -> None:
    """Moving average θ_T ← (1 − rate) θ_T + rate θ, in place. Buffers are copied from the policy."""
    with torch.no_grad():
        for weight, target in zip(teacher.parameters(), policy.parameters(), strict=True):
            weight.lerp_(target, rate)
        for buffer, theirs in zip(teacher.buffers(), policy.buffers(), strict=True):
            buffer.copy_(theirs)


def view_steps(batch: Batch, steps: Tensor) -> Tensor:
    """Map `steps` (B, T) of the batch to the same steps in the batch's view, (B, T_view) bool.

    The k-th valid step of a row is the k-th valid step of its view. Rows without a view have no steps.
    """
    assert batch.view is not None
    with_view = batch.view.valid.any(1, keepdim=True)
    return torch.zeros_like(batch.view.valid).masked_scatter(batch.view.valid, steps[batch.valid & with_view])


def check_view(batch: Batch) -> None:
    """Refuse an unusable view. Raises ValueError: the batch has no view, or the view has different actions."""
    if batch.view is None:
        raise ValueError("the batch has no `view` with its replies after the feedback, which the teacher needs")
    view_counts, counts = batch.view.valid.sum(1), batch.valid.sum(1)
    with_view = view_counts > 0
    mismatches = (with_view & (view_counts != counts)).nonzero()
    if len(mismatches):
        row = int(mismatches[0])
        count, view_count = int(counts[row]), int(view_counts[row])
        raise ValueError(f"view: row {row} has {view_count} valid steps, but {count} in the batch")
    if not torch.equal(batch.view.actions[batch.view.valid], batch.actions[batch.valid & with_view[:, None]]):
        raise ValueError("view: its actions must be those of the batch, in the same order")


def steps_with_view(batch: Batch) -> Tensor:
    """(B, T) bool: the learner's steps in rows that have a view."""
    assert batch.view is not None
    return batch.mask & batch.view.valid.any(1, keepdim=True)


class TeacherObjective(Objective):
    """Self-distillation teacher: reads the learner's replies in the batch's `view`, after the feedback.

    The teacher does not sample. The teacher gives the probability of the learner's actions when the feedback is known
    (https://arxiv.org/abs/2601.20802). Rows without feedback have no teacher.

    Args:
        teacher_rate: rate of the moving average of the policy after each optimizer step: 0 keeps the policy of the
            start of the run, 1 uses the current policy.

    Raises:
        ValueError: the rate is not in [0, 1].
    """

    needs: tuple[type, ...] = (PolicyModule,)
    policy: Policy

    def __init__(self, teacher_rate: Share = 0.05, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not 0 <= teacher_rate <= 1:
            raise ValueError(f"teacher_rate: got {teacher_rate}, must be from 0 to 1")
        self.teacher_rate = teacher_rate
        if teacher_rate < 1:
            # In a dict, the teacher is not one of the module's networks, but checkpoints contain its weights.
            average = copy.deepcopy(self.policy).requires_grad_(False)
            self.averages = nn.ModuleDict({"policy": average})

    @property
    def teacher(self) -> Policy:
        teacher = self.averages["policy"] if self.teacher_rate < 1 else self.policy
        assert isinstance(teacher, Policy)
        return teacher

    def advance(self) -> None:
        """Move the teacher's weights towards the policy's."""
        if self.teacher_rate < 1:
            follow(self.teacher, self.policy, self.teacher_rate)

    @replaceable
    def taught(self, batch: Batch) -> Tensor:
        """(B, T) bool: the learner's steps that the teacher evaluates."""
        return steps_with_view(batch)

    def annotate(self, batch: Batch) -> Batch:
        """Refuse a view whose actions differ from the batch's.

        Raises ValueError: see `check_view`.
        """
        check_view(batch)
        return batch

    def select(self, batch: Batch) -> Batch:
        """Log the share of the learner's rows that have a teacher. All rows are kept."""
        rows = torch.stack([self.taught(batch).any(1).sum(), batch.mask.any(1).sum()])
        share, of = self.sum_over_ranks(rows.float())
        self.note("taught", share / of.clamp(min=1), counts=bool(of > 0))
        return batch

    def masks(self, batch: Batch) -> Batch:
        """Add the mask `taught`: the learner's steps with a teacher."""
        return batch.with_masks(taught=self.taught(batch))

    @torch.no_grad()
    def teach(self, batch: Batch, steps: Tensor) -> Distribution:
        """The teacher's distribution at the N True `steps` (B, T), of batch shape (N,). N must be above 0."""
        assert batch.view is not None
        rows = steps.any(1)
        with self.acting():
            return self.teacher(batch.view.obs[rows], view_steps(batch, steps)[rows])

    def teacher_numbers(self, batch: Batch, steps: Tensor, of: Callable[[Distribution, Tensor], Tensor]) -> Tensor:
        """Apply `of` to the teacher's distribution and the actions at `steps` (B, T); 0 elsewhere.  (B, T)

        Args: of: a function of a distribution of batch shape (n,) and actions (n, *act), which returns (n,).
        """
        numbers = torch.zeros(steps.shape, device=steps.device)
        taught = steps.any(1).nonzero()[:, 0]
        for rows in self.reading_parts(steps[taught], CHUNK) if len(taught) else ():
            part = torch.zeros_like(steps)
            part[taught[rows]] = steps[taught[rows]]
            values = of(self.teach(batch, part), batch.actions[part])
            numbers = numbers.to(values.dtype).masked_scatter(part, values)
        return numbers
