"""Language models at scale: the same update however rows are cut, half precision, and what training keeps in memory."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import lightning as L
import numpy as np
import pytest
import torch

from data_modules.offline import OfflineDataModule, save_batch
from data_modules.text import DemonstrationsDataModule, PositiveReviews, TextDataModule, WordTokenizer
from data_modules.text.rows import EXPERT, LEARNER, Segment, as_batch
from lightning_nlf.batch import Batch
from lightning_nlf.networks import DecoderShape, TransformerPolicy, TransformerReward, ValueHead
from lightning_nlf.objectives import DPOPolicy, ImitationPolicy, RaoKupperReward, RLHFAgent, kl_penalty

VOCABULARY, WIDTH = 29, 16
GROUPS = (3, 2, 4, 2, 3, 5, 2, 3, 2, 4, 2, 3)  # replies of each prompt, beside the expected one
PPO = {"clip": 0.2, "value_clip": 0.2, "kl_target": 0.5, "whiten_rewards": True, "kl_weight": 0.1}


def shape(family: str = "gpt2", vocabulary: int = VOCABULARY, layers: int = 1) -> DecoderShape:
    return DecoderShape(vocabulary, layers=layers, heads=2, width=WIDTH, context=48, family=family)  # type: ignore


def policy(**knobs: Any) -> TransformerPolicy:
    made = TransformerPolicy(shape(**knobs))
    with torch.no_grad():
        made.decoder.embed.weight *= 10  # as born it would say every token alike
    return made


def value() -> ValueHead:
    head = ValueHead(WIDTH)
    torch.nn.init.normal_(head.head.weight, std=0.1)
    return head


MODULES: dict[str, Callable[..., Any]] = {
    "sft": lambda **knobs: ImitationPolicy(policy=policy(), divergence="nll", **knobs),
    "reward": lambda **knobs: RaoKupperReward(reward=TransformerReward(shape("llama")), **knobs),
    "dpo": lambda **knobs: DPOPolicy(policy=policy(), beta=0.5, **knobs),
    "ppo": lambda **knobs: RLHFAgent(policy=policy(), value=value(), **PPO, **knobs),
}


def judged_replies() -> Batch:
    """Prompts of 1 to 12 tokens with 2 to 5 ranked replies of 1 to 20, some tied, and the expected response to each."""
    rng = np.random.default_rng(0)
    dialogues, group, rank = [], [], []
    for number, replies in enumerate(GROUPS):
        prompt = Segment(rng.integers(VOCABULARY, size=rng.integers(1, 13)).tolist())
        for place in range(replies + 1):
            ids = rng.integers(VOCABULARY, size=rng.integers(1, 21)).tolist()
            said = Segment(ids, LEARNER, rng.normal(-3, 0.3, len(ids)).tolist(), float(rng.normal()))
            dialogues.append((prompt, said if place < replies else Segment(ids, EXPERT)))
            group.append(number)
            rank.append(int(rng.integers(replies)) if place < replies else -1)
    return replace(as_batch(dialogues), group=torch.tensor(group), rank=torch.tensor(rank))


CUTS = (None, 1)  # rows of a part: a group at a time where groups are compared, and then one rank has a part more


def made(name: str, **knobs: Any) -> Any:
    torch.manual_seed(0)
    return MODULES[name](optimizer=lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9), **knobs)


def parameters(module: L.LightningModule) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def trained(module: L.LightningModule, data: L.LightningDataModule, epochs: int = 1, **knobs: Any) -> L.Trainer:
    trainer = L.Trainer(
        **{"accelerator": "cpu", "devices": 1, "max_epochs": epochs, "limit_val_batches": 0} | knobs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
    )
    with mock.patch.object(kl_penalty, "KL_HORIZON", 50):  # so that few rows move β by much
        trainer.fit(module, data)
    return trainer


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "rows.pt"
    save_batch(judged_replies(), path)
    return str(path)


# ---- the same update


@pytest.mark.parametrize("name", MODULES)
def test_accumulated_gradients_are_those_of_the_whole(name, path):
    """Two optimizer steps on six groups each, at once or in three micro-batches, or these a group at a time."""
    after = []
    for accumulate, rows in ((1, None), (3, None), (1, 1), (3, 1)):
        module = made(name)
        data = OfflineDataModule(path, minibatches=2, rows_per_batch=rows)
        trainer = trained(module, data, accumulate_grad_batches=accumulate)
        assert trainer.global_step == 2
        after.append(parameters(module))
    assert (after[0] - parameters(made(name))).abs().max() > 1e-3
    for cut in after[1:]:
        torch.testing.assert_close(cut, after[0], atol=1e-5, rtol=0)


def in_two_processes(path: str, folder: str) -> None:
    """What each process runs: every module on the file, in the same two steps, at once and in parts."""
    result: dict[str, Any] = {}
    for name, rows in itertools.product(MODULES, CUTS):
        module = made(name)
        data = OfflineDataModule(path, passes=2, rows_per_batch=rows)
        trainer = trained(module, data, strategy="ddp", devices=2)
        assert (trainer.world_size, trainer.global_step) == (2, 2)
        metrics = {key: float(x) for key, x in trainer.callback_metrics.items()}
        result[f"{name} {rows}"] = {"parameters": parameters(module), "metrics": metrics}
    torch.save(result, Path(folder) / f"rank{trainer.global_rank}.pt")


@pytest.mark.slow
def test_two_processes_make_the_update_of_one(path, on_two_processes):
    ranks = on_two_processes(__file__, path)
    for name in MODULES:
        module = made(name)
        trainer = trained(module, OfflineDataModule(path, passes=2))
        assert (parameters(module) - parameters(made(name))).abs().max() > 1e-3
        for rank, rows in itertools.product(ranks, CUTS):
            result = rank[f"{name} {rows}"]
            torch.testing.assert_close(result["parameters"], parameters(module), atol=1e-5, rtol=0)
            for key, x in trainer.callback_metrics.items():
                assert result["metrics"][key] == pytest.approx(float(x), abs=1e-4), (name, rows, key)


# ---- half precision


@pytest.mark.parametrize("name", ["sft", "reward", "dpo"])
def test_bf16_learns_what_fp32_does(name, path):
    """The loss after twelve optimizer steps, which have changed it by more than a tenth: within two hundredths."""
    losses = []
    for precision in ("32-true", "bf16-mixed"):
        module = made(name)
        first = trained(module, OfflineDataModule(path), precision=precision).callback_metrics["train/loss"]
        trainer = trained(module, OfflineDataModule(path), epochs=12, precision=precision)
        assert parameters(module).isfinite().all() and parameters(module).dtype == torch.float32
        losses.append(float(trainer.callback_metrics["train/loss"]))
        assert losses[-1] < 0.9 * float(first)
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert losses[1] != losses[0]


class Recorded(RLHFAgent):
    """Keeps how far what is learned from lies from what acted, in the first pass over each collection."""

    def __init__(self, **knobs: Any) -> None:
        super().__init__(**knobs)
        self.log_ratios: list[torch.Tensor] = []

    def terms(self, batch, now):
        self.log_ratios.append((now.log_probs - batch.log_probs)[batch.mask].detach())
        return ()


@pytest.fixture(scope="module")
def speaker():
    """A policy that has imitated reviews for a second: sure of some tokens and not of others."""
    torch.manual_seed(0)
    module = ImitationPolicy(policy=policy(vocabulary=288, layers=2), divergence="nll", optimizer=adam)
    data = DemonstrationsDataModule(WordTokenizer(), PositiveReviews(), rows=256, minibatches=16)
    trained(module, data, epochs=2)
    return module.policy


def adam(groups: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(groups, lr=0.01)


@pytest.mark.parametrize(("precision", "furthest"), [("32-true", 1e-4), ("bf16-mixed", 1e-2)])
def test_the_first_ratio_is_one_in_either_precision(precision, furthest, speaker):
    """Token by token with a cache, or all rows packed: the same numbers but for the rounding of single sums."""
    torch.manual_seed(0)
    module = Recorded(policy=speaker.frozen().requires_grad_(), value=value(), optimizer=adam, **PPO)
    data = TextDataModule(PositiveReviews(), prompts=16, tokenizer=WordTokenizer(), replies=2, max_new=24, context=48)
    trainer = trained(module, data, epochs=3, precision=precision)
    assert trainer.global_step == len(module.log_ratios) == 3 and parameters(module).isfinite().all()
    ratios = torch.cat(module.log_ratios).exp()
    assert float((ratios - 1).abs().max()) < furthest
    assert float((ratios - 1).abs().mean()) < furthest / 100


# ---- what is kept for the way back


def kept(loss: Callable[[], torch.Tensor], module: L.LightningModule, size: int) -> list[tuple[int, ...]]:
    """Shapes of the tensors with a last dimension of `size` that autograd keeps, once each; no parameters."""
    own = {p.untyped_storage().data_ptr() for p in module.parameters()}
    found: dict[int, torch.Tensor] = {}

    def keep(x: torch.Tensor) -> torch.Tensor:
        if x.ndim and x.shape[-1] == size and x.untyped_storage().data_ptr() not in own:
            found[x.untyped_storage().data_ptr()] = x  # alive, so that no other takes its place
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        loss().backward()
    return [tuple(x.shape) for x in found.values()]


@pytest.mark.parametrize("name", ["sft", "dpo", "ppo", "ppo+entropy"])
def test_logits_are_kept_once_and_of_replies_alone(name):
    """One (n, V) tensor for the n reply tokens, however many terms read it; none of prompts and padding."""
    module = made(name.partition("+")[0], **({"entropy_weight": 0.1} if "entropy" in name else {}))
    batch = module.prepare(judged_replies())
    replies = int((batch.mask | batch.expert_mask).sum())
    assert replies < 0.6 * batch.mask.numel()

    def loss() -> torch.Tensor:
        return torch.stack(list(module.losses(batch, module.evaluate(batch)).values())).sum()

    assert kept(loss, module, VOCABULARY) == [(replies, VOCABULARY)]
    assert module.policy.decoder.embed.weight.grad.abs().sum() > 0
