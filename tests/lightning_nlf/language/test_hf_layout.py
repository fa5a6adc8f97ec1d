"""Hugging Face layout: logits of transformers from its files, and from files that we write."""

import json

import pytest
import torch

from lightning_nlf.language import hf_config
from lightning_nlf.networks import DecoderShape, TransformerPolicy, TransformerReward

transformers = pytest.importorskip("transformers")

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZES |= {"num_key_value_heads": 2, "max_position_embeddings": 32, "vocab_size": 40}
SIZES |= {"bos_token_id": None, "eos_token_id": None}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32, "vocab_size": 40}
GPT2 |= {"bos_token_id": None, "eos_token_id": None}
CONFIGS = {
    "gpt2": ("GPT2Config", GPT2),
    "gpt2 untied": ("GPT2Config", GPT2 | {"n_inner": 40, "tie_word_embeddings": False}),
    "llama": ("LlamaConfig", SIZES | {"rope_parameters": {"rope_theta": 500.0, "rope_type": "default"}}),
    "llama tied": ("LlamaConfig", SIZES | {"tie_word_embeddings": True, "rms_norm_eps": 1e-3}),
    "qwen2": ("Qwen2Config", SIZES),
    "qwen3": ("Qwen3Config", SIZES | {"head_dim": 16}),
}
IDS = torch.randint(40, (3, 20), generator=torch.Generator().manual_seed(0))


def model(name: str) -> torch.nn.Module:
    """Random and large weights, including norms and biases, so that a missing one is noticed."""
    torch.manual_seed(0)
    config, sizes = CONFIGS[name]
    built = transformers.AutoModelForCausalLM.from_config(getattr(transformers, config)(**sizes)).eval()
    for key, parameter in built.named_parameters():
        torch.nn.init.normal_(parameter, mean=float("norm" in key or "ln_" in key), std=0.2)
    return built


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_logits_are_those_of_transformers(name, tmp_path):
    theirs = model(name)
    theirs.save_pretrained(tmp_path)
    ours = TransformerPolicy(weights=str(tmp_path)).eval()
    expected = theirs(IDS).logits
    assert expected.std() > 0.5  # a nearly uniform model would hide differences
    torch.testing.assert_close(ours.scores(ours.features(IDS)), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_what_is_exported_has_the_same_logits_in_transformers(name, tmp_path):
    model(name).save_pretrained(tmp_path / "theirs")
    ours = TransformerPolicy(weights=str(tmp_path / "theirs")).eval()
    ours.export(tmp_path / "ours")
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    torch.testing.assert_close(theirs(IDS).logits, ours.scores(ours.features(IDS)), atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen2", "qwen3"])
def test_a_shape_survives_its_config(family, tmp_path):
    shape = DecoderShape(30, 1, 4, 32, 16, family, hidden=24, tied=False, rope_theta=77.0 if family != "gpt2" else 1e4)
    (tmp_path / "config.json").write_text(json.dumps(hf_config.config_of(shape)))
    assert hf_config.shape_in(tmp_path) == shape


def test_several_files_are_read_by_their_index(tmp_path):
    theirs = model("llama")
    theirs.save_pretrained(tmp_path, max_shard_size="10KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    ours = TransformerPolicy(weights=str(tmp_path))
    torch.testing.assert_close(ours.decoder.norm.weight, theirs.model.norm.weight)
    torch.testing.assert_close(ours.lm_head.weight, theirs.lm_head.weight)


def test_a_reward_takes_the_trunk(tmp_path):
    theirs = model("qwen2")
    theirs.save_pretrained(tmp_path)
    torch.testing.assert_close(
        TransformerReward(weights=str(tmp_path)).decoder.embed.weight, theirs.model.embed_tokens.weight
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "mamba"}, "is a mamba.*HuggingFacePolicy"),
        ({"hidden_act": "relu"}, "'hidden_act': 'relu'.*HuggingFacePolicy"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, "llama3"),
        ({"attention_bias": True}, "attention_bias"),
        ({"intermediate_size": 64}, r"gate_proj.* has shape \(96, 32\), but config.json gives \(128, 32\)"),
    ],
)
def test_what_the_decoder_is_not_is_refused(change, message, tmp_path):
    model("llama").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ValueError, match=message):
        TransformerPolicy(weights=str(tmp_path))


def test_folders_that_are_no_model_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no config.json"):
        TransformerPolicy(weights=str(tmp_path))
    model("llama").save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"no \*.safetensors"):
        TransformerPolicy(weights=str(tmp_path))


def test_another_shape_than_that_of_the_weights_is_refused(tmp_path):
    model("gpt2").save_pretrained(tmp_path)
    TransformerPolicy(DecoderShape(40, 2, 4, 32, 32), weights=str(tmp_path))
    with pytest.raises(ValueError, match="shape: .* has another shape, .*layers=2"):
        TransformerPolicy(DecoderShape(40, 3, 4, 32, 32), weights=str(tmp_path))


def test_a_missing_tensor_is_named(tmp_path):
    from safetensors.torch import load_file, save_file

    model("gpt2").save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    del tensors["transformer.h.1.ln_2.weight"]
    save_file(tensors, path)
    with pytest.raises(ValueError, match=r"no tensor h\.1\.ln_2\.weight"):
        TransformerPolicy(weights=str(tmp_path))
