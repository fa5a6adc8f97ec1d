"""The self-distillation teacher: its moving average, the places it reads in the view, and its checkpoint."""

from dataclasses import replace

import lightning as L
import pytest
import torch

from data_modules.offline import OfflineDataModule, save_batch
from lightning_nlf.batch import Batch
from lightning_nlf.networks import GRUPolicy
from lightning_nlf.objectives import SDPOPolicy
from lightning_nlf.objectives.self_distillation import check_view, follow, view_steps


@pytest.fixture
def batch(text):
    """Three attempts, the second without feedback, and a revision."""
    return text.rounds_of([0, 0, 0, 1], [2, 4, 3, 2], [0, 0, 1, 0], [0.0, 1.0, 1.0, 0.0], has_feedback=[1, 0, 1, 1])


def build(text, **knobs):
    return SDPOPolicy(policy=text.gru_policy(), **knobs)


def parameters(network):
    return torch.cat([p.detach().flatten() for p in network.parameters()])


# ---- how it follows


def test_follow_by_hand():
    """.95 · 2 + .05 · 4 = 2.1; buffers are copied."""
    teacher, policy = torch.nn.BatchNorm1d(1), torch.nn.BatchNorm1d(1)
    teacher.weight.data.fill_(2)
    policy.weight.data.fill_(4)
    policy.running_mean.fill_(7)
    follow(teacher, policy, 0.05)
    assert float(teacher.weight.detach()) == pytest.approx(2.1) and float(teacher.running_mean) == 7
    assert float(policy.weight.detach()) == 4


@pytest.mark.parametrize(("rate", "moved"), [(0.0, 0.0), (0.05, 0.05), (1.0, 1.0)])
def test_the_teacher_moves_by_its_rate_after_each_step(text, rate, moved):
    module = build(text, teacher_rate=rate)
    start = parameters(module.teacher).clone()
    text.moved(module)
    module.advance_all()
    torch.testing.assert_close(parameters(module.teacher), torch.lerp(start, parameters(module.policy), moved))


def test_only_the_policy_is_trained(text):
    module = build(text)
    groups = module.configure_optimizers().param_groups
    assert [group["name"] for group in groups] == ["policy"]
    assert not any(p.requires_grad for p in module.teacher.parameters())
    assert not any(key.startswith("averages") for key in build(text, teacher_rate=1.0).state_dict())


def test_a_rate_is_a_share(text):
    with pytest.raises(ValueError, match="teacher_rate"):
        build(text, teacher_rate=1.1)


# ---- where it reads


def test_steps_in_the_view(batch):
    """The k-th valid step maps to the k-th: here the last token of each reply, 3 or 4 columns later."""
    last = batch.mask & (batch.rewards != 0) | batch.mask & (batch.mask.flip(1).cumsum(1).flip(1) == 1)
    last = last & batch.view.valid.any(1, keepdim=True)
    moved_steps = view_steps(batch, last)
    assert moved_steps.nonzero().tolist() == [[0, 2 + 2 - 1 - 1 + 3], [3, 3 + 2 - 1 - 1 + 4]]
    assert torch.equal(batch.view.actions[moved_steps], batch.actions[last])


def test_steps_that_are_apart_in_one_of_the_two():
    """A row of two turns: valid steps 1, 2, 5 are 0, 3, 4 in the view; the third one is requested."""
    valid = torch.tensor([[0, 1, 1, 0, 0, 1]]).bool()
    view = torch.tensor([[1, 0, 0, 1, 1]]).bool()
    nothing = torch.zeros(1, 5, dtype=torch.long)
    rows = Batch(valid, valid, valid, valid, view=Batch(nothing, nothing, view, view))
    steps = torch.zeros_like(valid).index_fill(1, torch.tensor([5]), True)
    assert view_steps(rows, steps).tolist() == [[False, False, False, False, True]]


