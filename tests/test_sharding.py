"""FSDP2 on two CPU ranks: the updates, metrics and replies of DDP, checkpoints that one process reads, and refusals."""

from pathlib import Path
from typing import Any
from unittest import mock

import lightning as L
import pytest
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from data_modules.offline import OfflineDataModule, save_batch
from data_modules.text import PositiveReviews, TextDataModule, WordTokenizer
from lightning_nlf.checkpoint_io import RunCheckpointIO
from lightning_nlf.networks import LoRA, TransformerPolicy, TransformerReward, TransformerValue, ValueHead
from lightning_nlf.objectives import BradleyTerryReward, DPOPolicy, ImitationPolicy, RLHFAgent
from tests.test_scale_text import PPO, WIDTH, adam, judged_replies, policy, shape

BYTES = {"vocabulary": 288, "layers": 2}
AGENTS = {
    "sft": lambda: ImitationPolicy(policy=policy(family="llama", layers=2), divergence="nll", optimizer=adam),
    "reward": lambda: BradleyTerryReward(reward=TransformerReward(shape("llama", layers=2)), optimizer=momentum),
    "dpo": lambda: DPOPolicy(policy=policy(), beta=0.5, optimizer=momentum),
    "ppo": lambda: Speaker(policy=policy(**BYTES), value=TransformerValue(shape(**BYTES)), optimizer=adam, **PPO),
}


def momentum(parameters: Any) -> torch.optim.Optimizer:
    """For weights whose gradient is 0, as of the biases of GPT-2's keys: Adam makes steps of rounding errors."""
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9)


class Speaker(RLHFAgent):
    """Counts the all-gathers of weights while it replies."""

    replies = gathers = 0

    def reply(self, *args: Any, **how: Any) -> Any:
        gather = distributed.all_gather_into_tensor
        with mock.patch.object(distributed, "all_gather_into_tensor", side_effect=gather) as gathered:
            output = super().reply(*args, **how)
        self.replies, self.gathers = self.replies + 1, self.gathers + gathered.call_count
        return output


def agent(name: str) -> Any:
    torch.manual_seed(0)
    return AGENTS[name]()


def fsdp(**knobs: Any) -> ModelParallelStrategy:
    arguments = {"data_parallel_size": 2, "tensor_parallel_size": 1, "save_distributed_checkpoint": False} | knobs
    return ModelParallelStrategy(**arguments)


def trained(name: str, path: str, strategy: Any, epochs: int, **knobs: Any) -> tuple[Any, L.Trainer]:
    module: Any = agent(name)
    data: Any = OfflineDataModule(path, passes=2, rows_per_batch=5)  # several micro-batches
    if name == "ppo":
        data = TextDataModule(
            PositiveReviews(), prompts=6, tokenizer=WordTokenizer(), replies=2, max_new=12, context=48,
            evaluation_prompts=3,
        )  # fmt: skip
    trainer = L.Trainer(
        accelerator="cpu", devices=2, max_epochs=epochs, strategy=strategy, plugins=[RunCheckpointIO()],
        limit_val_batches=1.0 if name == "ppo" else 0, gradient_clip_val=1.0, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, log_every_n_steps=1,
    )  # fmt: skip
    trainer.fit(module, data, weights_only=True, **knobs)
    return module, trainer


def in_two_processes(path: str, folder: str) -> None:
    """Code of each process: train every agent by DDP, by FSDP2, and by FSDP2 in two runs."""
    result: dict[str, Any] = {}
    for name in AGENTS:
        module, trainer = trained(name, path, "ddp", 2)
        ddp, metrics = module.state_dict(), {key: float(x) for key, x in trainer.callback_metrics.items()}
        module, trainer = trained(name, path, fsdp(), 1)
        file = f"{folder}/{name}.ckpt"
        trainer.save_checkpoint(file)
        module, trainer = trained(name, path, fsdp(), 2, ckpt_path=file)
        trainer.save_checkpoint(file)
        parameters = list(module.parameters())
        result[name] = {
            "ddp": {key: x.clone() for key, x in ddp.items()},
            "ddp_metrics": metrics,
            "fsdp_metrics": {key: float(x) for key, x in trainer.callback_metrics.items()},
            "share": sum(x.to_local().numel() for x in parameters) / sum(x.numel() for x in parameters),
            "replies": getattr(module, "replies", 0),
            "gathers": getattr(module, "gathers", 0),
        }
    torch.save(result, Path(folder) / f"rank{distributed.get_rank()}.pt")
    if distributed.get_rank() == 0:
        checkpoints = {name: torch.load(f"{folder}/{name}.ckpt", weights_only=True)["state_dict"] for name in AGENTS}
        torch.save(result | {"fsdp": checkpoints}, Path(folder) / "rank0.pt")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory, on_two_processes):
    path = tmp_path_factory.mktemp("rows") / "rows.pt"
    save_batch(judged_replies(), path)
    return on_two_processes(__file__, str(path))


@pytest.mark.slow
@pytest.mark.parametrize("name", AGENTS)
def test_divided_weights_learn_what_whole_weights_learn(name, ranks):
    """Two epochs by DDP, and by FSDP2 with a new process in between, end with the same weights and metrics."""
    for rank in ranks:
        assert 0.4 < rank[name]["share"] < 0.6
        assert rank[name]["fsdp_metrics"] == pytest.approx(rank[name]["ddp_metrics"], abs=1e-4)
    weights = ranks[0]["fsdp"][name]
    start = agent(name).state_dict()
    assert max(float((weights[key] - x).abs().max()) for key, x in start.items() if key.endswith("weight")) > 1e-3
    torch.testing.assert_close(weights, ranks[0][name]["ddp"], atol=1e-4, rtol=0)
    agent(name).load_state_dict(weights)  # one process reads the checkpoint


@pytest.mark.slow
def test_no_token_waits_for_the_weights(ranks):
    for rank in ranks:
        assert rank["ppo"]["replies"] > 2 and rank["ppo"]["gathers"] == 0


@pytest.fixture
def mesh():
    """Mesh of eight ranks whose collectives do nothing. This process is rank 0."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=8)
    yield init_device_mesh("cpu", (8,))
    distributed.destroy_process_group()


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3"])
def test_every_weight_is_divided_once(family, mesh):
    """No weight is left whole, on a model without values; the layers of a block are one group."""
    with torch.device("meta"):
        network = TransformerPolicy(shape(family, vocabulary=64, layers=3))
    names = [name for name, _ in network.named_parameters()]
    network.shard(mesh)
    parameters = dict(network.named_parameters())
    assert list(parameters) == names and all(isinstance(x, DTensor) for x in parameters.values())
    assert all(x.to_local().shape[0] == -(-x.shape[0] // 8) for x in parameters.values())


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        (lambda: TransformerPolicy(shape("llama"), lora=LoRA(2, target_modules=["q_proj"])), "LoRA adapter"),
        (lambda: ValueHead(WIDTH), "cannot divide a ValueHead"),
    ],
)
def test_what_cannot_be_divided_is_refused(network, reason, mesh):
    with pytest.raises(ValueError, match=reason):
        network().shard(mesh)
