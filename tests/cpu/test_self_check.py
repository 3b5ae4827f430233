"""AMX against AVX-512 before its first use in a process: one wrong sum is an error."""

import pytest

from pearl_rt import _testing
from pearl_rt.errors import ResourceError


@pytest.mark.parametrize("nth", [1, 2, 25, 48])
def test_tiles_that_compute_a_wrong_sum_are_refused(nth: int) -> None:
    """Of the 48 matmuls of the self-check, of elements and of codes in three forms: some of each."""
    said = "'amx_emulated' computes wrong sums on this machine: .*pass isa='portable', or set PEARL_ISA=port"
    with pytest.raises(ResourceError, match=said):
        _testing.check_flawed_tiles(nth)


def test_tiles_without_a_wrong_sum_pass_the_self_check() -> None:
    _testing.check_flawed_tiles(49)
