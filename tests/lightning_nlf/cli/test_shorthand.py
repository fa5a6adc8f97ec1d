"""A path, or arguments alone, in place of a class."""

from pathlib import Path

import pytest

from lightning_nlf.cli.command_line import main
from lightning_nlf.cli.errors import ConfigurationError
from lightning_nlf.cli.parts import Parts

YAML = """
model:
  class_path: lightning_nlf.objectives.JointPolicy
  init_args:
    policy: {policy}
    imitation_weight: {weight}
    lr: 0.1
data:
  class_path: data_modules.text.TextDataModule
  init_args:
    task: data_modules.text.PositiveReviews
    reward: {reward}
"""
NETWORKS = "lightning_nlf.networks"


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIGHTNING_NLF_RUN_DIR", "")
    monkeypatch.setenv("LIGHTNING_NLF_TRACEBACK", "1")


def options(*flags, policy="my/model", weight=1.0, reward="null"):
    Path("a.yaml").write_text(YAML.format(policy=policy, weight=weight, reward=reward))
    return Parts(["--config", "a.yaml", *flags], {}, build=False).options


def spec(part):
    """(class, arguments that are not the default) of a part of the options."""
    arguments = part.init_args.as_dict()
    return part.class_path.rpartition(".")[2], {
        name: value for name, value in arguments.items() if value not in (None, 1.0, 0.0, False)
    }


def test_a_path_is_the_class_that_reads_it():
    read = options(policy="runs/sft-${seed_everything}/last.ckpt", reward="models:/helpful@champion")
    assert spec(read.model.init_args.policy) == ("TransformerPolicy", {"weights": "runs/sft-0/last.ckpt"})
    assert spec(read.data.init_args.reward) == ("CheckpointReward", {"checkpoint": "models:/helpful@champion"})


@pytest.mark.parametrize("path", ["runs/sft/last.ckpt", '"runs/sft/last.ckpt"', "'runs/sft/last.ckpt'"])
def test_a_path_of_a_flag_may_be_quoted(path):
    read = options(f"--model.policy={path}")
    assert spec(read.model.init_args.policy) == ("TransformerPolicy", {"weights": "runs/sft/last.ckpt"})


@pytest.mark.parametrize(
    "yaml, key, class_name",
    [
        ("pendulum/joint", "expert", "CheckpointExpert"),
        ("answers/ilf", "reviser", "CheckpointTextExpert"),
        ("answers/injection", "injection.init_args.expert", "CheckpointTextExpert"),
    ],
)
def test_an_expert_of_states_and_one_of_text(yaml, key, class_name):
    conf = Path(__file__).parents[3] / "conf"
    words = ["--config", str(conf / f"{yaml}.yaml"), f"--data.{key.replace('.init_args', '')}", "a/b.ckpt"]
    part = Parts(words, {}, build=False).options.data[f"init_args.{key}"]
    assert spec(part) == (class_name, {"checkpoint": "a/b.ckpt"})


def test_arguments_alone_are_those_of_the_class_that_has_them():
    read = options(policy="{weights: my/model, lora: {r: 16}}", weight="{over: 30}")
    name, arguments = spec(read.model.init_args.policy)
    assert (
        name == "TransformerPolicy" and arguments["weights"] == "my/model" and arguments["lora"]["init_args"]["r"] == 16
    )
    assert read.model.init_args.imitation_weight.class_path == "lightning_nlf.maths.Linear"
    shape = options(policy="{shape: {layers: 3}}").model.init_args.policy.init_args.shape
    assert shape.init_args.layers == 3


def test_arguments_of_an_overlay_keep_the_class():
    full = f"{{class_path: {NETWORKS}.HuggingFacePolicy, init_args: {{weights: a/b}}}}"
    Path("b.yaml").write_text("model: {init_args: {policy: {weights: c/d}}}")
    policy = options("--config", "b.yaml", policy=full).model.init_args.policy
    assert spec(policy) == ("HuggingFacePolicy", {"weights": "c/d"})


def test_flags_go_into_a_path():
    policy = options("--model.policy.weights", "c/d", "--model.policy.lora.r", "4").model.init_args.policy
    assert policy.init_args.weights == "c/d" and policy.init_args.lora.init_args.r == 4
    assert spec(options("--model.policy", "c/d.ckpt").model.init_args.policy)[1] == {"weights": "c/d.ckpt"}


@pytest.mark.parametrize(
    "parts, flags, message",
    [
        ({"policy": "{weights: a/b, loora: {r: 1}}"}, [], r"policy.loora \(a.yaml, line 5\): TransformerPolicy has no"),
        ({"policy": "{weights: a/b, lora: {r: x}}"}, [], r"lora.r \(a.yaml, line 5\): expected a whole number"),
        ({}, ["--model.policy.lora.r", "x"], "--model.policy.lora.r: expected a whole number"),
        ({}, ["--model.policy.wights", "a"], "TransformerPolicy has no such key. Did you mean 'weights'"),
        ({"weight": "{over: x}"}, [], r"imitation_weight.over \(a.yaml, line 6\): expected a whole number"),
        ({"weight": "a/b"}, [], r"imitation_weight \(a.yaml, line 6\): expected a number"),
    ],
)
def test_a_mistake_has_its_place(parts, flags, message):
    with pytest.raises(ConfigurationError, match=message):
        options(*flags, **parts)


@pytest.mark.parametrize(
    "parts, message",
    [
        ({"policy": "a/b.ckpt"}, r"policy \(a.yaml, line 5\): there is no file a/b.ckpt"),
        (
            {"reward": "a/${seed_everything}.ckpt"},
            r"reward \(a.yaml, line 12\): the checkpoint a/0.ckpt does not",
        ),
    ],
)
def test_a_path_of_nothing_has_its_place(parts, message):
    options(**({"policy": "{shape: {layers: 1, width: 16}}"} | parts))
    with pytest.raises(ConfigurationError, match=message):
        main(["fit", "--config", "a.yaml"], run=False)
