"""Chi-square: the p-value of counts against expected counts. Shared by the tests of distributions."""

import numpy as np
import numpy.typing as npt
import torch

FALSE_ALARM = 1e-4  # of each test, had its seeds not been fixed


def p_value(counts: npt.ArrayLike, expected: npt.ArrayLike) -> float:
    """counts, expected: [cells], of one total. Cells expecting less than 5 are pooled into one."""
    counts, expected = np.asarray(counts, dtype=float), np.asarray(expected, dtype=float)
    assert abs(counts.sum() - expected.sum()) < 1e-3 * expected.sum()
    rare = expected < 5
    if rare.any():
        counts = np.append(counts[~rare], counts[rare].sum())
        expected = np.append(expected[~rare], expected[rare].sum())
        if expected[-1] == 0:
            assert counts[-1] == 0, "something impossible happened"
            counts, expected = counts[:-1], expected[:-1]
    assert len(counts) > 1, "one cell says nothing"
    statistic = float(np.sum((counts - expected) ** 2 / expected))
    half = torch.tensor([(len(counts) - 1) / 2, statistic / 2], dtype=torch.float64)
    return float(torch.special.gammaincc(half[0], half[1]))
