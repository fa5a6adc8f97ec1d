"""Saving memory does not change results: heads in chunks, and layers that are recomputed in the backward pass."""

import pytest
import torch

from lightning_nlf.language import head_distribution
from lightning_nlf.language.head_distribution import HeadDistribution
from lightning_nlf.maths.parts import row_lengths
from lightning_nlf.networks import (
    DecoderShape,
    HuggingFacePolicy,
    HuggingFaceValue,
    LoRA,
    TransformerPolicy,
    TransformerValue,
)

V = 40
SMALL = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
SMALL |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "vocab_size": V}
SMALL |= {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
UNTIED = {"tie_word_embeddings": False}
CAPPED = SMALL | {"model_type": "gemma2", "head_dim": 8, "sliding_window": 64, "final_logit_softcapping": 2.0}
HEAD_TOO = LoRA(r=2, target_modules=["q_proj", "lm_head"])

POLICIES = {
    "tied": lambda **how: TransformerPolicy(DecoderShape(V, 2, 4, 32, 40, "llama", kv_heads=2), **how),
    "untied": lambda **how: TransformerPolicy(DecoderShape(V, 2, 4, 32, 40, "llama", kv_heads=2, tied=False), **how),
    "gpt2": lambda **how: TransformerPolicy(DecoderShape(V, 2, 4, 32, 40, "gpt2"), **how),
    "transformers": lambda **how: HuggingFacePolicy(config=SMALL | UNTIED, **how),
    "transformers, tied": lambda **how: HuggingFacePolicy(config=SMALL | {"tie_word_embeddings": True}, **how),
    "capped": lambda **how: HuggingFacePolicy(config=CAPPED, **how),
    "lora, own": lambda **how: TransformerPolicy(
        DecoderShape(V, 2, 4, 32, 40, "llama"), lora=LoRA(r=2, alpha=16), **how
    ),
    "lora": lambda **how: HuggingFacePolicy(config=SMALL, lora=LoRA(r=2, alpha=16), **how),
    "lora, head too": lambda **how: HuggingFacePolicy(config=SMALL | UNTIED, lora=HEAD_TOO, **how),
}


def build(kind, **how):
    """A network in training mode, with large weights and additions that are not 0."""
    torch.manual_seed(0)
    network = POLICIES[kind](**how).train()
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim == 2:
                torch.nn.init.normal_(parameter, std=0.2)
    return network


def rows():
    torch.manual_seed(1)
    ids = torch.randint(V, (5, 12))
    steps = torch.arange(12)
    return ids, (steps >= 3) & (steps < torch.tensor([5, 12, 8, 11, 6])[:, None])


def results(network, half=False):
    """Log-probabilities, and the gradients of all trained parameters."""
    ids, where = rows()
    network.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        distribution = network(ids, where)
        log_probs = distribution.log_prob(ids[where])
    (log_probs * torch.linspace(-1, 1, len(log_probs))).sum().backward()
    return [log_probs.detach(), *(p.grad.clone() for p in network.parameters() if p.requires_grad)], distribution


def assert_same(actual, expected, atol=1e-6):
    for x, y in zip(actual, expected, strict=True):
        torch.testing.assert_close(x, y, atol=atol * max(1, float(y.abs().max())), rtol=0)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize("kind", POLICIES)
def test_a_head_in_chunks_gives_what_the_whole_gives(kind, temperature, monkeypatch):
    network = build(kind, temperature=temperature)
    whole, _ = results(network)
    monkeypatch.setattr(head_distribution, "CHUNK", 7 * V)
    monkeypatch.setattr(head_distribution, "LARGE", 0)
    parts, distribution = results(network)
    assert isinstance(distribution, HeadDistribution)
    assert_same(parts, whole)


@pytest.mark.parametrize("kind", POLICIES)
def test_and_in_half_precision(kind, monkeypatch):
    network = build(kind)
    whole, _ = results(network, half=True)
    monkeypatch.setattr(head_distribution, "CHUNK", 7 * V)
    monkeypatch.setattr(head_distribution, "LARGE", 0)
    assert_same(results(network, half=True)[0], whole, atol=0.02)


@pytest.mark.parametrize("kind", ["lora", "lora, own", "lora, head too"])
def test_the_reference_has_no_addition_whenever_it_is_asked(kind, monkeypatch):
    network = build(kind).eval()
    ids, where = rows()
    with torch.no_grad():
        expected = network.frozen()(ids, where).log_prob(ids[where])
        assert not torch.allclose(network(ids, where).log_prob(ids[where]), expected, atol=1e-2)
        monkeypatch.setattr(head_distribution, "CHUNK", 7 * V)
        monkeypatch.setattr(head_distribution, "LARGE", 0)
        distribution = network.frozen()(ids, where)
    actual = distribution.log_prob(ids[where])
    assert not actual.requires_grad
    torch.testing.assert_close(actual, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("kind", POLICIES)
def test_layers_that_are_computed_again_give_the_same_gradients(kind):
    assert_same(results(build(kind, checkpoint_activations=True))[0], results(build(kind))[0])


def test_of_a_layer_its_input_alone_is_kept():
    """Counts the numbers that autograd saves, without weights, for eight equal layers."""
    numbers = []
    for again in (False, True):  # approximately `kept_per_token`
        network = TransformerPolicy(DecoderShape(V, 8, 4, 32, 40, "llama"), checkpoint_activations=again).train()
        weights = {p.data_ptr() for p in network.parameters()}
        sizes = {}

        def noted(x, weights=weights, sizes=sizes):
            if x.data_ptr() not in weights:
                sizes[x.data_ptr()] = x.numel()
            return x

        ids, where = rows()
        with torch.autograd.graph.saved_tensors_hooks(noted, lambda x: x):
            outcome = network(ids, where).log_prob(ids[where])
        numbers.append(sum(sizes.values()))
        assert numbers[-1] == pytest.approx(network.kept_per_token * int(row_lengths(where).sum()), rel=0.3)
        outcome.sum().backward()
    assert numbers[1] < 0.5 * numbers[0]


def test_values_are_computed_again_too():
    ids, where = rows()
    for make in (
        lambda **how: TransformerValue(DecoderShape(V, 2, 4, 32, 40, "llama"), **how),
        lambda **how: HuggingFaceValue(config=SMALL, **how),
    ):
        gradients = []
        for again in (False, True):
            torch.manual_seed(0)
            network = make(checkpoint_activations=again).train()
            torch.nn.init.normal_(network.head.weight)
            network(ids, where).sum().backward()
            gradients.append([p.grad for p in network.parameters()])
        assert_same(*gradients)


def test_dropout_falls_alike_when_a_layer_is_computed_again():
    outcomes = []
    for again in (False, True):
        network = build("gpt2", dropout=0.3, checkpoint_activations=again)
        torch.manual_seed(2)
        outcomes.append(results(network)[0])
    torch.testing.assert_close(outcomes[0][0], outcomes[1][0])
    assert_same(*outcomes)
