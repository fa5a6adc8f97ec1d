"""The command line: `python -m lightning_nlf fit|validate|test|predict --config conf/….yaml`."""

from __future__ import annotations

import lightning as L
from jsonargparse import set_parsing_settings
from lightning.pytorch.cli import LightningCLI

from lightning_nlf.modules import ObjectiveModule

# Makes `${seed_everything}` follow a second --config and flags; without it they leave it silently stale.
set_parsing_settings(omegaconf_absolute_to_relative_paths=True, subclasses_enabled=["is_pure_dataclass"])


def main(args: list[str] | None = None, run: bool = True) -> LightningCLI:
    return LightningCLI(
        ObjectiveModule,
        L.LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        auto_configure_optimizers=False,
        seed_everything_default=0,
        save_config_callback=None,
        parser_kwargs={"parser_mode": "omegaconf+"},
        args=args,
        run=run,
    )
