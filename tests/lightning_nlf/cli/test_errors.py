"""A user's mistake gives a one-line error with key, file, line and the nearest name; a bug gives a traceback."""

import copy
import sys
from pathlib import Path

import pytest
import yaml
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lightning_nlf import __main__ as entry
from lightning_nlf.cli import command_line
from lightning_nlf.cli.command_line import main
from lightning_nlf.cli.endings import user_errors
from lightning_nlf.cli.errors import EXTRAS, RunFailure

ROOT = Path(__file__).parents[3]
LINEAR = "lightning_nlf.maths.Linear"
POLICY = "model.init_args.policy"
BASE = yaml.safe_load((Path(__file__).parent / "in_full.yaml").read_text())


@pytest.fixture(autouse=True)
def quiet_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LIGHTNING_NLF_TRACEBACK", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])


def changed(key: str, value) -> str:
    """conf/injection.yaml, written out in full, with one key set, as text."""
    config = copy.deepcopy(BASE)
    *above, last = key.split(".")
    node = config
    for name in above:
        node = node[name]
    node[last] = value
    return yaml.safe_dump(config, sort_keys=False)


def line_of(text: str, key: str) -> int:
    return 1 + next(i for i, line in enumerate(text.splitlines()) if line.strip().startswith(f"{key}:"))


def refused(capsys, args: list[str], run: bool = False) -> str:
    """Run a command that must end with exit code 2, and return its one-line message."""
    with pytest.raises(SystemExit) as ending:
        main(args, run=run)
    message = capsys.readouterr().err
    assert ending.value.code == 2
    assert message.count("\n") == 1 and len(message) < 400
    assert "Traceback" not in message and "usage:" not in message
    return message


UNKNOWN_KEYS = [
    ("modle", 1, "model"),
    ("modle", None, "model"),
    ("trainer.max_epoch", 3, "max_epochs"),
    ("trainer.max_epoch", None, "max_epochs"),
    ("model.init_arg", {"gamma": 1.0}, "init_args"),
    ("model.init_args.gama", 0.9, "gamma"),
    (f"{POLICY}.init_args.hiden", [3], "hidden"),
    ("model.init_args.imitation_weight", {"class_path": LINEAR, "init_args": {"strat": 1}}, "start"),
    ("model.init_args.optimizer.init_args.lrr", 0.1, "lr"),
    ("data.init_args.episode", 3, "episodes"),
    ("data.init_args.expert.init_args.sdt", 0.1, "std"),
    ("data.init_args.takeover.init_args.lenth", 3, "length"),
    ("data.init_args.label_buffer", {"update": 3}, "updates"),
]  # fmt: skip


@pytest.mark.parametrize("key, value, suggestion", UNKNOWN_KEYS)
def test_unknown_key(capsys, key, value, suggestion):
    text = changed(key, value)
    Path("wrong.yaml").write_text(text)
    message = refused(capsys, ["fit", "--config", "wrong.yaml"])
    wrong = {"model.init_args.imitation_weight": "strat", "data.init_args.label_buffer": "update"}.get(key)
    wrong = wrong or key.split(".")[-1]
    assert f"{wrong} (wrong.yaml, line {line_of(text, wrong)})" in message
    assert f"Did you mean '{suggestion}'?" in message


def test_a_yaml_in_a_folder_below_is_read_again_for_the_message(capsys, tmp_path):
    """jsonargparse changes to the yaml's folder while it parses, and `conf/x.yaml` does not exist from there."""
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "x.yaml").write_text(changed("trainer.max_epoch", 3))
    message = refused(capsys, ["fit", "--config", "conf/x.yaml"])
    assert "max_epochs" in message and "conf/x.yaml, line" in message


