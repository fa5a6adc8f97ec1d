"""`describe`: what the loss of an agent is."""

from pathlib import Path

import pytest
import yaml

from lightning_nlf.cli.command_line import main

ROOT = Path(__file__).parents[3]


def trains(path):
    model = (yaml.safe_load(path.read_text()) or {}).get("model") or {}
    return "class_path" in model and "optimizer" in model.get("init_args", {})


TRAINING = [path for path in sorted(ROOT.glob("conf/**/*.yaml")) if trains(path)]


def section(text, title):
    """The lines under a title, each as its words."""
    lines = text.split(f"\n{title}")[1].split("\n\n")[0].splitlines()[1:]
    return [line.split() for line in lines]


def terms(text, title="Loss"):
    """(name, weight, mixin, mask) of each loss term."""
    return [(name, weight, mixin, mask) for name, _, weight, mixin, _, mask, *_ in section(text, title)]


@pytest.fixture
def described(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)

    def run(path, *flags):
        main(["describe", "--config", str(ROOT / "conf" / path), *flags])
        return capsys.readouterr().out

    return run


@pytest.mark.slow
@pytest.mark.parametrize("path", TRAINING, ids=lambda path: str(path.relative_to(ROOT / "conf")))
def test_every_yaml_that_trains_is_described(described, path):
    """Every phase that somebody fills is explained, and there is a loss."""
    text = described(path)
    assert terms(text)
    assert all(len(row) > 2 for row in section(text, "Phases of a collection"))


LOSSES = {
    "injection.yaml": [
        ("policy", "1", "PolicyGradientObjective", "mask"),
        ("imitation", "1", "ImitationObjective", "expert_mask"),
    ],
    "ppo.yaml": [
        ("policy", "1", "PolicyGradientObjective", "mask"),
        ("value", "0.5", "CriticObjective", "mask"),
    ],
    "injection_shaped.yaml": [
        ("policy", "1", "PolicyGradientObjective", "mask"),
        ("injected", "1", "InjectionObjective", "injected"),
    ],
    "bc.yaml": [("imitation", "1", "ImitationObjective", "expert_mask")],
    "rlhf/dpo.yaml": [("preference", "1", "DirectPreferenceObjective", "strict_pairs")],
    "rlhf/dpo_rankings.yaml": [("preference", "1", "DirectPreferenceObjective", "rankings")],
    "rlhf/rloo.yaml": [("policy", "1", "PolicyGradientObjective", "replies")],
    "rlhf/kto.yaml": [("kto", "1", "KTOObjective", "judged")],
    "feedback/mixed.yaml": [
        ("policy", "1", "PolicyGradientObjective", "scored_steps"),
        ("imitation", "1", "ImitationObjective", "imitated_steps"),
        ("preference", "1", "DirectPreferenceObjective", "strict_pairs"),
        ("critique", "0.1", "CritiqueObjective", "critique_steps"),
    ],
    "process/step_reward.yaml": [("step_correctness", "1", "StepCorrectnessObjective", "labelled")],
}


@pytest.mark.parametrize("path", LOSSES)
def test_the_loss(described, path):
    assert terms(described(path)) == LOSSES[path]


def test_terms_that_are_parts_of_one_mean_say_so(described):
    text = described("feedback/critique_grpo.yaml")
    assert text.count("divided by the count of valid") == 2


def test_sums_are_no_means(described):
    assert "Loss: the sum of these sums" in described("original/joint.yaml")


def test_a_flag_counts(described):
    text = described("injection.yaml", "--model.entropy_weight", "0.2", "--model.imitation_weight", "3")
    assert ("entropy", "-0.2", "PolicyGradientObjective", "mask") in terms(text)
    assert "imitation_weight: 3.0" in text


def test_phases_stand_in_order(described):
    phases = [name for name, *_ in section(described("feedback/mixed.yaml"), "Phases of a collection")]
    order = ["annotate", "select", "masks", "refer", "shape_rewards", "credit", "reweigh"]
    assert phases == sorted(phases, key=order.index)


def test_networks_with_their_sizes(described):
    """4·32 + 32, 32·32 + 32, 32·1 + 1, and the deviation."""
    assert ["policy", "GaussianPolicy", f"{160 + 1056 + 33 + 1:,}", "parameters"] in section(
        described("injection.yaml"), "Networks"
    )


def test_nothing_is_read_or_written(described, tmp_path, monkeypatch):
    text = described("rlhf/rlhf_lora.yaml")
    assert "outputs/sft-seed0/huggingface is not there; a small network stands in for" in text
    assert not (ROOT / "outputs" / "rlhf_lora-seed0").exists()


def test_a_mistake_is_one_line(described, capsys):
    with pytest.raises(SystemExit) as ending:
        described("injection.yaml", "--model.gama", "0.9")
    assert ending.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
