"""Settings that a yaml leaves out follow from the others."""

from pathlib import Path

import pytest

from lightning_nlf.cli.command_line import main
from lightning_nlf.cli.parts import Parts

CONF = Path(__file__).parents[3] / "conf"
AGENT = ["--model", "lightning_nlf.objectives.ActorCriticAgent", "--model.value", "lightning_nlf.networks.MLPValue"]
TEXT = """
model:
  class_path: lightning_nlf.objectives.{objective}
  init_args: {{policy: {{shape: {{layers: 1, heads: 1, width: 16}}}}, {critic} lr: 0.1}}
data: {{class_path: data_modules.text.TextDataModule, init_args: {{task: data_modules.text.PositiveReviews}}}}
"""


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIGHTNING_NLF_RUN_DIR", "")


def built(yaml, *flags):
    return Parts(["--config", str(yaml), *flags], {})


@pytest.mark.parametrize("iterations, interval", [(200, 10), (40, 10), (24, 6), (7, 1), (1, 1), (-1, 10)])
def test_a_fit_that_samples_is_validated_four_times_and_every_ten_iterations(iterations, interval):
    flags = ["--trainer.max_epochs", str(iterations), "--trainer.check_val_every_n_epoch", "null"]
    cli = main(["fit", "--config", str(CONF / "injection.yaml"), *flags], run=False)
    assert cli.trainer.check_val_every_n_epoch == cli.options.trainer.check_val_every_n_epoch == interval


def test_a_fit_on_given_rows_is_validated_each_epoch():
    cli = main(["fit", "--config", str(CONF / "reviews/sft.yaml"), "--trainer.max_epochs", "40"], run=False)
    assert cli.trainer.check_val_every_n_epoch == 1


def test_an_interval_in_batches_across_epochs_stays():
    flags = ["--trainer.check_val_every_n_epoch", "null", "--trainer.val_check_interval", "3"]
    trainer = main(["fit", "--config", str(CONF / "injection.yaml"), *flags], run=False).trainer
    assert trainer.check_val_every_n_epoch is None and trainer.val_check_interval == 3


def test_several_passes_over_a_collection_are_clipped():
    clips = [built(CONF / "injection.yaml", *flags).model.clip for flags in ([], ["--data.passes", "2"])]
    assert clips == [None, 0.2]
    assert built(CONF / "injection.yaml", "--data.passes", "2", "--model.clip", "5").model.clip == 5


def test_a_value_network_has_the_layers_and_the_inputs_of_the_policy():
    inputs = ["--model.policy.obs_mean", "[1, 2, 3, 4]", "--model.policy.obs_std", "[5, 6, 7, 8]"]
    model = built(CONF / "injection.yaml", *AGENT, "--model.policy.hidden", "[7, 9]", *inputs).model
    assert [tuple(x.shape) for x in model.value.parameters()] == [(7, 4), (7,), (9, 7), (9,), (1, 9), (1,)]
    assert model.value.net[0].mean.tolist() == [1, 2, 3, 4] and model.value.net[0].std.tolist() == [5, 6, 7, 8]
    model = built(CONF / "injection.yaml", *AGENT, "--model.value.hidden", "[5]").model
    assert [len(x) for x in model.value.parameters()] == [5, 5, 1, 1]


@pytest.mark.parametrize(
    "objective, critic, replies",
    [("ReinforcePolicy", "", 4), ("ActorCriticAgent", "value: lightning_nlf.networks.ValueHead,", 1)],
)
def test_a_value_network_needs_no_group_of_replies(objective, critic, replies):
    Path("a.yaml").write_text(TEXT.format(objective=objective, critic=critic))
    assert built("a.yaml").datamodule.replies == replies
    assert built("a.yaml", "--data.replies", "3").datamodule.replies == 3
