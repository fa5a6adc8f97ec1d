from __future__ import annotations

from typing import Any

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

from lightning_nlf.callbacks import Provenance, provenance


def test_each_start_is_described_in_a_folder_of_its_own(fit: Any) -> None:
    fit.folder.mkdir()
    (fit.folder / "raw").mkdir()
    (fit.folder / "config.yaml").write_text("a: 1")
    (fit.folder / "raw/reinforce.yaml").write_text("a: 1")
    fit.scripted([(0, 0)], [Provenance()])
    fit.scripted([(0, 0)], [Provenance()])
    for folder in ("provenance", "provenance/start-2"):
        for name in ("command.txt", "packages.txt", "host.txt", "git.txt"):
            path = fit.folder / folder / name
            assert path.read_text() and path in fit.logger.artifacts
    assert not (fit.folder / "provenance/start-3").exists()
    assert fit.folder / "config.yaml" in fit.logger.artifacts
    assert fit.folder / "raw/reinforce.yaml" in fit.logger.artifacts


def test_provenance_that_cannot_be_gathered_gives_a_warning(fit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(folder: object) -> dict[str, str]:
        raise OSError("no space left")

    monkeypatch.setattr(provenance, "gather", broken)
    with pytest.warns(UserWarning, match="incomplete: no space left"):
        trainer, _ = fit.scripted([(0, 0)], [Provenance()])
    assert trainer.current_epoch == 1


def test_a_rehearsal_leaves_no_files(fit: Any) -> None:
    fit.scripted([(0, 0)], [Provenance()], fast_dev_run=True)
    assert not fit.folder.exists()


def test_the_digests_of_data_and_tokenizer_are_tags_and_a_file(fit: Any) -> None:
    class Digested(L.LightningDataModule):
        data_digest, tokenizer_digest = "d" * 64, "t" * 64

        def train_dataloader(self) -> Any:
            return DataLoader(torch.zeros(1, 1))  # type: ignore[arg-type, var-annotated]

    _, module = fit.scripted([(0, 0)], [])
    fit.trainer(1, [Provenance()]).fit(module, Digested())
    assert fit.logger.tags == {"data_digest": "d" * 64, "tokenizer_digest": "t" * 64}
    path = fit.folder / "provenance/data.txt"
    assert path.read_text() == f"data_digest: {'d' * 64}\ntokenizer_digest: {'t' * 64}\n"
    assert path in fit.logger.artifacts


def test_data_without_digests_has_no_tags(fit: Any) -> None:
    fit.scripted([(0, 0)], [Provenance()])
    assert fit.logger.tags == {} and not (fit.folder / "provenance/data.txt").exists()
