"""The policy as its own teacher: what it was, on average, and with the feedback before its eyes."""

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

CHUNK = 64  # rows at a time, in `prepare`: the logits of a whole collection would not fit


def follow(teacher: nn.Module, policy: nn.Module, rate: float) -> None:
    """θ_T ← (1 − rate) θ_T + rate θ, in place; buffers are those of the policy."""
    with torch.no_grad():
        for weight, other in zip(teacher.parameters(), policy.parameters(), strict=True):
            weight.lerp_(other, rate)
        for buffer, theirs in zip(teacher.buffers(), policy.buffers(), strict=True):
            buffer.copy_(theirs)


def view_steps(batch: Batch, steps: Tensor) -> Tensor:
    """The `steps` (B, T) of the batch where they stand in its view, (B, T_view) bool, in the same order.

    The k-th valid step of a row is the k-th of its view; rows whose view has none have no `steps`.
    """
    assert batch.view is not None
    seen = batch.view.valid.any(1, keepdim=True)
    return torch.zeros_like(batch.view.valid).masked_scatter(batch.view.valid, steps[batch.valid & seen])


def check_view(batch: Batch) -> None:
    """Raises ValueError: the batch has no view, or one of other actions than its own."""
    if batch.view is None:
        raise ValueError("the batch has no `view`, its replies behind their feedback, so there is no teacher")
    there, here = batch.view.valid.sum(1), batch.valid.sum(1)
    seen = there > 0
    other = (seen & (there != here)).nonzero()
    if len(other):
        row = int(other[0])
        raise ValueError(f"view: row {row} has {int(there[row])} valid steps there, and {int(here[row])} here")
    if not torch.equal(batch.view.actions[batch.view.valid], batch.actions[batch.valid & seen[:, None]]):
        raise ValueError("view: its actions are not those of the batch, in the same order")


def steps_with_view(batch: Batch) -> Tensor:
    """(B, T) bool: the learner's steps in rows that the view has."""
    assert batch.view is not None
    return batch.mask & batch.view.valid.any(1, keepdim=True)


class TeacherObjective(Objective):
    """A teacher, which reads the learner's rows as the batch's `view` has them: its replies behind the feedback.

    It never speaks: it says of each action of the learner how likely it is to one who knows the feedback
    (https://arxiv.org/abs/2601.20802). Rows without feedback have no teacher.

    Args:
        teacher_rate: how far the teacher follows the policy after each optimizer step: 0 is the start of the run for
            good, 1 the policy itself.

    Raises:
        ValueError: a rate out of [0, 1].
    """

    needs: tuple[type, ...] = (PolicyModule,)
    policy: Policy

    def __init__(self, teacher_rate: Share = 0.05, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not 0 <= teacher_rate <= 1:
            raise ValueError(f"teacher_rate: got {teacher_rate}, must be from 0 to 1")
        self.teacher_rate = teacher_rate
        if teacher_rate < 1:
            # In a dict: no network of the module's own, but with its weights in the checkpoint.
            average = copy.deepcopy(self.policy).requires_grad_(False)
            self.averages = nn.ModuleDict({"policy": average})

    @property
    def teacher(self) -> Policy:
        teacher = self.averages["policy"] if self.teacher_rate < 1 else self.policy
        assert isinstance(teacher, Policy)
        return teacher

    def advance(self) -> None:
        """Move the teacher towards the policy."""
        if self.teacher_rate < 1:
            follow(self.teacher, self.policy, self.teacher_rate)

    @replaceable
    def taught(self, batch: Batch) -> Tensor:
        """(B, T) bool: the learner's steps of which the teacher is asked."""
        return steps_with_view(batch)

    def annotate(self, batch: Batch) -> Batch:
        """Refuse a view that is not of the same actions.

        Raises ValueError: as `check_view`.
        """
        check_view(batch)
        return batch

    def select(self, batch: Batch) -> Batch:
        """Log the share of the learner's rows that have a teacher; every row stays."""
        rows = torch.stack([self.taught(batch).any(1).sum(), batch.mask.any(1).sum()])
        share, of = self.sum_over_ranks(rows.float())
        self.note("taught", share / of.clamp(min=1), counts=bool(of > 0))
        return batch

    def masks(self, batch: Batch) -> Batch:
        """`taught`: the learner's steps with a teacher."""
        return batch.with_masks(taught=self.taught(batch))

    @torch.no_grad()
    def teach(self, batch: Batch, steps: Tensor) -> Distribution:
        """What the teacher would do at the N True `steps` (B, T), of batch shape (N,); there must be one."""
        assert batch.view is not None
        rows = steps.any(1)
        with self.acting():
            return self.teacher(batch.view.obs[rows], view_steps(batch, steps)[rows])

    def asked(self, batch: Batch, steps: Tensor, of: Callable[[Distribution, Tensor], Tensor]) -> Tensor:
        """A number of each of `steps` (B, T), from what the teacher says there and what was done; 0 elsewhere.  (B, T)

        Args: of: a distribution of batch shape (n,), actions (n, *act) → (n,).
        """
        numbers = torch.zeros(steps.shape, device=steps.device)
        asked = steps.any(1).nonzero()[:, 0]
        for rows in self.reading_parts(steps[asked], CHUNK) if len(asked) else ():
            part = torch.zeros_like(steps)
            part[asked[rows]] = steps[asked[rows]]
            values = of(self.teach(batch, part), batch.actions[part])
            numbers = numbers.to(values.dtype).masked_scatter(part, values)
        return numbers
