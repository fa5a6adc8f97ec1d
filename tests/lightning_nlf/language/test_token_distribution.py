"""The next-token distribution against torch."""

import torch
from torch.distributions import Categorical, kl_divergence

from lightning_nlf.language.token_distribution import TokenDistribution
from lightning_nlf.maths.distributions import distribution_of, params_of


def test_it_is_the_categorical_of_the_same_scores():
    scores, value = torch.randn(3, 5, 7) * 3 + 4, torch.randint(7, (3, 5))
    ours, torchs = TokenDistribution(scores), Categorical(logits=scores)
    assert ours.batch_shape == (3, 5) and ours.event_shape == ()
    for name in ("logits", "probs", "mode"):
        torch.testing.assert_close(getattr(ours, name), getattr(torchs, name))
    torch.testing.assert_close(ours.log_prob(value), torchs.log_prob(value))
    torch.testing.assert_close(ours.entropy(), torchs.entropy())
    torch.testing.assert_close(ours.expand((2, 3, 5)).log_prob(value), torchs.log_prob(value).expand(2, 3, 5))
    several = torch.randint(7, (4, 3, 5))
    torch.testing.assert_close(ours.log_prob(several), torchs.log_prob(several))
    torch.testing.assert_close(distribution_of(params_of(ours)).logits, torchs.logits)


def test_scores_in_half_precision_are_read_in_float32():
    scores, value = (torch.randn(3, 7) * 3).bfloat16(), torch.randint(7, (3,))
    ours, exact = TokenDistribution(scores.requires_grad_()), Categorical(logits=scores.detach().float())
    for actual, expected in (
        (ours.log_prob(value), exact.log_prob(value)),
        (ours.entropy(), exact.entropy()),
        (ours.logits, exact.logits),
    ):
        assert actual.dtype == torch.float32
        torch.testing.assert_close(actual, expected)
    ours.log_prob(value).sum().backward()
    expected = torch.nn.functional.one_hot(value, 7) - exact.probs
    torch.testing.assert_close(scores.grad, expected.bfloat16())
    scores.grad = None
    ours.entropy().sum().backward()
    of_entropy = -exact.probs * (exact.logits + exact.entropy()[:, None])
    torch.testing.assert_close(scores.grad, of_entropy.bfloat16())


def test_divergences_from_and_to_others():
    a, b = torch.randn(6, 4), torch.randn(6, 4)
    expected = kl_divergence(Categorical(logits=a), Categorical(logits=b))
    torch.testing.assert_close(kl_divergence(TokenDistribution(a), TokenDistribution(b)), expected)
    torch.testing.assert_close(kl_divergence(Categorical(logits=a), TokenDistribution(b)), expected)


def test_the_gradient_of_a_log_probability():
    """∂ log π(a) / ∂x = 1[a] − softmax(x): with two equal scores ±½."""
    scores = torch.zeros(1, 2, requires_grad=True)
    TokenDistribution(scores).log_prob(torch.tensor([1])).sum().backward()
    torch.testing.assert_close(scores.grad, torch.tensor([[-0.5, 0.5]]))
    scores = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    value = torch.tensor([0, 5, 2, 2])
    assert torch.autograd.gradcheck(lambda x: TokenDistribution(x).log_prob(value), (scores,))


def test_a_sample_is_never_a_token_without_probability():
    scores = torch.zeros(1, 4)
    scores[:, 1:3] = -torch.inf
    torch.manual_seed(0)
    assert set(TokenDistribution(scores).sample((200,)).flatten().tolist()) == {0, 3}
