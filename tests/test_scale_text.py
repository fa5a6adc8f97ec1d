"""Language models at scale: updates independent of the division of rows, half precision, and saved activations."""

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
GROUPS = (3, 2, 4, 2, 3, 5, 2, 3, 2, 4, 2, 3)  # replies per prompt, without the expected one
PPO = {"clip": 0.2, "value_clip": 0.2, "kl_target": 0.5, "whiten_rewards": True, "kl_weight": 0.1}


def shape(family: str = "gpt2", vocabulary: int = VOCABULARY, layers: int = 1) -> DecoderShape:
    return DecoderShape(vocabulary, layers=layers, heads=2, width=WIDTH, context=48, family=family)  # type: ignore


def policy(**knobs: Any) -> TransformerPolicy:
    network = TransformerPolicy(shape(**knobs))
    with torch.no_grad():
        network.decoder.embed.weight *= 10  # the initial policy would be nearly uniform
    return network


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
            segment = Segment(ids, LEARNER, rng.normal(-3, 0.3, len(ids)).tolist(), float(rng.normal()))
            dialogues.append((prompt, segment if place < replies else Segment(ids, EXPERT)))
            group.append(number)
            rank.append(int(rng.integers(replies)) if place < replies else -1)
    return replace(as_batch(dialogues), group=torch.tensor(group), rank=torch.tensor(rank))


CUTS = (None, 1)  # rows per micro-batch; with whole groups, one rank has a micro-batch more


def make_network(name: str, **knobs: Any) -> Any:
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
    with mock.patch.object(kl_penalty, "KL_HORIZON", 50):  # so that few rows change β noticeably
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
    """Two optimizer steps on six groups each: together, in three micro-batches, or one group at a time."""
    after = []
    for accumulate, rows in ((1, None), (3, None), (1, 1), (3, 1)):
        module = make_network(name)
        data = OfflineDataModule(path, minibatches=2, rows_per_batch=rows)
        trainer = trained(module, data, accumulate_grad_batches=accumulate)
        assert trainer.global_step == 2
        after.append(parameters(module))
    assert (after[0] - parameters(make_network(name))).abs().max() > 1e-3
    for cut in after[1:]:
        torch.testing.assert_close(cut, after[0], atol=1e-5, rtol=0)


def in_two_processes(path: str, folder: str) -> None:
    """Code of each process: train every module on the file in the same two steps, together and in micro-batches."""
    result: dict[str, Any] = {}
    for name, rows in itertools.product(MODULES, CUTS):
        module = make_network(name)
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
        module = make_network(name)
        trainer = trained(module, OfflineDataModule(path, passes=2))
        assert (parameters(module) - parameters(make_network(name))).abs().max() > 1e-3
        for rank, rows in itertools.product(ranks, CUTS):
            result = rank[f"{name} {rows}"]
            torch.testing.assert_close(result["parameters"], parameters(module), atol=1e-5, rtol=0)
            for key, x in trainer.callback_metrics.items():
                assert result["metrics"][key] == pytest.approx(float(x), abs=1e-4), (name, rows, key)


# ---- half precision


@pytest.mark.parametrize("name", ["sft", "reward", "dpo"])
def test_bf16_learns_what_fp32_does(name, path):
    """Losses after twelve optimizer steps differ by less than .02, while training changed them by more than a tenth."""
    losses = []
    for precision in ("32-true", "bf16-mixed"):
        module = make_network(name)
        first = trained(module, OfflineDataModule(path), precision=precision).callback_metrics["train/loss"]
        trainer = trained(module, OfflineDataModule(path), epochs=12, precision=precision)
        assert parameters(module).isfinite().all() and parameters(module).dtype == torch.float32
        losses.append(float(trainer.callback_metrics["train/loss"]))
        assert losses[-1] < 0.9 * float(first)
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert losses[1] != losses[0]


class Recorded(RLHFAgent):
    """Records the largest difference of log-probabilities between collection and the first training pass."""

    def __init__(self, **knobs: Any) -> None:
        super().__init__(**knobs)
        self.log_ratios: list[torch.Tensor] = []

    def terms(self, batch, now):
        self.log_ratios.append((now.log_probs - batch.log_probs)[batch.mask].detach())
        return ()


@pytest.fixture(scope="module")
def speaker():
    """Policy that imitated reviews for a second: certain of some tokens and uncertain of others."""
    torch.manual_seed(0)
    module = ImitationPolicy(policy=policy(vocabulary=288, layers=2), divergence="nll", optimizer=adam)
    data = DemonstrationsDataModule(WordTokenizer(), PositiveReviews(), rows=256, minibatches=16)
    trained(module, data, epochs=2)
    return module.policy


def adam(groups: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(groups, lr=0.01)


@pytest.mark.parametrize(("precision", "furthest"), [("32-true", 1e-4), ("bf16-mixed", 1e-2)])
def test_the_first_ratio_is_one_in_either_precision(precision, furthest, speaker):
    """Generation with a cache and packed rows give the same log-probabilities, up to the rounding of sums."""
    torch.manual_seed(0)
    module = Recorded(policy=speaker.frozen().requires_grad_(), value=value(), optimizer=adam, **PPO)
    data = TextDataModule(PositiveReviews(), prompts=16, tokenizer=WordTokenizer(), replies=2, max_new=24, context=48)
    trainer = trained(module, data, epochs=3, precision=precision)
    assert trainer.global_step == len(module.log_ratios) == 3 and parameters(module).isfinite().all()
    ratios = torch.cat(module.log_ratios).exp()
    assert float((ratios - 1).abs().max()) < furthest
    assert float((ratios - 1).abs().mean()) < furthest / 100


# ---- tensors saved for the backward pass


def saved_shapes(loss: Callable[[], torch.Tensor], module: L.LightningModule, size: int) -> list[tuple[int, ...]]:
    """Shapes of the tensors with last dimension `size` that autograd saves, without duplicates and parameters."""
    parameter_storages = {p.untyped_storage().data_ptr() for p in module.parameters()}
    shapes: dict[int, torch.Tensor] = {}

    def keep(x: torch.Tensor) -> torch.Tensor:
        if x.ndim and x.shape[-1] == size and x.untyped_storage().data_ptr() not in parameter_storages:
            shapes[x.untyped_storage().data_ptr()] = x  # kept alive, so that its address is not reused
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        loss().backward()
    return [tuple(x.shape) for x in shapes.values()]


@pytest.mark.parametrize("name", ["sft", "dpo", "ppo", "ppo+entropy"])
def test_logits_are_kept_once_and_of_replies_alone(name):
    """One (n, V) tensor for the n reply tokens, however many terms use it; none for prompts and padding."""
    module = make_network(name.partition("+")[0], **({"entropy_weight": 0.1} if "entropy" in name else {}))
    batch = module.prepare(judged_replies())
    replies = int((batch.mask | batch.expert_mask).sum())
    assert replies < 0.6 * batch.mask.numel()

    def loss() -> torch.Tensor:
        return torch.stack(list(module.losses(batch, module.evaluate(batch)).values())).sum()

    assert saved_shapes(loss, module, VOCABULARY) == [(replies, VOCABULARY)]
    assert module.policy.decoder.embed.weight.grad.abs().sum() > 0
