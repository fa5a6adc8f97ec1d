"""DataSource: our DataModules offer all of it, others a part of it or nothing."""

from types import SimpleNamespace

import lightning as L
import pytest
import torch

from data_modules.minibatches import MinibatchDataModule
from data_modules.text import TextDataModule, TokenTaskDataModule, WordTokenizer
from lightning_nlf.batch import Batch
from lightning_nlf.data_source import DataSource, PartialSource, data_source
from tests.data_modules.text.conftest import Echo

ATTRIBUTES = [name for name in {**DataSource.__annotations__, **vars(DataSource)} if name[0] != "_"]


def of(data_module):
    return data_source(SimpleNamespace(datamodule=data_module))


def batch():
    mask = torch.ones(1, 1, dtype=torch.bool)
    return Batch(obs=torch.zeros(1, 1), actions=torch.zeros(1, 1), valid=mask, mask=mask)


def test_ours_answers_for_itself():
    plain: DataSource = MinibatchDataModule()
    assert of(plain) is plain and not plain.speaks and plain.recorded is None
    for data in (TextDataModule(Echo(), tokenizer=WordTokenizer()), TokenTaskDataModule()):
        assert of(data) is data and data.speaks


def test_all_is_asked_of_both():
    """Every attribute of the protocol needs a default for a DataModule that does not offer it."""
    assert len(ATTRIBUTES) == 22
    for name in ATTRIBUTES:
        getattr(MinibatchDataModule(), name)
        getattr(PartialSource(None), name)


@pytest.mark.parametrize("data_module", [None, L.LightningDataModule()])
def test_who_offers_nothing_is_taken_as_silent(data_module, tmp_path):
    source = of(data_module)
    assert source.counters == source.statistics == {} and source.stops == ()
    assert source.vocabulary is source.longest_row is source.tokenizer is source.recorded is None
    assert source.tokenizer_digest is source.data_digest is None
    assert not source.speaks and not source.exhibits_text
    assert source.exhibits(tmp_path) == source.records(batch()) == []


def test_a_part_is_completed():
    class Counted(L.LightningDataModule):
        counters = {"env_steps": 7}
        longest_row = 12

        @property
        def vocabulary(self):
            raise ValueError("not before setup")

    source = of(Counted())
    assert source.counters == {"env_steps": 7} and source.longest_row == 12 and source.statistics == {}
    assert source.speaks  # it has a vocabulary, which was not computed
    with pytest.raises(ValueError, match="not before setup"):
        _ = source.vocabulary


def test_nothing_else_is_asked():
    with pytest.raises(KeyError):
        _ = of(None).name
