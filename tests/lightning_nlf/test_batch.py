"""Rows are selected, padded, stacked and moved without changing their content."""

import pytest
import torch

from lightning_nlf.batch import Batch, stack_rows


def batch(lengths, width=None, **fields):
    width = width or max(lengths)
    valid = torch.arange(width) < torch.tensor(lengths)[:, None]
    steps = valid * torch.arange(1.0, width + 1)
    return Batch(obs=steps[..., None], actions=steps[..., None], valid=valid, mask=valid, rewards=steps, **fields)


def test_chosen_rows_are_cut_to_the_longest():
    chosen = batch([2, 5, 3])[torch.tensor([0, 2])]
    assert chosen.rewards.tolist() == [[1, 2, 0], [1, 2, 3]]
    assert chosen.obs.shape == (2, 3, 1)


def test_fields_of_a_row_keep_their_shape():
    """`extra` with one number per row is not cut; `extra` with steps is."""
    b = batch([1, 4], group=torch.tensor([7, 8]), extra={"row": torch.arange(2.0), "step": torch.ones(2, 4)})
    chosen = b[torch.tensor([True, False])]
    assert chosen.group.tolist() == [7]
    assert chosen.extra["row"].shape == (1,) and chosen.extra["step"].shape == (1, 1)


def test_masks_of_rows_and_of_steps_are_chosen_cut_and_stacked_along():
    rows, steps = torch.tensor([True, False]), torch.tensor([[True, False, True, True], [True, True, False, False]])
    b = batch([4, 2]).with_masks(rows=rows, steps=steps)
    assert b.masks.keys() == {"rows", "steps"} and batch([4, 2]).masks == {}
    chosen = b[torch.tensor([1])]
    assert chosen.masks["rows"].tolist() == [False] and chosen.masks["steps"].tolist() == [[True, True]]
    joined = stack_rows([chosen, b[:1]])
    assert joined.masks["rows"].tolist() == [False, True]
    assert joined.masks["steps"].tolist() == [[True, True, False, False], [True, False, True, True]]


def test_metrics_are_of_rows():
    b = batch([1, 4], metrics={"wins": torch.tensor([1.0, 2.0])})
    assert b[:1].metrics["wins"].tolist() == [1]
    assert stack_rows([b[1:], b[:1]]).metrics["wins"].tolist() == [2, 1]


def test_more_extras_leave_the_others():
    b = batch([1], extra={"x": torch.ones(1)}).with_extra(y=torch.zeros(1))
    assert b.extra["x"].tolist() == [1] and b.extra["y"].tolist() == [0]


def test_a_view_is_chosen_along():
    chosen = batch([2, 2], view=batch([3, 4]))[:1]
    assert chosen.view.rewards.tolist() == [[1, 2, 3]]


def test_expert_steps_beyond_the_valid_ones_are_kept():
    labels = torch.tensor([[False, False, True]])
    assert batch([1], width=3, expert_mask=labels).trim().mask.shape == (1, 3)


def test_stacking_pads_and_choosing_undoes_it():
    a, b = (
        batch([2], expert_params={"std": torch.ones(1, 2, 1)}),
        batch([4], expert_params={"std": torch.ones(1, 4, 1)}),
    )
    joined = stack_rows([a, b])
    assert joined.rewards.tolist() == [[1, 2, 0, 0], [1, 2, 3, 4]]
    assert joined.expert_params["std"].shape == (2, 4, 1)
    torch.testing.assert_close(joined[:1].obs, a.obs)


def test_stacking_refuses_a_field_that_one_lacks():
    with pytest.raises(ValueError, match="group"):
        stack_rows([batch([1]), batch([1], group=torch.zeros(1))])


def test_stacking_refuses_an_extra_that_one_lacks():
    for extras in ([{}, {"x": torch.ones(1)}], [{"x": torch.ones(1)}, {}]):
        with pytest.raises(ValueError, match="extra.x"):
            stack_rows([batch([1], extra=extra) for extra in extras])


@pytest.mark.parametrize("field", ["extra", "masks", "metrics"])
def test_an_extra_that_is_neither_by_row_nor_by_step_is_refused(field):
    with pytest.raises(ValueError, match=f"{field}.x"):
        batch([2, 3], **{field: {"x": torch.ones(2, 7)}})


def test_moving_takes_the_totals_along():
    b = batch([2], totals={"mask": torch.tensor(2.0)}).to(torch.float64)
    assert b.totals["mask"].dtype == b.rewards.dtype == torch.float64


def test_choosing_drops_totals_that_no_longer_hold():
    assert batch([2, 2], totals={"mask": torch.tensor(4.0)})[:1].totals == {}
