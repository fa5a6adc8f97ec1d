"""Feedback studies: thresholds, pairing of runs, intervals, targets, and valid arms."""

import json
import math
from collections import Counter
from operator import itemgetter
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import feedback
from benchmarks.side_by_side import feedback_figures, feedback_report, feedback_runs, feedback_targets
from benchmarks.side_by_side.rlhf_runs import command
from lightning_nlf.cli.command_line import main
from lightning_nlf.cli.parts import Parts
from lightning_nlf.moved_yamls import arguments
from lightning_nlf.studies.statistics import resamples

ROOT = Path(__file__).parents[2]


def row(arm, sampled, start=0, seed=0, **kw):
    course = [{"env_steps": 100 * (i + 1), "greedy": x, "sampled": x} for i, x in enumerate(sampled)]
    return {"arm": arm, "start": start, "seed": seed, "course": course} | kw


def test_a_threshold_is_reached_when_two_validations_in_a_row_say_so():
    """.9 at 100 is not confirmed by the next validation; .9 at 300 is confirmed at 400, so 300 tokens."""
    assert feedback_figures.crossing(row("pg", [0.9, 0.8, 0.9, 0.95]), "sampled", 0.85) == 300
    assert math.isinf(feedback_figures.crossing(row("pg", [0.9, 0.8, 0.9]), "sampled", 0.85))
    run = {"course": [{"sampled": 0.9, "env_steps": 100, "feedback_calls": calls} for calls in (7, 9)]}
    assert feedback_figures.crossing(run, "sampled", 0.85, "feedback_calls") == 7


def test_what_samples_nothing_needs_no_tokens_for_what_it_reaches():
    fitted = {"sampled": 0.85, "course": [{"optimizer_steps": 4}]}
    assert feedback_figures.crossing(fitted, "sampled", 0.85) == 0
    assert math.isinf(feedback_figures.crossing(fitted, "sampled", 0.86))


def test_an_ending_is_the_mean_of_the_last_three_validations():
    assert feedback_figures.ending(row("pg", [0.0, 0.2, 0.4, 0.9])) == pytest.approx(0.5)
    assert (
        feedback_figures.ending({"sampled": 0.7, "course": [{"optimizer_steps": 4}]}) == 0.7
    )  # has no validations with replies


def test_runs_are_paired_by_start_and_seed():
    rows = [row("joint", [], 0, 1), row("joint", [], 1, 2), row("pg", [], 1, 2), row("pg", [], 0, 3)]
    ((arm_run, base),) = feedback_figures.paired(rows, "joint", "pg")
    assert (arm_run["arm"], base["arm"], arm_run["start"], arm_run["seed"]) == ("joint", "pg", 1, 2)


def runs(*tokens, start=lambda i: i):
    """Pairs of tokens of an arm and of the base, each pair from its own start."""
    return [({"start": start(i), "tokens": a}, {"tokens": b}) for i, (a, b) in enumerate(tokens)]


def test_a_ratio_is_of_medians_and_a_failure_is_infinite():
    """The medians 200 and 400 give ½, for every resample, because all pairs are equal."""
    tokens = itemgetter("tokens")
    assert feedback_figures.ratio(runs(*[(200, 400)] * 5), tokens) == pytest.approx((0.5, 0.5, 0.5))
    middle, low, high = feedback_figures.ratio(runs(*[(200, 400)] * 4, *[(math.inf, 400)] * 5), tokens)
    assert math.isinf(middle) and math.isinf(high) and low == 0.5
    assert feedback_figures.ratio(runs(*[(200, math.inf)] * 3), tokens)[0] == 0


def test_runs_from_one_start_are_no_independent_witnesses():
    """Two starts with ten runs each, all 0 and all 1, are two independent values: .5 ± 12.7062 · √.5 / √2. From twenty
    starts the same values would give .5 ± 2.0930 · √(5/19) / √20.
    """
    rows = [{"start": i % 2, "x": float(i % 2)} for i in range(20)]
    assert feedback_figures.mean(rows, itemgetter("x")) == pytest.approx((0.5, -5.8531, 6.8531), abs=1e-4)
    apart = [row | {"start": i} for i, row in enumerate(rows)]
    assert feedback_figures.mean(apart, itemgetter("x")) == pytest.approx((0.5, 0.25992, 0.74008), abs=1e-4)
    pairs = [(row, {"x": 0.25}) for row in rows]
    assert feedback_figures.gain(pairs, itemgetter("x")) == pytest.approx((0.25, -6.1031, 6.6031), abs=1e-4)


