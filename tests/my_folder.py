"""The folder `my/` that conf/chat reads: a random instruct model, prompts, feedback of every kind, and reviews.

The model is a Llama with 2.8 million random parameters, a ChatML template and a byte tokenizer. Its replies are random
printable characters and sometimes end by themselves, so they can be quoted and judged.
"""

import json
from pathlib import Path

import torch

from lightning_nlf.networks import DecoderShape, TransformerPolicy
from tests.data_modules.text.chats import SHAPES, folder

SEED = 0
THINGS = ("fiber", "iron", "zinc", "protein", "iodine", "vitamin C", "calcium", "potassium", "folate", "magnesium")
QUESTIONS = (
    "What are some foods that are high in {}?",
    "Why does the body need {}?",
    "How much {} should an adult eat in a day?",
    "Can there be too much {} in a meal?",
)
GOOD, FAIR, BAD = "As per the USDA, {} is in beans and nuts.", "{} is in many foods.", "I do not know {}."
CRITIQUE = "Please provide a source, like Mayo Clinic or USDA."


def my_folder(place: Path) -> Path:
    """Write `place/my` and return it."""
    my = place / "my"
    _write_model(my / "model")
    pairs = [(question.format(topic), topic) for question in QUESTIONS for topic in THINGS]
    _write_lines(my / "prompts.jsonl", [_prompt(i, *pair) for i, pair in enumerate(pairs)])
    _write_lines(my / "feedback.jsonl", [line for i, pair in enumerate(pairs) for line in _feedback(i, *pair)])
    _write_lines(my / "reviews.jsonl", [_review(i, *pair) for i, pair in enumerate(pairs)])
    return my


def _write_lines(path: Path, records: list[dict]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def _prompt(place: int, text: str, topic: str) -> dict:
    """Line of a prompt file with facts. Every fifth is a chat, every third has an expected response."""
    turns = [("user", f"Tell me of {topic}."), ("assistant", FAIR.format(topic)), ("user", text)]
    chat = [{"role": role, "content": content} for role, content in turns]
    record = {"id": f"question-{place}", "prompt": chat if place % 5 == 0 else text}
    record |= {"expected": GOOD.format(topic)} if place % 3 == 0 else {}
    return record | {"facts": {"reference": GOOD.format(topic)}}


def _feedback(place: int, text: str, topic: str) -> list[dict]:
    """Two lines: scored replies with a critique and the expected response, and a ranking, sometimes with a tie."""
    good, fair, bad = (template.format(topic) for template in (GOOD, FAIR, BAD))
    scored = {"id": f"score-{place}", "prompt": text, "responses": [fair, bad], "score": [0.6, place % 3 / 10]}
    scored |= {"critique": [CRITIQUE, None], "expected": good, "source": "ana"}
    ranked = {"id": f"order-{place}", "prompt": text, "responses": [fair, good, bad], "source": "ben"}
    ranked["ranking"] = ("B > A > C", "B > A = C")[place % 2]
    return [scored, ranked]


def _review(place: int, text: str, topic: str) -> dict:
    """Line of one person's review, in the form that `pull` writes."""
    record = {"id": f"review-{place}:ana", "prompt": text, "responses": [FAIR.format(topic)], "source": "ana"}
    return record | {"score": (0.2, 0.5, 1.0)[place % 3], "critique": CRITIQUE, "expected": GOOD.format(topic)}


def _write_model(path: Path) -> None:
    """Write the model. Dimension 0 of the residual stream is constant, so the head's column 0 is a bias per token."""
    from tokenizers import Tokenizer

    folder(path, SHAPES["chatml"], "bytes")
    tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
    texts = [tokenizer.decode([token], skip_special_tokens=True) for token in range(tokenizer.get_vocab_size())]
    torch.manual_seed(SEED)
    shape = DecoderShape(
        vocabulary=len(texts), layers=6, heads=6, width=192, context=2048, family="llama", tied=False, init_std=0.05
    )
    policy = TransformerPolicy(shape)
    bias = torch.tensor([0.0 if text.isprintable() and text.isascii() and text else -1.0 for text in texts])
    bias[tokenizer.token_to_id(SHAPES["chatml"].eos)] = -0.3
    with torch.no_grad():
        policy.decoder.embed.weight[:, 0] = 2.0
        policy.lm_head.weight[:, 0] = bias
    policy.export(path)
