"""The next-token distribution for a large vocabulary, in chunks, against the whole computation."""

import subprocess
import sys

import pytest
import torch
from torch.distributions import Categorical, kl_divergence

from lightning_nlf.language import head_distribution
from lightning_nlf.language.head_distribution import HeadDistribution, LinearHead, token_distribution
from lightning_nlf.language.token_distribution import TokenDistribution

V, WIDTH, SHAPE = 50, 8, (3, 11)


def measured(distribution, value, gradient):
    """Log-probabilities, entropy and mode, and the gradients of the first two."""
    log_probs, entropy = distribution.log_prob(value), distribution.entropy()
    ((log_probs + 0.3 * entropy) * gradient).sum().backward()
    return [log_probs.detach(), entropy.detach(), distribution.mode]


@pytest.mark.parametrize("chunk", [1, 3 * V + 1, 11 * V, 40 * V])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("trained", ["features", "head", "both"])
@pytest.mark.parametrize("linear", [True, False])
def test_it_is_the_whole_computation_in_values_and_gradients(monkeypatch, chunk, temperature, trained, linear):
    monkeypatch.setattr(head_distribution, "CHUNK", chunk)
    monkeypatch.setattr(head_distribution, "LARGE", 0)
    features = torch.randn(*SHAPE, WIDTH, dtype=torch.float64, requires_grad=trained != "head")
    weight = torch.randn(V, WIDTH, dtype=torch.float64, requires_grad=trained != "features")
    bias = torch.randn(V, dtype=torch.float64, requires_grad=trained != "features")
    value, gradient = torch.randint(V, SHAPE), torch.randn(SHAPE, dtype=torch.float64)
    head = LinearHead(weight, bias, temperature=1.0)
    scores = (lambda x: (x @ weight.T + bias) / temperature) if not linear else head
    learns = [x for x in (features, weight, bias) if x.requires_grad]

    def outcome(distribution):
        for x in learns:
            x.grad = None
        return measured(distribution, value, gradient) + [x.grad.clone() for x in learns]

    ours = outcome(HeadDistribution(features, scores, V))
    whole = outcome(TokenDistribution(scores(features)))
    for actual, expected in zip(ours, whole, strict=True):
        torch.testing.assert_close(actual, expected, atol=1e-6, rtol=1e-6)


def test_a_temperature_divides_the_scores(monkeypatch):
    monkeypatch.setattr(head_distribution, "CHUNK", 4 * V)
    monkeypatch.setattr(head_distribution, "LARGE", 0)
    features, weight, value = torch.randn(9, WIDTH), torch.randn(V, WIDTH, requires_grad=True), torch.randint(V, (9,))
    exact = Categorical(logits=features @ weight.T / 0.5)
    ours = HeadDistribution(features, LinearHead(weight, temperature=0.5), V)
    torch.testing.assert_close(ours.log_prob(value), exact.log_prob(value), atol=1e-5, rtol=0)
    (actual,) = torch.autograd.grad(ours.log_prob(value).sum(), weight)
    (expected,) = torch.autograd.grad(exact.log_prob(value).sum(), weight)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("frozen", [False, True])
def test_in_half_precision_it_is_what_the_whole_is(monkeypatch, frozen):
    """The product in bfloat16, everything else in float32. The backward pass may run outside of autocast."""
    monkeypatch.setattr(head_distribution, "CHUNK", 4 * V)
    monkeypatch.setattr(head_distribution, "LARGE", 0)
    features, weight = torch.randn(9, WIDTH, requires_grad=True), torch.randn(V, WIDTH, requires_grad=not frozen)
    head, value = LinearHead(weight), torch.randint(V, (9,))
    outcomes = []
    for make in (lambda: TokenDistribution(head(features)), lambda: HeadDistribution(features, head, V)):
        features.grad = weight.grad = None
        with torch.autocast("cpu", torch.bfloat16):
            distribution = make()
        log_probs = distribution.log_prob(value)
        log_probs.sum().backward()
        outcomes.append([log_probs.detach(), features.grad, *([] if frozen else [weight.grad])])
    for expected, actual in zip(*outcomes, strict=True):
        assert actual.dtype == torch.float32
        torch.testing.assert_close(actual, expected, atol=0.03, rtol=0.02)
    torch.testing.assert_close(outcomes[0][0], outcomes[1][0], atol=1e-5, rtol=0)


def test_without_gradients_when_made_it_gives_none_later(monkeypatch):
    monkeypatch.setattr(head_distribution, "CHUNK", V)
    monkeypatch.setattr(head_distribution, "LARGE", 0)
    weight = torch.randn(V, WIDTH, requires_grad=True)
    for head in (LinearHead(weight), lambda x: x @ weight.T):
        with torch.no_grad():
            distribution = HeadDistribution(torch.randn(5, WIDTH), head, V)
        assert not distribution.log_prob(torch.randint(V, (5,))).requires_grad
        assert not distribution.logits.requires_grad


def test_the_whole_distribution_is_there_when_it_is_asked_for():
    features, weight = torch.randn(6, WIDTH), torch.randn(V, WIDTH)
    ours, exact = HeadDistribution(features, LinearHead(weight), V), Categorical(logits=features @ weight.T)
    second = Categorical(logits=torch.randn(6, V))
    assert ours.param_shape == exact.param_shape and ours.batch_shape == exact.batch_shape
    torch.testing.assert_close(ours.probs, exact.probs)
    torch.testing.assert_close(kl_divergence(second, ours), kl_divergence(second, exact))
    several = torch.randint(V, (4, 6))
    torch.testing.assert_close(ours.log_prob(several), exact.log_prob(several))
    torch.testing.assert_close(ours.expand((2, 6)).entropy(), exact.entropy().expand(2, 6))
    assert ours.sample((3,)).shape == (3, 6)


def test_small_vocabularies_are_scored_whole(monkeypatch):
    monkeypatch.setattr(head_distribution, "CHUNK", 10 * V)
    monkeypatch.setattr(head_distribution, "LARGE", 0)
    head = LinearHead(torch.randn(V, WIDTH))
    assert type(token_distribution(torch.randn(2, 5, WIDTH), head, V)) is TokenDistribution
    assert type(token_distribution(torch.randn(11, WIDTH), head, V)) is HeadDistribution
    monkeypatch.setattr(head_distribution, "LARGE", V + 1)
    assert type(token_distribution(torch.randn(11, WIDTH), head, V)) is TokenDistribution


PEAK = """
import resource, sys, torch
from lightning_nlf.language import kernels
from lightning_nlf.language.head_distribution import LinearHead, token_distribution
torch.set_num_threads(1)
tokens, vocabulary, width, learned = 2000, 49152, 16, sys.argv[1] == "learned"
weight = torch.randn(vocabulary, width).requires_grad_(learned)
features, value = torch.randn(tokens, width, requires_grad=True), torch.randint(vocabulary, (tokens,))
small = token_distribution(features[:2], LinearHead(weight), vocabulary)  # whatever is loaded at the first call
small.log_prob(value[:2]).sum().backward()
kernels.fit(features)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
token_distribution(features, LinearHead(weight), vocabulary).log_prob(value).sum().backward()
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10)
"""


@pytest.mark.parametrize("trained", ["learned", "frozen"])
def test_the_scores_of_a_large_vocabulary_never_stand_whole(trained):
    """2,000 tokens × 49,152 are 375 MiB. A chunk has 64 MiB, with two or three in memory at a time."""
    run = subprocess.run([sys.executable, "-c", PEAK, trained], capture_output=True, text=True, check=True)
    assert float(run.stdout) < 300
