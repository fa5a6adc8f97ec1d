"""Collections on the pendulum: horizons, take-overs, labels and budgets, and evaluation on separate seeds."""

from types import SimpleNamespace

import pytest
import torch
from torch.distributions import Normal

from data_modules.label_buffer import LabelBuffer
from data_modules.pendulum import PendulumDataModule
from data_modules.pendulum.experts import LQRExpert
from data_modules.takeover import Always, ReverseCurriculum, Window
from data_modules.text import AtFirstError
from data_modules.value_trigger import ValueTriggered
from lightning_nlf.maths.schedules import Schedule
from lightning_nlf.networks import GaussianPolicy
from lightning_nlf.objectives import ImitationPolicy

EXPERT = LQRExpert(0.1)


class Balancing:
    """Acts like the LQR without noise, so it never falls."""

    def act(self, obs, state=None, deterministic=False):
        mean = EXPERT.act(obs)[2]["mean"]
        return mean, torch.zeros(len(obs)), None, None

    def prepare(self, batch):
        return batch


class Pushing(Balancing):
    """Pushes to one side until the pole falls."""

    def act(self, obs, state=None, deterministic=False):
        return torch.full((len(obs), 1), 3.0), torch.zeros(len(obs)), None, None


def learner():
    torch.manual_seed(0)
    return ImitationPolicy(policy=GaussianPolicy(4, 1))


def new_data(actor, epoch=0, rank=0, **knobs):
    """A data module as in a Trainer with one process."""
    data = PendulumDataModule(**{"episodes": 3, "evaluation_episodes": 2, "threads": 1} | knobs)
    data.trainer = SimpleNamespace(
        state=SimpleNamespace(fn="fit"),
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
        world_size=1,
        global_rank=rank,
        current_epoch=epoch,
        accumulate_grad_batches=1,
        lightning_module=actor,
    )
    return data


def collected(data):
    """The whole collection of the next epoch."""
    (batch, *_) = data.iteration()
    data.trainer.current_epoch += 1
    return batch


def batches_of(loaders):
    return [next(iter(loader)) for loader in loaders]


# ---- episodes and horizons


def test_an_episode_cut_by_the_horizon_goes_on_in_the_next_collection():
    data = new_data(Balancing(), horizon=20)
    first, second = (collected(data) for _ in range(2))
    assert first.valid.shape == second.valid.shape == (3, 20) and first.valid.all()
    assert not first.terminated.any()
    torch.testing.assert_close(second.obs[:, 0], first.final_obs, rtol=0, atol=0)


def test_an_episode_that_runs_out_of_time_is_truncated_and_the_next_is_fresh():
    """A limit of 50 steps and a horizon of 20: rows of 20, 20, 10, and then a new reset within ±.01."""
    data = new_data(Balancing(), horizon=20)
    data.simulator.time_limit = 50
    lengths, starts = [], []
    for _ in range(4):
        batch = collected(data)
        assert not batch.terminated.any()
        lengths.append(batch.valid.sum(1).tolist())
        starts.append(batch.obs[:, 0])
    assert lengths == [[20] * 3, [20] * 3, [10] * 3, [20] * 3]
    assert (starts[3].abs() <= 0.01).all() and not torch.equal(starts[3], starts[0])
    assert data.counters["env_steps"] == 3 * 70


def test_a_fall_is_a_termination_with_its_own_last_observation():
    """Pushed to one side, every episode ends with a lean above .2 rad, reward 0 in that step, and a new reset."""
    data = new_data(Pushing())
    first, second = collected(data), collected(data)
    assert first.terminated.all()
    assert (first.final_obs[:, 1].abs() > 0.2).all()
    assert (first.obs[..., 1].abs()[first.valid] <= 0.2).all()
    steps = first.valid.sum(1)
    assert (first.rewards.sum(1) == steps - 1).all()
    assert (first.rewards[torch.arange(3), steps - 1] == 0).all()
    assert (second.obs[:, 0].abs() <= 0.01).all()


