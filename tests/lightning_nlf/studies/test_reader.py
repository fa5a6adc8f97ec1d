"""The yaml of a study: what it means, and one clear error with key, line and advice for each mistake."""

import contextlib
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from lightning_nlf.cli.errors import ConfigurationError
from lightning_nlf.studies.reader import read
from lightning_nlf.studies.runs import Run, command
from lightning_nlf.studies.spec import Range, Search, Solved

ROOT = Path(__file__).parents[3]
HEAD = """\
baseline: plain
metric: val/return
seeds: {tune: 0-3, report: 1000-1003}
"""
PLAIN = HEAD + "arms:\n  plain: fit.yaml\n"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("fit.yaml").write_text("trainer: {max_epochs: 3}\n")
    Path("other.yaml").write_text("trainer: {max_epochs: 5}\n")


def study_of(text, name="speed.yaml"):
    Path(name).write_text(text)
    return read(name)


def message_of(text, name="speed.yaml"):
    with pytest.raises(ConfigurationError) as error:
        study_of(text, name)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_study():
    study = study_of("""\
baseline: plain
metric: val/return
solved: {at_least: 950, in_a_row: 3}
budgets: {env_steps: 40000}
tune_budgets: {env_steps: 10000}
seeds: {tune: [0-1, 7], report: 1000-1001}
first: ["fit --config other.yaml --run_dir {study}/first/{start}"]
results: results/speed
arms:
  plain: fit.yaml --model lightning_nlf.objectives.DPOPolicy --model.lr 0.1
  joint:
    yaml: other.yaml
    changes: {model.policy: '{study}/first/{start}'}
    grid: {model.lr: [0.01, 0.02], model.hidden: [[32], [32, 32]]}
    budgets: {labels: 50}
""")
    plain, joint = study.arms.values()
    assert plain.words == (
        *("--config", "fit.yaml", "--model", "lightning_nlf.objectives.DPOPolicy", "--model.lr", "0.1"),
    )
    assert joint.grid == {"model.lr": (0.01, 0.02), "model.hidden": ([32], [32, 32])}
    assert joint.budgets == {"env_steps": 40000, "labels": 50} and joint.tune_budgets == {"env_steps": 10000}
    assert study.solved == Solved(950, 3) and study.higher and study.search == Search()
    assert (study.tune, study.report) == ((0, 1, 7), (1000, 1001))
    assert study.baselines == {"plain": "plain", "joint": "plain"}
    assert study.name == "speed" and study.folder == Path("outputs/studies/speed")
    assert study.first == ("fit --config other.yaml --run_dir {study}/first/{start}",) and study.results == Path(
        "results/speed"
    )
    words = command(Run("joint", "report", {"model.lr": 0.01}, 1001), study)
    assert '--model.policy="outputs/studies/speed/first/1001"' in words


def test_direction_follows_from_solved():
    assert study_of(PLAIN).higher
    assert not study_of(PLAIN + "direction: min").higher
    assert not study_of(PLAIN + "solved: {at_most: 0.1}").higher


def test_settings_make_one_row_each():
    """The setting's changes come first, then the arm's, then the arm's in this setting. A grid is replaced."""
    study = study_of(
        HEAD
        + """\
settings: {10: {data.limit: 10}, fifty: {data.limit: 50}}
arms:
  plain: {yaml: fit.yaml, settings: [fifty]}
  joint:
    yaml: fit.yaml
    changes: {model.lr: 1, data.noise: 0}
    grid: {model.hidden: [8, 16]}
    settings:
      10: {yaml: other.yaml, changes: {data.noise: 3}, grid: {}, budgets: {labels: 5}}
      fifty:
"""
    )
    assert list(study.arms) == ["plain/fifty", "joint/10", "joint/fifty"]
    ten, fifty = study.arms["joint/10"], study.arms["joint/fifty"]
    assert ten.changes == {"data.limit": 10, "model.lr": 1, "data.noise": 3} and not ten.grid
    assert ten.words == ("--config", "other.yaml") and ten.budgets == {"labels": 5} and ten.setting == "10"
    assert fifty.changes == {"data.limit": 50, "model.lr": 1, "data.noise": 0}
    assert fifty.grid == {"model.hidden": (8, 16)} and fifty.words == ("--config", "fit.yaml")
    assert study.baselines == {name: "plain/fifty" for name in study.arms}  # plain has no setting 10


