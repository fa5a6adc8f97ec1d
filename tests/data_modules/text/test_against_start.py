"""Comparison with the start: it does not change what a fit learns, and it shows what the fit changed."""

import json
from dataclasses import replace
from pathlib import Path

import lightning as L
import pytest
import torch

from data_modules.feedback import FeedbackDataModule
from data_modules.judgements.files import read
from data_modules.text import DemonstrationsDataModule, PromptFile, RevisionDataModule, TextDataModule, WordTokenizer
from lightning_nlf.callbacks import BestCheckpoint, Exhibits, LastCheckpoint
from lightning_nlf.networks import GRUPolicy
from lightning_nlf.objectives import DPOPolicy, ImitationPolicy, ReinforcePolicy
from tests.data_modules.text.conftest import WORDS, Echo
from tests.data_modules.text.test_revision_module import Revisable
from tests.lightning_nlf.callbacks.conftest import Memory

PROMPTS = [f"say {word}" for word in WORDS]
JUDGED = [{"prompt": prompt, "responses": ["ant bee", "fox"], "ranking": "A > B", "id": prompt} for prompt in PROMPTS]
SEED = 4  # no greedy reply is empty with it
TAUGHT = [{"prompt": prompt, "expected": "cow dog"} for prompt in PROMPTS]


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write_lines(name, lines):
    Path(name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return name


def task_data(plays=True):
    return TextDataModule(Echo(), tokenizer=WordTokenizer(), prompts=4, replies=2, max_new=3, compare_start=plays)


def revised(plays=True):
    return RevisionDataModule(
        Revisable(), learn=("revisions",), tokenizer=WordTokenizer(), prompts=4, replies=1, max_new=3, context=40,
        compare_start=plays,
    )  # fmt: skip


def unpaid(plays=True):
    task = PromptFile(write_lines("prompts.jsonl", [{"prompt": prompt} for prompt in PROMPTS]), val_share=0.4)
    return TextDataModule(task, tokenizer=WordTokenizer(), prompts=4, replies=2, max_new=3, compare_start=plays)


def demonstrated(plays=True):
    return DemonstrationsDataModule(
        WordTokenizer(),
        path=write_lines("train.jsonl", [*TAUGHT[:4], {"prompt": "ant", "expected": "elk fox"}]),
        val_path=write_lines("val.jsonl", TAUGHT[4:]),
        evaluation_prompts=32 if plays else 0,
    )


def preference_data(plays=True):
    path = write_lines("judged.jsonl", [*JUDGED, {"prompt": "ant cow dog elk", "expected": "fox"}])
    return FeedbackDataModule(
        path, WordTokenizer(), use=("ranking",), val_share=0.34, evaluation_prompts=32 if plays else 0
    )


def imitation(vocabulary=10):
    return ImitationPolicy(policy=network(vocabulary), divergence="nll", optimizer=adam)


def reviser():
    return imitation(31)


def reinforce():
    return ReinforcePolicy(policy=network(15), optimizer=adam)


def dpo():
    return DPOPolicy(policy=network(10), optimizer=adam)


def adam(parameters):
    return torch.optim.Adam(parameters, lr=0.1)


def network(vocabulary):
    torch.manual_seed(SEED)
    return GRUPolicy(vocabulary=vocabulary, width=8)


KINDS = {
    "played": (reinforce, task_data),
    "revised": (reviser, revised),
    "demonstrated": (imitation, demonstrated),
    "judged": (dpo, preference_data),
}


def fitted(module, data, folder="run", epochs=2, ckpt=None, **how):
    L.seed_everything(3, verbose=False)
    memory = Memory()
    trainer = L.Trainer(
        accelerator="cpu", logger=memory, enable_progress_bar=False, enable_model_summary=False, max_epochs=epochs,
        default_root_dir=folder, **({"num_sanity_val_steps": 0, "callbacks": [Exhibits(0), LastCheckpoint()]} | how),
    )  # fmt: skip
    trainer.fit(module, data, ckpt_path=ckpt)
    return trainer, memory


def lines(folder="run"):
    return read(Path(folder) / "exhibits" / "changed.jsonl")


@pytest.mark.parametrize("kind", KINDS)
def test_a_fit_that_compares_learns_the_same(kind):
    model, data = KINDS[kind]
    weights = {}
    for plays in (True, False):
        module = model()
        trainer, memory = fitted(module, data(plays), folder=f"run{plays}")
        weights[plays] = list(module.parameters()), trainer.callback_metrics, memory
    for left, two in zip(weights[True][0], weights[False][0], strict=True):
        assert torch.equal(left, two)
    assert not all(torch.equal(left, two) for left, two in zip(weights[True][0], model().parameters(), strict=True))
    compared, alone = weights[True][1], weights[False][1]
    assert all(torch.equal(compared[name], alone[name]) for name in alone)
    assert not list(Path("runFalse").rglob("changed*"))
    assert {path.name for path in Path("runTrue").rglob("changed*")} == {"changed.md", "changed.html", "changed.jsonl"}
    pages = {Path(path).name for path in weights[True][2].artifacts}
    assert {"changed.md", "changed.html", "changed.jsonl"} <= pages


def replies_of(module, data, deterministic):
    """The policy's replies to the validation prompts, from a Trainer that only evaluates."""
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer.validate(module, data, verbose=False)
    data.trainer = trainer
    trainer.strategy.connect(module)
    with data._apart(1, deterministic) as rng:
        data.replied(module, rng, deterministic)
    return {id: [reply.text for reply in replies] for id, replies in data.last_replies.items()}


@pytest.mark.parametrize("kind", ["played", "judged"])
def test_the_start_is_what_was_said_before_the_first_step_and_the_policy_is_that_of_the_end(kind):
    model, data = KINDS[kind]
    module, run_data = model(), data()
    snapshot = {}
    run_data.teardown = lambda stage: snapshot.update(start=run_data.changes.start, latest=run_data.changes.latest)
    fitted(module, run_data)
    for side, policy in (("start", model()), ("latest", module)):
        for mode, deterministic in (("greedy", True), ("sampled", False)):
            texts = {id: [reply.text for reply in replies] for id, replies in snapshot[side][mode].items()}
            assert texts == replies_of(policy, data(), deterministic) and texts
    assert snapshot["start"] != snapshot["latest"]


def test_the_policy_that_is_compared_is_the_one_that_is_exported():
    """A monitor prefers the first of three iterations: its weights reply, and the last weights are restored after."""
    module, run_data, snapshot = imitation(), demonstrated(), {}
    run_data.teardown = lambda stage: snapshot.update(
        latest=run_data.changes.latest, iteration=run_data.changes.iteration
    )
    best = BestCheckpoint("val/imitation", mode="max", tie_break=None)
    trainer, _ = fitted(module, run_data, epochs=3, callbacks=[Exhibits(0), best, LastCheckpoint()])
    first = imitation()
    weights = torch.load("run/checkpoints/best.ckpt", weights_only=True)
    assert weights["epoch"] == 0 and snapshot["iteration"] == 1
    first.load_state_dict(weights["state_dict"])
    for mode, deterministic in (("greedy", True), ("sampled", False)):
        texts = {id: [reply.text for reply in replies] for id, replies in snapshot["latest"][mode].items()}
        assert texts == replies_of(first, demonstrated(), deterministic)
    assert "after iteration 1" in Path("run/exhibits/changed.md").read_text()
    last = torch.load("run/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(x, last[name]) for name, x in module.state_dict().items())
    assert any(not torch.equal(x, weights["state_dict"][name]) for name, x in last.items())


def test_figures_are_logged_and_who_wins_where_somebody_pays():
    _, memory = fitted(reinforce(), task_data(), epochs=3)
    (metrics,) = [metrics for _, metrics in memory.metrics if "val/changed" in metrics]
    names = {"changed", "distinct_2", "unique", "start_length", "start_distinct_2", "start_unique"}
    names |= {"win_rate", "win_rate_low", "win_rate_high"}
    assert {name for name in metrics if name.startswith("val/")} == {
        f"val/{name}{how}" for name in names for how in ("", "_sampled")
    }
    assert metrics["val/win_rate_low"] <= metrics["val/win_rate"] <= metrics["val/win_rate_high"]
    _, memory = fitted(imitation(), demonstrated(), folder="other")
    (metrics,) = [metrics for _, metrics in memory.metrics if "val/changed" in metrics]
    assert "val/start_length" in metrics and "val/win_rate" not in metrics


def test_a_file_of_ones_own_is_played_where_nobody_pays():
    """Two held-out demonstrations, and the prompts of held-out judgements; the last prompt leaves too little room."""
    trainer, _ = fitted(imitation(), demonstrated())
    assert [line.prompt for line in lines()] == PROMPTS[4:]
    page = Path("run/exhibits/changed.md").read_text()
    assert "| prompt | start | policy | expected |" in page and page.count("| cow dog |\n") == 4
    assert {"val/length", "val/length_sampled", "val/imitation"} <= trainer.callback_metrics.keys()
    assert "val/return" not in trainer.callback_metrics
    fitted(dpo(), preference_data(), folder="judged")
    prompts = {line.prompt for line in lines("judged")}
    assert prompts and prompts <= set(PROMPTS) and all(line.id == line.prompt for line in lines("judged"))


def test_a_resumed_fit_has_the_start_of_the_first():
    module = imitation()
    fitted(module, demonstrated(), folder="whole", epochs=3)
    fitted(imitation(), demonstrated(), folder="halves", epochs=1)
    assert len(lines("halves")) == 2
    (Path("halves") / "exhibits" / "changed.jsonl").unlink()
    fitted(imitation(), demonstrated(), folder="halves", epochs=3, ckpt="halves/checkpoints/last.ckpt")
    for left, two in zip(lines("whole"), lines("halves"), strict=True):
        assert left.responses == two.responses and left.prompt == two.prompt


def test_a_checkpoint_of_before_has_no_start_and_goes_on():
    fitted(imitation(), demonstrated(plays=False), epochs=1)
    trainer, _ = fitted(imitation(), demonstrated(), epochs=2, ckpt="run/checkpoints/last.ckpt")
    assert trainer.current_epoch == 2 and not list(Path("run").rglob("changed*"))


def counted(data):
    """The optimizer steps at which replies to held-out prompts are sampled."""
    steps, replied = [], data.replied

    def counting(*args):
        steps.append(data.trainer.global_step)
        return replied(*args)

    data.replied = counting
    return steps


def test_the_start_is_played_once_and_the_last_evaluation_is_taken_where_it_is_of_the_end():
    for how, expected in (
        ({}, [0, 0, 1, 1, 2, 2]),
        ({"num_sanity_val_steps": -1}, [0, 0, 1, 1, 2, 2]),  # a validation before training gives the start's replies
        ({"check_val_every_n_epoch": 2, "epochs": 3}, [0, 0, 2, 2, 3, 3]),  # no validation at the end: an extra one
        ({"limit_val_batches": 0}, []),
    ):
        data = task_data()
        steps = counted(data)
        fitted(reinforce(), data, **how)
        assert steps == expected, how
    assert "after iteration 3" in Path("run/exhibits/changed.md").read_text()


def test_another_fit_of_the_same_data_has_another_start():
    data = demonstrated()
    fitted(imitation(), data, folder="one")
    trained = imitation()
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(0.5)
    fitted(trained, data, folder="two")
    texts = [[line.responses[0] for line in lines(folder)] for folder in ("one", "two")]
    assert texts[0] != texts[1]


def test_a_judge_that_fails_at_the_end_takes_no_training_with_it():
    data = task_data()
    data.final_metrics = lambda iteration=None: 1 / 0
    with pytest.warns(UserWarning, match="could not make the final metrics of the fit: ZeroDivisionError"):
        trainer, _ = fitted(reinforce(), data)
    assert trainer.current_epoch == 2 and Path("run/checkpoints/last.ckpt").is_file()


class Longest:
    """A reward of 1 for each token of a reply."""

    def score(self, batch):
        return batch.valid.float()


def test_a_judge_may_pay_for_replies_while_a_file_is_learned_from():
    data = DemonstrationsDataModule(
        WordTokenizer(), path=write_lines("t.jsonl", TAUGHT[:4]), val_path=write_lines("v.jsonl", [
            {"prompt": "say ant bee", "expected": "cow"}]), reward=Longest(),
    )  # fmt: skip
    trainer, memory = fitted(imitation(), data)
    assert trainer.callback_metrics["val/return"] == trainer.callback_metrics["val/length"]
    assert any("val/win_rate" in metrics for _, metrics in memory.metrics)


def test_a_task_in_which_nobody_pays_is_compared_without_a_score():
    """No learning here: an objective that needs rewards would refuse the rows."""
    fitted(Untaught(policy=network(61), divergence="nll", optimizer=adam), unpaid())
    assert len(lines()) == 2 and "score" not in Path("run/exhibits/changed.md").read_text()


def test_a_return_that_nobody_pays_is_no_monitor():
    """A monitored return without scores is an error before any cost, for prompt files and held-out lines."""
    for model, data in ((lambda: Untaught(policy=network(61), divergence="nll"), unpaid()), (dpo, preference_data())):
        data.collect = None  # nothing is collected
        with pytest.raises(ValueError, match="the validation does not log val/return"):
            fitted(model(), data, callbacks=[BestCheckpoint(monitor="val/return")])
    assert not task_data().unpaid
    fitted(dpo(), preference_data(), callbacks=[BestCheckpoint(monitor="val/length", mode="min")])


class Untaught(ImitationPolicy):
    """Imitates its own replies."""

    def select(self, batch):
        return replace(batch, expert_actions=batch.actions, expert_mask=batch.mask)


def in_two_processes(folder):
    """A fit in which each of two processes has one of the two held-out prompts."""
    module, data = reinforce(), task_data()
    L.seed_everything(3, verbose=False)
    memory = Memory()
    trainer = L.Trainer(
        accelerator="cpu", logger=memory, enable_progress_bar=False, enable_model_summary=False, max_epochs=2,
        default_root_dir=folder, callbacks=[Exhibits(0)], num_sanity_val_steps=0, strategy="ddp", devices=2,
        enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(module, data)
    logged = {name: value for _, metrics in memory.metrics for name, value in metrics.items()}
    torch.save({"changed": logged.get("val/changed"), "start": logged.get("val/start_length")},
               Path(folder) / f"rank{trainer.global_rank}.pt")  # fmt: skip


@pytest.mark.slow
def test_two_processes_show_the_prompts_of_both(on_two_processes, tmp_path_factory):
    first, _ = on_two_processes(__file__)
    (page,) = [path for path in tmp_path_factory.getbasetemp().rglob("changed.md") if path.parts[-3].startswith("rank")]
    assert all(f"| {prompt} |" in page.read_text() for prompt in PROMPTS[4:])
    assert first["start"] is not None and first["changed"] is not None
