"""Replies to held-out prompts while training on fixed rows: they are shown and measured, and change nothing."""

import json
import sys
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
import yaml

from data_modules.feedback import FeedbackDataModule
from data_modules.text import DemonstrationsDataModule, WordTokenizer
from data_modules.text.environment import Case
from lightning_nlf.cli.command_line import main
from lightning_nlf.modules import ObjectiveModule
from lightning_nlf.networks import GRUPolicy, GRUReward
from lightning_nlf.objectives import BradleyTerryReward, DPOPolicy, ImitationPolicy

ROOT = Path(__file__).parents[3]
PLAYED = {"return", "return_sampled", "length", "finished", "part/sentiment", "part/fluency_sampled"}
LINES = [
    {"prompt": f"this {topic} was", "responses": ["a letdown .", "great ."], "ranking": "B > A"}
    for topic in ("museum", "movie", "book", "hotel", "game")
]
ECHOED = [{"prompt": f"say {word}", "responses": [f"{word} {word}", "fox"], "score": [1, 0], "ranking": "A > B"}
          for word in ("ant", "bee", "cow", "dog")]  # fmt: skip


def spec(class_path, **init_args):
    return {"class_path": class_path, "init_args": init_args}


POLICY = spec(
    "lightning_nlf.networks.TransformerPolicy",
    shape={"vocabulary": 288, "layers": 1, "heads": 2, "width": 16, "context": 48},
    dropout=0.2,  # random numbers of a fit
)
TEXT = {"task": spec("data_modules.text.PositiveReviews"), "tokenizer": spec("data_modules.text.WordTokenizer")}
KINDS = {
    "sft": (
        spec("lightning_nlf.objectives.ImitationPolicy", policy=POLICY, divergence="nll"),
        spec("data_modules.text.DemonstrationsDataModule", rows=16, minibatches=2, **TEXT),
        {"imitation", "divergence", "accuracy", "perplexity"},
    ),
    "dpo": (
        spec("lightning_nlf.objectives.DPOPolicy", policy=POLICY),
        spec(
            "data_modules.feedback.FeedbackDataModule",
            path="said.jsonl", use=["ranking"], val_share=0.4, minibatches=2, context=48, **TEXT,
        ),
        {"preference", "accuracy", "margin", "chosen_reward", "rejected_reward", "reference_kl"},
    ),
}  # fmt: skip


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path])


def write_lines(lines, path="said.jsonl"):
    Path(path).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def fitted(kind, prompts):
    model, data, _ = KINDS[kind]
    trainer = {"logger": False, "enable_progress_bar": False, "max_epochs": 2, "accelerator": "cpu"}
    trainer["callbacks"] = [
        spec("lightning_nlf.callbacks.BestCheckpoint", monitor="val/accuracy", tie_break=None),
    ]
    data = data | {"init_args": data["init_args"] | {"evaluation_prompts": prompts}}
    Path("run.yaml").write_text(
        yaml.safe_dump({"seed_everything": 3, "trainer": trainer, "model": model, "data": data})
    )
    return main(["fit", "--config", "run.yaml", "--run_dir", f"run{prompts}"]).trainer.callback_metrics


@pytest.mark.parametrize("kind", KINDS)
def test_a_fit_shows_what_is_said_and_learns_the_same(kind):
    """With and without replies: the same weights in spite of dropout, and the same metrics of held-out rows."""
    write_lines(LINES)
    on, off = fitted(kind, 5), fitted(kind, 0)
    held_out = {f"val/{name}" for name in KINDS[kind][2]}
    assert {name for name in off if name.startswith("val/")} == held_out
    assert all(torch.equal(on[name], off[name]) for name in held_out)
    names = PLAYED | ({"kl_sampled"} if kind == "dpo" else set())
    assert {f"val/{name}" for name in names} <= on.keys()
    for name in ("last", "best"):
        first, two = (ObjectiveModule.load_from_checkpoint(f"run{n}/checkpoints/{name}.ckpt") for n in (5, 0))
        assert all(torch.equal(a, b) for a, b in zip(first.parameters(), two.parameters(), strict=True))
    assert not list(Path("run0").rglob("transcript*"))
    head, _, *rows = Path("run5/exhibits/transcript.md").read_text().splitlines()
    assert head == "| prompt | reply | score | parts | expected |" and len(rows) == 5
    scores = [float(row.split(" | ")[2]) for row in rows]
    assert sum(scores) / 5 == pytest.approx(float(on["val/return"]), abs=0.006)  # three digits a score
    assert all(row.split(" | ")[3].startswith("sentiment ") and row.split(" | ")[4] != " |" for row in rows)
    assert len(list(Path("run5/exhibits/transcripts").iterdir())) == 2