def test_the_baseline_of_the_same_setting():
    text = HEAD + "settings: {a: {}, b: {}}\narms: {plain: fit.yaml, joint: other.yaml}"
    assert study_of(text).baselines["joint/b"] == "plain/b"
    assert study_of(text.replace("baseline: plain", "baseline: plain/a")).baselines["joint/b"] == "plain/a"


def test_starts_are_filled_in_turn_and_never_shared_by_both_stages():
    study = study_of(PLAIN.replace("0-3", "0-4") + "starts: 2")
    assert study.starts == {0: 0, 1: 1, 2: 0, 3: 1, 4: 0, 1000: 1000, 1001: 1001, 1002: 1000, 1003: 1001}
    assert study_of(PLAIN).starts == {seed: seed for seed in (0, 1, 2, 3, 1000, 1001, 1002, 1003)}


def test_a_range_and_a_search():
    study = study_of(
        HEAD
        + """\
search: {sampler: tpe, cells: 20, pruner: median}
arms:
  plain:
    yaml: fit.yaml
    grid: {model.lr: {low: 1.0e-4, high: 0.1, log: true}}
"""
    )
    assert study.arms["plain"].grid == {"model.lr": Range(1e-4, 0.1, True)}
    assert study.search == Search("tpe", 20, "median")


def test_an_arm_may_have_the_metric_under_another_name():
    """The run of that arm is judged, and ended, by this name; its recipe differs, that of the other arm does not."""
    arms = "\n  named: {yaml: fit.yaml, metric: val/true_reward}\n"
    study = study_of((PLAIN + "solved: {at_least: 3}\nalso: [val/kl]\n").replace("fit.yaml\n", "fit.yaml" + arms))
    assert [study.metric_of(name) for name in study.arms] == ["val/return", "val/true_reward"]
    for name, metric in (("plain", "val/return"), ("named", "val/true_reward")):
        assert any(f'"monitor": "{metric}"' in word for word in command(Run(name, "report", {}, 1000), study))
    assert study.also == ("val/kl",) and study.arms["plain"].recipe != study.arms["named"].recipe


def test_tuning_seeds_may_be_missing_without_a_grid():
    assert study_of(PLAIN.replace("tune: 0-3, ", "")).tune == ()


def test_a_recipe_is_what_a_run_depends_on():
    """A comment does not change it; a value of the yaml, a change, a flag and the metric do."""
    text = PLAIN.replace("fit.yaml", "{yaml: fit.yaml, changes: {a: 1}}")
    before = study_of(text)
    Path("fit.yaml").write_text("# a comment\ntrainer:\n  max_epochs: 3\n")
    assert study_of(text).arms == before.arms
    recipes = [study_of(text.replace(a, b)).arms["plain"].recipe for a, b in (
        ("a: 1", "a: 2"), ("fit.yaml", "fit.yaml --x 3"), ("val/return", "val/loss"), ("metric", "first: [x]\nmetric")
    )]  # fmt: skip
    Path("fit.yaml").write_text("trainer: {max_epochs: 4}")
    recipes += [study_of(text).arms["plain"].recipe, before.arms["plain"].recipe]
    assert len({*recipes}) == 6
    run = Run("plain", "report", {}, 1000)
    larger = study_of(text + "budgets: {labels: 3}")
    assert run.folder(larger) != run.folder(study_of(text)) and run.folder(larger).name.startswith("report-")