def test_a_resample_draws_of_every_start_as_many_runs():
    places = resamples([7, 7, 7, 8, 8, 8], draws=200)
    assert places.shape == (200, 6) and set(places.ravel()) == set(range(6))
    halves = places.reshape(200, 2, 3) // 3
    assert (halves == halves[:, :, :1]).all()  # three runs of one start, then three of one start


def test_what_was_earned_when_a_budget_was_spent():
    run = {"sampled": 0.5, "after": {"optimizer_steps": {"sampled": 0.7}}}
    assert feedback_figures.after("optimizer_steps", "sampled")(run) == 0.7
    assert feedback_figures.after("feedback_calls", "sampled")(run) == 0.5  # makes no calls: the end of the run


def test_a_run_goes_on_until_every_budget_is_spent(tmp_path):
    """Each epoch of one step has 80 tokens and 2 calls: 100 tokens are spent after the 2nd, 3 steps after the 3rd, and
    8 calls after the 4th epoch, where the run stops.
    """
    checkpoints = []
    trainer = SimpleNamespace(
        datamodule=SimpleNamespace(counters={"env_steps": 0, "feedback_calls": 0}),
        global_step=0,
        should_stop=False,
        default_root_dir=str(tmp_path),
        save_checkpoint=lambda path: checkpoints.append(path.name),
    )
    course = feedback_runs.Course({"env_steps": 100, "optimizer_steps": 3, "feedback_calls": 8})
    while not trainer.should_stop:
        trainer.global_step += 1
        trainer.datamodule.counters = {"env_steps": 80 * trainer.global_step, "feedback_calls": 2 * trainer.global_step}
        course.on_train_epoch_end(trainer, None)
    course.on_train_end(trainer, None)
    written_course = json.loads((tmp_path / "course.json").read_text())
    assert checkpoints == ["2.ckpt", "3.ckpt", "4.ckpt"]
    assert {name: values["optimizer_steps"] for name, values in written_course["spent"].items()} == {
        "env_steps": 2,
        "optimizer_steps": 3,
        "feedback_calls": 4,
    }
    assert (
        written_course["spent"]["env_steps"]["env_steps"] == 160 and written_course["course"][-1]["feedback_calls"] == 8
    )


def test_a_target_is_met_by_the_bound_of_its_interval():
    low_figure, high_figure = (0.05, 0.04, 0.06), (0.5, 0.4, 0.6)
    assert (
        feedback_targets.Target("", low_figure, 0.04).is_met
        and not feedback_targets.Target("", low_figure, 0.05).is_met
    )
    assert feedback_targets.Target("", high_figure, 0.6, at_most=True).is_met
    assert not feedback_targets.Target("", high_figure, 0.5, at_most=True).is_met


def test_targets_of_convergence_are_of_the_arms_they_name():
    """Tokens to sampled .85: pg 300, joint 200, injection ∞; to greedy .9 with all expected responses: 100."""
    courses = {"pg": [0.5, 0.5, 0.9, 0.9], "joint_128": [0.5, 0.9, 0.9], "injection_128": [0.5] * 4}
    ends = {"pg": 0.8, "joint_128": 0.83, "injection_128": 0.5, "joint_all": 0.9, "joint_32": 0.75, "sft_32": 0.7}
    rows = [
        row(arm, courses.get(arm, [0.9, 0.9]), start) | {"greedy": x, "sampled": x}
        for arm, x in ends.items()
        for start in (0, 1)
    ]
    targets = feedback_targets.convergence(rows, feedback.STUDIES["convergence"])
    assert [target.figure[0] for target in targets] == pytest.approx([0.05, 1 / 3, 2 / 3, 0.03])
    assert targets[2].title.startswith("joint_128") and [target.is_met for target in targets] == [
        True,
        True,
        False,
        True,
    ]
    assert feedback_targets.convergence(rows[2:], feedback.STUDIES["convergence"]) == []


def test_what_the_start_makes_of_a_critique_is_told_beside_another_replys():
    """.9, .8 and .7 after the own critique, .6 after another's: a mean gain of .2 ± 4.3027 · .1 / √3 = .2484."""
    values = {"": 0.4, "revised_shuffled_": 0.6, "revised_placebo_": 0.5}
    rows = [
        {"arm": "start", "start": start, "revised_greedy": x, "revised_sampled": x}
        | {f"{name}{kind}": value for name, value in values.items() for kind in ("greedy", "sampled")}
        for start, x in enumerate((0.9, 0.8, 0.7))
    ]
    lines = feedback_report.revisions(rows)
    assert lines[3].startswith("| revised after its critique | 0.800 [0.551, 1.049] |")
    assert lines[-1] == "| own critique, over another reply's | 0.200 [-0.049, 0.449] | 0.200 [-0.049, 0.449] |"