def validated(module, data):
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, max_epochs=1
    )
    trainer.validate(module, data, verbose=False)
    return trainer.callback_metrics


def policy(kind=ImitationPolicy, vocabulary=15, **knobs):
    return kind(policy=GRUPolicy(vocabulary=vocabulary, width=8), **knobs)


def test_a_reward_model_says_nothing(echo):
    data = FeedbackDataModule(write_lines(ECHOED), WordTokenizer(), use=("ranking",), val_share=0.5, task=echo)
    metrics = validated(BradleyTerryReward(reward=GRUReward(vocabulary=15, width=8)), data)
    assert (
        metrics.keys() == {"val/loss", "val/bradley_terry", "val/accuracy", "val/calibration_error"} and not data.cases
    )


def test_prompts_are_played_without_held_out_rows_behind_the_best_code(echo):
    """A reply gets as many tokens as the longest in the file, two words and the end."""
    data = FeedbackDataModule(
        write_lines(ECHOED), WordTokenizer(), use=("score",), control_codes=(" 0", " 1"), context=9, task=echo
    )
    metrics = validated(policy(divergence="nll"), data)
    assert metrics["val/length"] <= 3 and "val/imitation" not in metrics and data.longest_row == 6
    assert [data.tokenizer.decode(prompt.ids) for prompt in data.cases["val"]] == ["say elk 1", "say fox 1"]
    assert data.conversation.max_new == 3 and len(data.transcript_rows) == 2


def test_turns_are_played_as_they_were_demonstrated(walks):
    """A prompt is the environment's last text: rows of one turn, none longer than a demonstration."""
    walks.demonstrations = lambda split: [("3 more", "ant bee"), ("2 more", "ant")]
    data = DemonstrationsDataModule(WordTokenizer(), task=walks)
    metrics = validated(policy(divergence="nll"), data)
    assert metrics["val/turns"] == 2 and data.conversation.max_new == 3 and data.longest_row == 5


def test_replies_get_the_room_that_there_is(echo):
    """Rows have 3 tokens, and the longest held-out prompt has 2 of them; a prompt of 3 leaves no room."""
    path = write_lines([{"prompt": "say", "responses": ["ant", "bee"], "ranking": "A > B"}] * 2)
    data = FeedbackDataModule(path, WordTokenizer(), use=("ranking",), task=echo)
    validated(policy(DPOPolicy), data)
    assert data.conversation.max_new == 1 and data.longest_row == 3
    echo.cases = lambda split: [Case("long", "say ant bee", {"word": "ant"})]
    for context, message in (
        (None, "have up to 3 tokens .* no room .* give the policy's `context`"),
        (3, "0 turns replies off"),
    ):
        data = FeedbackDataModule(path, WordTokenizer(), use=("ranking",), task=echo, context=context)
        with pytest.raises(ValueError, match=f"evaluation_prompts: .*{message}"):
            validated(policy(DPOPolicy), data)
    with pytest.raises(ValueError, match="evaluation_prompts: got -1"):
        FeedbackDataModule(path, WordTokenizer(), evaluation_prompts=-1)


def test_the_sampled_reply_is_at_the_temperature_that_is_asked(echo):
    """At 10⁻⁶ it is the greedy reply, token by token."""
    path = write_lines(ECHOED)
    knobs = {"tokenizer": WordTokenizer(), "path": path, "task": echo, "use": ("ranking",)}
    data, model = FeedbackDataModule(**knobs, temperature=1e-6), policy(DPOPolicy)
    validated(model, data)
    greedy, sampled = (data.evaluate(model, np.random.default_rng(0), how) for how in (True, False))
    assert torch.equal(greedy.actions, sampled.actions)
    with pytest.raises(ValueError, match="temperature: got 0, must be above 0"):
        FeedbackDataModule(**knobs, temperature=0)