ARM = "plain: fit.yaml"
GRID = "plain: {yaml: fit.yaml, grid: {model.lr: [0.1, 0.2]}}"
MISTAKES = [  # a text, its replacement, and parts of the message
    ("metric:", "metrics:", ["metrics (speed.yaml, line 2)", "no such key", "Did you mean 'metric'"]),
    ("metric: val/return\n", "", ["metric (speed.yaml)", "missing", "metric: val/return"]),
    ("metric: val/return", "metric: 3", ["metric (speed.yaml, line 2)", "got 3"]),
    ("baseline: plain", "baseline: plane", ["baseline (speed.yaml, line 1)", "no such arm: plane", "'plain'"]),
    ("baseline: plain\n", "", ["baseline (speed.yaml)", "missing"]),
    ("arms:\n  plain: fit.yaml\n", "", ["arms (speed.yaml)", "missing"]),
    ("arms:\n  plain: fit.yaml", "arms: [fit.yaml]", ["arms (speed.yaml, line 4)", "got a list"]),
    (ARM, "plain: 3", ["arms.plain (speed.yaml, line 5)", "got 3"]),
    (ARM, "plain: {changes: {a: 1}}", ["arms.plain.yaml (speed.yaml, line 5)", "missing"]),
    (ARM, "plain: {yaml: fit.yaml, change: {}}", ["arms.plain.change (speed.yaml, line 5)", "'changes'"]),
    (ARM, "plain: fits.yaml", ["arms.plain.yaml (speed.yaml, line 5)", "fits.yaml: the file does not", "fit.yaml?"]),
    (ARM, "plain: broken.yaml", ["arms.plain.yaml (speed.yaml, line 5)", "broken.yaml, line 1", "not valid yaml"]),
    (ARM, "plain: conf/old.yaml", ["arms.plain.yaml", "does not exist; it is now conf/new.yaml --model.lr 3"]),
    (ARM, "plain: \"fit.yaml 'x\"", ["arms.plain.yaml (speed.yaml, line 5)", "no closing quotation"]),
    (ARM, "plain: fit.yaml --seed_everything 3", ["line 5", "--seed_everything is set by the study"]),
    (ARM, "../x: fit.yaml", ["arms.../x (speed.yaml, line 5)", "letters, digits"]),
    (ARM, "on: fit.yaml", ["arms (speed.yaml, line 4)", "the key true", "in quotes"]),
    (ARM, "plain: {yaml: fit.yaml, changes: {run_dir: x}}", ["arms.plain.changes.run_dir", "set by the study"]),
    (ARM, "plain: {yaml: fit.yaml, changes: {a: .nan}}", ["arms.plain.changes.a (speed.yaml, line 5)", "got nan"]),
    (ARM, "plain: {yaml: fit.yaml, grid: {a: 3}}", ["arms.plain.grid.a (speed.yaml, line 5)", "a list of values"]),
    (ARM, "plain: {yaml: fit.yaml, grid: {a: []}}", ["arms.plain.grid.a", "got an empty list"]),
    (ARM, "plain: {yaml: fit.yaml, grid: {a: [1, 1]}}", ["arms.plain.grid.a", "1 appears twice"]),
    (ARM, "plain: {yaml: fit.yaml, changes: {a: 1}, grid: {a: [1, 2]}}", ["arms.plain.grid.a", "delete one"]),
    (ARM, "plain: {yaml: fit.yaml, grid: {a: {low: 1, high: 2}}}", ["arms.plain.grid.a", "sampler: random"]),
    (ARM, "plain: {yaml: fit.yaml, grid: {a: {low: 2, high: 1}}}", ["arms.plain.grid.a.high", "above low (2), got 1"]),
    (ARM, "plain: {yaml: fit.yaml, grid: {a: {low: 0, high: 1, log: true}}}", ["grid.a.low", "log scale"]),
    (ARM, "plain: {yaml: fit.yaml, grid: {a: {low: 0, hihg: 1}}}", ["grid.a.hihg", "'high'"]),
    (ARM, "plain: {yaml: fit.yaml, settings: [x]}", ["arms.plain.settings (speed.yaml, line 5)", "has no settings"]),
    (ARM, "plain: {yaml: fit.yaml, settings: [fity]}\nsettings: {fifty: {}}", ["no such setting: fity", "'fifty'"]),
    (ARM, "plain: {yaml: fit.yaml, settings: []}\nsettings: {fifty: {}}", ["arms.plain.settings", "an empty list"]),
    (ARM, "a-b: fit.yaml\n  a: fit.yaml\nsettings: {b-c: {}, c: {}}", ["a/b-c and a-b/c would have the same folder"]),
    (ARM, "plain: fit.yaml\n  plain: fit.yaml", ["arms.plain (speed.yaml, line 6)", "appears twice"]),
    (ARM, ARM + "\nbudgets: {env_step: 3}", ["budgets.env_step (speed.yaml, line 6)", "counter", "'env_steps'"]),
    (ARM, ARM + "\nbudgets: {env_steps: 0}", ["budgets.env_steps (speed.yaml, line 6)", "above 0, got 0"]),
    (ARM, ARM + "\nbudgets: 3", ["budgets (speed.yaml, line 6)", "got 3"]),
    (ARM, ARM + "\nlast: 0", ["last (speed.yaml, line 6)", "at least 1"]),
    (ARM, ARM + "\nlast: 2\nsolved: {at_least: 3}", ["last (speed.yaml, line 6)", "beside solved"]),
    (ARM, ARM + "\ndirection: up", ["direction (speed.yaml, line 6)", "max, min", "got 'up'"]),
    (ARM, ARM + "\ndirection: min\nsolved: {at_least: 3}", ["direction (speed.yaml, line 6)", "contradicts"]),
    (ARM, ARM + "\nsolved: {at_least: 3, at_most: 4}", ["solved (speed.yaml, line 6)", "one of at_least and at_most"]),
    (ARM, ARM + "\nsolved: {in_a_row: 3}", ["solved (speed.yaml, line 6)", "one of at_least and at_most"]),
    (ARM, ARM + "\nsolved: {at_least: x}", ["solved.at_least (speed.yaml, line 6)", "got 'x'"]),
    (ARM, ARM + "\nstarts: 5", ["starts (speed.yaml, line 6)", "5 starts for 4 report seeds"]),
    (ARM, "plain: {yaml: fit.yaml, metric: 3}", ["arms.plain.metric (speed.yaml, line 5)", "got 3"]),
    (ARM, ARM + "\nalso: val/kl", ["also (speed.yaml, line 6)", "a list of further metrics"]),
    (ARM, ARM + "\nfirst: [fit]", ["first (speed.yaml, line 6)", "'fit'", "--run_dir {study}/first/{start}/sft"]),
    (ARM, ARM + "\nfirst: [fit, \"x 'y\"]", ["first (speed.yaml, line 6)", "no closing quotation"]),
    (ARM, ARM + "\nfirst: fit", ["first (speed.yaml, line 6)", "a list of commands"]),
    (ARM, ARM + "\nresults: a.json", ["results (speed.yaml, line 6)", "without suffix"]),
    (ARM, ARM + "\nsearch: {sampler: grids}", ["search.sampler (speed.yaml, line 6)", "Did you mean 'grid'?"]),
    (ARM, ARM + "\nsearch: {sampler: tpe}", ["search.cells (speed.yaml, line 6)", "cells: 20"]),
    (ARM, ARM + "\nsearch: {cells: 3}", ["search.cells (speed.yaml, line 6)", "grid runs all cells"]),
    (ARM, GRID + "\nsearch: {sampler: random, cells: 3}", ["arms.plain.grid (speed.yaml, line 5)", "it has 2 cells"]),
    ("tune: 0-3", "tune: 1003-1005", ["seeds.report (speed.yaml, line 3)", "seed 1003 is also a tuning seed"]),
    ("tune: 0-3", "tune: [0, 0-3]", ["seeds.tune (speed.yaml, line 3)", "seed 0 appears twice"]),
    ("tune: 0-3", "tune: 3-0", ["seeds.tune (speed.yaml, line 3)", "the lower first"]),
    ("tune: 0-3", "tune: []", ["seeds.tune (speed.yaml, line 3)", "an empty list"]),
    ("tune: 0-3", "tune: 0-9999999999", ["seeds.tune (speed.yaml, line 3)", "4,294,967,295"]),
    ("tune: 0-3", "tune: 0-20000", ["seeds.tune (speed.yaml, line 3)", "more than 10,000 seeds"]),
    ("tune: 0-3", "tune: -1", ["seeds.tune (speed.yaml, line 3)", "from 0"]),
    (", report: 1000-1003", "", ["seeds.report (speed.yaml, line 3)", "missing"]),
    ("metric: val/return", "metric: !!python/name:os.system", ["speed.yaml", "not valid yaml"]),
    ("metric: val/return", "metric: &a [*a]", ["speed.yaml, line 2", "contains itself"]),
    (PLAIN, "", ["speed.yaml", "an empty file"]),
]  # fmt: skip