def test_some_rows_fall_and_others_go_on():
    """Only rows that reached the horizon start where they stopped."""
    data = new_data(learner(), episodes=32, horizon=12)
    first = collected(data)
    over = data.pending.over.copy()
    assert 0 < over.sum() < 32
    assert over.tolist() == first.terminated.tolist()
    second = collected(data)
    went_on = (second.obs[:, 0] == first.final_obs).all(1)
    assert went_on.tolist() == (~over).tolist()
    assert (second.obs[torch.from_numpy(over), 0].abs() <= 0.01).all()


def test_waves_are_played_until_there_are_enough_steps():
    data = new_data(Pushing(), min_steps=100)
    batch = collected(data)
    steps = batch.valid.sum(1)
    assert len(batch) % 3 == 0 and len(batch) > 3
    assert int(steps.sum()) >= 100 > int(steps[:-3].sum())
    assert data.counters["env_steps"] == int(steps.sum())


class Spy(Window):
    """Records the typical lengths that it gets."""

    def __init__(self):
        super().__init__(5, 1.0)
        self.typical_lengths = []

    def plan(self, episodes, horizon, typical_length, rng, experience=0):
        self.typical_lengths.append(typical_length)
        return super().plan(episodes, horizon, typical_length, rng)


def test_the_takeover_is_told_the_mean_length_of_the_last_collection():
    takeover = Spy()
    data = new_data(Pushing(), expert=EXPERT, takeover=takeover)
    lengths = [collected(data).valid.sum(1).float().mean().item() for _ in range(3)]
    assert takeover.typical_lengths[0] == 20
    assert takeover.typical_lengths[1:] == pytest.approx(lengths[:2])
    assert data.statistics["length"] == pytest.approx(lengths[2])


# ---- the expert


def test_injected_steps_are_the_experts():
    module = learner()
    batch = collected(new_data(module, expert=EXPERT, takeover=Window(5, 1.0), episodes=8))
    injected = batch.valid & ~batch.mask
    assert injected.any() and batch.mask.any()
    assert torch.equal(injected, batch.expert_mask)
    assert torch.equal(batch.actions[injected], batch.expert_actions[injected])
    params = {name: x[injected] for name, x in batch.expert_params.items()}
    density = Normal(params["mean"], params["std"]).log_prob(batch.actions[injected])[:, 0]
    torch.testing.assert_close(batch.log_probs[injected], density, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(params["mean"], EXPERT.act(batch.obs[injected])[2]["mean"])
    log_probs = module.policy(batch.obs).log_prob(batch.actions)[batch.mask].detach()
    torch.testing.assert_close(batch.log_probs[batch.mask], log_probs, atol=1e-4, rtol=1e-4)


def test_with_always_the_learner_never_acts():
    data = new_data(Pushing(), expert=EXPERT, takeover=Always(), horizon=60)
    batch = collected(data)
    assert batch.valid.all() and batch.valid.shape[1] == 60  # it does not fall
    assert not batch.mask.any()
    assert data.counters == {"iteration": 1, "env_steps": 180, "expert_steps": 180, "labels": 180}


def test_all_of_the_learners_states_are_labelled():
    data = new_data(learner(), expert=EXPERT, label_share=1.0)
    batch = collected(data)
    assert torch.equal(batch.expert_mask, batch.valid) and torch.equal(batch.mask, batch.valid)
    mean = EXPERT.act(batch.obs[batch.valid])[2]["mean"]
    torch.testing.assert_close(batch.expert_params["mean"][batch.valid], mean)
    assert not torch.equal(batch.actions[batch.valid], batch.expert_actions[batch.valid])  # the learner's own
    assert data.counters["labels"] == data.counters["env_steps"] and data.counters["expert_steps"] == 0


def test_a_share_of_the_learners_states_is_labelled():
    data = new_data(learner(), expert=EXPERT, takeover=Window(5, 0.5), label_share=0.5, episodes=16)
    batch = collected(data)
    injected = batch.valid & ~batch.mask
    labelled = batch.expert_mask & batch.mask
    assert int(labelled.sum()) == round(0.5 * int(batch.mask.sum()))
    assert (batch.expert_mask[injected]).all() and not batch.expert_mask[~batch.valid].any()
    assert data.counters["labels"] == int(labelled.sum()) + int(injected.sum())
    assert data.counters["expert_steps"] == int(injected.sum())


@pytest.mark.parametrize("takeover", [None, Window(4, 1.0), Always()], ids=["labels", "both", "expert"])
def test_the_budget_is_spent_to_the_last_label_and_no_further(takeover):
    budget, labels = 97, []
    data = new_data(learner(), expert=EXPERT, takeover=takeover, label_share=0.3, label_budget=budget, min_steps=40)
    while len(labels) < 30 and sum(labels) < budget:
        labels.append(int(collected(data).expert_mask.sum()))
        assert data.counters["labels"] == data.labels_used == sum(labels)
    assert sum(labels) == budget
    after = collected(data)
    assert not after.expert_mask.any() and torch.equal(after.mask, after.valid)
    assert data.counters["labels"] == budget


def test_the_label_buffer_is_fed_with_every_label():
    data = new_data(learner(), expert=EXPERT, label_share=1.0, label_buffer=LabelBuffer(updates=2, rows=16))
    for _ in range(2):
        collected(data)
    buffered = data.label_buffer.labels
    assert len(buffered) == data.counters["labels"]
    torch.testing.assert_close(buffered.expert_params["mean"][:, 0], EXPERT.act(buffered.obs[:, 0])[2]["mean"])


def test_a_collection_has_the_same_fields_before_and_after_the_budget():
    """If not, rows of different collections could not be stacked."""
    data = new_data(learner(), expert=EXPERT, label_share=1.0, label_budget=5)
    first, second = collected(data), collected(data)
    assert set(first.expert_params) == set(second.expert_params) and second.expert_mask is not None


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"episodes": 0}, "episodes: got 0"),
        ({"horizon": 0}, "horizon: got 0"),
        ({"evaluation_episodes": 0}, "evaluation_episodes: got 0"),
        ({"label_share": 1.5, "expert": EXPERT}, "label_share: got 1.5"),
        ({"label_share": 0.5}, "label_share and label_buffer need one"),
        ({"takeover": Always()}, "expert: takeover"),
        ({"label_buffer": LabelBuffer()}, "expert: takeover"),
    ],
)
def test_refused(knobs, message):
    with pytest.raises(ValueError, match=message):
        PendulumDataModule(**knobs)


