"""Checkpoints of a module: save and load its networks, and the digest of their tokenizer."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import lightning as L

from lightning_nlf.checkpoint_content import check_training
from lightning_nlf.data_source import data_source
from lightning_nlf.networks import Network
from lightning_nlf.networks.bases import KEY, bases_in
from lightning_nlf.objective import hooks_of
from lightning_nlf.private_names import trainer_of


class Checkpointed(L.LightningModule if TYPE_CHECKING else object):  # type: ignore[misc]
    """Saves a module so that its checkpoint is enough to rebuild it, and refuses data from a different tokenizer."""

    @property
    def _networks(self) -> dict[str, Network]:
        return {name: network for name, network in self.named_children() if isinstance(network, Network)}

    @property
    def context(self) -> int | None:
        """Maximum row length in tokens that all networks can read. None without a limit."""
        lengths = (network.longest for network in self._networks.values())
        return min((length for length in lengths if length is not None), default=None)

    def _check_tokenizer(self) -> str | None:
        """The common tokenizer digest of the data and all networks, or None.

        Raises ValueError: their digests differ.
        """
        source = data_source(self.trainer)
        digests = [source.tokenizer_digest, *(network.tokenizer_digest for network in self._networks.values())]
        digest = next((x for x in digests if x is not None), None)
        for network in self._networks.values():
            network.check_tokenizer(digest, source.vocabulary)
        return digest

    def _remember_tokenizer(self, digest: str | None) -> None:
        for network in self._networks.values():
            network.tokenizer_digest = digest

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check a checkpoint and load it.

        Raises ValueError: the data has a different tokenizer, or training cannot be resumed from this checkpoint.
        """
        trainer = trainer_of(self)
        if trainer is not None and trainer.state.fn == "fit":
            check_training(checkpoint, trainer.datamodule)  # type: ignore[attr-defined]
        self._complete(checkpoint)
        if "tokenizer_digest" in checkpoint:
            self._remember_tokenizer(checkpoint["tokenizer_digest"])
            if trainer is not None:
                self._check_tokenizer()
        for _, load in hooks_of(type(self), "load"):
            load(self, checkpoint)

    @property
    def _on_bases(self) -> dict[str, Network]:
        """Networks with LoRA whose base model can be read again, by name.

        Includes nested networks, such as a teacher's average.
        """
        networks = {name: network for name, network in self.named_modules() if isinstance(network, Network)}
        return {name: network for name, network in networks.items() if network.base is not None}

    def _complete(self, checkpoint: dict[str, Any]) -> None:
        """Add the weights of the base models that the checkpoint names. Raises ValueError: a base model has changed."""
        networks = self._on_bases
        for name, base in bases_in(checkpoint).items():
            network = networks.get(name)
            base.refuse_other(None if network is None else network.base)
            assert network is not None
            weights = {f"{name}.{key}": x for key, x in network.base_weights().items()}
            checkpoint["state_dict"] = weights | dict(checkpoint["state_dict"])

    def _leave_out_bases(self, checkpoint: dict[str, Any]) -> None:
        """Replace the weights of base models by the names of these models."""
        for name, network in self._on_bases.items():
            assert network.base is not None
            checkpoint.setdefault(KEY, {})[name] = asdict(network.base)
            for key in network.base_weights():
                checkpoint["state_dict"].pop(f"{name}.{key}", None)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._leave_out_bases(checkpoint)
        for _, save in hooks_of(type(self), "save"):
            save(self, checkpoint)
        for network in self._networks.values():
            if network.tokenizer_digest is not None:
                checkpoint["tokenizer_digest"] = network.tokenizer_digest
        # The hyperparameters of a module that was built manually are live networks, which a safe loader cannot read.
        if "_instantiator" not in checkpoint.get(self.CHECKPOINT_HYPER_PARAMS_KEY, {}):
            checkpoint.pop(self.CHECKPOINT_HYPER_PARAMS_KEY, None)
            return
        hyper_parameters = dict(checkpoint[self.CHECKPOINT_HYPER_PARAMS_KEY])
        checkpoint[self.CHECKPOINT_HYPER_PARAMS_KEY] = hyper_parameters
        for name, network in self._networks.items():  # sizes that were read from `weights` must not depend on that file
            if network.arguments():
                spec = hyper_parameters[name]
                hyper_parameters[name] = spec | {"init_args": spec.get("init_args", {}) | network.arguments()}
