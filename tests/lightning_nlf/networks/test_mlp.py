"""Gaussian policies and MLP critics: shapes, the two kinds of std, and starting from another run's weights."""

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
    with pytest.raises(ValueError, match="another shape"):
        GaussianPolicy(4, 1, hidden=[8], weights=str(path))


def test_missing_weights_are_refused():
    with pytest.raises(ValueError, match="no file"):
        GaussianPolicy(4, 1, weights="nowhere.ckpt")
