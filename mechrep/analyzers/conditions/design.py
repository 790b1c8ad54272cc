"""How conditions are compared: the prompt is the unit, whatever the conditions it takes part in.

Every number that is reported is a sum over texts, ``sum_i c_i v_i``: a mean has ``c_i = 1 / n`` in its condition, half
the difference of two means has ``+1 / 2n`` and ``-1 / 2n``.  An interval draws prompts anew, a test swaps the labels of
the conditions; both only change the coefficients, so thousands of draws for all heads at once are one product.

Prompts that take part in both conditions stay together when drawn, and their two labels are swapped; of those that take
part in one only, as many are drawn as there are, and their labels are shuffled among them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from mechrep.errors import InputError


class ConditionDesign:
    """Coefficients of means and contrasts over texts of two conditions.

    Args:
        conditions: condition of each text.
        prompts: prompt that each text is from; a prompt stands at most once in each condition.
        first: the condition that counts positive in a difference.
        second: the other.

    Raises:
        InputError: a condition without texts, one prompt twice in a condition, one condition twice.

    Example:
        >>> design = ConditionDesign(["a", "a", "b", "b"], ["p", "q", "p", "r"], "a", "b")
        >>> design.mean("a").tolist(), design.half_difference().tolist()
        ([0.5, 0.5, 0.0, 0.0], [0.25, 0.25, -0.25, -0.25])
    """

    def __init__(self, conditions: Sequence[str], prompts: Sequence[str], first: str, second: str) -> None:
        self.first, self.second = first, second
        self.labels = np.array(conditions, dtype=object)
        self.n = {name: int((self.labels == name).sum()) for name in (first, second)}
        if first == second or not all(self.n.values()):
            raise InputError(
                f"conditions {first!r} and {second!r} among {sorted(set(conditions))}",
                "two conditions, each with at least one text",
                "build both from the same list of prompts and join them with Corpus.concatenate",
            )
        places: dict[str, dict[str, int]] = {}
        for place, (condition, prompt) in enumerate(zip(conditions, prompts, strict=True)):
            if condition in self.n and places.setdefault(prompt, {}).setdefault(condition, place) != place:
                raise InputError(
                    f"prompt {prompt!r} twice in {condition!r}", "each prompt once", "compare one builder at a time"
                )
        pairs = [(found[first], found[second]) for found in places.values() if len(found) == 2]
        self.pairs = np.array(pairs, dtype=int).reshape(-1, 2)
        self.alone = {
            name: np.array([f[name] for f in places.values() if len(f) == 1 and name in f], dtype=int)
            for name in (first, second)
        }

    def mean(self, condition: str) -> Float[np.ndarray, " text"]:
        """Coefficients of the mean over a condition."""
        return (self.labels == condition) / self.n[condition]

    def half_sum(self) -> Float[np.ndarray, " text"]:
        """Coefficients of ``S``, half the sum of the two means: what the conditions share."""
        return (self.mean(self.first) + self.mean(self.second)) / 2

    def half_difference(self) -> Float[np.ndarray, " text"]:
        """Coefficients of ``D``, half the difference of the two means: what tells them apart."""
        return (self.mean(self.first) - self.mean(self.second)) / 2

    def draws(self, draws: int = 2000, seed: int = 0) -> Float[np.ndarray, "draw text"]:
        """How often each text is drawn, for a bootstrap over prompts: multiply with any coefficients."""
        generator = np.random.default_rng(seed)
        counts = np.zeros((draws, len(self.labels)))
        for group in (self.pairs, self.alone[self.first], self.alone[self.second]):
            if len(group):
                times = generator.multinomial(len(group), [1 / len(group)] * len(group), size=draws)
                for column in group.reshape(len(group), -1).T:
                    counts[:, column] = times
        return counts

    def swaps(self, draws: int = 2000, seed: int = 0) -> Float[np.ndarray, "draw text"]:
        """Coefficients of ``D`` after the labels were swapped: what it would be if they meant nothing."""
        generator = np.random.default_rng(seed)
        coefficients = np.tile(self.half_difference(), (draws, 1))
        if len(self.pairs):
            kept = generator.integers(0, 2, (draws, len(self.pairs))).astype(bool)
            one, other = self.half_difference()[self.pairs].T
            coefficients[:, self.pairs[:, 0]] = np.where(kept, one, other)
            coefficients[:, self.pairs[:, 1]] = np.where(kept, other, one)
        alone = np.concatenate([self.alone[self.first], self.alone[self.second]])
        if len(alone):
            labels = np.tile(self.half_difference()[alone], (draws, 1))
            coefficients[:, alone] = generator.permuted(labels, axis=1)
        return coefficients

    def swapped(self, seed: int = 0) -> list[str]:
        """The labels of all texts after one such swap; those of other conditions are kept."""
        (coefficients,) = self.swaps(1, seed)
        labels = self.labels.copy()
        labels[coefficients > 0], labels[coefficients < 0] = self.first, self.second
        return labels.tolist()
