"""Save the configuration of a run in its folder: resolved in `config.yaml`, and the original yamls in `raw/`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import lightning as L
import yaml

from lightning_nlf.callbacks.beginning import Beginning
from lightning_nlf.callbacks.protocols import rehearses
from lightning_nlf.cli.errors import ConfigurationError


class SaveRunConfig(Beginning):
    """Saves the resolved configuration (`text`) and the original yamls (`files`) before a fit begins.

    A run that resumes with a changed configuration keeps both configurations. The new configuration is saved as
    `config-resumed-1.yaml`, with the yamls in `raw/resumed-1/`, and so on.
    """

    def __init__(self, folder: Path, text: str, files: Sequence[str]) -> None:
        self.folder, self.text = folder, text
        names = [Path(file).name for file in files]
        if len(set(names)) < len(names):  # yamls of the same name in two folders
            names = [f"{number}-{name}" for number, name in enumerate(names)]
        self.raw = {name: Path(file).read_text(encoding="utf-8") for name, file in zip(names, files, strict=True)}

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # If the run folder was deleted, its other files are written again too.
        if trainer.is_global_zero and not rehearses(trainer) and not (self.folder / "config.yaml").is_file():
            self.save()

    def begin(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Rank 0 alone must not call anything collective, such as trainer.log_dir, or it would wait for ever.
        if trainer.is_global_zero and not rehearses(trainer):
            self.save()

    def save(self) -> None:
        """Save the configuration, unless the latest saved configuration trains in the same way.

        Raises:
            ConfigurationError: The folder cannot be written.
        """
        configs = configurations(self.folder)
        number = len(configs)
        try:
            if not configs:
                self._write(self.folder / "config.yaml", self.folder / "raw")
            elif not _trains_the_same(self.text, configs[-1]):
                self._write(self.folder / f"config-resumed-{number}.yaml", self.folder / "raw" / f"resumed-{number}")
        except OSError as error:
            raise ConfigurationError(f"run_dir: {self.folder} cannot be written: {error.strerror}") from error

    def _write(self, config: Path, raw: Path) -> None:
        raw.mkdir(parents=True, exist_ok=True)
        for name, text in self.raw.items():
            _write_whole(raw / name, text)
        _write_whole(config, self.text)


def configurations(folder: Path) -> list[Path]:
    """The saved configurations of a run, oldest first: `config.yaml`, `config-resumed-1.yaml` and so on."""
    paths = [folder / "config.yaml"]
    while paths[-1].is_file():
        paths.append(folder / f"config-resumed-{len(paths)}.yaml")
    return paths[:-1]


def _trains_the_same(text: str, path: Path) -> bool:
    """Whether two configurations are equal apart from the checkpoint that they resume from."""
    now, before = yaml.safe_load(text), yaml.safe_load(path.read_text(encoding="utf-8"))
    return {**now, "ckpt_path": None} == {**before, "ckpt_path": None}


def _write_whole(path: Path, text: str) -> None:
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)
