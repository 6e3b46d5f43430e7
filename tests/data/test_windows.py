import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embodied_wm.data.layout import StoreError
from embodied_wm.data.windows import index_windows, split_episodes


@given(
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=8),
    length=st.integers(1, 20),
    stride=st.integers(1, 5),
    data=st.data(),
)
def test_windows_are_exactly_those_inside_one_episode(lengths, length, stride, data):
    chosen = data.draw(st.lists(st.integers(0, len(lengths) - 1), min_size=1, unique=True))
    ends = np.cumsum(lengths)
    expected = [
        (episode, int(ends[episode]) - lengths[episode] + offset)
        for episode in chosen
        for offset in range(0, lengths[episode] - length + 1, stride)
    ]
    if not expected:
        with pytest.raises(StoreError, match="shorter than a window"):
            index_windows(ends, chosen, length, stride)
        return
    index = index_windows(ends, chosen, length, stride)
    assert list(zip(index.episodes.tolist(), index.starts.tolist(), strict=True)) == expected
    assert index.skipped == tuple(episode for episode in chosen if lengths[episode] < length)
    assert len(index) == len(expected)


def test_the_error_names_episodes_their_rows_and_what_would_fit():
    with pytest.raises(StoreError, match=r"window of 9 rows: episodes 1 \(4 rows\), 2 \(7 rows\).*at most 7 rows"):
        index_windows(np.array([9, 13, 20]), [1, 2], 9)


@pytest.mark.parametrize(
    ("episodes", "length", "stride", "message"),
    [
        ([], 2, 1, "No episode was given"),
        ([3], 2, 1, "Episodes 3 do not exist"),
        ([0], 0, 1, "at least 1"),
        ([0], 1, 0, "at least 1"),
    ],
)
def test_impossible_requests(episodes, length, stride, message):
    with pytest.raises(StoreError, match=message):
        index_windows(np.array([9, 13, 20]), episodes, length, stride)


def test_the_last_episodes_are_held_out():
    train, held_out = split_episodes(81)
    np.testing.assert_array_equal(train, np.arange(73))
    np.testing.assert_array_equal(held_out, np.arange(73, 81))
    assert [len(part) for part in split_episodes(2)] == [1, 1]
    assert [len(part) for part in split_episodes(3, 0.9)] == [1, 2]
    with pytest.raises(StoreError, match="at least 2"):
        split_episodes(1)
    with pytest.raises(StoreError, match="between 0 and 1"):
        split_episodes(5, 1.5)