@pytest.mark.parametrize(
    "key, value, parts",
    [
        ("model.class_path", "lightning_nlf.objectives.InjectionPolice", ["Did you mean 'InjectionPolicy'?"]),
        ("model.class_path", "lightning_nlf.objective.InjectionPolicy", ["Did you mean 'objectives'?"]),
        (f"{POLICY}.class_path", "lightning_nlf.networks.GausianPolicy", [POLICY, "Did you mean 'GaussianPolicy'?"]),
        (f"{POLICY}.class_path", "lightning_nlf.networks.MLPValue", [POLICY, "MLPValue is not a Policy"]),
        ("data.class_path", "data_modules.pendulum.PendulumDataModul", ["Did you mean 'PendulumDataModule'?"]),
        ("data.class_path", "data_module.pendulum.PendulumDataModule", ["Did you mean 'data_modules'?"]),
        ("data.init_args.expert.class_path", "data_modules.pendulum.experts.LQRExprt", ["Did you mean 'LQRExpert'?"]),
        ("model.init_args.optimizer.class_path", "torch.optim.Adm", ["optimizer", "Did you mean 'Adam'?"]),
    ],
)
def test_misspelt_class(capsys, key, value, parts):
    text = changed(key, value)
    Path("wrong.yaml").write_text(text)
    message = refused(capsys, ["fit", "--config", "wrong.yaml"])
    line = 1 + next(i for i, line in enumerate(text.splitlines()) if line.strip() == f"class_path: {value}")
    for part in [f"class_path (wrong.yaml, line {line})", *parts]:
        assert part in message


@pytest.mark.parametrize(
    "key, value, parts",
    [
        ("trainer.max_epochs", "many", ["expected a whole number from -1 (no limit) or null, got 'many'"]),
        ("seed_everything", "x", ["expected a seed (a whole number from 0 to 4294967295), got 'x'"]),
        ("model.init_args.gamma", "high", ["expected a discount (a number from 0 to 1) or null, got 'high'"]),
        ("model.init_args.divergence", "forwards", ["one of 'forward'", "Did you mean 'forward'?"]),
        ("data.init_args.episodes", 2.5, ["expected a whole number from 1 to 2147483647, got '2.5'"]),
        ("data.init_args.episodes", 0, ["expected a whole number from 1 to 2147483647, got '0'"]),
        (
            "data.init_args.seed",
            "${seed_everythin}",
            ["${seed_everythin} refers to a key that does not exist", "'seed_everything'"],
        ),
        ("data.init_args.seed", "${seed_everything", ["cannot be resolved"]),
        ("model.init_args.network_lr", 3, ["got '3'"]),
    ],
)
def test_bad_value(capsys, key, value, parts):
    text = changed(key, value)
    Path("wrong.yaml").write_text(text)
    message = refused(capsys, ["fit", "--config", "wrong.yaml"])
    for part in [f"{key} (wrong.yaml, line {line_of(text, key.split('.')[-1])})", *parts]:
        assert part in message


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *((f"model.init_args.{name}", value) for name, value in (("gamma", -1), ("gamma", 1.5), ("gamma", 1e308))),
        *(
            (f"model.init_args.{name}", value)
            for name, value in (("entropy_weight", None), ("clip", -0.5), ("gamma", True))
        ),
        ("model.init_args.imitation_weight", -1),
        ("model.init_args.optimizer.init_args.lr", 0),
        ("model.init_args.optimizer.init_args.lr", None),
        ("model.init_args.optimizer", {}),
        (f"{POLICY}.init_args.hidden", [0]),
        (f"{POLICY}.init_args.hidden", [10**30]),
        (POLICY, {}),
        ("data.init_args.min_steps", -1),
        ("data.init_args.episodes", None),
        ("data.init_args.takeover.init_args.probability", None),
        ("data", {}),
        ("seed_everything", None),
        ("trainer.log_every_n_steps", -1),
        ("trainer.check_val_every_n_epoch", 0),
        ("trainer.val_check_interval", 0),
        ("trainer.callbacks", [{}]),
    ],
)
def test_a_value_out_of_range_is_refused_by_its_key(capsys, key, value):
    text = changed(key, value)
    Path("wrong.yaml").write_text(text)
    message = refused(capsys, ["fit", "--config", "wrong.yaml"])
    assert f"{key} (wrong.yaml, line" in message and "expected" in message


