"""Gaussian policies and MLP critics: shapes, both kinds of std, and weights from another run."""

import pytest
import torch

from lightning_nlf.networks import GaussianPolicy, MLPQValue, MLPValue


@pytest.mark.parametrize("shape", [(5,), (5, 7)])
def test_a_distribution_of_the_batch_shape(shape):
    distribution = GaussianPolicy(4, 2)(torch.randn(*shape, 4))
    assert distribution.batch_shape == shape and distribution.event_shape == (2,)


@pytest.mark.parametrize("network", [GaussianPolicy(4, 1), GaussianPolicy(4, 1, state_dependent_std=True)])
def test_chosen_steps_are_those_of_the_whole(network):
    obs, where = torch.randn(3, 5, 4), torch.rand(3, 5) > 0.5
    whole, chosen = network(obs), network(obs, where)
    torch.testing.assert_close(chosen.mean, whole.mean[where])
    torch.testing.assert_close(chosen.variance, whole.variance[where])


def test_the_std_is_a_parameter_or_an_output():
    obs = torch.randn(50, 4)
    assert GaussianPolicy(4, 1, log_std=-1.0)(obs).variance.unique().tolist() == pytest.approx([2.718281828**-2])
    assert len(GaussianPolicy(4, 1, state_dependent_std=True)(obs).variance.unique()) > 10


def test_the_std_has_a_floor():
    assert GaussianPolicy(4, 1, log_std=-9.0, min_log_std=-2.0)(torch.zeros(1, 4)).variance.item() == pytest.approx(
        0.0183156389
    )  # e^(2·−2)


def test_the_std_can_rise_again_from_its_floor():
    policy = GaussianPolicy(4, 1, log_std=-9.0, min_log_std=-2.0)
    policy(torch.zeros(1, 4)).variance.sum().backward()
    assert policy.log_std.grad > 0


def test_a_density_is_never_in_half_precision():
    with torch.autocast("cpu", torch.bfloat16):
        assert GaussianPolicy(4, 1)(torch.randn(3, 4)).mean.dtype == torch.float32


def test_critics_give_one_number_a_step():
    obs, actions, where = torch.randn(3, 5, 4), torch.randn(3, 5, 2), torch.rand(3, 5) > 0.5
    value, q = MLPValue(4), MLPQValue(4, 2)
    assert value(obs).shape == q(obs, actions).shape == (3, 5)
    torch.testing.assert_close(value(obs, where), value(obs)[where])
    torch.testing.assert_close(q(obs, actions, where), q(obs, actions)[where])
    assert not torch.equal(q(obs, actions), q(obs, actions + 1))


@pytest.mark.parametrize("network", [GaussianPolicy(5, 1), MLPValue(5)])
def test_states_of_another_size_are_refused(network):
    with pytest.raises(ValueError, match="obs_dim.*5.*4"):
        network(torch.zeros(2, 3, 4))


def test_weights_come_from_the_network_of_the_same_role(tmp_path):
    policy, value = GaussianPolicy(4, 1), MLPValue(4)
    state = {f"policy.{k}": v for k, v in policy.state_dict().items()}
    state |= {f"value.{k}": v for k, v in value.state_dict().items()}
    path = tmp_path / "last.ckpt"
    torch.save({"state_dict": state}, path)
    obs = torch.randn(2, 4)
    torch.testing.assert_close(GaussianPolicy(4, 1, weights=str(path))(obs).mean, policy(obs).mean)
    torch.testing.assert_close(MLPValue(4, weights=str(path))(obs), value(obs))
    with pytest.raises(ValueError, match="the policy in .* does not fit this one"):
        GaussianPolicy(4, 1, hidden=[8], weights=str(path))


def test_missing_weights_are_refused():
    with pytest.raises(ValueError, match="no file"):
        GaussianPolicy(4, 1, weights="nowhere.ckpt")


@pytest.mark.parametrize("network", [GaussianPolicy, MLPValue])
def test_states_are_brought_to_mean_0_and_std_1(network):
    """obs = mean + std · x gives the output of x without standardisation. Either of the two may be left out."""
    sizes = {"obs_dim": 2} | ({"action_dim": 1} if network is GaussianPolicy else {})
    mean, std, x = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 4.0]), torch.randn(6, 2)

    def output(obs, **knobs):
        torch.manual_seed(0)
        out = network(**sizes, **knobs)(obs)
        return out if isinstance(out, torch.Tensor) else out.mean

    plain = output(x)
    torch.testing.assert_close(output(mean + std * x, obs_mean=mean.tolist(), obs_std=std.tolist()), plain)
    torch.testing.assert_close(output(mean + x, obs_mean=mean.tolist()), plain)
    torch.testing.assert_close(output(std * x, obs_std=std.tolist()), plain)
    assert not torch.allclose(output(x, obs_std=std.tolist()), plain)


def test_what_states_are_brought_to_is_in_the_checkpoint_and_only_where_it_is_given():
    state = GaussianPolicy(2, 1, obs_mean=[1, 2], obs_std=[3, 4]).state_dict()
    assert state["net.0.mean"].tolist() == [1, 2] and state["net.0.std"].tolist() == [3, 4]
    assert "net.0.mean" not in GaussianPolicy(2, 1).state_dict()


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"obs_mean": [1.0]}, "obs_mean: got 1 numbers, but a state has 2"),
        ({"obs_std": [1.0, 1.0, 1.0]}, "obs_std: got 3 numbers"),
        ({"obs_std": [1.0, 0.0]}, "obs_std: got .*must be above 0"),
    ],
)
def test_wrong_means_and_stds_are_refused(knobs, message):
    with pytest.raises(ValueError, match=message):
        MLPValue(2, **knobs)
