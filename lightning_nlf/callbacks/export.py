"""The trained policy for everybody else's tools."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, runtime_checkable

import lightning as L
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from lightning_nlf.callbacks.protocols import log_artifacts, rehearses, run_folder
from lightning_nlf.data_source import data_source
from lightning_nlf.language.hf_generation import write_ends


@runtime_checkable
class Exportable(Protocol):
    """A network that others can load."""

    def export(self, folder: str | Path) -> None: ...


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
    Nothing of a policy that has no such layout. What cannot be written is a warning: the checkpoint is there.
    """

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        policy = getattr(pl_module, "policy", None)
        if not isinstance(policy, Exportable) or not trainer.is_global_zero or rehearses(trainer):
            return
        folder = run_folder(trainer) / "huggingface"
        source = data_source(trainer)
        tokenizer, stops, pad = source.tokenizer, source.stops, None
        try:
            policy.export(folder)
            if isinstance(tokenizer, Saveable):
                tokenizer.save(folder)
                stops, pad = stops or (tokenizer.eos,), tokenizer.pad
            if stops:
                write_ends(folder, stops, pad)
        except OSError as error:
            rank_zero_warn(f"the policy is not exported: {error}")
        else:
            log_artifacts(trainer, sorted(path for path in folder.rglob("*") if path.is_file()))
