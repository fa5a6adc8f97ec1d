"""The study of feedback on language: what counts as reached, what is paired, and that every arm is a run."""

import json
import math
from pathlib import Path

import pytest

from benchmarks import feedback
from benchmarks.side_by_side import feedback_figures, feedback_report, feedback_targets
from lightning_nlf.cli.command_line import main

ROOT = Path(__file__).parents[2]


def row(arm, sampled, start=0, seed=0, **kw):
    course = [{"env_steps": 100 * (i + 1), "greedy": x, "sampled": x} for i, x in enumerate(sampled)]
    return {"arm": arm, "start": start, "seed": seed, "course": course} | kw


def test_a_threshold_is_reached_when_two_validations_in_a_row_say_so():
    """.9 at 100 is alone; at 300 and 400 it is confirmed, so 300 tokens."""
    assert feedback_figures.crossing(row("pg", [0.9, 0.8, 0.9, 0.95]), "sampled", 0.85) == 300
    assert math.isinf(feedback_figures.crossing(row("pg", [0.9, 0.8, 0.9]), "sampled", 0.85))
    asked = {"course": [{"sampled": 0.9, "env_steps": 100, "feedback_calls": calls} for calls in (7, 9)]}
    assert feedback_figures.crossing(asked, "sampled", 0.85, "feedback_calls") == 7


def test_what_samples_nothing_needs_no_tokens_for_what_it_reaches():
    fitted = {"sampled": 0.85, "course": [{"optimizer_steps": 4}]}
    assert feedback_figures.crossing(fitted, "sampled", 0.85) == 0
    assert math.isinf(feedback_figures.crossing(fitted, "sampled", 0.86))


def test_an_ending_is_the_mean_of_the_last_three_validations():
    assert feedback_figures.ending(row("pg", [0.0, 0.2, 0.4, 0.9])) == pytest.approx(0.5)
    assert feedback_figures.ending({"sampled": 0.7, "course": [{"optimizer_steps": 4}]}) == 0.7  # plays no validations


def test_runs_are_paired_by_start_and_seed():
    rows = [row("joint", [], 0, 1), row("joint", [], 1, 2), row("pg", [], 1, 2), row("pg", [], 0, 3)]
    ((own, base),) = feedback_figures.paired(rows, "joint", "pg")
    assert (own["arm"], base["arm"], own["start"], own["seed"]) == ("joint", "pg", 1, 2)


def test_a_ratio_is_of_medians_and_a_failure_is_infinite():
    """Medians 200 and 400: a half, whatever is resampled where all pairs are alike."""
    assert feedback_figures.ratio([(200.0, 400.0)] * 5) == pytest.approx((0.5, 0.5, 0.5))
    one, low, high = feedback_figures.ratio([(200.0, 400.0)] * 4 + [(math.inf, 400.0)] * 5)
    assert math.isinf(one) and math.isinf(high) and low == 0.5
    assert feedback_figures.ratio([(200.0, math.inf)] * 3)[0] == 0


def test_a_target_is_met_by_the_bound_of_its_interval():
    least, most = (0.05, 0.04, 0.06), (0.5, 0.4, 0.6)
    assert feedback_targets.Target("", least, 0.04).met and not feedback_targets.Target("", least, 0.05).met
    assert feedback_targets.Target("", most, 0.6, most=True).met
    assert not feedback_targets.Target("", most, 0.5, most=True).met


def test_targets_of_convergence_are_of_the_arms_they_name():
    """Tokens to sampled .85: pg 300, joint 200, injection never; to greedy .9 all with all expected responses 100."""
    courses = {"pg": [0.5, 0.5, 0.9, 0.9], "joint_128": [0.5, 0.9, 0.9], "injection_128": [0.5] * 4}
    ends = {"pg": 0.8, "joint_128": 0.83, "injection_128": 0.5, "joint_all": 0.9, "joint_32": 0.75, "sft_32": 0.7}
    rows = [row(arm, courses.get(arm, [0.9, 0.9])) | {"greedy": x, "sampled": x} for arm, x in ends.items()]
    found = feedback_targets.convergence(rows, feedback.STUDIES["convergence"])
    assert [each.found[0] for each in found] == pytest.approx([0.05, 1 / 3, 2 / 3, 0.03])
    assert found[2].title.startswith("joint_128") and [each.met for each in found] == [True, True, False, True]
    assert feedback_targets.convergence(rows[1:], feedback.STUDIES["convergence"]) == []


