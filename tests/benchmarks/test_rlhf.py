"""RLHF comparison: choice of cells, paired gains, and recorded metrics."""

import json

import pytest
import torch

from benchmarks import rlhf
from benchmarks.side_by_side import rlhf_report, rlhf_runs
from benchmarks.side_by_side.rlhf_runs import without
from data_modules.text.rows import as_rows
from lightning_nlf.cli.command_line import main as command_line
from lightning_nlf.moved_yamls import arguments

LR = "model.lr"


def row(method, seed, reward, **fields):
    return {"method": method, "seed": seed, "cell": {}, "true_reward": reward, "kl": 1.0, "length": 9.0} | fields


def test_the_cell_with_the_highest_mean_reward_on_the_tuning_seeds_is_chosen(monkeypatch):
    """The means are .6, .75 and .7. The first seed alone, or the fresh seed, would choose the last cell."""
    rewards = {0.0003: (0.6, 0.6), 0.001: (0.8, 0.7), 0.003: (0.9, 0.5)}
    rows = [
        row("orpo", seed, seed_values[seed], cell={LR: lr}) for lr, seed_values in rewards.items() for seed in (0, 1)
    ]
    rows.append(row("orpo", 1000, 1.0, cell={LR: 0.003}))
    monkeypatch.setattr(rlhf, "read_rows", lambda path: rows)
    monkeypatch.setattr(rlhf, "run_all", lambda *arguments: None)
    assert rlhf.tuned(["orpo"], 1) == {"orpo": {LR: 0.001}}


def test_finalists_run_on_more_seeds_and_all_choose(monkeypatch):
    """Four cells have .9, .8, .7 and .6 on three seeds, so the last one is left out; on four more seeds .1, .5 and .5.

    The means over seven seeds are .44, .63 and .59, so the second cell wins.
    """
    cells = [{LR: lr} for lr in (1.0, 2.0, 3.0, 4.0)]
    monkeypatch.setattr(rlhf, "grid", lambda name: cells)
    rows, requests = [], []

    def run_all(run_seed, runs, jobs_by_seed, jobs, stage):
        requests.append({seed: [cell[LR] for _, cell in seed_values] for seed, seed_values in jobs_by_seed.items()})
        earned = {"tuning": (0.9, 0.8, 0.7, 0.6), "finals": (0.1, 0.5, 0.5)}[stage]
        rows.extend(
            row("ppo", seed, earned[cells.index(c)], cell=c)
            for seed, seed_values in jobs_by_seed.items()
            for _, c in seed_values
        )

    monkeypatch.setattr(rlhf, "run_all", run_all)
    monkeypatch.setattr(rlhf, "read_rows", lambda path: rows)
    assert rlhf.tuned(["ppo"], 1) == {"ppo": {LR: 2.0}}
    assert requests == [dict.fromkeys(range(3), [1.0, 2.0, 3.0, 4.0]), dict.fromkeys(range(3, 7), [1.0, 2.0, 3.0])]


def test_gains_are_paired_by_seed():
    """Starts .5 and .7, ends .6 and .8: a gain of .1 on both, although the starts differ by .2: .7 ± 12.7062 · .1."""
    rows = [row("start", 1, 0.5), row("start", 2, 0.7), row("dpo", 1, 0.6), row("dpo", 2, 0.8)]
    figures = rlhf_report.summary(rows)["dpo"]
    assert figures["gain"] == pytest.approx((0.1, 0.1, 0.1))
    assert figures["true_reward"] == pytest.approx((0.7, -0.57062, 1.97062), abs=1e-4)


def test_what_is_read_after_a_collection_is_that_collection(tmp_path, monkeypatch):
    """Without a reward model the proxy equals the return; at the start the KL is 0. Two steps per collection."""
    monkeypatch.chdir(tmp_path)
    narrow = {"model.policy.shape.width": 16}
    rlhf_runs.command(
        "fit", "reviews/sft", 0, "reviews/sft-seed0", narrow | {"trainer.max_epochs": 1, "data.minibatches": 2}
    )
    changes = {"model.value.width": 16, "data.reward": None, "data.unfinished": "keep"}
    changes |= {"data.prompts": 8, "data.passes": 2, "trainer.max_epochs": 3}
    monkeypatch.setattr(rlhf_runs, "evaluate_policy", lambda *arguments: {})
    outcome = rlhf_runs.run("ppo", {"yaml": "reviews/ppo"}, changes, 0)
    course = outcome["course"]
    assert [row["proxy"] for row in course] == pytest.approx([row["return"] for row in course], abs=1e-5)
    assert len(course) == 3 and course[0]["kl"] == pytest.approx(0, abs=1e-5) and abs(course[2]["kl"]) > 1e-5
    assert outcome["optimizer_steps"] == 6 and outcome["sampled_tokens"] == sum(
        round(8 * row["length"]) for row in course
    )


def test_the_start_is_asked_without_the_code():
    """Prompt 5 6, code 7, replies 8 1 and 9: without the code the prompt is 5 6."""
    batch = without(as_rows([[5, 6, 7], [5, 6, 7]], [[8, 1], [9]]), 1)
    assert batch.obs[0].tolist() == [5, 6, 8] and batch.obs[1, :2].tolist() == [5, 6]
    assert torch.equal(batch.mask, torch.tensor([[False, True, True], [False, True, False]]))
    assert batch.actions[batch.mask].tolist() == [8, 1, 9]


@pytest.mark.parametrize("name", [name for name in rlhf.METHODS["methods"] if name != "start"])
def test_every_method_names_a_yaml_and_changes_what_is_there(name, tmp_path, monkeypatch, capsys):
    """The command line reads the yaml with all changes, and would refuse a misspelt key."""
    monkeypatch.chdir(tmp_path)
    method, grid = rlhf.METHODS["methods"][name], rlhf.grid(name)
    words = ["fit", *arguments(rlhf.HERE.parent / "conf", method["yaml"])]
    for key, value in (method.get("changes", {}) | grid[0]).items():
        words += [f"--{key}", json.dumps(value)]
    with pytest.raises(SystemExit) as ending:
        command_line([*words, "--print_config"])
    assert ending.value.code == 0, capsys.readouterr().err
