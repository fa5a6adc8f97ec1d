"""Base models of LoRA adapters. A checkpoint records their path and digest instead of their weights."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from lightning_nlf.language import hf_layout
from lightning_nlf.language.hf_folder import files_in

KEY = "bases"  # key of the base models in a checkpoint: {name of a network: Base}


@dataclass(frozen=True)
class Base:
    """A frozen base model in the Hugging Face layout.

    Args:
        weights: folder of the model or its id on the hub, as in the yaml.
        folder: absolute path of the model folder; empty for a model on the hub.
        sha256: digest of the weights by `weights_digest`; empty if the weights have not been read.
    """

    weights: str
    folder: str
    sha256: str

    @classmethod
    def of(cls, weights: str, folder: Path) -> Base:
        """The base model in `folder`, with its digest."""
        return replace(cls.unread(weights, folder), sha256=weights_digest(folder))

    @classmethod
    def unread(cls, weights: str, folder: Path) -> Base:
        """The base model without its digest, because computing it reads all weights."""
        return cls(weights, str(folder.resolve()) if Path(weights).is_dir() else "", "")

    @property
    def name(self) -> str:
        """The absolute path of the model folder, or the id on the hub."""
        return self.folder or self.weights

    def locate(self) -> Path:
        """The folder of the base model.

        Raises:
            ValueError: the folder is missing, or its weights have changed.
        """
        folders = [self.folder, self.weights] if self.folder else [str(hf_layout.folder_of(self.weights))]
        existing = [Path(path) for path in folders if Path(path).is_dir()]
        for path in existing:
            if weights_digest(path) == self.sha256:
                return path
        state = "now holds other weights" if existing else "does not exist"
        raise ValueError(
            f"base: the LoRA adapter was trained on {self.name} (SHA-256 {self.sha256[:12]}…), which {state}; restore "
            "that model there, or link to it"
        )

    def refuse_other(self, base: Base | None) -> None:
        """Refuse a different base model.

        Raises ValueError: `base`, of another network, differs from this one or is None.
        """
        if base is None or base.sha256 != self.sha256:
            actual = "no base" if base is None else f"the base {base.name} ({base.sha256[:12]}…)"
            raise ValueError(
                f"weights: the checkpoint's LoRA adapter was trained on {self.name} (SHA-256 {self.sha256[:12]}…), but "
                f"this network has {actual}; set `weights` to the former"
            )


def bases_in(checkpoint: Mapping[str, Any]) -> dict[str, Base]:
    """The base models that a checkpoint names, by network; empty if the checkpoint has all weights.

    Raises:
        ValueError: the entry is malformed.
    """
    entries = checkpoint.get(KEY, {})
    try:
        bases = {name: Base(**fields) for name, fields in entries.items()}
    except (AttributeError, TypeError):
        raise ValueError(f"{KEY}: the checkpoint is damaged: its entry for the base of LoRA is malformed") from None
    if not all(isinstance(x, str) for base in bases.values() for x in asdict(base).values()):
        raise ValueError(f"{KEY}: the checkpoint is damaged: its entry for the base of LoRA is malformed")
    return bases


def weights_digest(folder: Path) -> str:
    """SHA-256 of the names and contents of the safetensors files in a model folder.

    Raises:
        ValueError: the folder has no safetensors files.
    """
    total = hashlib.sha256()
    for file in files_in(folder):
        status = file.stat()
        total.update(f"{file.name} {_file_digest(file, status.st_mtime_ns, status.st_size)}\n".encode())
    return total.hexdigest()


@lru_cache(maxsize=1024)
def _file_digest(file: Path, changed: int, size: int) -> str:
    with open(file, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
