"""Export the trained policy in Hugging Face format."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import lightning as L
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch import nn

from lightning_nlf.callbacks.best_weights import best_of, best_weights
from lightning_nlf.callbacks.checkpoints import BestCheckpoint, LastCheckpoint
from lightning_nlf.callbacks.protocols import RunLogger, divides_weights, log_artifacts, rehearses, run_folder
from lightning_nlf.data_source import data_source
from lightning_nlf.language.additions import ADDITION
from lightning_nlf.language.hf_generation import write_ends
from lightning_nlf.networks.bases import Base


@runtime_checkable
class Exportable(Protocol):
    """A network that can be exported in the Hugging Face layout."""

    base: Base | None  # base model of the LoRA adapter; None without LoRA, or if the base model has no name
    start_dtype: torch.dtype  # dtype of the weights that the network started from

    def export(self, folder: str | Path, dtype: torch.dtype | None = None) -> None: ...

    def export_adapter(self, folder: str | Path) -> None: ...


@runtime_checkable
class Saveable(Protocol):
    """A tokenizer that can be saved in the Hugging Face layout."""

    eos: int
    pad: int

    def save(self, folder: str | Path) -> None: ...


class HuggingFaceExport(L.Callback):
    """Exports the policy and the tokenizer to `<run>/huggingface` at the end of a fit.

    The folder can be loaded with `AutoModelForCausalLM.from_pretrained` and `AutoTokenizer.from_pretrained`, or given
    as `weights` to another run. `generate` of transformers stops at the same tokens as replies in training, because the
    two config files contain the ids of eos, `stop` and pad. The adapter of a LoRA policy is also exported to
    `<run>/adapter`, for PEFT and vLLM, if the base model is a folder or a model on the hub.

    Policies without a Hugging Face layout are skipped. If a file cannot be written, the callback only warns, because
    the checkpoint exists.

    Args:
        weights: `best` exports best.ckpt if one was saved, and the final weights otherwise. `last` exports the final
            weights.
        merged: Whether to export a LoRA policy to `<run>/huggingface` too, with the adapter merged into the base. If
            False, only the adapter is exported, if an adapter can be exported.
        dtype: Dtype of the weights in `<run>/huggingface`. `start` is the dtype of the weights that the run started
            from, or float32 if the run started without weights. Adapters are always float32.
    """

    def __init__(
        self,
        weights: Literal["best", "last"] = "best",
        merged: bool = True,
        dtype: Literal["start", "float32", "bfloat16", "float16"] = "start",
    ) -> None:
        self.weights, self.merged, self.dtype = weights, merged, dtype

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        policy = getattr(pl_module, "policy", None)
        if not isinstance(policy, Exportable) or not trainer.is_global_zero or rehearses(trainer):
            return
        best = best_of(trainer) if self.weights == "best" else None
        try:
            with _weights(trainer, pl_module, best, policy) as (source, policy):
                folders = self._write(trainer, policy)
        except (OSError, ValueError) as error:
            rank_zero_warn(f"the policy was not exported: {error}")
            return
        rank_zero_info(f"Exported {source} to {' and '.join(folder.name for folder in folders)}.")
        for logger in trainer.loggers:
            if isinstance(logger, RunLogger):
                logger.set_tags({"export/weights": str(source)})
        log_artifacts(trainer, sorted(path for folder in folders for path in folder.rglob("*") if path.is_file()))

    def estimate(self, policy: Exportable) -> int:
        """Approximate size of the export in bytes."""
        assert isinstance(policy, nn.Module)
        added = [x for name, x in policy.named_parameters() if ADDITION in name]
        adapter = sum(x.nbytes for x in added) if policy.base is not None else 0
        dtype = policy.start_dtype if self.dtype == "start" else getattr(torch, self.dtype)
        whole = (sum(x.numel() for x in policy.parameters()) - sum(x.numel() for x in added)) * dtype.itemsize
        return adapter + (whole if self.merged or policy.base is None else 0)

    def _write(self, trainer: L.Trainer, policy: Exportable) -> list[Path]:
        """Write the export and return its folders. Raises OSError if a file cannot be written."""
        adapter, whole = run_folder(trainer) / "adapter", run_folder(trainer) / "huggingface"
        folders = []
        if policy.base is not None:
            policy.export_adapter(adapter)
            folders.append(adapter)
        if self.merged or not folders:
            policy.export(whole, None if self.dtype == "start" else getattr(torch, self.dtype))
            _write_tokenizer(trainer, whole)
            folders.append(whole)
        for weights in (path for folder in folders for path in folder.glob("*.safetensors")):
            shutil.copymode(next(weights.parent.glob("*config.json")), weights)  # safetensors makes the file private
        return folders


@contextmanager
def _weights(
    trainer: L.Trainer, module: L.LightningModule, best: BestCheckpoint | None, policy: Exportable
) -> Iterator[tuple[str, Exportable]]:
    """Context manager with the policy to export and a description of its weights.

    If this rank has only a part of the weights, the policy is read from a checkpoint.

    Raises:
        ValueError, OSError: The checkpoint cannot be read.
    """
    if divides_weights(trainer):
        path = LastCheckpoint().path_in(run_folder(trainer)) if best is None else best.path
        whole: Any = type(module).load_from_checkpoint(path)
        yield path.name, whole.policy
    elif best is None:
        yield "the last weights", policy
    else:
        with best_weights(module, best) as iteration:
            yield str(iteration), policy


def _write_tokenizer(trainer: L.Trainer, folder: Path) -> None:
    source = data_source(trainer)
    stops, pad = source.stops, None
    if isinstance(source.tokenizer, Saveable):
        source.tokenizer.save(folder)
        stops, pad = stops or (source.tokenizer.eos,), source.tokenizer.pad
    if stops:
        write_ends(folder, stops, pad)
