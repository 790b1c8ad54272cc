"""Made-up studies in which it is known whether the set under test is special; many of them in one table."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import binomtest

from mechrep.ablation.effects import SUPPORTED, Condition, Effects, Measure
from mechrep.provenance import Provenance

PROVENANCE = Provenance({"name": "made up"}, {"texts": 0}, {})


@dataclass(frozen=True)
class World:
    """How effects come about, in nats.

    Attributes:
        level: mean effect of every set.
        between: spread of the sets' own effects.
        common: spread of what every set does to a text, in units of the noise.
        noise: spread over texts, of a set's effect.
        families: clusters of texts, each with ``size`` texts that share their noise.
        size: texts of a family; a list gives each family its own.
        quiet: factor on the noise of controls.
        lopsided: noise is exponential instead of normal.
        special: what the set under test does beyond that.
    """

    level: float = 0.0
    between: float = 0.0
    common: float = 0.5
    noise: float = 0.1
    families: int = 20
    size: int | tuple[int, ...] = 1
    quiet: float = 1.0
    lopsided: bool = False
    special: float = 0.0

    def studies(self, runs: int, m: int, seed: int = 0, direction: int = 0) -> Effects:
        """Studies with ``m`` draws of one kind of control; each is one name in the table, with effects of its own."""
        generator = np.random.default_rng(seed)
        family = np.repeat(np.arange(self.families), self.size)

        def noise(*shape: int) -> np.ndarray:
            return generator.exponential(size=shape) - 1 if self.lopsided else generator.normal(size=shape)

        sets = self.level + self.between * noise(runs, m + 1, 1)
        sets[:, 0] += self.special
        by_text = noise(runs, m + 1, self.families)[..., family] + 0.3 * noise(runs, m + 1, len(family))
        by_text[:, 1:] *= self.quiet
        common = self.common * self.quiet * noise(runs, 1, self.families)[..., family]
        effects = (sets + self.noise * (by_text + common)).reshape(runs * (m + 1), -1)
        baseline = 2 + generator.normal(size=(1, len(family)))
        conditions = [Condition()]
        for run in range(runs):
            conditions.append(Condition(f"study {run}", "ablation", 1, "zero"))
            conditions += [Condition(f"study {run}", "random", 1, "zero", seed=draw) for draw in range(m)]
        measure, values = Measure("loss", direction=direction), np.concatenate([baseline, baseline + effects])
        units, clusters = [str(text) for text in range(len(family))], [f"family {one}" for one in family]
        return Effects(PROVENANCE, conditions, [measure], [units], [clusters], torch.from_numpy(values)[None])


def verdicts(effects: Effects) -> np.ndarray:
    """Which studies find their set supported, each claim alone."""
    return (effects.summary(within=["name"])["verdict"] == SUPPORTED).to_numpy()


def told(found: np.ndarray) -> str:
    """Share of findings with its exact 95 % interval."""
    ends = binomtest(int(found.sum()), len(found)).proportion_ci()
    return f"{100 * found.mean():.1f} % [{100 * ends.low:.1f}, {100 * ends.high:.1f}] of {len(found)}"
