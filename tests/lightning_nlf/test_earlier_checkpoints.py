"""Checkpoints of commit 1c5b0d2 still load, and give the same outputs as then.

Each was saved after one epoch of a tiny `fit`, so its hyperparameters are those of a real run. `outputs.json` has the
outputs of that commit's code for a few states or tokens, by name of the checkpoint.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch

from lightning_nlf.batch import Batch
from lightning_nlf.experts import policy_of
from lightning_nlf.modules import ObjectiveModule
from lightning_nlf.scorers import CheckpointReward
from lightning_nlf.tracking.journal import Journal
from lightning_nlf.tracking.registry import register

CHECKPOINTS = Path(__file__).parent / "checkpoints"
OUTPUTS = json.loads((CHECKPOINTS / "outputs.json").read_text())


def outputs_of(module, obs, actions):
    """Log-probabilities and values, or the rewards after each token; each of shape (B, T)."""
    if "reward" in dict(module.named_children()):
        return {"rewards": module.policy_reward(module.reward(obs))}
    features = module.policy.features(obs)
    outputs = {"log_probs": module.policy.distribution(features).log_prob(actions)}
    for name, network in module.named_children():
        if name == "value":
            outputs["values"] = network(features if network.on_policy else obs)
        if name == "q":
            outputs["q"] = network(obs, actions)
    return outputs


def compare(outputs, expected):
    assert outputs.keys() == expected.keys() - {"obs", "actions"}
    for name, x in outputs.items():
        torch.testing.assert_close(x.detach(), torch.tensor(expected[name]), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", OUTPUTS)
def test_outputs_have_not_changed(name):
    module = ObjectiveModule.load_from_checkpoint(CHECKPOINTS / f"{name}.ckpt").eval()
    obs, actions = (torch.tensor(OUTPUTS[name][field]) for field in ("obs", "actions"))
    compare(outputs_of(module, obs, actions), OUTPUTS[name])


@pytest.mark.parametrize("name", OUTPUTS)
def test_all_buffers_are_restored(name):
    """Tie parameters, an adapted β, the average return, a teacher's average, and the scale of a reward."""
    path = CHECKPOINTS / f"{name}.ckpt"
    expected = torch.load(path, weights_only=True)["state_dict"]
    state = ObjectiveModule.load_from_checkpoint(path).state_dict()
    assert state.keys() == expected.keys()
    for key, x in expected.items():
        assert torch.equal(state[key], x), key


def test_every_checkpoint_has_its_outputs():
    names = {path.stem for path in CHECKPOINTS.glob("*.ckpt")} - {"injection"}  # another test covers that one
    assert names == OUTPUTS.keys()


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    """URI of a store in which two of the checkpoints are registered, each as the best of its run."""
    root = tmp_path_factory.mktemp("registry")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(root / "cache"))
        for name in ("actor_critic", "reward_rao_kupper"):
            folder = root / "outputs" / name
            journal = Journal(folder)
            journal.start(experiment="earlier", run_name=name)
            journal.append("end", status="FINISHED")
            (folder / "checkpoints").mkdir()
            shutil.copy(CHECKPOINTS / f"{name}.ckpt", folder / "checkpoints" / "best.ckpt")
            (folder / "config.yaml").write_text("seed: 1\n")
            register(folder, name)
        yield f"sqlite:///{root}/outputs/mlflow.db"


@pytest.mark.slow
def test_registered_policy_comes_back(registry):
    expected = OUTPUTS["actor_critic"]
    policy = policy_of("models:/actor_critic@champion", registry)
    log_probs = policy(torch.tensor(expected["obs"])).log_prob(torch.tensor(expected["actions"]))
    compare({"log_probs": log_probs}, {"log_probs": expected["log_probs"]})


@pytest.mark.slow
def test_registered_reward_pays_what_it_paid(registry):
    """The reward is paid after the last token of a reply of five, with the tokens of `outputs.json`."""
    expected = OUTPUTS["reward_rao_kupper"]
    ids = torch.tensor(expected["obs"])
    valid = torch.ones(len(ids), 5, dtype=torch.bool)
    rows = Batch(obs=ids[:, :5], actions=ids[:, 1:], valid=valid, mask=valid, final_obs=ids[:, 5])
    rewards = CheckpointReward("models:/reward_rao_kupper@champion", tracking_uri=registry).score(rows)
    compare({"rewards": rewards[:, -1]}, {"rewards": [row[5] for row in expected["rewards"]]})
    assert not rewards[:, :-1].any()
