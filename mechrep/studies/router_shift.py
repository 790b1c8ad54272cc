"""Do experts take over when a loop begins?  One claim for each layer with a router, beside exchanged labels."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd
import torch

from mechrep.ablation.effects import detection, judge
from mechrep.ablation.texts import shared_loops
from mechrep.cache.corpus_cache import CorpusCache
from mechrep.errors import MissingPartError
from mechrep.guards import Count, guarded
from mechrep.measures.router_shift import Against, RouterShift, RouterShiftResult
from mechrep.models.anatomy import Site
from mechrep.models.model import Model
from mechrep.results import Shown
from mechrep.run import Run
from mechrep.stats import cluster_intervals
from mechrep.text.corpus import Corpus

_DRAWS = 999  # they cost nothing, and a model has many layers


@dataclass(frozen=True)
class RouterShiftStudy(Shown):
    """Which experts take over when a loop begins.

    Attributes:
        model_name: how the model was named.
        result: shares of tokens by expert and window.
        claims: for every layer with a router, and against the text before and the first copy: the expert that moves
            most, by how much, and the verdict of :func:`mechrep.ablation.effects.judge`; see :func:`router_claims`.
    """

    model_name: str
    result: RouterShiftResult
    claims: pd.DataFrame

    def to_frame(self) -> pd.DataFrame:
        """One row per expert; ``supported`` where it is the one of a supported claim."""
        found = self.claims[self.claims["verdict"] == "supported"]
        units = set(zip(found["layer"].tolist(), found["expert"].tolist(), strict=True))
        frame = self.result.to_frame()
        return frame.assign(
            supported=[unit in units for unit in zip(frame["layer"].tolist(), frame["expert"].tolist(), strict=True)]
        )


def router_claims(result: RouterShiftResult, *, draws: int = _DRAWS, seed: int = 0) -> pd.DataFrame:
    """In each layer the expert whose share moves most when loops begin, judged.

    The controls are exchanged pairs: of each draw the *largest* shift of the layer's experts, whichever it is of.

    Args:
        result: of :class:`~mechrep.measures.router_shift.RouterShift`.
        draws: exchanges.
        seed: of the exchanges and of the interval.

    Returns:
        Rows of :func:`~mechrep.ablation.effects.judge` with ``layer``, ``expert``, ``against`` and the signed
        ``shift``; both ways of looking at all layers are one family of tests.
    """
    rows, families = [], list(result.families)
    ways: tuple[Against, ...] = ("before", "first")
    for against in ways:
        shifts, drawn = result.shifts(against), result.exchanged(against, draws=draws, seed=seed)
        means = shifts.mean(0)
        for layer in range(means.shape[0]):
            if bool(means[layer].isnan().all()):
                continue
            sizes = means[layer].abs().nan_to_num(-1.0)
            expert = int(sizes.argmax())
            own = shifts[:, layer, expert] * torch.sign(means[layer, expert])
            ((low, high),) = cluster_intervals(own.double().numpy()[None], families, seed=seed).tolist()
            largest = drawn[:, layer].abs().nan_to_num(0.0).amax(-1).tolist()
            row = detection(
                f"L{layer} expert {expert}", f"share of tokens, against {against}", float(sizes[expert]), largest,
                unit="share", interval=(low, high), n=len(set(families)),
            )  # fmt: skip
            facts = {"layer": layer, "expert": expert, "against": against, "shift": float(means[layer, expert])}
            rows.append(row | {"controls": "exchanged pairs"} | facts)
    return judge(rows, family="routers of all layers")


@guarded
def run_router_shift_study(
    model: Model, *, corpus: Corpus | None = None, preset: str = "mechrep", r: Count = 30, run: Run | None = None
) -> RouterShiftStudy:
    """Measure which experts take over when a loop begins, beside loop-free texts at the same positions.

    Args:
        model: a mixture of experts.
        corpus: looping and loop-free texts; by default the model writes them (``run.sizes.others`` loop-free ones, and
            so many pairs).
        preset: whose detector decides what a loop is.
        r: width of the windows in tokens.
        run: options.

    Raises:
        MissingPartError: a model without routed experts.
        NothingFoundError: the model wrote no looping text, or no loop-free one.

    Example:
        >>> import mechrep
        >>> run_router_shift_study(mechrep.load_model("mechrep-tiny"))
        Traceback (most recent call last):
        mechrep.errors.MissingPartError: given: LlamaForCausalLM; expected: a mixture of experts; ...
    """
    options = run or Run()
    if not model.anatomy.has(Site.ROUTER):  # said before anything is written
        raise MissingPartError(model.anatomy.architecture, "a mixture of experts", "measure its neurons")
    texts = shared_loops(model, options, preset) if corpus is None else corpus
    result = CorpusCache(model, texts, run=options).run(RouterShift(r))
    return RouterShiftStudy(model.name, result, router_claims(result, seed=options.seed))
