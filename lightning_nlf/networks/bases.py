"""The base of LoRA's additions, which a checkpoint names by path and digest in the place of its weights."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from lightning_nlf.language import hf_layout
from lightning_nlf.language.hf_folder import files_in

KEY = "bases"  # of a checkpoint: {name of a network: Base}


@dataclass(frozen=True)
class Base:
    """A frozen model in Hugging Face layout.

    Args:
        weights: its folder, or its id on the hub, as the yaml has it.
        folder: the folder's absolute path; empty for one on the hub.
        sha256: of its weights, as `weights_digest`; empty while they are not read.
    """

    weights: str
    folder: str
    sha256: str

    @classmethod
    def of(cls, weights: str, folder: Path) -> Base:
        """Args: folder: where `weights` are."""
        return replace(cls.unread(weights, folder), sha256=weights_digest(folder))

    @classmethod
    def unread(cls, weights: str, folder: Path) -> Base:
        """The same without its digest, which takes a reading of all weights."""
        return cls(weights, str(folder.resolve()) if Path(weights).is_dir() else "", "")

    @property
    def name(self) -> str:
        """What others find it by: the absolute path, or the id."""
        return self.folder or self.weights

    def locate(self) -> Path:
        """A folder with these weights.

        Raises:
            ValueError: they are not there, or others are.
        """
        folders = [self.folder, self.weights] if self.folder else [str(hf_layout.folder_of(self.weights))]
        there = [Path(path) for path in folders if Path(path).is_dir()]
        for path in there:
            if weights_digest(path) == self.sha256:
                return path
        state = "holds other weights" if there else "is not there"
        raise ValueError(
            f"base: this is LoRA, which was trained on {self.name} (SHA-256 {self.sha256[:12]}…), and that {state}: "
            "put that model back there, or a link to it"
        )

    def refuse_other(self, base: Base | None) -> None:
        """Raises ValueError: a network stands on another `base`."""
        if base is None or base.sha256 != self.sha256:
            here = "it has no such base here" if base is None else f"here it is {base.name} ({base.sha256[:12]}…)"
            raise ValueError(
                f"weights: the checkpoint's LoRA was trained on {self.name} (SHA-256 {self.sha256[:12]}…), and {here}: "
                "give that model as `weights`"
            )


def bases_in(checkpoint: Mapping[str, Any]) -> dict[str, Base]:
    """The bases that a checkpoint names, by their networks; none where it holds all weights itself.

    Raises:
        ValueError: what stands there is none.
    """
    named = checkpoint.get(KEY, {})
    try:
        bases = {name: Base(**fields) for name, fields in named.items()}
    except (AttributeError, TypeError):
        raise ValueError(f"{KEY}: not what a checkpoint says of the base of LoRA: it is damaged") from None
    if not all(isinstance(x, str) for base in bases.values() for x in asdict(base).values()):
        raise ValueError(f"{KEY}: not what a checkpoint says of the base of LoRA: it is damaged")
    return bases


def weights_digest(folder: Path) -> str:
    """SHA-256 of the safetensors of a model folder, and of their names.

    Raises:
        ValueError: there are none.
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
