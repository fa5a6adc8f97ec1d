"""The module: one evaluation per step, checks, parameter groups, and acting."""

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader

from lightning_nlf.batch import Batch
from lightning_nlf.modules import NonFiniteError
from lightning_nlf.networks import GaussianPolicy, MLPValue
from lightning_nlf.objectives import ActorCriticAgent, ImitationPolicy, ReinforcePolicy


def batch(rewards=1.0, steps=4):
    valid = torch.ones(3, steps, dtype=torch.bool)
    return Batch(
        obs=torch.ones(3, steps, 4),
        actions=torch.zeros(3, steps, 1),
        valid=valid,
        mask=valid,
        log_probs=torch.zeros(3, steps),
        rewards=torch.full((3, steps), rewards),
        advantages=torch.ones(3, steps),
        returns=torch.ones(3, steps),
        final_obs=torch.zeros(3, 4),
        terminated=torch.zeros(3, dtype=torch.bool),
    )


class CountingPolicy(GaussianPolicy):
    def __init__(self):
        super().__init__(4, 1)
        self.records = []

    def features(self, obs, where=None):
        self.records.append(int(where.sum()) if where is not None else obs.shape[:-1].numel())
        return super().features(obs, where)


def fit(module, batches):
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, DataLoader(batches, batch_size=None))
    return module


def test_what_is_not_known_of_an_episode_is_not_averaged(monkeypatch):
    """(1 + 4) / 2 without the NaN; a metric that is NaN for all episodes is not logged."""
    module, logged = ReinforcePolicy(policy=GaussianPolicy(4, 1)), {}
    monkeypatch.setattr(module, "log", lambda name, x, **how: logged.update({name: x}))
    metrics = {"known": torch.tensor([1.0, torch.nan, 4.0]), "unknown": torch.full((3,), torch.nan)}
    module.assess("val", Batch(**(vars(batch()) | {"metrics": metrics})), 1)
    assert logged.keys() == {"val/return_sampled", "val/known_sampled"} and float(logged["val/known_sampled"]) == 2.5


def test_only_steps_that_somebody_learns_from_are_evaluated():
    """5 of 12 steps have `mask`, 2 others have `expert_mask`: the policy evaluates 7 steps, once."""
    module = ReinforcePolicy(policy=CountingPolicy())
    rows = batch()
    mask, expert = torch.zeros(12, dtype=torch.bool), torch.zeros(12, dtype=torch.bool)
    mask[:5], expert[9:11] = True, True
    rows = Batch(**(vars(rows) | {"mask": mask.view(3, 4), "expert_mask": expert.view(3, 4)}))
    now = module.evaluate(rows)
    assert module.policy.records == [7]
    assert now.log_probs.shape == now.entropy.shape == (3, 4)
    assert (now.log_probs[~now.where] == 0).all() and (now.log_probs[now.where] != 0).all()


def test_a_batch_that_nobody_learns_from_still_gives_every_parameter_a_gradient():
    """A DDP rank without labels must join each all-reduce; its contribution is 0."""
    nothing = torch.zeros(3, 4, dtype=torch.bool)
    module = ReinforcePolicy(policy=GaussianPolicy(4, 1))
    rows = Batch(**(vars(batch()) | {"mask": nothing, "valid": nothing}))
    sum(module.losses(rows, module.evaluate(rows)).values()).backward()
    gradients = [p.grad for p in module.policy.parameters()]
    assert all(g is not None and not g.any() for g in gradients)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_reward_is_named_by_row_and_step(bad):
    rows = batch()
    rows.rewards[1, 2] = bad
    with pytest.raises(NonFiniteError, match="row 1, step 2"):
        ReinforcePolicy(policy=GaussianPolicy(4, 1)).prepare(rows)


def test_a_bad_loss_names_its_term_and_its_step_and_changes_nothing():
    """The second optimizer step has an infinite advantage: parameters stay as after the first."""
    good, bad = batch(), batch()
    bad.advantages[0, 0] = float("inf")
    module, reference = (ReinforcePolicy(policy=GaussianPolicy(4, 1)) for _ in range(2))
    reference.load_state_dict(module.state_dict())
    with pytest.raises(NonFiniteError, match=r"loss at optimizer step 1: policy = "):
        fit(module, [good, bad])
    fit(reference, [good])
    for parameter, expected in zip(module.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(parameter, expected)


class SquareRootPolicy(GaussianPolicy):
    """√0 has an infinite slope: the loss is finite, but the gradient is not."""

    def __init__(self):
        super().__init__(4, 1)
        self.scale = nn.Parameter(torch.zeros(1))

    def distribution(self, features):
        distribution = super().distribution(features)
        distribution.base_dist.loc = distribution.base_dist.loc + self.scale.sqrt()
        return distribution


def test_a_bad_gradient_names_the_parameter():
    with pytest.raises(NonFiniteError, match=r"gradient at optimizer step 0: policy.scale"):
        fit(ReinforcePolicy(policy=SquareRootPolicy()), [batch()])


def test_parameters_are_grouped_by_network_with_learning_rates_of_their_own():
    module = ActorCriticAgent(policy=GaussianPolicy(4, 1), value=MLPValue(4), network_lr={"value": 0.5})
    groups = {group["name"]: group for group in module.configure_optimizers().param_groups}
    assert set(groups) == {"policy", "value"}
    assert groups["value"]["lr"] == 0.5 and groups["policy"]["lr"] == 1e-3


def test_a_learning_rate_for_a_network_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="critic"):
        ActorCriticAgent(
            policy=GaussianPolicy(4, 1), value=MLPValue(4), network_lr={"critic": 1}
        ).configure_optimizers()


