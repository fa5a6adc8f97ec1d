"""Ten chat templates as pretrained models have them, and small tokenizers of three kinds."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

CORPUS = [
    "user assistant system model : what is it that you want ? I want nothing , thank you .",
    "Hello, how are you today? INST im_end im_start end of turn text header id think <b> </b> | [1] {2}",
    "the answer is 2 < 3 > 1 and so on\nnew line\n\nanother one",
]


@dataclass(frozen=True)
class Shape:
    """A chat template and its tokens; `words` are those that are not special."""

    template: str
    special: tuple[str, ...]
    words: tuple[str, ...] = ()
    eos: str = ""
    bos: str = ""
    system: bool = True  # whether it accepts a system message
    rstrip: bool = False  # flag of the special tokens


def _turns(user: str, assistant: str, system: str, end: str, before: str = "", strip: str = "") -> str:
    """Each message between its own opening and `end`."""
    return (
        before + "{% for m in messages %}{% if m.role == 'system' %}" + system + "{% elif m.role == 'user' %}" + user
        + "{% else %}" + assistant + "{% endif %}{{ m.content" + strip + " }}" + end + "{% endfor %}"
        "{% if add_generation_prompt %}" + assistant + "{% endif %}"
    )  # fmt: skip


BEGIN = "{{ bos_token }}"
REFUSED = "{{ raise_exception('there is no system role') }}"
CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
ANSWER = "{% set said = m.content %}{% if '</think>' in said %}{% set said = said.split('</think>')[-1] %}{% endif %}"
SHAPES = {
    "chatml": Shape(
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>' + '\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
        CHATML, eos="<|im_end|>",
    ),
    "llama2": Shape(
        "{% if messages[0].role == 'system' %}{% set told = '<<SYS>>\\n' + messages[0].content + '\\n<</SYS>>\\n\\n' %}"
        "{% set rest = messages[1:] %}{% else %}{% set told = '' %}{% set rest = messages %}{% endif %}"
        "{% for m in rest %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('take turns') }}"
        "{% endif %}{% if loop.first %}{% set text = told + m.content %}{% else %}{% set text = m.content %}{% endif %}"
        "{% if m.role == 'user' %}{{ bos_token + '[INST] ' + text | trim + ' [/INST]' }}"
        "{% else %}{{ ' ' + text | trim + ' ' + eos_token }}{% endif %}{% endfor %}",
        ("<s>", "</s>"), eos="</s>", bos="<s>",
    ),
    "llama3": Shape(
        "{% for m in messages %}{% set text = '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' + m.content "
        "| trim + '<|eot_id|>' %}{{ bos_token + text if loop.first else text }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}",
        ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        eos="<|eot_id|>", bos="<|begin_of_text|>",
    ),
    "gemma": Shape(
        _turns("<start_of_turn>user\n", "<start_of_turn>model\n", REFUSED, "<end_of_turn>\n", BEGIN, "|trim"),
        ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"), eos="<eos>", bos="<bos>", system=False,
    ),
    "phi": Shape(
        "{% for m in messages %}{{ '<|' + m.role + '|>' + '\\n' + m.content + '<|end|>' + '\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>' + '\\n' }}{% endif %}",
        ("<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"), eos="<|end|>", rstrip=True,
    ),
    "mistral": Shape(
        "{{ bos_token }}{% if messages[0].role == 'system' %}{% set told = messages[0].content %}"
        "{% set rest = messages[1:] %}{% else %}{% set told = none %}{% set rest = messages %}{% endif %}"
        "{% for m in rest %}{% if m.role == 'user' %}{% if loop.last and told is not none %}"
        "{{ '[INST] ' + told + '\\n\\n' + m.content + '[/INST]' }}{% else %}{{ '[INST] ' + m.content + '[/INST]' }}"
        "{% endif %}{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}",
        ("<s>", "</s>", "[INST]", "[/INST]"), eos="</s>", bos="<s>",
    ),
    "qwen": Shape(
        "{% for m in messages %}{% if m.role == 'assistant' %}" + ANSWER + "{% set said = said.lstrip('\\n') %}"
        "{% elif m.content.startswith('<tool_response>') %}{% set said = m.content | trim %}"
        "{% else %}{% set said = m.content %}{% endif %}"
        "{{ '<|im_start|>' + m.role + '\\n' + said + '<|im_end|>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n<think>\\n' }}{% endif %}",
        CHATML, ("<think>", "</think>", "<tool_response>"), eos="<|im_end|>",
    ),
    "zephyr": Shape(
        _turns("<|user|>\n", "<|assistant|>\n", "<|system|>\n", "{{ eos_token }}\n"), ("<s>", "</s>"), eos="</s>"
    ),
    "deepseek": Shape(
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}{% elif m.role == 'user' %}"
        "{{ '<｜User｜>' + m.content }}{% else %}" + ANSWER + "{{ '<｜Assistant｜>' + said + eos_token }}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<｜Assistant｜>' }}{% endif %}",
        ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"), ("<think>", "</think>"),
        eos="<｜end▁of▁sentence｜>", bos="<｜begin▁of▁sentence｜>",
    ),
    "plain": Shape(
        _turns("<human>: ", "<bot>: ", REFUSED, "<turn>"), ("<end>", "<human>", "<bot>", "<turn>"), eos="<end>",
        system=False,
    ),
}  # fmt: skip
KINDS = ("bytes", "pieces", "unigram")


def folder(place: Path, shape: Shape, kind: str) -> str:
    """A model folder with a tokenizer and its template."""
    backend = Tokenizer.from_str(_trained(kind, shape.special[:2] if kind != "bytes" else ()))
    flags = {"normalized": False, "rstrip": shape.rstrip}
    backend.add_special_tokens([AddedToken(text, special=True, **flags) for text in (*shape.special, "<pad>")])
    backend.add_tokens([AddedToken(text, special=False, normalized=kind == "unigram") for text in shape.words])
    place.mkdir(parents=True, exist_ok=True)
    backend.save(str(place / "tokenizer.json"))
    declared = {"eos_token": shape.eos, "pad_token": "<pad>"} | ({"bos_token": shape.bos} if shape.bos else {})
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False} | declared
    (place / "tokenizer_config.json").write_text(json.dumps(config))
    (place / "chat_template.jinja").write_text(shape.template, encoding="utf-8")
    return str(place)


@cache
def _trained(kind: str, special: tuple[str, ...]) -> str:
    """Byte-level BPE; BPE of characters, with blanks before words; Unigram with NFKC and special tokens as pieces."""
    how = {"vocab_size": 420, "show_progress": False}
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    if kind == "bytes":
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), **how)
    elif kind == "pieces":
        backend = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        trainer = trainers.BpeTrainer(special_tokens=["<unk>", *special, *fallback], **how)
    else:
        backend = Tokenizer(models.Unigram())
        backend.normalizer = normalizers.NFKC()
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        trainer = trainers.UnigramTrainer(special_tokens=["<unk>", *special, *fallback], unk_token="<unk>", **how)
    backend.train_from_iterator(CORPUS, trainer)
    content = json.loads(backend.to_str())
    content["added_tokens"] = [t for t in content["added_tokens"] if not t["content"].startswith("<0x")]
    if kind == "unigram":
        content["model"]["byte_fallback"] = True
    return json.dumps(content)
