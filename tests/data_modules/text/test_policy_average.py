"""Moving average of the policy as reviser and critic; using it does not change the policy."""

import copy

import lightning as L
import pytest
import torch

pytest.importorskip("tokenizers")
pytest.importorskip("transformers")

from data_modules.text import ModelCritic, PolicyAverage, RevisionDataModule  # noqa: E402
from lightning_nlf.objectives import ImitationPolicy  # noqa: E402
from tests.data_modules.text import own_prompts  # noqa: E402


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("average")


@pytest.fixture
def agent(place):
    tokenizer = own_prompts.tokenizer(place)
    return ImitationPolicy(
        policy=own_prompts.policy(tokenizer), divergence="nll", optimizer=lambda p: torch.optim.SGD(p, 1.0)
    )


def weights(module):
    return torch.cat([p.detach().flatten() for p in module.parameters() if p.requires_grad])


def reply_of(replier, tokenizer):
    ids = torch.tensor([tokenizer.encode("what is it")])
    how = {"stop": (tokenizer.eos,), "max_new": 5, "seeds": torch.tensor([7])}
    return replier.reply(ids, torch.tensor([ids.shape[1]]), **how)[1]


def test_the_average_moves_by_the_rate_and_trained_weights_alone(agent):
    """From 0 to 1 with rate .25: 0, then .25, then .25 + .25 · .75 = .4375."""
    next(agent.policy.parameters()).requires_grad_(False)
    average = PolicyAverage(0.25)
    with torch.no_grad():
        for p in agent.parameters():
            p.zero_()
    for expected in (0.0, 0.25, 0.4375):
        average.follow(agent)
        assert all(torch.equal(x, torch.full_like(x, expected)) for x in average.average.values())
        with torch.no_grad():
            for p in agent.parameters():
                p.fill_(1.0)
    assert len(average.average) == len(list(agent.parameters())) - 1


def test_it_replies_as_the_average_and_leaves_the_policy_as_it_was(place, agent):
    """Log-probabilities equal those of a copy with the averaged weights; the policy's weights do not change."""
    tokenizer, average = own_prompts.tokenizer(place), PolicyAverage(0.5)
    average.follow(agent)
    with torch.no_grad():
        for p in agent.parameters():
            p.add_(torch.randn_like(p))
    average.follow(agent)
    before, reply = weights(agent).clone(), reply_of(agent, tokenizer)
    twin = copy.deepcopy(agent)
    twin.load_state_dict(average.average, strict=False)
    replied = reply_of(average, tokenizer)
    assert torch.equal(replied, reply_of(twin, tokenizer)) and not torch.equal(replied, reply)
    assert torch.equal(weights(agent), before) and torch.equal(reply_of(agent, tokenizer), reply)


def fitted(place, agent, folder, epochs, **how):
    """As critic and as reviser, each with its own average."""
    data = RevisionDataModule(
        own_prompts.prompts(place), tokenizer=own_prompts.tokenizer(place), context=512, max_new=4, prompts=2,
        replies=2, critic=ModelCritic(PolicyAverage(0.1), max_new=4, temperature=1.0), reviser=PolicyAverage(0.5),
        learn=["revisions"], evaluation_prompts=1,
    )  # fmt: skip
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=epochs, logger=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=folder, enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(agent, datamodule=data, **how)
    return trainer, data


@pytest.mark.filterwarnings("ignore")
def test_a_run_that_is_resumed_has_the_same_averages(place, agent, tmp_path):
    """Four epochs at once, and two plus two: the same policy and the same two averages, bit for bit."""
    first, second = copy.deepcopy(agent), copy.deepcopy(agent)
    _, whole = fitted(place, first, tmp_path, 4)
    trainer, _ = fitted(place, second, tmp_path, 2)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    resumed = copy.deepcopy(agent)
    _, data = fitted(place, resumed, tmp_path, 4, ckpt_path=tmp_path / "half.ckpt")
    assert torch.equal(weights(first), weights(resumed)) and not torch.equal(weights(first), weights(agent))
    assert [average.rate for average in data.averages] == [0.5, 0.1]
    for mine, theirs in zip(whole.averages, data.averages, strict=True):
        assert all(torch.equal(x, theirs.average[name]) for name, x in mine.average.items())


def test_a_rate_out_of_range_is_refused():
    with pytest.raises(ValueError, match="rate: got 1.5"):
        PolicyAverage(1.5)
