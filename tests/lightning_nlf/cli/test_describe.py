"""The `describe` command prints the loss of an agent."""

import re
from pathlib import Path

import pytest
import yaml

from lightning_nlf.cli.command_line import main
from lightning_nlf.moved_yamls import arguments

ROOT = Path(__file__).parents[3]


def trains(path):
    model = (yaml.safe_load(path.read_text()) or {}).get("model") or {}
    return "class_path" in model and "lr" in model.get("init_args", {})


TRAINING = [path for path in sorted(ROOT.glob("conf/**/*.yaml")) if trains(path)]


def section(text, title):
    """The words of each line under a title."""
    return [line.split() for line in lines_of(text, title)]


def lines_of(text, title):
    return text.split(f"\n{title}")[1].split("\n\n")[0].splitlines()[1:]


def terms(text, title="Loss"):
    """(name, weight, mixin, mask) of each loss term."""
    rows = [re.split(r"\s{2,}", line.strip()) for line in lines_of(text, title)]
    return [(name, weight.removeprefix("× "), mixin, over.split()[1]) for name, weight, mixin, over in rows]


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
    """Every phase that a class fills is explained, and the loss has a term."""
    text = described(path)
    assert terms(text)
    assert all(len(row) > 2 for row in section(text, "Phases of a collection"))


LOSSES = {
    "injection.yaml": [
        ("policy", "1", "PolicyGradientObjective", "mask"),
        ("imitation", "1 → 0 over 20,000 steps", "ImitationObjective", "expert_mask"),
    ],
    "pendulum/ppo.yaml": [
        ("policy", "1", "PolicyGradientObjective", "mask"),
        ("value", "0.5", "CriticObjective", "mask"),
    ],
    "pendulum/injection_shaped.yaml": [
        ("policy", "1", "PolicyGradientObjective", "mask"),
        ("injected", "1", "InjectionObjective", "injected"),
    ],
    "pendulum/bc.yaml": [("imitation", "1", "ImitationObjective", "expert_mask")],
    "reviews/dpo.yaml": [("preference", "1", "DirectPreferenceObjective", "strict_pairs")],
    "reviews/dpo_rankings": [("preference", "1", "DirectPreferenceObjective", "rankings")],
    "reviews/rloo.yaml": [("policy", "1", "PolicyGradientObjective", "replies")],
    "reviews/kto.yaml": [("kto", "1", "KTOObjective", "judged")],
    "answers/mixed.yaml": [
        ("policy", "1", "PolicyGradientObjective", "scored_steps"),
        ("imitation", "1", "ImitationObjective", "imitated_steps"),
        ("preference", "1", "DirectPreferenceObjective", "strict_pairs"),
        ("critique", "0.1", "CritiqueObjective", "critique_steps"),
    ],
    "sums/step_reward.yaml": [("step_correctness", "1", "StepCorrectnessObjective", "labelled")],
}


@pytest.mark.parametrize("path", LOSSES)
def test_the_loss(described, path):
    file, *flags = arguments(ROOT / "conf", path.removesuffix(".yaml"))[1:]
    assert terms(described(file, *flags)) == LOSSES[path]


def test_terms_that_are_parts_of_one_mean_say_so(described):
    text = described("answers/critique_grpo.yaml")
    assert text.count("divided by the count of valid") == 2


def test_sums_are_no_means(described):
    assert "Loss: the sum of these sums" in described("pendulum/original_joint.yaml")


def test_a_flag_counts(described):
    text = described("injection.yaml", "--model.entropy_weight", "0.2", "--model.imitation_weight", "3")
    assert ("entropy", "-0.2", "PolicyGradientObjective", "mask") in terms(text)
    assert "imitation_weight: 3.0" in text


def test_phases_stand_in_order(described):
    phases = [name for name, *_ in section(described("answers/mixed.yaml"), "Phases of a collection")]
    order = ["annotate", "select", "masks", "refer", "shape_rewards", "credit", "reweigh"]
    assert phases == sorted(phases, key=order.index)


def test_networks_with_their_sizes(described):
    """Layers of 4·32 + 32, 32·32 + 32 and 32·1 + 1 parameters, and the standard deviation."""
    assert ["policy", "GaussianPolicy", f"{160 + 1056 + 33 + 1:,}", "parameters"] in section(
        described("injection.yaml"), "Networks"
    )


def test_nothing_is_read_or_written(described, tmp_path, monkeypatch):
    text = described("reviews/ppo_lora.yaml")
    assert "outputs/reviews/sft-seed0/huggingface does not exist yet; a small network is described instead of" in text
    assert not (ROOT / "outputs" / "rlhf_lora-seed0").exists()


MISSPELT = """
from lightning_nlf.objective import Objective, Term
from lightning_nlf.objectives import ReinforcePolicy

class FrugalPolicy(ReinforcePolicy):
    def terms(self, batch, now):
        yield Term("force", now.entropy, over="{over}", per={per})
"""


@pytest.mark.parametrize("over, per", [("maks", None), ("mask", "maks")])
def test_a_misspelt_mask_is_refused(over, per, described, tmp_path, monkeypatch, capsys):
    name = f"misspelt_{over}"
    (tmp_path / f"{name}.py").write_text(MISSPELT.format(over=over, per=repr(per)))
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SystemExit) as ending:
        described("pendulum/reinforce.yaml", "--model", f"{name}.FrugalPolicy")
    assert ending.value.code == 2
    output = capsys.readouterr()
    assert output.out == "" and output.err.count("\n") == 1
    assert "term force: there is no mask `maks`; the masks are mask, expert_mask, valid" in output.err


def test_a_mistake_is_one_line(described, capsys):
    with pytest.raises(SystemExit) as ending:
        described("injection.yaml", "--model.gama", "0.9")
    assert ending.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
