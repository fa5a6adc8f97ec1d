"""The printed plan of a fit: its workload, and its time from the cost of a token."""

from types import SimpleNamespace

import pytest
import torch

from lightning_nlf.batch import Sampling, Workload
from lightning_nlf.callbacks import plan as plans
from lightning_nlf.callbacks.plan import Costs, plan
from lightning_nlf.networks import DecoderShape, TransformerPolicy
from lightning_nlf.networks.lora import LoRA
from lightning_nlf.objectives import ImitationPolicy

SHAPE = DecoderShape(vocabulary=50, layers=1, heads=2, width=8, context=16)


def line(monkeypatch, work, **settings):
    """The plan on a machine that reads a token in 1 ms, samples one in 10 ms, and trains on one in 2 ms."""
    monkeypatch.setattr(Costs, "measured", classmethod(lambda cls, module: cls(0.001, 0.01, 2.0)))
    fit = {"max_epochs": 3, "estimated_stepping_batches": 24, "current_epoch": 0, "limit_val_batches": 1.0}
    fit |= {"check_val_every_n_epoch": 1, "datamodule": SimpleNamespace(workload=work), "fast_dev_run": 0}
    fit |= {"max_steps": -1, "limit_train_batches": 1.0, "world_size": 1}
    return plan("run", SimpleNamespace(**fit | settings), None)


def test_rows_of_a_file(monkeypatch):
    """3 iterations of 10,000 tokens at 2 ms take 60 s. 4 evaluations of 500 · 1 + 250 · 10 ms take 12 s."""
    work = Workload(64, 10_000, evaluation=Sampling(500, 250))
    beginning = "run: 64 rows and 10,000 tokens per iteration · 24 optimizer steps in 3 iterations · about "
    assert line(monkeypatch, work) == f"{beginning}0:01:12"
    assert line(monkeypatch, work, limit_val_batches=0.0) == f"{beginning}0:01:00"
    assert line(monkeypatch, work, check_val_every_n_epoch=3) == f"{beginning}0:01:06"  # at the start and at the end
    assert line(monkeypatch, work, current_epoch=2) == f"{beginning}0:00:23"  # resumed, with one iteration left
    assert line(monkeypatch, Workload(64, 10_000, passes=2)) == f"{beginning}0:02:00"
    assert line(monkeypatch, work, world_size=2) == f"{beginning}0:00:36"


def test_replies_that_are_sampled(monkeypatch):
    """A collection reads 3,000 tokens at 1 ms and samples 400 at 10 ms: 7 s, in addition to 2 s of training."""
    work = Workload(4, 1000, collection=Sampling(3000, 400))
    beginning = "run: about 4 rows and 1,000 tokens per iteration, up to 400 tokens sampled · "
    assert line(monkeypatch, work) == f"{beginning}24 optimizer steps in 3 iterations · about 0:00:27"
    short = line(monkeypatch, work, max_epochs=1, estimated_stepping_batches=1)
    assert short == f"{beginning}1 optimizer step in 1 iteration · about 0:00:09"


def test_a_fit_without_an_end_has_no_time_and_other_data_no_line(monkeypatch):
    endless = line(monkeypatch, Workload(4, 1000), max_epochs=-1, estimated_stepping_batches=float("inf"))
    assert endless == "run: 4 rows and 1,000 tokens per iteration"
    assert line(monkeypatch, None) is None


def test_what_ends_elsewhere_has_no_time(monkeypatch):
    work = Workload(4, 1000)
    assert line(monkeypatch, work, max_steps=10) == "run: 4 rows and 1,000 tokens per iteration"
    expected = "run: 4 rows and 1,000 tokens per iteration · 24 optimizer steps in 3 iterations"
    assert line(monkeypatch, work, limit_train_batches=0.5) == expected
    assert line(monkeypatch, work, fast_dev_run=1) is None


def test_the_trial_leaves_everything_as_it_was():
    torch.manual_seed(0)
    module = ImitationPolicy(policy=TransformerPolicy(SHAPE), divergence="nll").train()
    module.policy.decoder.blocks[0].eval()
    modes, before = [part.training for part in module.modules()], torch.get_rng_state()
    costs = Costs.measured(module)
    assert costs.read > 0 and costs.sample > 0 and costs.training == 3
    assert torch.equal(torch.get_rng_state(), before)
    assert [part.training for part in module.modules()] == modes and len(set(modes)) == 2
    assert all(p.grad is None for p in module.parameters())


def test_weights_that_do_not_learn_need_no_gradient():
    """With LoRA the cost is a forward pass, a backward pass, and the gradients of the trainable share of weights."""
    policy = TransformerPolicy(SHAPE, lora=LoRA(2, 4))
    trainable = sum(p.numel() for p in policy.parameters() if p.requires_grad)
    whole = sum(p.numel() for p in policy.parameters())
    assert plans._forward_passes(policy) == pytest.approx(2 + trainable / whole, abs=1e-9)
    assert 0 < trainable < whole


def test_a_context_of_one_token_can_be_tried():
    module = ImitationPolicy(policy=TransformerPolicy(DecoderShape(5, 1, 1, 4, 1)), divergence="nll")
    assert Costs.measured(module).read > 0
