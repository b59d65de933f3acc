import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.windows import check_signal, cut, plan_windows

LENGTHS = st.integers(1, 5000)


@pytest.mark.parametrize(
    ("n_samples", "count", "padded", "dropped"),
    [
        (1, 1, 9, 0),  # the only window is kept however short
        (4, 1, 6, 0),
        (10, 1, 0, 0),
        (14, 1, 0, 4),  # under half: dropped
        (15, 2, 5, 0),  # half: kept and padded
        (19, 2, 1, 0),
        (20, 2, 0, 0),
        (24, 2, 0, 4),
    ],
)
def test_the_remainder(n_samples, count, padded, dropped):
    plan = plan_windows(n_samples, 10)
    assert (plan.count, plan.length, plan.padded, plan.dropped) == (count, 10, padded, dropped)


def test_half_of_an_odd_length_is_rounded_up():
    assert plan_windows(11 + 5, 11).dropped == 5
    assert plan_windows(11 + 6, 11).padded == 5


@given(n_samples=st.integers(1, 1_000_000), length=LENGTHS)
def test_every_sample_is_covered_or_dropped(n_samples, length):
    plan = plan_windows(n_samples, length)
    assert plan.count >= 1
    assert plan.count * length - plan.padded + plan.dropped == n_samples
    assert plan.padded == 0 or plan.dropped == 0
    assert 0 <= 2 * plan.dropped < length
    assert 0 <= plan.padded < length
    assert plan.count == 1 or 2 * plan.padded <= length


@given(n_samples=st.integers(1, 100_000), length=LENGTHS, more=st.integers(0, 5000))
def test_a_longer_signal_never_has_fewer_windows(n_samples, length, more):
    assert plan_windows(n_samples + more, length).count >= plan_windows(n_samples, length).count
    assert plan_windows(n_samples + length * 2, length).count >= 2


@given(size=st.integers(1, 40), start=st.integers(-60, 60), length=st.integers(1, 60))
def test_cut_is_a_slice_of_the_signal_between_zeros(size, start, length):
    signal = np.arange(1, size + 1, dtype=np.float32)
    expected = np.pad(signal, 200)[200 + start : 200 + start + length]
    piece = cut(signal, start, length)
    np.testing.assert_array_equal(piece, expected)
    assert piece.dtype == np.float32


@pytest.mark.parametrize(("n_samples", "length"), [(0, 10), (-1, 10)])
def test_a_signal_without_samples_has_no_plan(n_samples, length):
    with pytest.raises(ValueError, match=f"n_samples={n_samples} must be > 0"):
        plan_windows(n_samples, length)


@pytest.mark.parametrize("length", [0, -3])
def test_a_window_must_have_a_length(length):
    with pytest.raises(ValueError, match=f"length={length} must be > 0"):
        plan_windows(10, length)


@pytest.mark.parametrize(
    ("signal", "message"),
    [
        (np.zeros((2, 8), np.float32), "has 2 dimensions, must be 1"),
        (np.zeros(0, np.float32), "is empty"),
        (np.array([0, np.nan], np.float32), "holds NaN or infinite"),
        (np.array([0, -np.inf], np.float32), "holds NaN or infinite"),
    ],
)
def test_what_is_no_signal_is_refused(signal, message):
    with pytest.raises(ValueError, match=message):
        check_signal(signal)
