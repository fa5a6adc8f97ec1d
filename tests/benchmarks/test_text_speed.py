"""Text speed benchmark: both sides do the same work."""

import pytest

pytest.importorskip("transformers")

from benchmarks.side_by_side import text_ours, text_task
from lightning_nlf.objectives.reference_cache import row_keys


def test_where_the_reference_is_live_no_row_comes_again():
    """Repeated rows would come from the cache, unlike the peer's. The first rows equal the peer's."""
    data = text_ours.OtherPairs("nano", pairs=4)
    keys = []
    for _ in range(11):
        batch = data.collect(None, None)
        keys += row_keys(batch, batch.mask, "")
        data.counters["iteration"] += 1
    assert len(set(keys)) == len(keys) == 88
    first = text_ours.OtherPairs("nano", pairs=4).collect(None, None)
    assert first.actions[first.mask].view(8, -1)[::2].tolist() == text_task.chosen("nano", 4)
    assert first.actions[first.mask].view(8, -1)[1::2].tolist() == text_task.rejected("nano", 4)