@pytest.mark.parametrize("number", ["1:30", "0:30.5"])
def test_a_time_of_day_is_no_number(capsys, number):
    Path("wrong.yaml").write_text(changed("data.init_args.episodes", 2).replace("episodes: 2", f"episodes: {number}"))
    assert f"got '{number}'" in refused(capsys, ["fit", "--config", "wrong.yaml"])


def test_an_argument_below_dict_kwargs_that_nobody_takes(capsys):
    Path("wrong.yaml").write_text(changed(f"{POLICY}.dict_kwargs", {"colour": 1}))
    message = refused(capsys, ["fit", "--config", "wrong.yaml"])
    assert f"{POLICY}.dict_kwargs.colour (wrong.yaml, line" in message and "has no such key" in message


def test_value_refused_by_a_constructor_inside_a_union(capsys):
    expert = {"class_path": "data_modules.pendulum.experts.LinearExpert", "init_args": {"gain": [1.0]}}
    Path("wrong.yaml").write_text(changed("data.init_args.expert", expert))
    message = refused(capsys, ["fit", "--config", "wrong.yaml"])
    assert "data.init_args.expert.init_args.gain" in message and "must be four finite numbers" in message
    assert not Path("outputs/wrong-seed0").exists()


@pytest.mark.parametrize(
    "text, part",
    [
        ("trainer:\n  max_epochs: 3\n model: 3\n", "wrong.yaml, line 3: not valid yaml"),
        ("trainer:\n\tmax_epochs: 3\n", "wrong.yaml, line 2: not valid yaml"),
        ("seed_everything: 0\nseed_everything: 3\n", "seed_everything (wrong.yaml, line 2): this key appears twice"),
        ("trainer: {logge:}\n", "wrong.yaml, line 1: not valid yaml"),
        ("- 3\n", "wrong.yaml: expected keys with values"),
        ("", "wrong.yaml: expected keys with values, got an empty file"),
        ("seed_everything: 1\n", "data and model: missing"),
    ],
)
def test_broken_yaml(capsys, text, part):
    Path("wrong.yaml").write_text(text)
    assert part in refused(capsys, ["fit", "--config", "wrong.yaml"])


INJECTION = ["fit", "--config", str(ROOT / "conf" / "injection.yaml")]


@pytest.mark.parametrize(
    "args, parts",
    [
        (
            ["fit", "--config", str(ROOT / "conf" / "injecton.yaml")],
            ["the file does not exist", "conf/injection.yaml?"],
        ),
        (
            ["fit", "--config", str(ROOT / "conf/rlhf/rlhf_ppo.yaml")],
            ["the file does not exist; it is now", "conf/reviews/ppo.yaml"],
        ),
        ([], ["fit, validate, test, predict"]),
        (["fitt"], ["Did you mean 'fit'?"]),
        (["--config", "a.yaml", "fit"], ["the first argument must be one of"]),
        ([*INJECTION, "--trainer.max_epoch", "3"], ["--trainer.max_epoch", "'--trainer.max_epochs'"]),
        ([*INJECTION, "--model.gama", "3"], ["--model.gama", "Did you mean 'gamma'?"]),
        ([*INJECTION, "--model.policy.hiden=3"], ["--model.policy.hiden", "Did you mean 'hidden'?"]),
        ([*INJECTION, "--model.init_args.gamma", "high"], ["--model.init_args.gamma: expected a discount"]),
        ([*INJECTION, "--sed_everything", "3"], ["Did you mean '--seed_everything'?"]),
        ([*INJECTION, "--trainer.accelerator", "gpuu"], ["trainer", "gpuu"]),
        ([*INJECTION, "--trainer.default_root_dir", "x"], ["trainer.default_root_dir", "run_dir"]),
        ([*INJECTION, "--model", "lightning_nlf.objectives.ReinforcePolic"], ["Did you mean 'ReinforcePolicy'?"]),
        (["test", *INJECTION[1:], "--ckpt_path", "best"], ["ckpt_path", "best.ckpt does not exist"]),
        (["predict", *INJECTION[1:], "--ckpt_path", "bset"], ["ckpt_path: bset", "Did you mean 'best'?"]),
        (["fit", "--config"], ["--config: the file name is missing"]),
        (["fit", "conf/injection.yaml"], ["--config conf/injection.yaml"]),
        ([*INJECTION, "--seed", "3"], ["--seed: no such flag. Did you mean '--seed_everything'?"]),
        ([*INJECTION, "--seed_everything", "-1"], ["seed_everything: expected a seed", "got '-1'"]),
        ([*INJECTION, "--run_dir", ""], ["run_dir: is empty"]),
        ([*INJECTION, "--run_dir", "/proc/nowhere"], ["run_dir: /proc/nowhere cannot be written: No such file"]),
        ([*INJECTION, "--model.lr_scheduler", "StepLR"], ["lr_scheduler", "StepLR needs step_size"]),
    ],
)
def test_wrong_words(capsys, args, parts):
    message = refused(capsys, args)
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    "overlay, part",
    [
        ("trainer:\n  logge:\n", "trainer.logge (overlay.yaml, line 2): no such key. Did you mean 'logger'?"),
        ("mdel:\n", "mdel (overlay.yaml, line 1): no such key. Did you mean 'model'?"),
    ],
)
def test_an_unknown_key_with_nothing_below_it(capsys, overlay, part):
    Path("overlay.yaml").write_text(overlay)
    assert part in refused(capsys, [*INJECTION, "--config", "overlay.yaml"])


