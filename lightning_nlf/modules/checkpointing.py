"""Checkpoints of a module: the networks and the tokenizer whose ids they mean."""

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
    """A module that is rebuilt from its checkpoint alone, and refuses ids of another tokenizer."""

    @property
    def _networks(self) -> dict[str, Network]:
        return {name: network for name, network in self.named_children() if isinstance(network, Network)}

    @property
    def context(self) -> int | None:
        """Tokens of a row that all networks can read; None without a limit."""
        return min((each.longest for each in self._networks.values() if each.longest is not None), default=None)

    def _check_tokenizer(self) -> str | None:
        """The tokenizer whose ids the data and all networks mean, where any of them says. Raises ValueError."""
        source = data_source(self.trainer)
        digests = [source.tokenizer_digest, *(network.tokenizer_digest for network in self._networks.values())]
        digest = next((each for each in digests if each is not None), None)
        for network in self._networks.values():
            network.check_tokenizer(digest, source.vocabulary)
        return digest

    def _remember_tokenizer(self, digest: str | None) -> None:
        for network in self._networks.values():
            network.tokenizer_digest = digest

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Raises ValueError: its ids are those of another tokenizer than the data's; training cannot go on from it."""
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
        """Networks with LoRA on a base that can be read again, also below others (a teacher's average), by name."""
        networks = {name: network for name, network in self.named_modules() if isinstance(network, Network)}
        return {name: network for name, network in networks.items() if network.base is not None}

    def _complete(self, checkpoint: dict[str, Any]) -> None:
        """Put the weights of the bases that the checkpoint names into it. Raises ValueError: they are others here."""
        networks = self._on_bases
        for name, base in bases_in(checkpoint).items():
            network = networks.get(name)
            base.refuse_other(None if network is None else network.base)
            assert network is not None
            weights = {f"{name}.{key}": x for key, x in network.base_weights().items()}
            checkpoint["state_dict"] = weights | dict(checkpoint["state_dict"])

    def _leave_out_bases(self, checkpoint: dict[str, Any]) -> None:
        """Name the bases in the place of their weights."""
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
        # Built by hand, the hyperparameters are live networks: pickled code that no safe loader would read.
        if "_instantiator" not in checkpoint.get(self.CHECKPOINT_HYPER_PARAMS_KEY, {}):
            checkpoint.pop(self.CHECKPOINT_HYPER_PARAMS_KEY, None)
            return
        saved = checkpoint[self.CHECKPOINT_HYPER_PARAMS_KEY] = dict(checkpoint[self.CHECKPOINT_HYPER_PARAMS_KEY])
        for name, network in self._networks.items():  # what came with `weights` must outlast them
            if network.arguments():
                spec = saved[name]
                saved[name] = spec | {"init_args": spec.get("init_args", {}) | network.arguments()}
