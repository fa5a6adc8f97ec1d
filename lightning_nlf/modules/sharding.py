"""Fully sharded data parallelism (FSDP2) by Lightning's `ModelParallelStrategy`: each rank keeps a part of the weights.

https://arxiv.org/abs/2304.11277. In training, the weights of a block are gathered when it is read. While rows are
collected or held-out rows are measured, all weights stay gathered, because an all-gather for each sampled token would
take longer than the token, and because the ranks read different numbers of rows.
"""

from __future__ import annotations

from collections.abc import Iterator

from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.fsdp import FSDPModule

from lightning_nlf.modules.checkpointing import Checkpointed
from lightning_nlf.networks import Network
from lightning_nlf.private_names import saves_shards


class Sharded(Checkpointed):
    """Divides the networks of a module among the ranks, if the Trainer has the `ModelParallelStrategy`."""

    _gathered = False

    def configure_model(self) -> None:
        """Divide the networks.

        Raises ValueError: the strategy has other settings than FSDP2's, or a part of the module cannot be divided.
        """
        if self.device_mesh is None or any(network.sharded for network in self._networks.values()):
            return
        self._check_strategy()
        for network in self._networks.values():
            network.shard(self.device_mesh["data_parallel"])

    def _check_strategy(self) -> None:
        strategy, mesh = self.trainer.strategy, self.device_mesh
        assert isinstance(strategy, ModelParallelStrategy) and mesh is not None
        ranks = self.trainer.world_size
        if mesh["data_parallel"].size() != ranks:
            raise ValueError(
                f"trainer.strategy: set data_parallel_size to {ranks}, the number of ranks, and tensor_parallel_size "
                "to 1"
            )
        if saves_shards(strategy):
            raise ValueError(
                "trainer.strategy: set save_distributed_checkpoint to false, so that a checkpoint is one file, which "
                "every command reads"
            )
        names = tuple(f"{name}." for name in self._networks)
        if loose := [name for name, _ in self.named_parameters() if not name.startswith(names)]:
            raise ValueError(f"trainer.strategy: {loose[0]} is outside of the networks and cannot be divided; use ddp")

    # ---- all weights on each rank, at times that are the same on all ranks

    def on_train_epoch_start(self) -> None:
        self._gather()  # the collection follows

    def on_train_batch_start(self, batch: object, batch_idx: int) -> None:
        self._release()

    def on_validation_epoch_start(self) -> None:
        self._gather()  # after callbacks have saved a checkpoint, because saving releases the weights

    def on_validation_end(self) -> None:
        self._release()

    on_test_epoch_start = on_predict_epoch_start = on_validation_epoch_start
    on_test_end = on_predict_end = on_validation_end

    def _gather(self) -> None:
        for part in self._sharded_parts():
            part.set_reshard_after_forward(False, recurse=False)
            part.unshard()
            self._gathered = True

    def _release(self) -> None:
        if self._gathered:
            for part in self._sharded_parts():
                part.set_reshard_after_forward(not isinstance(part, Network), recurse=False)
                part.reshard()
            self._gathered = False

    def _sharded_parts(self) -> Iterator[FSDPModule]:
        """Everything that is gathered together: layers of a block, and what is left of a network."""
        return (part for part in self.modules() if isinstance(part, FSDPModule))
