"""Callbacks of a fit: checkpoints, progress, exhibits, provenance, export, disk check, and early stopping."""

from lightning_nlf.callbacks.checkpoints import BestCheckpoint, LastCheckpoint
from lightning_nlf.callbacks.disk import DiskSpace
from lightning_nlf.callbacks.exhibits import Exhibits
from lightning_nlf.callbacks.export import HuggingFaceExport
from lightning_nlf.callbacks.generation_server import GenerationServer
from lightning_nlf.callbacks.progress import FitProgress
from lightning_nlf.callbacks.provenance import Provenance
from lightning_nlf.callbacks.spent import StopWhenSpent
from lightning_nlf.callbacks.stopping import StopWhenSolved

__all__ = [
    "BestCheckpoint",
    "DiskSpace",
    "Exhibits",
    "FitProgress",
    "GenerationServer",
    "HuggingFaceExport",
    "LastCheckpoint",
    "Provenance",
    "StopWhenSolved",
    "StopWhenSpent",
]
