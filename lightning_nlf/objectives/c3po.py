"""C3PO: verbal feedback without overgeneralisation.

DPO where the feedback applies, imitation of the old policy elsewhere.
"""

from __future__ import annotations

from lightning_nlf.modules import PolicyModule
from lightning_nlf.objectives.dpo import DPOObjective
from lightning_nlf.objectives.imitation import ImitationObjective
from lightning_nlf.objectives.reference import ReferenceObjective


class C3POPolicy(ImitationObjective, DPOObjective, ReferenceObjective, PolicyModule):
    """C3PO policy: L_DPO(in scope) + c L_SFT(out of scope), https://arxiv.org/abs/2402.10893; needs `divergence: nll`.

    Ranked rows are in scope: a revision is ranked above the attempt that was criticised. Expert rows are replies of the
        frozen start policy to prompts out of scope. Some of these prompts resemble prompts in scope. c is
        `imitation_weight`.
    """

    imitation_accuracy = "imitation_accuracy"  # `accuracy` already names the accuracy of preferences
    measures: tuple[str, ...] = ("imitation_accuracy",)
