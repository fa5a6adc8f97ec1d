"""LoRA on our decoder: outputs, trained parameters, and sampling with merged additions."""

from pathlib import Path

import pytest
import torch

from lightning_nlf.language import decode_graph, generation
from lightning_nlf.language.additions import layers_with_additions, merged_additions
from lightning_nlf.networks import DecoderShape, LoRA, TransformerPolicy
from lightning_nlf.objectives.reference_cache import digest

ALL = {
    "gpt2": ["c_attn", "c_proj", "c_fc"],
    "llama": ["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"],
    "qwen3": ["k_proj", "gate_proj"],
}


def policy(family="llama", targets=None, spread=0.3, **how):
    torch.manual_seed(0)
    kv_heads = 4 if family == "gpt2" else 2
    shape = DecoderShape(vocabulary=40, layers=2, heads=4, width=32, context=64, family=family, kv_heads=kv_heads)
    network = TransformerPolicy(shape, lora=LoRA(r=2, alpha=6, target_modules=targets), **how).eval()
    with torch.no_grad():
        for name, x in network.named_parameters():
            if "lora_" in name:
                x.normal_(std=spread)
            elif x.ndim == 2:
                x *= 5  # a nearly uniform model would hide differences
    return network


@pytest.mark.parametrize("family", ALL)
@torch.no_grad()
def test_an_addition_is_alpha_over_r_times_the_product_of_its_matrices(family):
    """Each layer's output is that of W + (6 / 2) B A, in the rows of its targets."""
    for layer in layers_with_additions(policy(family, ALL[family]).decoder):
        x, expected = torch.randn(3, layer.in_features), []
        for name, rows in zip(layer.rows, layer.weight.split(list(layer.rows.values())), strict=True):
            added = 3 * layer.lora_B[name] @ layer.lora_A[name] if name in layer.lora_A else 0
            expected.append(x @ (rows + added).T)
        bias = 0 if layer.bias is None else layer.bias
        torch.testing.assert_close(layer(x), torch.cat(expected, 1) + bias, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize(("family", "default"), [("gpt2", {"c_attn"}), ("llama", {"q_proj", "v_proj"})])
def test_by_default_targets_are_those_of_peft_and_nothing_else_trains(family, default):
    network = policy(family, spread=0.0)
    trained = {name for name, x in network.named_parameters() if x.requires_grad}
    assert {name.split(".")[-1] for name in trained} == default
    assert len(trained) == 2 * 2 * len(default)  # two matrices in each of two layers
    ids = torch.randint(40, (2, 5))
    network.train()(ids).log_prob(ids).sum().backward()
    assert {name for name, x in network.named_parameters() if x.grad is not None} == trained


def test_the_frozen_policy_is_the_start_in_the_same_memory_whatever_is_trained():
    torch.manual_seed(0)
    shape = DecoderShape(vocabulary=40, layers=2, heads=4, width=32, context=64, family="llama")
    network, ids = TransformerPolicy(shape, lora=LoRA(r=2)), torch.randint(40, (2, 5))
    frozen = network.frozen()
    assert not list(frozen.parameters())
    before, identity = network(ids).logits.detach(), digest(frozen)
    assert torch.equal(frozen(ids).logits, before)  # an addition is initially 0
    optimizer = torch.optim.SGD([x for x in network.parameters() if x.requires_grad], lr=1.0)
    for _ in range(2):
        network(ids).log_prob(ids).sum().backward()
        optimizer.step()
    assert not torch.allclose(network(ids).logits, before, atol=1e-2)
    assert torch.equal(frozen(ids).logits, before) and digest(frozen) == identity


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("family", ALL)
def test_what_is_sampled_is_as_likely_in_learning_and_the_weights_are_left_as_they_were(family, graph, monkeypatch):
    """With the token loop, and with the step that a GPU replays."""
    monkeypatch.setattr(decode_graph, "fits", lambda policy, logits: graph)
    network, ids = policy(family, ALL[family]), torch.randint(1, 40, (3, 5))
    before = {name: x.clone() for name, x in network.state_dict().items()}
    for context in (torch.inference_mode, torch.no_grad):
        with context():
            tokens, log_probs, ends, _ = generation.reply(
                network, ids, torch.full((3,), 5), stop=(0,), max_new=12, seeds=torch.arange(3)
            )
        row = torch.cat([ids, tokens], 1)
        learning = network(row[:, :-1]).log_prob(row[:, 1:])[:, 4:]
        where = torch.arange(tokens.shape[1]) < ends[:, None]
        torch.testing.assert_close(learning[where], log_probs[where], atol=2e-5, rtol=0)
        start = network.frozen()(row[:, :-1]).log_prob(row[:, 1:])[:, 4:]
        assert not torch.allclose(start[where], log_probs[where], atol=0.1)
    assert all(torch.equal(x, before[name]) for name, x in network.state_dict().items())
    assert all(layer.adds for layer in layers_with_additions(network.decoder))


@torch.no_grad()
def test_a_token_costs_no_more_products_than_without(monkeypatch):
    counted = []
    linear = torch.nn.functional.linear
    monkeypatch.setattr(torch.nn.functional, "linear", lambda *inputs: counted.append(1) or linear(*inputs))
    ids, lengths = torch.randint(1, 40, (2, 5)), torch.full((2,), 5)
    plain = TransformerPolicy(policy().decoder.shape).eval()
    counts = []
    for network in (plain, policy(targets=ALL["llama"])):
        counted.clear()
        generation.reply(network, ids, lengths, stop=(50,), max_new=4, seeds=torch.arange(2))
        counts.append(len(counted))
    assert counts[0] == counts[1] > 0


@torch.no_grad()
def test_weights_come_back_when_sampling_fails():
    network = policy()
    before = {name: x.clone() for name, x in network.state_dict().items()}
    with pytest.raises(KeyError), merged_additions(network.decoder):
        assert not torch.equal(network.decoder.blocks[0].qkv.weight, before["decoder.blocks.0.qkv.weight"])
        raise KeyError
    assert all(torch.equal(x, before[name]) for name, x in network.state_dict().items())


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens", "proj", "c_attn"])
def test_a_target_that_is_no_layer_of_the_decoder_is_refused(target):
    with pytest.raises(
        ValueError, match=rf"lora: target_modules: {target} is not a layer of this decoder; choose from d"
    ):
        policy(targets=["q_proj", target])


@torch.no_grad()
def test_a_target_may_be_of_one_layer():
    network = policy(targets=["1.self_attn.q_proj"])
    assert {name.rsplit(".lora_", 1)[0] for name, x in network.named_parameters() if x.requires_grad} == {
        "decoder.blocks.1.qkv"
    }


@pytest.mark.parametrize("family", ALL)
@torch.no_grad()
def test_the_export_has_the_additions_in(family, tmp_path: Path):
    network, ids = policy(family, ALL[family]), torch.randint(40, (2, 9))
    network.export(tmp_path)
    again = TransformerPolicy(weights=str(tmp_path)).eval()
    torch.testing.assert_close(again(ids).logits, network(ids).logits, atol=1e-4, rtol=0)
