"""The page docs/add_an_objective.md: both examples do what it says."""

import shutil

import pytest
import torch

from lightning_nlf.example_batch import example_batch
from lightning_nlf.networks import GRUPolicy
from tests.documents import ROOT, commands, page_blocks, shell

PAGE = (ROOT / "docs/add_an_objective.md").read_text()


@pytest.mark.slow
def test_an_objective_in_three_steps(tmp_path):
    """The page is run as it stands, with a fit of seconds. The new term is logged."""
    shutil.copytree(ROOT / "conf", tmp_path / "conf")
    files = [block.file for block in page_blocks(PAGE) if block.file]
    assert files == ["frugal.py", "frugal.yaml"]
    for block in page_blocks(PAGE):
        if block.file:
            (tmp_path / block.file).write_text(block.text)
        for command in commands(block.text) if block.is_run else []:
            shell(command + (" --config conf/overlays/debug.yaml" if " fit " in command else ""), tmp_path)
    (journal,) = (tmp_path / "outputs").glob("frugal*/journal.jsonl")
    assert '"train/force"' in journal.read_text()


def test_an_objective_on_language():
    """The price is .01 a token, taken off before the group's baseline; one term more than GRPO has."""
    (code,) = [b.text for b in page_blocks(PAGE) if b.language == "python" and "BriefPolicy" in b.text]
    names = {}
    exec(code, names)
    knobs = {
        "baseline": "group_mean",
        "advantage_scale": "none",
        "normalize_advantages": False,
        "gamma": 1.0,
        "beta": 0.0,
    }
    module = names["BriefPolicy"](policy=GRUPolicy(16, 8), **knobs)
    batch = example_batch(module.policy, module.policy)
    prepared = module.prepare(batch)
    price = (batch.rewards - prepared.rewards).sum(1)
    torch.testing.assert_close(price, 0.01 * batch.valid.sum(1))
    assert set(module.losses(prepared)) == {"policy", "brevity"}
