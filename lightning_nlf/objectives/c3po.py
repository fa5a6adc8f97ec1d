"""Verbal feedback without overgeneralisation: preferences where it applies, what was there before elsewhere."""

from __future__ import annotations

from lightning_nlf.modules import PolicyModule
from lightning_nlf.objectives.dpo import DPOObjective
from lightning_nlf.objectives.imitation import ImitationObjective
from lightning_nlf.objectives.reference import ReferenceObjective


class C3POPolicy(ImitationObjective, DPOObjective, ReferenceObjective, PolicyModule):
    """L_DPO(in scope) + c L_SFT(out of scope), https://arxiv.org/abs/2402.10893; needs `divergence: nll`.

    Ranked rows are in scope: a revision against its own attempt, that was criticised. The expert's are replies of the
    frozen start to prompts that the feedback does not speak of, near ones among them; c is `imitation_weight`.
    """

    imitation_accuracy = "imitation_accuracy"  # `accuracy` is that of preferences
    measures: tuple[str, ...] = ("imitation_accuracy",)