@pytest.mark.parametrize("old, new, parts", MISTAKES)
def test_a_mistake_is_named(old, new, parts):
    Path("broken.yaml").write_text("a: ]")
    Path("conf").mkdir()
    Path("conf/moved.csv").write_text("old,new\nold.yaml,new.yaml --model.lr 3\n")
    assert old in PLAIN
    message = message_of(PLAIN.replace(old, new))
    assert all(part in message for part in parts), message


@pytest.mark.parametrize("begin", ["fit", "predict", "python -m lightning_nlf fit", "python3 -m lightning_nlf predict"])
@pytest.mark.parametrize(
    "flags, starts, reason",
    [
        ("--config a.yaml", 4, "all starts and all studies would share its folder"),
        ("--config a.yaml", 1, "all starts and all studies would share its folder"),
        ("--model.run_dir x{start}", 4, "all starts and all studies would share its folder"),
        ("--run_dir", 1, "all starts and all studies would share its folder"),
        ("--run_dir=x --seed_everything {start}", 4, "the 8 starts would share the folder x"),
        ("--run_dir=x", 4, ""),  # once for the study
        ("--run_dir {study}/first/{seed}", 2, "the 4 starts would share the folder {study}/first/{seed}"),
        ("--run_dir x{start} --run_dir y", 4, "share the folder y"),
        ("--run_dir {study}/first/{start}/sft", 4, ""),
        ("--run_dir=out{start} --config a.yaml", 2, ""),
        ("--run_dir {study}/first", 0, ""),
    ],
)
def test_a_first_command_has_a_folder_of_each_start(begin, flags, starts, reason):
    """Tuning and report have their starts; without tuning seeds, one start is one in all, written as 0 here."""
    text = PLAIN if starts else PLAIN.replace("tune: 0-3, ", "")
    text += f"starts: {starts or 1}\nfirst:\n  - echo.py\n  - {begin} {flags}\n"
    if reason:
        message = message_of(text)
        assert message.startswith("first (speed.yaml, line 7): ") and reason in message, message
        assert message.endswith("Write --run_dir {study}/first/{start}/sft, or another folder with {start}")
    else:
        assert study_of(text).first[1] == f"{begin} {flags}"


