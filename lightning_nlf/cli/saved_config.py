"""The configuration of a run, kept in its folder: resolved as `config.yaml`, as given under `raw/`."""

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
    """Writes the resolved configuration, `text`, and the yamls that it came from before a fit begins.

    A run that goes on with another configuration keeps both: `config-resumed-1.yaml` and `raw/resumed-1/`, and so on.
    """

    def __init__(self, folder: Path, text: str, files: Sequence[str]) -> None:
        self.folder, self.text = folder, text
        names = [Path(file).name for file in files]
        if len(set(names)) < len(names):  # one name in two folders
            names = [f"{number}-{name}" for number, name in enumerate(names)]
        self.raw = {name: Path(file).read_text(encoding="utf-8") for name, file in zip(names, files, strict=True)}

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Somebody deleted the run folder, of which the other files are written anew.
        if trainer.is_global_zero and not rehearses(trainer) and not (self.folder / "config.yaml").is_file():
            self.save()

    def begin(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Nothing collective may be asked of rank 0 alone, such as trainer.log_dir: the others would wait for ever.
        if trainer.is_global_zero and not rehearses(trainer):
            self.save()

    def save(self) -> None:
        """Write what is not there yet.

        Raises:
            ConfigurationError: the folder cannot be written.
        """
        configs = configurations(self.folder)
        number = len(configs)
        try:
            if not configs:
                self._write(self.folder / "config.yaml", self.folder / "raw")
            elif not _same(self.text, configs[-1]):
                self._write(self.folder / f"config-resumed-{number}.yaml", self.folder / "raw" / f"resumed-{number}")
        except OSError as error:
            raise ConfigurationError(f"run_dir: {self.folder} cannot be written: {error.strerror}") from error

    def _write(self, config: Path, raw: Path) -> None:
        raw.mkdir(parents=True, exist_ok=True)
        for name, text in self.raw.items():
            _write_whole(raw / name, text)
        _write_whole(config, self.text)


def configurations(folder: Path) -> list[Path]:
    """`config.yaml`, then `config-resumed-1.yaml` and so on, as far as they are there."""
    paths = [folder / "config.yaml"]
    while paths[-1].is_file():
        paths.append(folder / f"config-resumed-{len(paths)}.yaml")
    return paths[:-1]


def _same(text: str, path: Path) -> bool:
    """Whether the same would be trained: where it goes on from is no difference."""
    now, before = yaml.safe_load(text), yaml.safe_load(path.read_text(encoding="utf-8"))
    return {**now, "ckpt_path": None} == {**before, "ckpt_path": None}


def _write_whole(path: Path, text: str) -> None:
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)