def test_a_comparison_is_written_best_first_with_its_picture(tmp_path):
    names = ("revised_", "revised_shuffled_", "revised_placebo_", "facts_", "length_", "")
    values = {f"{name}{kind}": 0.5 for name in names for kind in feedback_figures.KINDS}
    rows = [row(arm, [], start=start) | values for arm in ("start", "pg") for start in (0, 1)]
    spent = {"spent": {"env_steps": {"optimizer_steps": 30, "feedback_calls": 2000}, "optimizer_steps": {}}}
    later = {"after": {"optimizer_steps": {"greedy": 0.6, "sampled": 0.8}}}
    rows += [row("ilf", [], start=start) | values | {"sampled": 0.7} | spent | later for start in (0, 1)]
    text = feedback_report.report_text("comparison", rows, feedback.STUDIES, {}, tmp_path)
    first, second = text.splitlines()[2:4]
    assert first.startswith("| ilf | 0.500 [0.500, 0.500] | 0.700 [0.700, 0.700] | 0.200 [0.200, 0.200] |")
    assert first.endswith("| 30 | 2k | 0.800 [0.800, 0.800] | 0.300 [0.300, 0.300] |  |  |") and second.startswith(
        "| start |"
    )
    assert {path.suffix for path in tmp_path.iterdir()} == {".md", ".json", ".png"}
    assert (tmp_path / "feedback_comparison.md").read_text() == text


def test_tuning_starts_and_seeds_are_used_for_nothing_else():
    fresh = {pair for pairs in feedback.FRESH.values() for pair in pairs}
    assert not set(feedback.TUNING) & fresh
    assert not {start for start, _ in feedback.TUNING} & {start for start, _ in fresh}
    assert len(feedback.FRESH["convergence"]) >= 15 and len(feedback.FRESH["comparison"]) >= 10
    for pairs in feedback.FRESH.values():
        assert len(set(pairs)) == len(pairs)
        counts = Counter(start for start, _ in pairs)
        assert len(counts) >= 5 and len(set(counts.values())) == 1  # every start has the same weight


ARMS = [(study, arm) for study in feedback.FRESH for arm, arm_run in feedback.STUDIES[study]["arms"].items() if arm_run]


@pytest.mark.parametrize(("study", "arm"), ARMS)
def test_every_arm_is_a_yaml_with_knobs_that_are_there(study, arm, monkeypatch):
    """The command line reads the yaml with the values that refer to a start, and would refuse a misspelt key."""
    monkeypatch.chdir(ROOT)
    settings = feedback.STUDIES[study]["arms"][arm]
    Parts(arguments(ROOT / "conf", settings["yaml"]), settings.get("of_start", {}), build=False)
    assert set(feedback.STUDIES[study]["paired"]) <= set(feedback.STUDIES[study]["arms"])


def test_an_arm_reaches_its_budget_of_tokens(monkeypatch, capsys):
    """The command line accepts the callback that stops a run, and its arguments."""
    monkeypatch.chdir(ROOT)
    budgets = {"budgets": {"env_steps": 9, "optimizer_steps": 9}}
    stop = json.dumps({"class_path": "benchmarks.side_by_side.feedback_runs.Course", "init_args": budgets})
    words = ["fit", "--config", "conf/answers/pg.yaml", "--trainer.callbacks+", stop, "--print_config"]
    with pytest.raises(SystemExit) as left:
        main([*words, "--model.policy.weights", "null"])
    assert left.value.code == 0 and "env_steps: 9" in capsys.readouterr().out


@pytest.mark.slow
def test_the_start_can_use_a_critique(tmp_path, monkeypatch):
    """After an eighth of the training, a revision is better than the reply, and less so after another's critique."""
    monkeypatch.chdir(tmp_path)
    brief = {"trainer.max_epochs": 2, "trainer.limit_val_batches": 0, "trainer.callbacks": "null"}
    folder = command("fit", "answers/sft", 0, "start", brief)
    earned = feedback_runs.evaluate_weights(folder / "checkpoints" / "last.ckpt", 0, testing=False, revised=True)
    for kind in feedback_figures.KINDS:
        assert earned[f"revised_{kind}"] > earned[kind] + 0.25
        assert earned[f"revised_{kind}"] > earned[f"revised_shuffled_{kind}"] + 0.05