# ---- evaluation


def test_evaluation_is_on_seeds_of_its_own():
    data = new_data(learner())
    first, again = batches_of(data.val_dataloader()), batches_of(data.val_dataloader())
    training, test = collected(data), batches_of(data.test_dataloader())
    starts = [batch.obs[:, 0].clone() for batch in (*first, training, *test)]
    for left, two in zip(first, again, strict=True):
        assert torch.equal(left.obs, two.obs) and torch.equal(left.actions, two.actions)
    for i, left in enumerate(starts):
        for two in starts[:i]:
            assert not torch.isin(left, two).any()
    assert not torch.equal(batches_of(new_data(learner(), seed=1).val_dataloader())[0].obs[:, 0], starts[0])


def test_evaluation_costs_nothing_that_is_counted_and_disturbs_nothing():
    data, undisturbed = new_data(learner(), horizon=10), new_data(learner(), horizon=10)
    collected(data), collected(undisturbed)
    counters, chance = dict(data.counters), torch.random.get_rng_state()
    batches_of(data.val_dataloader())
    assert data.counters == counters
    assert torch.equal(torch.random.get_rng_state(), chance)
    assert torch.equal(collected(data).obs, collected(undisturbed).obs)


def test_the_first_loader_plays_the_mode_and_the_second_samples():
    module = learner()
    mode, sampled = batches_of(new_data(module).val_dataloader())
    mean = module.policy(mode.obs).mean.detach()
    torch.testing.assert_close(mode.actions[mode.valid], mean[mode.valid])
    assert (sampled.actions - module.policy(sampled.obs).mean.detach())[sampled.valid].abs().mean() > 0.1


def test_evaluation_runs_for_the_whole_episode_whatever_the_horizon():
    batch = batches_of(new_data(Balancing(), horizon=7).val_dataloader())[0]
    assert batch.valid.sum(1).tolist() == [1000, 1000] and not batch.terminated.any()
    assert batch.rewards.sum(1).tolist() == [1000, 1000]