def test_what_the_start_makes_of_a_critique_is_told_beside_another_replys():
    """.9 and .7 after the own critique, .6 and .6 after another's: .2 ahead in the mean."""
    values = {"": 0.4, "revised_shuffled_": 0.6, "revised_placebo_": 0.5}
    rows = [
        {"arm": "start", "revised_greedy": x, "revised_sampled": x}
        | {f"{name}{kind}": value for name, value in values.items() for kind in ("greedy", "sampled")}
        for x in (0.9, 0.7)
    ]
    lines = feedback_report.revisions(rows)
    assert lines[3].startswith("| revised after its critique | 0.800 [0.700, 0.900] |")
    assert lines[-1] == "| own critique, over another reply's | 0.200 [0.100, 0.300] | 0.200 [0.100, 0.300] |"


def test_a_comparison_is_written_best_first_with_its_picture(tmp_path):
    names = ("revised_", "revised_shuffled_", "revised_placebo_", "facts_", "length_", "")
    values = {f"{name}{kind}": 0.5 for name in names for kind in feedback_figures.KINDS}
    rows = [row(arm, [], seed=seed) | values for arm in ("start", "pg") for seed in (0, 1)]
    rows += [
        row("ilf", [], seed=seed, course=[{"optimizer_steps": 30, "feedback_calls": 2000}]) | values | {"sampled": 0.7}
        for seed in (0, 1)
    ]
    text = feedback_report.written("comparison", rows, feedback.STUDIES, {}, tmp_path)
    first, second = text.splitlines()[2:4]
    assert first.startswith("| ilf | 0.500 [0.500, 0.500] | 0.700 [0.700, 0.700] | 0.200 [0.200, 0.200] |")
    assert first.endswith("| 30 | 2k |") and second.startswith("| start |")
    assert {path.suffix for path in tmp_path.iterdir()} == {".md", ".json", ".png"}
    assert (tmp_path / "feedback_comparison.md").read_text() == text


def test_tuning_starts_and_seeds_are_used_for_nothing_else():
    fresh = {pair for pairs in feedback.FRESH.values() for pair in pairs}
    assert not set(feedback.TUNING) & fresh
    assert not {start for start, _ in feedback.TUNING} & {start for start, _ in fresh}
    assert len(feedback.FRESH["convergence"]) == 15 and len(feedback.FRESH["comparison"]) >= 10
    assert all(len(set(pairs)) == len(pairs) for pairs in feedback.FRESH.values())


ARMS = [(study, arm) for study in feedback.FRESH for arm, own in feedback.STUDIES[study]["arms"].items() if own]


@pytest.mark.parametrize(("study", "arm"), ARMS)
def test_every_arm_is_a_yaml_with_knobs_that_are_there(study, arm, monkeypatch):
    """What needs a start or an expert is checked up to these, by their names."""
    monkeypatch.chdir(ROOT)
    own = feedback.STUDIES[study]["arms"][arm]
    text = (ROOT / "conf" / "feedback" / f"{own['yaml']}.yaml").read_text()
    for key in own.get("of_start", {}):
        assert key.rsplit(".", 1)[-1] in text
    assert set(feedback.STUDIES[study]["paired"]) <= set(feedback.STUDIES[study]["arms"])


def test_an_arm_reaches_its_budget_of_tokens(monkeypatch, capsys):
    """The command line knows the callback that stops a run, and its knobs."""
    monkeypatch.chdir(ROOT)
    limits = {"tokens": 9, "optimizer_steps": 9}
    stop = json.dumps({"class_path": "benchmarks.side_by_side.feedback_runs.Course", "init_args": limits})
    words = ["fit", "--config", "conf/feedback/pg.yaml", "--trainer.callbacks+", stop, "--print_config"]
    with pytest.raises(SystemExit) as left:
        main([*words, "--model.policy.weights", "null"])
    assert left.value.code == 0 and "tokens: 9" in capsys.readouterr().out
