"""Architectures of transformers: positions are the same in sampling and in learning, or a model is refused."""

import re
from pathlib import Path

import pytest
import torch

from lightning_nlf.language.hf_cache import Memory
from lightning_nlf.networks import HuggingFacePolicy, HuggingFaceReward, HuggingFaceValue

pytest.importorskip("transformers")

NONE = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
PAD = NONE | {"pad_token_id": 0}
PLAIN = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
PLAIN |= {"max_position_embeddings": 64, "vocab_size": 40}
HEADS = PLAIN | {"num_key_value_heads": 2} | NONE
WIDE = HEADS | {"head_dim": 8}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": 40} | NONE
OF_8 = {"sliding_window": 8}
FEW_EXPERTS = {"num_local_experts": 2, "num_experts_per_tok": 1}
RUN = {
    "apertus": HEADS,
    "arcee": HEADS,
    "biogpt": PLAIN | PAD,
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": 40} | NONE,
    "codegen": GPT2 | {"rotary_dim": 8},
    "cohere": HEADS,
    "cohere2": WIDE | OF_8,
    "ctrl": GPT2 | {"dff": 48},
    "deepseek_v3": PLAIN
    | {"kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
    | {"n_routed_experts": 4, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    | {"first_k_dense_replace": 1}
    | NONE,
    "exaone4": HEADS | OF_8 | {"sliding_window_pattern": 2},
    "falcon": PLAIN | NONE | {"alibi": True},
    "gemma": WIDE,
    "gemma2": WIDE | OF_8,
    "gemma3_text": WIDE | OF_8 | {"layer_types": ["sliding_attention", "full_attention"]},
    "glm4": WIDE | PAD,
    "gpt2": GPT2,
    "gpt_bigcode": GPT2,
    "gpt_neo": {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]}
    | {"window_size": 8, "max_position_embeddings": 64, "vocab_size": 40}
    | NONE,
    "gpt_neox": PLAIN | NONE,
    "gpt_oss": WIDE | OF_8 | FEW_EXPERTS,
    "gptj": GPT2 | {"rotary_dim": 8},
    "granite": HEADS,
    "granitemoe": HEADS | FEW_EXPERTS,
    "helium": WIDE,
    "llama": HEADS,
    "mistral": HEADS | OF_8,
    "mixtral": HEADS | OF_8 | FEW_EXPERTS,
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 64, "vocab_size": 40} | NONE,
    "nemotron": HEADS,
    "olmo": HEADS,
    "olmo2": HEADS,
    "olmo3": HEADS | OF_8,
    "opt": PLAIN | {"ffn_dim": 48, "word_embed_proj_dim": 32} | PAD,
    "persimmon": PLAIN | NONE,
    "phi": HEADS,
    "phi3": HEADS | OF_8 | PAD,
    "qwen2": HEADS | OF_8 | {"use_sliding_window": True, "max_window_layers": 0},
    "qwen2_moe": HEADS
    | {"moe_intermediate_size": 16, "shared_expert_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2},
    "qwen3": WIDE,
    "smollm3": HEADS | PAD,
    "stablelm": HEADS,
    "starcoder2": HEADS | OF_8,
    "xglm": {"d_model": 32, "ffn_dim": 48, "num_layers": 2, "attention_heads": 4, "max_position_embeddings": 64}
    | {"vocab_size": 40}
    | PAD,
}
STATES = {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8, "vocab_size": 40} | NONE
LINEAR = {"linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
LINEAR |= {"layer_types": ["linear_attention", "full_attention"]}
REFUSED = {
    "falcon_h1": WIDE | {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8} | PAD,
    "jamba": HEADS
    | {"attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 2, "num_experts_per_tok": 1, "mamba_d_state": 8}
    | {"use_mamba_kernels": False}
    | PAD,
    "lfm2": HEADS | {"layer_types": ["conv", "full_attention"]},
    "mamba": STATES,
    "mamba2": STATES | {"num_heads": 8, "head_dim": 8},
    "openai-gpt": GPT2,
    "qwen3_5_text": WIDE | LINEAR,
    "qwen3_next": WIDE
    | LINEAR
    | {"moe_intermediate_size": 16, "shared_expert_intermediate_size": 16, "num_experts": 2, "num_experts_per_tok": 1},
    "recurrent_gemma": WIDE | {"attention_window_size": 8, "block_types": ["recurrent", "attention"]} | PAD,
    "rwkv": {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 40, "attention_hidden_size": 32} | NONE,
}
TURNS = [(13, 3, 1), (2, 6, 9), (1, 0, 1), (0, 1, 1), (1, 1, 1), (4, 1, 12), (1, 1, 0)]  # tokens of three rows


def policy(kind: str, **how) -> HuggingFacePolicy:
    torch.manual_seed(0)
    return HuggingFacePolicy(config={"model_type": kind} | (RUN | REFUSED)[kind], **how).eval()


@torch.no_grad()
def loud(network: HuggingFacePolicy) -> HuggingFacePolicy:
    """Large weights, because a nearly uniform model would hide differences."""
    for parameter in network.parameters():
        if parameter.ndim == 2:
            parameter *= 5
    return network


@pytest.mark.parametrize("kind", RUN)
@torch.no_grad()
def test_what_is_read_in_turns_has_the_scores_of_the_whole_row(kind):
    """Also beyond a window of 8 tokens, with rows that stop at different times."""
    network, state, rows = loud(policy(kind)), None, [[], [], []]
    generator = torch.Generator().manual_seed(0)
    for lengths in TURNS:
        new = torch.randint(2, 40, (3, max(lengths)), generator=generator)
        scores, state = network.read(new, torch.tensor(lengths), state)
        for row, length in enumerate(lengths):
            rows[row] += new[row, :length].tolist()
            if length:
                whole = network(torch.tensor([rows[row]])).logits[0, -1]
                torch.testing.assert_close(scores[row].log_softmax(-1), whole, atol=1e-4, rtol=0)
    assert state.used.shape[1] < sum(max(lengths) for lengths in TURNS)  # columns that no row uses are dropped


@torch.no_grad()
def test_a_window_of_32_is_of_tokens_in_a_second_turn_too(monkeypatch):
    """The first turn of one row is long and the other's is short: the short row has 20 gaps between its turns."""
    monkeypatch.setitem(RUN, "mistral", HEADS | {"sliding_window": 32})
    network, generator = loud(policy("mistral")), torch.Generator().manual_seed(0)
    first, second = torch.randint(2, 40, (2, 2, 30), generator=generator)
    _, state = network.read(first, torch.tensor([30, 10]))
    scores, _ = network.read(second, torch.tensor([30, 30]), state)
    whole = network(torch.cat([first[1:, :10], second[1:]], 1)).logits[0, -1]
    torch.testing.assert_close(scores[1].log_softmax(-1), whole, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", REFUSED)
def test_a_model_without_keys_and_values_is_refused_when_it_is_built(kind):
    with pytest.raises(ValueError, match=f"^weights: a {kind} (cannot be )?read in turns.*another architecture$"):
        policy(kind)


@pytest.mark.parametrize("kind", ["mpt", "mistral", "gpt_neo", "starcoder2"])
def test_distances_that_differ_are_noticed_when_a_model_is_built(kind, monkeypatch):
    """With gaps between the turns, as for a model that counts columns."""
    monkeypatch.setattr(Memory, "closed", lambda memory, lengths: memory)
    with pytest.raises(ValueError, match=f"^weights: a {kind} read in turns gives scores that differ by .* whole row"):
        policy(kind)


def test_a_context_of_few_tokens_is_tried_within_it(monkeypatch):
    monkeypatch.setitem(RUN, "gpt2", GPT2 | {"n_positions": 2})
    assert policy("gpt2").context == 2


def test_building_draws_nothing_and_leaves_training_mode_as_it_is():
    torch.manual_seed(0)
    import transformers

    config = transformers.AutoConfig.for_model("llama", **HEADS)
    transformers.AutoModelForCausalLM.from_config(config)
    numbers = torch.rand(3)
    torch.manual_seed(0)
    built = HuggingFacePolicy(config={"model_type": "llama"} | HEADS)
    assert torch.equal(torch.rand(3), numbers)
    assert built.training and all(module.training for module in built.modules())


@pytest.mark.parametrize("kind", [HuggingFaceReward, HuggingFaceValue])
def test_a_reward_that_sees_later_tokens_is_refused(kind):
    config = {"model_type": "bert"} | PLAIN | NONE
    with pytest.raises(ValueError, match="^weights: a bert sees later tokens"):
        kind(config=config)
    kind(config={"model_type": "mamba"} | STATES)  # so its memory is not measured


def test_the_documentation_lists_what_runs_and_what_is_refused():
    text = (Path(__file__).parents[3] / "docs/start/language.md").read_text(encoding="utf-8")
    listed = re.search(r"Tested architectures: ([^.]*)\. Refused when built: ([^.]*)\.", re.sub(r"\s+", " ", text))
    assert listed is not None
    assert [re.findall(r"`([^`]+)`", names) for names in listed.groups()] == [sorted(RUN), sorted(REFUSED)]


@torch.no_grad()
def test_reading_in_turns_names_the_cache_as_transformers_will(recwarn):
    """`past_key_values` is removed in transformers 5.40."""
    network = policy("llama")
    _, state = network.read(torch.tensor([[2, 3]]), torch.tensor([2]))
    network.read(torch.tensor([[4]]), torch.tensor([1]), state)
    assert not [warning for warning in recwarn if "past_key_values" in str(warning.message)]
