"""Sizes of the arrays of training: rows of Gaussians and intersection buffers."""

import pytest

from bags_jax.errors import UserError
from bags_jax.growth import ACCELERATOR, CPU, growth_on
from bags_jax.ops.rasterize import buffer_size


@pytest.mark.parametrize("growth", [CPU, ACCELERATOR])
@pytest.mark.parametrize("size, needed", [(4, 0), (1024, 1025), (5120, 100_000), (1 << 20, 0)])
def test_next_buffer_is_larger(growth, size, needed):
    found = growth.next_buffer(size, needed)
    assert found > size and found >= needed and found == buffer_size(found)
    assert found == growth.next_buffer(size, found)  # a program prepared without knowing the number fits


@pytest.mark.parametrize("size, needed", [(9_000_000, 2**31 - 1), (7 * 2**28, 0)])
def test_buffer_for_more_than_can_be_counted_is_refused(size, needed):
    with pytest.raises(UserError, match="expected at most 1879048192"):
        CPU.next_buffer(size, needed)


def test_rows_grow_once_a_share_is_in_use():
    assert CPU.next_rows(1000, 800, 10_000, full=0.8) == 1000
    assert CPU.next_rows(1000, 801, 10_000, full=0.8) == 1500
    assert CPU.next_rows(1001, 1001, 10_000, full=0.8) == 1502
    assert CPU.next_rows(1000, 1000, 1200, full=0.8) == 1200
    assert ACCELERATOR.next_rows(1000, 501, 10_000, full=0.5) == 4000


@pytest.mark.parametrize("most, sizes", [(200_000, 2), (1_000_000, 3), (5_000_000, 5)])
def test_an_accelerator_compiles_for_few_sizes(most, sizes):
    """A scene that grows from 2000 Gaussians to `most` by a fifth at a time."""
    growth, num, rows = growth_on("gpu"), 2000, ACCELERATOR.first_rows
    found = {rows}
    while num < most:
        rows = growth.next_rows(rows, num, most, full=growth.grow_at)
        found.add(rows)
        num = min(int(1.2 * num), rows)
    assert len(found) == sizes and max(found) == most
    assert growth_on("cpu") == CPU