def test_the_teacher_is_asked_of_the_view(text, batch):
    """The log-probabilities of the same tokens, each row read alone after the feedback; 0 elsewhere."""
    module = text.moved(build(text, teacher_rate=0.0))
    prepared = module.prepare(batch)
    taught = prepared.masks["taught"]
    assert taught.any(1).tolist() == [True, False, False, True] and torch.equal(taught, batch.mask & taught)
    log_probs = module.teacher_numbers(prepared, taught, lambda teacher, actions: teacher.log_prob(actions))
    module.CHUNK = 1
    torch.testing.assert_close(
        module.teacher_numbers(prepared, taught, lambda teacher, actions: teacher.log_prob(actions)), log_probs
    )
    for row in (0, 3):
        view = batch.view[torch.tensor([row])]
        alone = module.teacher(view.obs, view.valid).log_prob(view.actions[view.valid])
        torch.testing.assert_close(log_probs[row][taught[row]], alone.detach())
    assert not log_probs[~taught].any()
    assert not torch.allclose(log_probs[taught], module.evaluate(prepared).log_probs.detach()[taught])


def test_the_share_with_a_teacher_is_logged(text, batch):
    """Two of three attempts have a teacher; the revision is not the learner's."""
    module = build(text)
    module.prepare(batch)
    assert torch.stack(module._unlogged["taught"]).tolist() == pytest.approx([2 / 3])


def test_the_module_goes_back_to_training(text, batch):
    """The teacher is evaluated in eval mode, inside a training step."""
    module = build(text)
    prepared = module.prepare(batch)
    module.train()
    module.losses(prepared, module.evaluate(prepared))
    assert not module.teacher.training and not module.training  # `training_step` starts with train()


def test_views_of_other_rows_are_refused(text, batch):
    with pytest.raises(ValueError, match="no `view`"):
        build(text).prepare(replace(batch, view=None))
    shorter = batch.view.valid.clone()
    shorter[3, batch.view.valid[3].nonzero()[-1]] = False
    with pytest.raises(ValueError, match="row 3 has 1 valid steps, but 2 in the batch"):
        check_view(replace(batch, view=replace(batch.view, valid=shorter)))
    with pytest.raises(ValueError, match="must be those of the batch"):
        check_view(replace(batch, view=replace(batch.view, actions=batch.view.actions + 1)))


# ---- checkpoints


class SmallGRU(GRUPolicy):
    def __init__(self):
        super().__init__(vocabulary=11, width=8)


def fitted(folder, batch, epochs, resume=None):
    """A run of this number of epochs on the rows of a file, and its checkpoint."""
    save_batch(batch, folder / "rows.pt")
    torch.manual_seed(0)
    module = SDPOPolicy(policy=SmallGRU(), teacher_rate=0.3, optimizer=lambda p: torch.optim.Adam(p, lr=0.05))
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = L.Trainer(accelerator="cpu", max_epochs=epochs, default_root_dir=folder, num_sanity_val_steps=0, **quiet)
    data = OfflineDataModule(str(folder / "rows.pt"), minibatches=2, passes=2)
    trainer.fit(module, data, ckpt_path=resume)
    trainer.save_checkpoint(folder / f"{epochs}.ckpt")
    return module


@pytest.mark.filterwarnings("ignore")
def test_a_resumed_run_goes_on_as_if_it_had_never_stopped(batch, tmp_path):
    """Equal bit for bit, including the teacher, which has moved and differs from the policy."""
    straight = fitted(tmp_path, batch, 4)
    fitted(tmp_path, batch, 2)
    resumed = fitted(tmp_path, batch, 4, resume=tmp_path / "2.ckpt")
    state = straight.state_dict()
    assert any(key.startswith("averages.policy.") for key in state)
    for key, x in resumed.state_dict().items():
        assert torch.equal(x, state[key]), key
    weights = torch.load(tmp_path / "2.ckpt", weights_only=True)["state_dict"]
    assert not torch.equal(weights["averages.policy.head.weight"], weights["policy.head.weight"])
    assert not torch.equal(weights["averages.policy.head.weight"], state["averages.policy.head.weight"])


@pytest.mark.filterwarnings("ignore")
def test_another_run_starts_from_the_policy(batch, tmp_path):
    module = fitted(tmp_path, batch, 1)
    started = GRUPolicy(11, width=8, weights=str(tmp_path / "1.ckpt"))
    assert torch.equal(parameters(started), parameters(module.policy))
