"""Log-probabilities of rows, remembered by what the rows are made of."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from lightning_nlf.batch import Batch

TENSORS = ("keys", "lengths", "log_probs")  # of a file: (rows, 32) uint8, (rows,), (all steps of all rows,)


class LogProbCache:
    """Log-probabilities by the key of their row: in memory, and in a file if there is one.

    Without a file the rows that were not asked for longest are forgotten, when there are more than `LIMIT` numbers.
    A file is read at once and written whole, beside the old one. A damaged one is ignored with a warning. Files of
    earlier versions, `*.pt`, are not read.

    Args: path: of the safetensors file, which need not be there.
    """

    LIMIT = 2**25  # log-probabilities in memory: 128 MiB

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self.rows: dict[bytes, Tensor] = {}  # each (n,) on the CPU; the order is that of their last use
        self._unsaved = False
        if path is not None:
            self.rows = read_rows(path)

    def __contains__(self, key: bytes) -> bool:
        return key in self.rows

    def __getitem__(self, key: bytes) -> Tensor:
        self.rows[key] = row = self.rows.pop(key)
        return row

    def __setitem__(self, key: bytes, log_probs: Tensor) -> None:
        self.rows[key] = log_probs
        self._unsaved = True

    def settle(self) -> None:
        """Write what is new to the file, beside what others wrote meanwhile; or forget what is too much."""
        if self.path is not None:
            if self._unsaved:
                self.rows = read_rows(self.path) | self.rows
                write_rows(self.rows, self.path)
        else:
            excess = sum(map(len, self.rows.values())) - self.LIMIT
            for key in list(self.rows):
                if excess <= 0:
                    break
                excess -= len(self.rows.pop(key))
        self._unsaved = False


def read_rows(path: Path) -> dict[bytes, Tensor]:
    """What `write_rows` wrote; nothing, and a warning, where that cannot be read."""
    if not path.is_file():
        return {}
    try:
        with safe_open(path, framework="pt") as file:
            # copies: the file is mapped into memory, and another process may damage it later
            content = {name: file.get_tensor(name).clone() for name in TENSORS}
            metadata = file.metadata()
        if metadata != _metadata(content):
            raise ValueError("not what was written, or of another version")
        keys = [bytes(key) for key in content["keys"].numpy()]
        return dict(zip(keys, content["log_probs"].split(content["lengths"].tolist()), strict=True))
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        warnings.warn(f"reference_cache: {path}: {error}; it is ignored, and written anew", stacklevel=2)
        return {}


def write_rows(rows: dict[bytes, Tensor], path: Path) -> None:
    """Replaces `path` in one step, whoever else does the same.

    Raises: OSError: it could not be written.
    """
    keys = torch.frombuffer(bytearray(b"".join(rows)), dtype=torch.uint8).view(len(rows), -1)
    lengths = torch.tensor([len(row) for row in rows.values()])
    content = dict(zip(TENSORS, (keys, lengths, torch.cat(list(rows.values()))), strict=True))
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(save(content, _metadata(content)))
        os.replace(part, path)
    except OSError:
        part.unlink(missing_ok=True)
        raise


def _metadata(content: dict[str, Tensor]) -> dict[str, str]:
    """The version of the format, and a checksum: safetensors have none."""
    return {"reference_cache": "1", "sha256": _digest(content)}


def row_keys(batch: Batch, steps: Tensor, setting: str) -> list[bytes]:
    """SHA-256 of each row's obs and actions up to the last of its `steps`, and of which these are.

    So padding does not matter, nor what a row stands beside.
    Args: steps (B, T) bool; setting: whatever else the numbers depend on.
    """
    parts = [batch.obs, batch.actions, steps]
    setting = " ".join([setting, *(f"{x.dtype}{tuple(x.shape[2:])}" for x in parts)])
    count, width = steps.shape
    lengths = (steps * torch.arange(1, width + 1, device=steps.device)).max(1).values.tolist()
    data = [_as_uint8(x).reshape(count, width, -1).numpy() for x in parts]
    keys = []
    for row, length in enumerate(lengths):
        key = hashlib.sha256(setting.encode())
        for x in data:
            key.update(x[row, :length].tobytes())
        keys.append(key.digest())
    return keys


def settings(network: nn.Module) -> str:
    """The kinds of its parts and their plain attributes: heads, temperature, all that weights do not show."""
    found = []
    for name, part in network.named_modules():
        plain = {key: x for key, x in vars(part).items() if isinstance(x, int | float | str) and key[0] != "_"}
        plain.pop("training")
        found.append(f"{name}:{type(part).__qualname__}{sorted(plain.items())}")
    return ";".join(found)


def digest(network: nn.Module) -> str:
    """SHA-256 of the names, shapes and values of all parameters and buffers."""
    return _digest(network.state_dict())


def _digest(tensors: Mapping[str, Tensor]) -> str:
    total = hashlib.sha256()
    for name, x in tensors.items():
        total.update(f"{name}{tuple(x.shape)}{x.dtype}".encode())
        total.update(as_bytes(x))
    return total.hexdigest()


def as_bytes(x: Tensor) -> bytes:
    """The bytes of its values, whatever the dtype."""
    return _as_uint8(x).numpy().tobytes()


def _as_uint8(x: Tensor) -> Tensor:
    return x.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