# ---- resuming


def test_a_resumed_run_goes_on_as_if_it_had_never_stopped():
    knobs = {"expert": EXPERT, "takeover": Window(3, 0.5), "label_share": 0.2, "label_budget": 60, "horizon": 10}
    data = new_data(learner(), **knobs)
    for _ in range(2):
        collected(data)
    resumed = new_data(learner(), epoch=2, **knobs)
    resumed.load_state_dict(data.state_dict())
    for _ in range(2):
        left, two = collected(data), collected(resumed)
        assert torch.equal(left.obs, two.obs) and torch.equal(left.expert_mask, two.expert_mask)
    assert resumed.counters == data.counters and resumed.labels_used == data.labels_used


def test_ranks_and_seeds_play_other_episodes():
    starts = [
        collected(new_data(learner(), **knobs)).obs[:, 0] for knobs in ({}, {"rank": 1}, {"seed": 1}, {"epoch": 1})
    ]
    assert len({tuple(start.flatten().tolist()) for start in starts}) == 4
    assert torch.equal(collected(new_data(learner())).obs[:, 0], starts[0])


def test_padding_of_a_collection_is_zero():
    """Steps that are not valid are 0, False or empty, without values of earlier rows."""
    batch = collected(new_data(learner(), episodes=8, expert=EXPERT, takeover=Window(3, 1.0)))
    padding = ~batch.valid
    assert padding.any()
    for x in (batch.obs, batch.actions, batch.log_probs, batch.rewards, *batch.expert_params.values()):
        assert (x[padding] == 0).all()
    assert batch.valid.any(0).all()  # no column is only padding


class Doubting(Balancing):
    """Values by the number of calls: 0, −1, −2 …, and from the second wave on −100 in the third call."""

    def __init__(self):
        self.calls, self.waves = 0, 0

    def values(self, obs):
        self.calls += 1
        worst = self.waves > 0 and self.calls == 3
        return torch.full((len(obs),), -100.0 if worst else -float(self.calls))


def test_the_critic_calls_the_expert():
    """In the second wave the third state is below all values of the first: the expert acts in steps 2 to 5."""
    actor = Doubting()
    data = new_data(actor, expert=EXPERT, takeover=ValueTriggered(0.01, length=4), horizon=12, episodes=1)
    assert not collected(data).expert_mask.any()
    actor.waves, actor.calls = 1, 0
    acted = (lambda batch: batch.valid & ~batch.mask)(collected(data))
    assert acted[0].nonzero()[:, 0].tolist() == [2, 3, 4, 5]


def test_what_the_critic_has_seen_is_in_the_checkpoint():
    data = new_data(Doubting(), expert=EXPERT, takeover=ValueTriggered(), horizon=12, episodes=1)
    collected(data)
    resumed = new_data(Doubting(), expert=EXPERT, takeover=ValueTriggered(), horizon=12, episodes=1)
    resumed.load_state_dict(data.state_dict())
    assert torch.equal(resumed.takeover.before, -torch.arange(1.0, 13.0))


def test_a_take_over_by_value_needs_a_critic():
    with pytest.raises(ValueError, match="no value network"):
        collected(new_data(learner(), expert=EXPERT, takeover=ValueTriggered()))


def test_a_take_over_by_critique_is_for_text():
    with pytest.raises(ValueError, match="takeover: AtFirstError needs critiques of replies"):
        new_data(learner(), expert=EXPERT, takeover=AtFirstError())


def test_a_schedule_of_take_overs_runs_on_environment_steps():
    """Always before 20 steps, then never: with rows of 10 steps the third one is the learner's."""

    class Until(Schedule):
        def __call__(self, steps):
            return float(steps < 20)

    at_once = ReverseCurriculum(0, 0, 1, probability=Until(1.0))
    data = new_data(Balancing(), expert=EXPERT, takeover=at_once, horizon=10, episodes=1)
    assert [bool(collected(data).mask.any()) for _ in range(3)] == [False, False, True]
