"""What is asked of a token distribution is what torch's own categorical says, with less kept."""

import math

import pytest
import torch
from torch.distributions import Categorical

from lightning_nlf.networks.categorical import TokenDistribution

ASKED = {
    "log_prob": lambda distribution: distribution.log_prob(torch.tensor([[0, 4, 1], [3, 3, 2]])),
    "several": lambda distribution: distribution.log_prob(torch.arange(5)[:, None, None].expand(5, 2, 1)),
    "entropy": lambda distribution: distribution.entropy(),
}


@pytest.fixture
def scores():
    return torch.randn(2, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3


@pytest.mark.parametrize("asked", ASKED.values(), ids=ASKED)
def test_values_and_gradients_are_those_of_torch(asked, scores):
    """Weighted, so that a gradient in the wrong place shows."""
    said = []
    for distribution in (TokenDistribution, lambda x: Categorical(logits=x)):
        x = scores.clone().requires_grad_()
        values = asked(distribution(x))
        (values * torch.arange(1, values.numel() + 1).view(values.shape)).sum().backward()
        said.append((values.detach(), x.grad))
    torch.testing.assert_close(said[0], said[1], atol=1e-10, rtol=0)
    assert torch.autograd.gradcheck(lambda x: asked(TokenDistribution(x)), scores.clone().requires_grad_())


def test_entropy_of_even_and_of_certain_scores():
    """log 4 of four equal ones; 0 where one has all, and gradients of 0 in both."""
    scores = torch.tensor([[1.0, 1.0, 1.0, 1.0], [500.0, 0.0, 0.0, 0.0]], requires_grad=True)
    entropy = TokenDistribution(scores).entropy()
    entropy.sum().backward()
    torch.testing.assert_close(entropy.detach(), torch.tensor([math.log(4), 0.0]))
    torch.testing.assert_close(scores.grad, torch.zeros(2, 4), atol=1e-6, rtol=0)
