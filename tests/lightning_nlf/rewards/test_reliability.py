"""The calibration error equals that of torchmetrics, in constant memory."""

import pytest
import torch
from torchmetrics.classification import BinaryCalibrationError

from lightning_nlf.rewards.reliability import Reliability


@pytest.mark.parametrize("bins", [5, 10])
def test_it_is_that_of_torchmetrics(bins):
    probability = torch.rand(500, generator=torch.Generator().manual_seed(0))
    event = (torch.rand(500, generator=torch.Generator().manual_seed(1)) < probability**2).int()
    ours, theirs = Reliability(bins), BinaryCalibrationError(bins)
    for part in range(0, 500, 100):
        ours.update(probability[part : part + 100], event[part : part + 100])
        theirs.update(probability[part : part + 100], event[part : part + 100])
    torch.testing.assert_close(ours.compute(), theirs.compute())
    assert ours.table[:, 2].sum() == 500 and len(ours.table) == bins


def test_by_hand():
    """.26 and .34 share a bin, and half of it happened: 2/3 · |.3 − .5| = .1333; 1 is in the last bin, and happened."""
    metric = Reliability(bins=4)
    metric.update(torch.tensor([0.26, 0.34, 1.0]), torch.tensor([0, 1, 1]))
    torch.testing.assert_close(metric.compute(), torch.tensor(2 / 3 * 0.2))
    torch.testing.assert_close(metric.table, torch.tensor([[0.3, 0.5, 2], [1, 1, 1]]))
    assert metric.markdown().splitlines()[2] == "| 0.300 | 0.500 | 2 |"


def test_of_nothing_it_is_nan():
    metric = Reliability()
    metric.update(torch.zeros(0), torch.zeros(0))
    assert metric.compute().isnan() and len(metric.table) == 0
