"""Is a difference between right and wrong answers to the same questions more than chance?"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from mechrep.errors import InputError


def discordant(before: Float[np.ndarray, " question"], after: Float[np.ndarray, " question"]) -> tuple[int, int]:
    """How many questions are right only after, and how many only before.

    Raises:
        InputError: a value that is neither 0 nor 1.

    Example:
        >>> discordant(np.array([0.0, 0.0, 1.0]), np.array([1.0, 1.0, 0.0]))
        (2, 1)
    """
    if not np.isin([before, after], (0.0, 1.0)).all():
        raise InputError("answers that are neither right nor wrong", "0 or 1 for every question", "use the bootstrap")
    return int((after > before).sum()), int((after < before).sum())


def mcnemar(gained: int, lost: int) -> float:
    """Two-sided exact p-value of McNemar's test.

    If the intervention did nothing to the rate of right answers, a question whose answer changed would become right or
    wrong with equal chance: of ``n = gained + lost`` such questions, ``gained`` is Binomial(n, 1/2).  Questions whose
    answer stayed right or wrong say nothing.  With none that changed, p = 1.

    Args:
        gained: questions that are right only with the intervention.
        lost: questions that are right only without.

    Source: McNemar 1947 (Psychometrika 12, 153-157), in the exact form.

    Limits: a large p-value is no evidence of no effect; look at the interval of the difference.

    Example:
        >>> mcnemar(0, 5), mcnemar(4, 4), mcnemar(0, 0)
        (0.0625, 1.0, 1.0)
    """
    from scipy.stats import binomtest

    changed = gained + lost
    return float(binomtest(gained, changed, 0.5).pvalue) if changed else 1.0
