"""Build the module and the data of a configuration as a fit does, without a Trainer and a run folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from lightning_nlf.cli.command_line import CommandLine
from lightning_nlf.construction import surfacing


class Parts(CommandLine):
    """The checked `options` of a fit and, if `build` is True, its `datamodule` and `model`.

    Args:
        words: Arguments of the fit, such as ["--config", "conf/injection.yaml"].
        changes: Changed values by dotted key, like the flags of `fit`, such as {"data.episodes": 4}.
        build: If False, only the configuration is read.
    """

    def __init__(self, words: Sequence[str], changes: Mapping[str, Any], build: bool = True) -> None:
        self.builds = build
        super().__init__(["fit", *words, *(f"--{k}={json.dumps(x)}" for k, x in changes.items())], False)

    def before_instantiate_classes(self) -> None:
        self.parser.add_instantiator(surfacing(), object)

    def instantiate_classes(self) -> None:
        if self.builds:
            self.datamodule = self._instantiated("data")[self.stage].data
            self._complete_model()
            self.set_seed()  # as in a fit: the initial weights must not depend on what was built before
            self.model = self._instantiated("model")[self.stage].model
        self.subcommand = None  # LightningCLI has nothing to run