def test_a_term_is_logged_by_its_mean_over_the_batches_that_had_a_step_for_it():
    """One batch with advantage 1, then two without learner steps: the policy term is that of the first."""
    nothing = torch.zeros(3, 4, dtype=torch.bool)
    rows = Batch(**(vars(batch()) | {"totals": {"mask": torch.tensor(12.0)}}))
    labels = Batch(**(vars(batch()) | {"mask": nothing, "totals": {"mask": torch.tensor(0.0)}}))
    module = ReinforcePolicy(policy=GaussianPolicy(4, 1), optimizer=lambda groups: torch.optim.SGD(groups, lr=0))
    expected = -module.evaluate(rows).log_probs.mean()
    fit(module, [rows, labels, labels])
    torch.testing.assert_close(module.trainer.callback_metrics["train/policy"], expected.detach())


def test_advance_is_called_once_an_optimizer_step():
    class Moving(ReinforcePolicy):
        moved = 0

        def advance(self):
            self.moved += 1

    assert fit(Moving(policy=GaussianPolicy(4, 1)), [batch()] * 3).moved == 3


def test_the_learning_rate_follows_its_scheduler():
    """StepLR halves it every epoch: .5 after one epoch."""
    module = ReinforcePolicy(
        policy=GaussianPolicy(4, 1),
        optimizer=lambda groups: torch.optim.SGD(groups, lr=1.0),
        lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5),
    )
    fit(module, [batch()])
    assert module.trainer.optimizers[0].param_groups[0]["lr"] == 0.5


def test_momentum_does_not_move_a_network_that_nothing_was_learned_about():
    """A step with a gradient, then one without: Adam alone would continue with its momentum."""
    nothing = torch.zeros(3, 4, dtype=torch.bool)
    labels = Batch(**(vars(batch()) | {"mask": nothing, "valid": nothing}))
    modules = [ReinforcePolicy(policy=GaussianPolicy(4, 1)) for _ in range(2)]
    modules[1].load_state_dict(modules[0].state_dict())
    for module, batches in zip(modules, ([batch()], [batch(), labels]), strict=True):
        fit(module, batches)
    for once, twice in zip(*(module.parameters() for module in modules), strict=True):
        torch.testing.assert_close(once, twice, rtol=0, atol=0)


@pytest.mark.parametrize("precision", ["16-true", "bf16-true", "64-true"])
def test_precisions_that_would_cut_states_are_refused(precision):
    trainer = L.Trainer(accelerator="cpu", precision=precision, logger=False, enable_checkpointing=False)
    with pytest.raises(ValueError, match="bf16-mixed"):
        trainer.fit(ReinforcePolicy(policy=GaussianPolicy(4, 1)), DataLoader([batch()], batch_size=None))


class DropoutPolicy(GaussianPolicy):
    def forward(self, obs, where=None):
        return super().forward(nn.functional.dropout(obs, 0.5, self.training), where)


def test_acting_is_in_eval_mode_and_training_is_not():
    """Dropout in acting would store log-probabilities of another policy."""
    module = ReinforcePolicy(policy=DropoutPolicy(4, 1))
    module.train()
    obs = torch.ones(64, 4)
    means = {float(module.act(row[None], deterministic=True)[0]) for row in obs}
    assert len(means) == 1
    fit(module, [batch()])
    assert module.training


def test_weights_are_rounded_once_while_acting_and_again_for_who_learns():
    class Rounding(TorchDispatchMode):
        times = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function is torch.ops.aten._to_copy.default and args[0] is layer.weight:
                self.times += 1
            return function(*args, **(kwargs or {}))

    module = ReinforcePolicy(policy=GaussianPolicy(4, 1))
    module.trainer = L.Trainer(accelerator="cpu", precision="bf16-mixed", logger=False, enable_checkpointing=False)
    layer, x = nn.Linear(4, 4), torch.randn(2, 4)
    with Rounding() as rounding, torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        with module.acting(), torch.no_grad():
            before = [layer(x) for _ in range(3)]
        assert rounding.times == 1
        with torch.no_grad():
            layer.weight *= 2
        layer(x).sum().backward()
        assert rounding.times == 2 and layer.weight.grad is not None
        with module.acting(), torch.no_grad():
            assert not torch.equal(layer(x), before[0])


def test_the_deterministic_action_is_the_mean():
    module = ReinforcePolicy(policy=GaussianPolicy(4, 1))
    obs = torch.randn(5, 4)
    torch.testing.assert_close(module.act(obs, deterministic=True)[0], module.policy(obs).mean)
    assert not torch.equal(module.act(obs)[0], module.act(obs)[0])


def test_the_clock_of_schedules_is_in_the_state():
    module = ReinforcePolicy(policy=GaussianPolicy(4, 1))
    module.prepare(batch())
    assert module.state_dict()["experience"] == 12


def test_built_by_hand_no_live_network_is_pickled_into_a_checkpoint():
    module = ImitationPolicy(policy=GaussianPolicy(4, 1))
    checkpoint = {module.CHECKPOINT_HYPER_PARAMS_KEY: dict(module.hparams)}
    module.on_save_checkpoint(checkpoint)
    assert checkpoint == {}