def test_a_file_in_the_way_of_the_run_folder(capsys):
    Path("taken").touch()
    assert "run_dir: taken cannot be written" in refused(capsys, [*INJECTION, "--run_dir", "taken"])


def test_a_missing_file_that_a_constructor_opens_is_a_mistake(capsys):
    flags = policy_that("opens", init="open('nowhere.txt')")
    assert "nowhere.txt" in refused(capsys, short_fit(*flags))
    assert not Path("run").exists()


def test_a_resume_is_not_cut_by_steps(capsys):
    Path("other/checkpoints").mkdir(parents=True)
    Path("other/checkpoints/last.ckpt").touch()
    resumed = ["--ckpt_path", "other/checkpoints/last.ckpt", "--run_dir", "run", "--trainer.max_steps", "3"]
    assert "trainer.max_steps: not supported when resuming" in refused(capsys, [*INJECTION, *resumed])
    assert not Path("run").exists()


def test_the_journal_of_another_process_has_no_checkpoint_of_this_run(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").touch()
    with pytest.raises(RunFailure) as raised, user_errors([], tmp_path):
        exec("raise OSError('x is being written by process 3')", {"__name__": "lightning_nlf.tracking"})
    assert str(raised.value) == "x is being written by process 3"


def test_a_lightning_signal_becomes_the_code_of_a_shell(monkeypatch):
    def end(error: BaseException):
        def ended(*args):
            try:
                raise error
            except KeyboardInterrupt:
                sys.exit(1)  # as Lightning does

        return ended

    for error, code in ((SIGTERMException(), 143), (KeyboardInterrupt(), 130), (SystemExit(1), 1)):
        monkeypatch.setattr(command_line, "CommandLine", end(error))
        with pytest.raises(SystemExit) as ending:
            main(INJECTION)
        assert ending.value.code == code


def test_ctrl_c_during_imports_has_no_traceback(monkeypatch):
    class Interrupted:
        def __enter__(self):
            raise KeyboardInterrupt

        def __exit__(self, *args): ...

    monkeypatch.setattr(entry, "quick_imports", Interrupted)
    monkeypatch.setattr(sys, "argv", ["lightning_nlf", "fit"])
    with pytest.raises(SystemExit) as ending:
        entry.main()
    assert ending.value.code == 130


def test_missing_argument_of_a_class(capsys):
    expert = {"class_path": "data_modules.pendulum.experts.LinearExpert", "init_args": {"std": 0.1}}
    Path("wrong.yaml").write_text(changed("data.init_args.expert", expert))
    assert "LinearExpert needs gain" in refused(capsys, ["fit", "--config", "wrong.yaml"])


def test_two_ways_to_say_one_thing(capsys):
    """The settings of Adam, and an optimizer by `class_path`."""
    for knob, value in (("lr", 0.1), ("eps", 1e-5), ("weight_decay", 0)):
        Path("wrong.yaml").write_text(changed(f"model.init_args.{knob}", value))
        message = refused(capsys, ["fit", "--config", "wrong.yaml"])
        assert f"model.init_args.{knob} (wrong.yaml" in message and "with optimizer" in message


def test_missing_package_names_its_extra(capsys, monkeypatch):
    monkeypatch.setitem(EXTRAS, "no_such_package", "games")
    Path("needs_a_package.py").write_text("import no_such_package\n")
    Path("wrong.yaml").write_text(changed("data.class_path", "needs_a_package.Games"))
    message = refused(capsys, ["fit", "--config", "wrong.yaml"])
    assert "no_such_package is not installed" in message and "'lightning_nlf[games]'" in message


# ---- which key is wrong


@pytest.mark.parametrize(
    "key, value, at, parts",
    [
        ("model.init_args.optimizer.init_args.lr", "0,02", None, ["got '0,02'"]),
        (f"{POLICY}.init_args.hidden", "32, 32", None, ["expected a list or null, got '32, 32'"]),
        (f"{POLICY}.init_args.hidden", [32, "x"], None, ["entry 2: expected a whole number from 1 to", "got 'x'"]),
        (POLICY, [], None, ["expected a Policy, got '[]'"]),
        (POLICY, 3, None, ["expected a Policy, got '3'"]),
        (POLICY, None, None, ["expected a Policy, got null"]),
        (f"{POLICY}.class_path", 3, None, ["expected the import path of a class (Policy), got 3"]),
        (f"{POLICY}.init_args", None, None, ["expected keys with values, got null"]),
        (f"{POLICY}.clas_path", "x", None, ["no such key beside class_path. Did you mean 'class_path'?"]),
        ("model.init_args.optimizer", [], None, ["expected an Optimizer or null, got '[]'"]),
        ("model.init_args.lr_scheduler", "0.5", None, ["expected a LRScheduler or a ReduceLROnPlateau or null"]),
        ("model.init_args.gamma", "${data.class_path}", None, ["got 'data_modules.pendulum.PendulumDataModule'"]),
        ("data.init_args.takeover.init_args.probability", "half", None, ["got 'half'"]),
        ("data.init_args.expert", {"init_args": {"std": 0.1}}, None, ["expected class_path, the import path"]),
        ("data.dict_kwargs", 3, None, ["expected keys with values, got '3'"]),
        ("data.init_args.expert.dict_kwargs", {"sdt": 3}, "sdt", ["LQRExpert has no such key. Did you mean 'std'?"]),
        ("model.init_args.optimizer.dict_kwargs", {"lrr": 3}, "lrr", ["Adam has no such key"]),
        ("trainer.callbacks", [{"class_path": "lightning_nlf.callbacks.StopWhenSolvd"}], "- class_path", ["Solved'?"]),
        ("trainer.callbacks", [0.5], None, ["entry 1: expected a Callback, got '0.5'"]),
        ("trainer", 3, None, ["expected keys with values, got '3'"]),
    ],
)  # fmt: skip
def test_the_key_named_is_the_wrong_one(capsys, key, value, at, parts):
    text = changed(key, value)
    Path("wrong.yaml").write_text(text)
    message = refused(capsys, ["fit", "--config", "wrong.yaml"])
    *above, last = key.split(".")
    parent = text.index(f"{above[-1]}:") if above else 0  # the key that is below this one
    line = 1 + text[: text.index(f"{at or last}:", parent)].count("\n")
    dotted = {"- class_path": f"{key}.0.class_path"}.get(at, f"{key}.{at}") if at else key
    for part in [f"error: {dotted} (wrong.yaml, line {line}): ", *parts]:
        assert part in message


def test_of_two_entries_of_a_list_the_wrong_one_is_named(capsys):
    right, wrong = "lightning_nlf.callbacks.StopWhenSolved", "lightning_nlf.callbacks.StopWhenSolvd"
    Path("wrong.yaml").write_text(changed("trainer.callbacks", [{"class_path": wrong}, {"class_path": right}]))
    assert "trainer.callbacks.0.class_path (wrong.yaml, line 7)" in refused(capsys, ["fit", "--config", "wrong.yaml"])


def test_keys_for_the_class_before_are_not_those_that_are_wrong(capsys):
    """The expert and take-over of the yaml are dropped with the class that has them. The wrong value is the flag's."""
    words = ["--model", "lightning_nlf.objectives.ReinforcePolicy", "--model.policy.hidden", "3 4"]
    assert refused(capsys, [*INJECTION, *words]).startswith("error: --model.policy.hidden: expected a list or null")


def test_a_wrong_interpolation_is_blamed_where_it_stands(capsys):
    """`data.init_args.seed` is `${seed_everything}` and right."""
    Path("wrong.yaml").write_text(changed("seed_everything", "${nowhere}"))
    message = refused(capsys, ["fit", "--config", "wrong.yaml"])
    assert "error: seed_everything (wrong.yaml, line 1): ${nowhere} refers to a key that does not exist" in message


# ---- yamls and paths without bounds


LAUGHS = "\n".join(["a0: &a0 [lol]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 20)])


@pytest.mark.parametrize(
    "text, part",
    [
        ("model: &m\n  init_args: *m\n", "wrong.yaml, line 2: *m contains itself"),
        ("data: 1\nmodel: " + "[" * 100 + "]" * 100, "wrong.yaml, line 2: nested deeper than 64 levels"),
        ("model: " + "{a: " * 100 + "1" + "}" * 100, "wrong.yaml, line 1: nested deeper than 64 levels"),
        ("model: " + "[" * 100_000, "wrong.yaml, line 1: not valid yaml: exceeded maximum nesting depth"),
        (LAUGHS, "wrong.yaml, line 6: more than 50,000 values, with aliases expanded"),
        ("#" + "x" * 20_000_000, "wrong.yaml: the file has 20,000,001 bytes; a yaml may have at most 1,000,000"),
        ("seed_everything: " + "1" * 5000, "wrong.yaml: not valid yaml"),
        ("? [a, b]\n: 1\n", "wrong.yaml, line 1: not valid yaml: found unhashable key"),
        ("model: !!python/name:os.system x\n", "wrong.yaml, line 1: not valid yaml"),
        ("model: a\0b\n", "wrong.yaml: not valid yaml"),
    ],
    ids=[
        "itself",
        "lists",
        "mappings",
        "too deep to be read",
        "laughs",
        "comment",
        "digits",
        "list as key",
        "tag",
        "NUL",
    ],
)
def test_a_yaml_without_bounds_is_refused_at_once(capsys, text, part):
    Path("wrong.yaml").write_text(text)
    assert part in refused(capsys, ["fit", "--config", "wrong.yaml"])


@pytest.mark.parametrize(
    "words, part",
    [
        (["--run_dir", "x" * 5000], "run_dir: xxx"),
        (["--run_dir", "a\0b"], "run_dir: 'a\\x00b' has a NUL character"),
        (["--ckpt_path", "x" * 5000], "ckpt_path: xxx"),
        (["--ckpt_path", "a\0b"], "ckpt_path: 'a\\x00b' has a NUL character"),
        (["--ckpt_path", "hpc"], " has no hpc_ckpt_*.ckpt"),
        (["--config", "x" * 5000], "--config xxx"),
        (["--config", "a\0b"], "the file does not exist"),
        (["--config", "a/" * 3000 + "b.yaml"], "the file does not exist"),
        (["--model.gamma", "[" * 100 + "]" * 100], "--model.gamma, line 1: nested deeper than 64 levels"),
    ],
)
def test_a_path_or_flag_that_can_be_none(capsys, words, part):
    assert part in refused(capsys, [*INJECTION, *words])


# ---- memory runs out


@pytest.mark.parametrize(
    "body",
    [
        "raise ImportError('libx.so: failed to map segment from shared object')",
        "raise MemoryError",
        "class Games:\n    def __init__(self):\n        raise MemoryError",
    ],
    ids=["import of a library", "import", "constructor"],
)
def test_running_out_of_memory_blames_no_key(capsys, monkeypatch, body):
    Path("hungry.py").write_text(
        f"{body}\n".replace("class Games:", "import lightning\nclass Games(lightning.LightningDataModule):")
    )
    monkeypatch.delitem(sys.modules, "hungry", raising=False)
    Path("wrong.yaml").write_text(yaml.safe_dump(BASE | {"data": {"class_path": "hungry.Games"}}))
    with pytest.raises(SystemExit) as ending:
        main(["fit", "--config", "wrong.yaml"], run=False)
    message = capsys.readouterr().err
    assert ending.value.code == 1
    assert message.startswith("error: out of memory") and message.count("\n") == 1 and "wrong.yaml" not in message


# ---- errors during a run


def short_fit(*flags: str) -> list[str]:
    limits = ["--trainer.max_epochs", "2", "--trainer.logger", "false", "--trainer.enable_progress_bar", "false"]
    return ["fit", "--config", str(ROOT / "conf" / "pendulum" / "reinforce.yaml"), "--run_dir", "run", *limits, *flags]


def policy_that(name: str, terms: str = "", init: str = "") -> list[str]:
    """Flags for a policy class in the working folder that runs `terms` in each step and `init` when it is built."""
    Path(f"{name}.py").write_text(
        "import torch\n"
        "from lightning_nlf.objective import Term\n"
        "from lightning_nlf.objectives import ReinforcePolicy\n"
        "class Policy(ReinforcePolicy):\n"
        "    def __init__(self, **kwargs):\n"
        f"        {init or 'pass'}\n"
        "        super().__init__(**kwargs)\n"
        "    def terms(self, batch, now):\n"
        f"        {terms or 'pass'}\n"
        "        return ()\n"
    )
    config = yaml.safe_load((ROOT / "conf" / "pendulum" / "reinforce.yaml").read_text())
    config["model"]["class_path"] = f"{name}.Policy"
    Path("own.yaml").write_text(yaml.safe_dump(config))
    return ["--config", "own.yaml"]


def test_a_check_of_ours_in_training_is_a_mistake(capsys):
    message = refused(capsys, short_fit("--data.minibatches", "8"), run=True)
    assert "got 2 rows, must be at least 8" in message


def test_an_optimizer_that_refuses_its_value_is_a_mistake(capsys):
    optimizer = {"class_path": "torch.optim.Adam", "init_args": {"betas": [2, 0.9]}}
    Path("overlay.yaml").write_text(yaml.safe_dump({"model": {"init_args": {"lr": None, "optimizer": optimizer}}}))
    message = refused(capsys, short_fit("--config", "overlay.yaml"), run=True)
    assert "optimizer" in message and "Invalid beta parameter" in message


@pytest.mark.parametrize(
    "at, part", [(0, "No checkpoint has been saved in run yet"), (1, "last good checkpoint is run/checkpoints/")]
)
def test_non_finite_loss_ends_with_the_last_good_checkpoint(capsys, at, part):
    terms = f"if self.global_step >= {at}: return [Term('broken', now.log_probs * torch.nan, 'mask')]"
    with pytest.raises(SystemExit) as ending:
        main(short_fit(*policy_that(f"not_finite_{at}", terms)))
    message = capsys.readouterr().err
    assert ending.value.code == 1
    assert "non-finite loss" in message and part in message and "Traceback" not in message


def test_a_bug_in_training_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        main(short_fit(*policy_that("divides", "1 / 0")))


def test_a_bug_in_a_constructor_keeps_its_traceback():
    with pytest.raises(AttributeError, match="nothing_like_it"):
        main(short_fit(*policy_that("buggy", init="torch.nothing_like_it()")))
    assert not Path("run").exists()


def test_the_traceback_comes_when_asked_for(monkeypatch):
    monkeypatch.setenv("LIGHTNING_NLF_TRACEBACK", "1")
    with pytest.raises(Exception, match="must be at least 8") as raised:
        main(short_fit("--data.minibatches", "8"))
    assert isinstance(raised.value.__cause__, ValueError)
