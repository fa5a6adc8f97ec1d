"""Rows of a feedback round with the other objectives: ILF, critique fine-tuning, feedback modelling."""

from dataclasses import replace

import pytest
import torch

from lightning_nlf.objectives import ImitationPolicy, JointPolicy, ReinforcePolicy


@pytest.fixture
def batch(text):
    """Two groups of two attempts and an expert row: a kept revision, or a critique."""
    return text.rounds_of(
        [0, 0, 0, 1, 1, 1], [2, 4, 3, 1, 2, 5], [0, 0, 1, 0, 0, 1], [0.1, 0.4, 0, 0.9, 0.3, 0], [1] * 6
    )


def expert(batch):
    return batch[batch.extra["revision"]]


def test_imitation_of_kept_revisions_is_cloning(text, batch):
    """ILF, and the same with critiques: −E[log π] over the expert's 3 + 5 tokens, with or without attempts."""
    module = text.moved(ImitationPolicy(policy=text.gru_policy(), divergence="nll"))
    rows = expert(batch)
    assert not rows.mask.any()
    expected = -module.evaluate(rows).log_probs[rows.expert_mask].mean()
    torch.testing.assert_close(text.loss(module, rows), expected)
    torch.testing.assert_close(text.loss(module, replace(rows, rewards=None, log_probs=None, view=None)), expected)
    torch.testing.assert_close(text.loss(module, batch), expected)


@pytest.mark.parametrize("baseline", ["group_mean", "leave_one_out", "batch_mean"])
def test_feedback_modelling_is_the_joint_objective(text, batch, baseline):
    """RLTF-FM: the policy gradient of the attempts alone, plus .1 of the critiques' loss."""
    knobs = {"baseline": baseline, "normalize_advantages": True}
    joint = text.moved(JointPolicy(policy=text.gru_policy(), divergence="nll", imitation_weight=0.1, **knobs))
    alone = text.moved(ReinforcePolicy(policy=text.gru_policy(), **knobs))
    cloning = text.moved(ImitationPolicy(policy=text.gru_policy(), divergence="nll"))
    terms = text.terms(joint, batch)
    torch.testing.assert_close(terms["policy"], text.loss(alone, batch[~batch.extra["revision"]]))
    torch.testing.assert_close(terms["imitation"], 0.1 * text.loss(cloning, expert(batch)))
