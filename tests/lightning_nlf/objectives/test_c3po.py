"""C3PO: preferences in scope and the start policy's replies out of scope, each with its own mean."""

import math
from dataclasses import replace

import pytest
import torch

from lightning_nlf.objectives import C3POPolicy, DPOPolicy, ImitationPolicy


@pytest.fixture
def batch(text):
    """A revision ranked above two attempts, and two expert replies to other prompts."""
    rows = text.replies_to([0, 0, 0, 1, 2], [2, 4, 3, 1, 5], rank=torch.tensor([1, 0, 1, -1, -1]))
    outside = (rows.group > 0)[:, None]
    return replace(rows, mask=rows.valid & ~outside, expert_mask=rows.valid & outside, expert_actions=rows.actions)


def build(text, kind=C3POPolicy, **knobs):
    imitates = {} if kind is DPOPolicy else {"divergence": "nll"}
    return text.moved(kind(policy=text.gru_policy(), **imitates, **knobs))


def test_it_is_dpo_and_imitation_of_what_each_is_about(text, batch):
    inside, outside = batch[torch.tensor([0, 1, 2])], batch[torch.tensor([3, 4])]
    terms = text.terms(build(text, imitation_weight=0.2), batch)
    assert set(terms) == {"preference", "imitation"}
    torch.testing.assert_close(terms["preference"], text.loss(build(text, DPOPolicy), inside))
    torch.testing.assert_close(terms["imitation"], 0.2 * text.loss(build(text, ImitationPolicy), outside))


def test_out_of_scope_rows_compare_with_nobody(text, batch):
    """At the start the loss is ln 2 for any replies."""
    module = C3POPolicy(policy=text.gru_policy(), divergence="nll")
    assert float(text.terms(module, batch)["preference"].detach()) == pytest.approx(math.log(2), abs=1e-6)


def test_the_weight_of_zero_is_dpo(text, batch):
    module, dpo = build(text, imitation_weight=0.0), build(text, DPOPolicy)
    torch.testing.assert_close(text.loss(module, batch), text.loss(dpo, batch[torch.tensor([0, 1, 2])]))


def test_padding_and_micro_batches_change_nothing(text, batch):
    module = build(text)
    prepared = module.prepare(batch)
    whole = text.gradient_of(module, text.micro_batches(prepared, [list(range(5))]))
    parts = text.micro_batches(prepared, [[0, 1, 2], [3, 4]])
    torch.testing.assert_close(text.gradient_of(module, parts), whole)
    torch.testing.assert_close(text.loss(module, text.padded(batch)), text.loss(module, batch))


def test_the_drift_out_of_scope_is_measured(text, batch):
    """`divergence`, the unweighted loss, is logged on held-out rows."""
    module, logged = build(text, imitation_weight=0.2), {}
    module.log = lambda name, x, **_: logged.update({name: float(x.compute())})
    module.assess("val", batch)
    unweighted = text.loss(build(text, ImitationPolicy), batch[torch.tensor([3, 4])])
    assert logged["val/divergence"] == pytest.approx(float(unweighted.detach()), abs=1e-5)
    assert {name.removeprefix("val/") for name in logged} <= set(module.held_out_metrics())
