"""Cache of log-probabilities, keyed by a hash of each row."""

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

TENSORS = ("keys", "lengths", "log_probs")  # tensors in a file: (rows, 32) uint8, (rows,), (steps,)


class LogProbCache:
    """Cache of log-probabilities by row key: in memory, and also in a file if a path is given.

    Without a file, the least recently used rows are dropped when the cache has more than `LIMIT` numbers. A file is
    read once and replaced as a whole. A damaged file is ignored with a warning. Files of earlier versions (`*.pt`) are
    not read.

    Args: path: the safetensors file, which need not exist yet.
    """

    LIMIT = 2**25  # number of log-probabilities in memory: 128 MiB

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self.rows: dict[bytes, Tensor] = {}  # each (n,) on the CPU, in the order of their last use
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
        """Add new rows to the file and keep rows that other processes wrote.

        Without a file, drop rows beyond the limit.
        """
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
    """Read the rows that `write_rows` wrote. If the file cannot be read, warn and return no rows."""
    if not path.is_file():
        return {}
    try:
        with safe_open(path, framework="pt") as file:
            # copy: the file is memory-mapped, and another process may change it later
            content = {name: file.get_tensor(name).clone() for name in TENSORS}
            metadata = file.metadata()
        if metadata != _metadata(content):
            raise ValueError("the file is damaged or of another version")
        keys = [bytes(key) for key in content["keys"].numpy()]
        return dict(zip(keys, content["log_probs"].split(content["lengths"].tolist()), strict=True))
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        warnings.warn(f"reference_cache: {path}: {error}; the file is ignored and will be replaced", stacklevel=2)
        return {}


def write_rows(rows: dict[bytes, Tensor], path: Path) -> None:
    """Replace `path` atomically, even if other processes do the same.

    Raises: OSError: the file could not be written.
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
    """Format version and checksum of a cache file. The checksum is added because safetensors files have none."""
    return {"reference_cache": "1", "sha256": _digest(content)}


def row_keys(batch: Batch, steps: Tensor, setting: str) -> list[bytes]:
    """SHA-256 of each row: its obs and actions up to the last of its `steps`, and the positions of these steps.

    The key does not depend on padding or on the other rows.
    Args: steps (B, T) bool; setting: text that identifies everything else that the log-probabilities depend on.
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
    """Types and plain attributes of all submodules, such as the number of heads, which weights do not show."""
    parts = []
    for name, part in network.named_modules():
        plain = {key: x for key, x in vars(part).items() if isinstance(x, int | float | str) and key[0] != "_"}
        plain.pop("training")
        parts.append(f"{name}:{type(part).__qualname__}{sorted(plain.items())}")
    return ";".join(parts)


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
    """The bytes of a tensor's values, for any dtype."""
    return _as_uint8(x).numpy().tobytes()


def _as_uint8(x: Tensor) -> Tensor:
    return x.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
