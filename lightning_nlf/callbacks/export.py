"""The trained policy for everybody else's tools."""

from __future__ import annotations

import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import lightning as L
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch import nn

from lightning_nlf.callbacks.best_weights import best_of, best_weights
from lightning_nlf.callbacks.protocols import RunLogger, log_artifacts, rehearses, run_folder
from lightning_nlf.data_source import data_source
from lightning_nlf.language.additions import ADDITION
from lightning_nlf.language.hf_generation import write_ends
from lightning_nlf.networks.bases import Base


@runtime_checkable
class Exportable(Protocol):
    """A network that others can load."""

    base: Base | None  # that its LoRA stands on, where others can find it
    start_dtype: torch.dtype  # of the folder that it began with

    def export(self, folder: str | Path, dtype: torch.dtype | None = None) -> None: ...

    def export_adapter(self, folder: str | Path) -> None: ...


@runtime_checkable
class Saveable(Protocol):
    """A tokenizer that others can load."""

    eos: int
    pad: int

    def save(self, folder: str | Path) -> None: ...


class HuggingFaceExport(L.Callback):
    """At the end of a fit the policy in Hugging Face layout in `<run>/huggingface`, with the DataModule's tokenizer.

    For `AutoModelForCausalLM.from_pretrained` and `AutoTokenizer.from_pretrained`, and as `weights` of another run;
    `generate` of transformers stops where a reply stopped in training: eos, `stop` and pad are in the two config files.
    The additions of LoRA to a folder or a model of the hub are in `<run>/adapter` too, for PEFT and vLLM.
    Nothing of a policy that has no such layout. What cannot be written is a warning: the checkpoint is there.

    Args:
        which: `best`: the weights of best.ckpt, where a monitor has picked an iteration, otherwise those of the end; or
            `last`: those of the end.
        merged: whether LoRA's policy is in `<run>/huggingface` too, with its additions in; otherwise in `<run>/adapter`
            alone, if it can be.
        dtype: of the numbers in `<run>/huggingface`; `start` is that of the folder that the run began with, float32
            where there was none. Those of an adapter are float32.
    """

    def __init__(
        self,
        which: Literal["best", "last"] = "best",
        merged: bool = True,
        dtype: Literal["start", "float32", "bfloat16", "float16"] = "start",
    ) -> None:
        self.which, self.merged, self.dtype = which, merged, dtype

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        policy = getattr(pl_module, "policy", None)
        if not isinstance(policy, Exportable) or not trainer.is_global_zero or rehearses(trainer):
            return
        best = best_of(trainer) if self.which == "best" else None
        try:
            with nullcontext("the last weights") if best is None else best_weights(pl_module, best) as weights:
                folders = self._write(trainer, policy)
        except (OSError, ValueError) as error:
            rank_zero_warn(f"the policy is not exported: {error}")
            return
        rank_zero_info(f"Exported: {weights}, to {' and '.join(folder.name for folder in folders)}.")
        for logger in trainer.loggers:
            if isinstance(logger, RunLogger):
                logger.set_tags({"export/weights": str(weights)})
        log_artifacts(trainer, sorted(path for folder in folders for path in folder.rglob("*") if path.is_file()))

    def estimate(self, policy: Exportable) -> int:
        """Bytes of what will be written, about."""
        assert isinstance(policy, nn.Module)
        added = [x for name, x in policy.named_parameters() if ADDITION in name]
        adapter = sum(x.nbytes for x in added) if policy.base is not None else 0
        dtype = policy.start_dtype if self.dtype == "start" else getattr(torch, self.dtype)
        whole = (sum(x.numel() for x in policy.parameters()) - sum(x.numel() for x in added)) * dtype.itemsize
        return adapter + (whole if self.merged or policy.base is None else 0)

    def _write(self, trainer: L.Trainer, policy: Exportable) -> list[Path]:
        """Raises OSError: it could not be written."""
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
            shutil.copymode(next(weights.parent.glob("*config.json")), weights)  # safetensors lets the owner alone read
        return folders


def _write_tokenizer(trainer: L.Trainer, folder: Path) -> None:
    source = data_source(trainer)
    stops, pad = source.stops, None
    if isinstance(source.tokenizer, Saveable):
        source.tokenizer.save(folder)
        stops, pad = stops or (source.tokenizer.eos,), source.tokenizer.pad
    if stops:
        write_ends(folder, stops, pad)