@pytest.mark.parametrize("command", ["python tool.py fit", "python -m tool fit", "describe --config fit.yaml"])
def test_other_first_commands_choose_their_places(command):
    assert study_of(PLAIN + f"first: [{command}]").first == (command,)


def test_a_grid_needs_tuning_seeds():
    text = PLAIN.replace("tune: 0-3, ", "").replace(ARM, GRID)
    assert "seeds.tune (speed.yaml, line 3): missing, and an arm has a grid" in message_of(text)


def test_a_large_grid_is_refused():
    grid = ", ".join(f"k{i}: [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]" for i in range(5))
    assert "100,000 cells" in message_of(PLAIN.replace(ARM, f"plain: {{yaml: fit.yaml, grid: {{{grid}}}}}"))


def test_long_lists_and_many_rows_are_refused():
    values = ", ".join(map(str, range(1001)))
    assert "1,001 values" in message_of(PLAIN.replace(ARM, f"plain: {{yaml: fit.yaml, grid: {{a: [{values}]}}}}"))
    arms, settings = (
        f"{{{', '.join(f'{x}{i}: {y}' for i in range(40))}}}" for x, y in (("a", "fit.yaml"), ("s", "{}"))
    )
    assert "more than 1,000 arms" in message_of(f"{HEAD}arms: {arms}\nsettings: {settings}")


def test_a_missing_file_and_a_file_name_that_is_no_name():
    with pytest.raises(ConfigurationError, match=r"^none.yaml: the file does not exist"):
        read("none.yaml")
    assert "a b.yaml: the file names the study" in message_of(PLAIN, "a b.yaml")


def test_control_characters_of_a_study_do_not_reach_the_terminal():
    assert "\x1b" not in message_of(PLAIN + '"\\e[2J": 3')


def test_reading_imports_no_heavy_library():
    Path("speed.yaml").write_text(PLAIN)
    code = "import sys; from lightning_nlf.studies.reader import read; read('speed.yaml'); print(*sys.modules)"
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONPATH": str(ROOT)}
    )
    assert not {"torch", "lightning", "mlflow", "optuna", "ray", "matplotlib"} & {*out.stdout.split()}


FULL = (
    HEAD
    + """\
direction: max
last: 2
budgets: {env_steps: 40000}
tune_budgets: {env_steps: 10000}
starts: 2
first: ["fit --run_dir x{start}"]
search: {sampler: random, cells: 2, pruner: none}
results: a/b
settings: {ten: {data.limit: 10}}
arms:
  plain: fit.yaml
  joint:
    yaml: fit.yaml
    changes: {model.x: 1}
    grid: {model.lr: [1, 2], model.z: {low: 1, high: 2, log: true}}
    settings: {ten: {yaml: other.yaml, changes: {model.y: 1}}}
"""
)
ODD = [None, -1, "x", "", True, [], {}, [None], {1: 2}, {None: 1}, float("inf"), "\x1b"]


def paths(value, path=()):
    """The path of each value below a value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, below in items:
        yield (*path, key)
        yield from paths(below, (*path, key))


@pytest.mark.parametrize("odd", ODD, ids=repr)
def test_an_odd_value_anywhere_is_a_mistake_or_a_study(odd):
    """No value at any place of a study's yaml ends in a traceback."""
    whole = yaml.safe_load(FULL)
    assert len(list(paths(whole))) > 40 and len(study_of(FULL).arms) == 2
    for path in paths(whole):
        text = yaml.safe_load(FULL)
        place = text
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = odd
        Path("odd.yaml").write_text(yaml.safe_dump(text))
        with contextlib.suppress(ConfigurationError):
            read("odd.yaml")
