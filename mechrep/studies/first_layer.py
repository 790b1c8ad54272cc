"""Does the first layer tell the first token from others?  By which neurons and heads, and what do repetitions give?

``find_first_token`` answers the first two questions beside null models; ``run_first_layer_study`` is the report's part.
The measurements are those of :mod:`mechrep.measures.first_token`, :mod:`~mechrep.measures.first_token_detectors` and
:mod:`~mechrep.measures.first_token_repeats`; heads are ablated by :mod:`mechrep.ablation.first_token_outcomes`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from mechrep.ablation.effects import SUPPORTED, Effects, detection, judge, rank_p_value
from mechrep.ablation.first_token_outcomes import ALL, OPS, FirstTokenMark, first_layer_heads, head_cells, window_count
from mechrep.ablation.texts import null_models
from mechrep.cache.corpus_cache import CorpusCache
from mechrep.guards import Count, check_count, guarded
from mechrep.journal import Journal
from mechrep.measures.first_token import (
    LAYER,
    FirstTokenDetection,
    OtherTokenResult,
    corpus_of,
    largest_mass,
    other_token_mass_figure,
    windows,
)
from mechrep.measures.first_token_detectors import FirstDetectorResult, detector_figure, first_token_detectors
from mechrep.measures.first_token_repeats import ConvergenceResult, convergence_figure, first_layer_convergence
from mechrep.models.model import Model
from mechrep.progress import progress_bar
from mechrep.provenance import Provenance, provenance_of
from mechrep.results import Result, Shown
from mechrep.run import Run
from mechrep.sections import Section
from mechrep.stats import range_of_draws
from mechrep.text.corpus import Corpus

MASS, DETECTOR, ATTENTION, HEAD = "mass", "detector", "attention", "head"  # the claims
_NEURONS = 5  # in the table


@dataclass(frozen=True, eq=False)
class FirstTokenResult(Result):
    """What :func:`find_first_token` found, beside the same search in null models.

    Attributes:
        rows: what the verdicts rest on, see :attr:`claims`.
        layer: whose MLP is read.
        neurons: ``[layer, neuron]``, those that tell first tokens best, found or not.
        auroc: area under the ROC curve of the first of them, on words that it was not chosen with.
        state_auroc: the same of one direction of the MLP's input.
        mass: attention of each head of layer 0 to other tokens than the query's own.
        lost: area that the first neuron loses with each head of layer 0 set to zero.
        lost_together: the same for all heads.
        nulls: of every null model what the four claims compare: ``mass``, ``detector``, ``attention``, ``head``.
    """

    rows: Sequence[Mapping[str, Any]]
    layer: int
    neurons: Sequence[Sequence[int]]
    auroc: float
    state_auroc: float
    mass: Float[Tensor, " head"]
    lost: Float[Tensor, " head"]
    lost_together: float
    nulls: Sequence[Mapping[str, float]]

    ranked_by: ClassVar[str] = "lost"

    @property
    def claims(self) -> pd.DataFrame:
        """One row per claim with its verdict; each is a family of its own, as another question is asked."""
        return judge(self.rows, within=["claim"], family="this claim alone")

    @property
    def found(self) -> bool:
        """Whether the claim that a neuron tells first tokens is supported."""
        return self.claims.set_index("claim").loc[DETECTOR, "verdict"] == SUPPORTED

    @property
    def heads(self) -> list[tuple[int, int]]:
        """``(layer, head)`` of layer 0, those without which the first neuron loses most first."""
        return [(LAYER, head) for head in self.ranking()]

    @guarded
    def top(self, k: int) -> list[tuple[int, int]]:
        """The first ``k`` neurons, as ``(layer, neuron)``: what :class:`mechrep.Neurons` takes.

        Raises:
            InputError: ``k`` larger than the number of neurons that were kept.
        """
        check_count(k, len(self.neurons), "neurons")
        return [(layer, neuron) for layer, neuron in self.neurons[:k]]


@guarded
def find_first_token(
    model: Model,
    *,
    texts: Corpus | Sequence[str] | None = None,
    layer: int | None = None,
    triples: Count = 1000,
    run: Run | None = None,
) -> FirstTokenResult:
    """Looks for a mark of the first token in the first layer: who tells, and which heads that needs.

    Four claims, each beside ``run.sizes.nulls`` null models in which the whole search is done anew.  *mass*: a head of
    layer 0 attends more to other tokens.  *detector*: a neuron tells first tokens from second and third ones, on words
    that it was not chosen with; it must also stand out from searches with shuffled places.  *attention*: that neuron
    tells less without the heads of layer 0.  *head*: it tells less without the head that costs it most.

    Args:
        model: the model.
        texts: a corpus, or texts; held-out English by default.  BOS takes no part: it is told by its identity.
        layer: whose MLP reads the mark; by default the first that sees the attention of layer 0, as published.  A model
            may read it later: name the layer of its sink.
        triples: at most so many triples of consecutive tokens.
        run: options; with a store, every null model is kept.

    Returns:
        A result whose ``found`` is False where no neuron stands out.

    Raises:
        InputError: see :func:`~mechrep.measures.first_token_detectors.first_token_detectors`.
        StoreError: the store cannot be read or written.

    Source: the first layer's "detect other tokens" is Yona et al. 2025 (arXiv 2503.08908); held-out words, null models
    and ablations are mechrep's own.

    Limits: a model may mark BOS by its identity and not by its place, as small models do; then nothing is found here
    although there is a sink (:func:`mechrep.find_sink`).  One null model at a time is held in memory beside the model.

    Example:
        >>> import mechrep
        >>> result = find_first_token(mechrep.load_model("mechrep-tiny"), triples=300)  # doctest: +SKIP
        >>> result.found, result.claims["claim"].tolist()  # doctest: +SKIP
        (False, ['mass', 'detector', 'attention', 'head'])
    """
    options, corpus = run or Run(), corpus_of(model, texts)
    return _parts(model, corpus, layer, triples, options).answer


class _Parts(NamedTuple):
    """The answer, and the measurements behind it."""

    answer: FirstTokenResult
    mass: OtherTokenResult
    detectors: FirstDetectorResult
    heads: Effects


def _parts(model: Model, corpus: Corpus, layer: int | None, triples: int, run: Run) -> _Parts:
    key = ("first token", model.fingerprint(), corpus.fingerprint(), layer, triples, run.seed, run.effort)
    return run.once(key, lambda: _measure(model, corpus, layer, triples, run))


def _measure(model: Model, corpus: Corpus, layer: int | None, triples: int, run: Run) -> _Parts:
    tokens = windows(model, corpus, limit=window_count(model, run))
    text = Corpus.from_tokens(tokens, model=model, attention_mask=True, bos_policy="absent")
    mass = CorpusCache(model, text, run=run, progress=False).run(FirstTokenDetection.of(model))
    detectors = first_token_detectors(
        model, corpus, layer=layer, triples=triples, k=min(10, model.anatomy.d_mlp), seed=run.seed
    )
    heads = first_layer_heads(model, corpus, layer=layer, triples=triples, run=run)
    config = {
        "study": "first token",
        "layer": layer,
        "triples": triples,
        "seed": run.seed,
        "nulls": run.sizes_on(model).nulls,
    }
    provenance = provenance_of(model, corpus, config)
    nulls = _nulls(model, corpus, text, layer, triples, provenance, run)
    table = losses(heads)
    alone = table[(table["measure"] == DETECTOR) & (table["op"] == "zero")].set_index("name")
    answer = FirstTokenResult(
        provenance,
        rows=_rows(mass, detectors, alone, len(set(heads.clusters[0])), nulls),
        layer=detectors.layer,
        neurons=[[detectors.layer, neuron] for neuron in detectors.neurons],
        auroc=detectors.best_auroc,
        state_auroc=detectors.state_auroc,
        mass=mass.mass,
        lost=torch.tensor(alone["lost"].drop(ALL).to_numpy()).float(),
        lost_together=float(alone.loc[ALL, "lost"]),
        nulls=nulls,
    )
    return _Parts(answer, mass, detectors, heads)


def losses(heads: Effects) -> pd.DataFrame:
    """One row per measure and ablation of :func:`first_layer_heads`: what is ``lost``, with its interval and verdict.

    The verdict is that beside the other heads of layer 0, under one operation in one measure; all heads have none.
    """
    table = heads.summary(within=["measure", "op"], family="heads of layer 0")
    table["verdict"] = table["verdict"].mask(table["name"] == ALL)
    return pd.DataFrame(
        {name: table[name] for name in ("measure", "op", "name", "baseline")}
        | {"lost": -table["effect"], "low": -table["high"], "high": -table["low"], "verdict": table["verdict"]}
    )


def _rows(
    mass: OtherTokenResult,
    detectors: FirstDetectorResult,
    alone: pd.DataFrame,
    words: int,
    nulls: Sequence[Mapping[str, float]],
) -> list[dict[str, Any]]:
    """What the verdicts rest on; ``alone``: losses of the best neuron by head, ``words``: independent units."""
    singles = alone.drop(ALL)
    best = singles.loc[singles["lost"].idxmax()]

    def row(claim: str, value: float, ends: Sequence[float] = (), **options: Any) -> dict[str, Any]:
        options |= {"interval": tuple(map(float, ends)), "n": words} if len(ends) else {}
        return detection("first token", claim, value, [null[claim] for null in nulls], **options) | {"claim": claim}

    area = row(DETECTOR, detectors.best_auroc, detectors.intervals[0].tolist())
    shuffled = detectors.shuffled_aurocs
    area["p"] = max(area["p"], rank_p_value(detectors.best_auroc, shuffled, 1))  # it must stand out from both
    area["controls"] += ", shuffled places"
    area["m"] = min(area["m"], len(shuffled))
    least, most = range_of_draws(shuffled)
    area["control_low"] = min(area["control_low"], least - area["baseline"])
    area["control_high"] = max(area["control_high"], most - area["baseline"])
    return [
        row(MASS, float(mass.mass.max()), unit="share"),
        area,
        row(ATTENTION, float(alone.loc[ALL, "lost"]), alone.loc[ALL, ["low", "high"]].tolist()),
        row(HEAD, float(best["lost"]), best[["low", "high"]].tolist()),
    ]


def _nulls(
    model: Model,
    corpus: Corpus,
    text: Corpus,
    layer: int | None,
    triples: int,
    provenance: Provenance,
    run: Run,
) -> list[dict[str, float]]:
    """What the claims compare, in models that know nothing; with a store each is kept as soon as it is there."""
    journal = None if run.store is None else Journal(Path(run.store), provenance)
    kept, makers = [], null_models(model, run)
    with progress_bar(len(makers), "null models", "model", run.progress) as bar:
        for number, make in enumerate(makers):
            one = None if journal is None else journal.find(number)
            if one is None:
                with make() as null:
                    mark = FirstTokenMark(null, corpus, layer=layer, triples=triples, seed=run.seed)
                    one = [{MASS: largest_mass(null, text.tokens)} | _marked(mark)]
                if journal is not None:
                    journal.keep(number, one)
            kept += one
            bar.update()
    return kept


def _marked(mark: FirstTokenMark) -> dict[str, float]:
    """Area of the best neuron, and what it loses without all heads, and without the head that costs it most."""
    cells = head_cells(mark.model, ["zero"], mark.stimulus.tokens)
    left = mark.areas_under([intervention for _, intervention in cells if intervention is not None])
    return {DETECTOR: mark.area, ATTENTION: mark.area - left[-1], HEAD: mark.area - min(left[:-1])}


@dataclass(frozen=True, eq=False)
class FirstLayerStudy(Shown):
    """What was measured in the first layer.

    Attributes:
        model_name: how the model was named.
        answer: whether a first token is told from others, beside null models.
        mass: attention to other tokens, and the identity behind it.
        detectors: neurons that tell first tokens.
        heads: what the best neuron and the first position's norm lose without heads of layer 0.
        repeats: repetitions of a token, against that token alone.
        provenance: of the whole study.
    """

    model_name: str
    answer: FirstTokenResult
    mass: OtherTokenResult
    detectors: FirstDetectorResult
    heads: Effects
    repeats: ConvergenceResult
    provenance: Provenance

    @property
    def claims(self) -> pd.DataFrame:
        """Those of the answer."""
        return self.answer.claims

    def section(self) -> Section:
        """Numbers, tables and figures of the report; what heads do to a neuron only where one tells first tokens."""
        found, claims = self.answer.found, self.claims
        ablated = {"heads": DETECTOR} if found else {}
        ablated |= {} if self.heads.notes["sink_layer"] is None else {"norm": "norm"}
        figures = {
            "mass": other_token_mass_figure(self.mass),
            "detector": detector_figure(self.detectors),
            **{key: self.heads.plot([measure]) for key, measure in ablated.items()},
            f"repeats, {self.repeats.theory}": convergence_figure(self.repeats, "layer"),
        }
        tables = {"heads": self._head_table(), "neurons": self._neuron_table()} if found else {}
        claims = claims if found else claims[claims["claim"].isin([MASS, DETECTOR])]
        return Section(
            "first-layer", self.provenance, self._fields(), claims, tables, figures, "" if found else "not_found"
        )

    def _fields(self) -> dict[str, Any]:
        answer, seen, mass, repeats, notes = self.answer, self.detectors, self.mass, self.repeats, self.heads.notes
        (low, high), (slope_low, slope_high) = seen.intervals[0].tolist(), repeats.slope_interval
        most, (_, best), distance = mass.ranking()[0], answer.heads[0], repeats.relative("layer")
        table = losses(self.heads)
        norm = table[(table["measure"] == "norm") & (table["op"] == "zero") & (table["name"] == ALL)]
        return {
            "model": self.model_name, "layer": seen.layer, "neuron": f"L{seen.layer}N{seen.neurons[0]}",
            "area": answer.auroc, "low": low, "high": high, "shuffled": max(seen.shuffled_aurocs),
            "null_area": max(null[DETECTOR] for null in answer.nulls), "nulls": len(answer.nulls),
            "blind": float(np.median(seen.random_aurocs)), "chosen_with": seen.n_selection,
            "tested": seen.n_test, "words": len(set(self.heads.clusters[0])), "shuffles": len(seen.shuffled_aurocs),
            "head": f"L{LAYER}H{best}", "without_head": answer.auroc - float(answer.lost[best]),
            "without_heads": answer.auroc - answer.lost_together, "most": f"L{LAYER}H{most}",
            "null_mass": max(null[MASS] for null in answer.nulls), "uniform": mass.uniform_mass, "texts": mass.n_texts,
            "sink_layer": notes["sink_layer"], "ratio": notes["ratio"],
            "norm_change": None if norm.empty else -float(norm["lost"].iloc[0]),
            "first_distance": float(distance[:, 0].median()), "last_distance": float(distance[:, -1].median()),
            "repeats": repeats.repeats[-1], "tokens": len(repeats.token_ids), "prefix": repeats.prefix_length,
            "slope": repeats.median_slope, "slope_low": slope_low, "slope_high": slope_high,
            "positions": repeats.positions, "window": repeats.window,
        }  # fmt: skip

    def _head_table(self) -> pd.DataFrame:
        """One row per head of layer 0, the largest attention to other tokens first; then all heads together."""
        order, table = self.mass.ranking(), losses(self.heads)
        names = [*(f"L{LAYER}H{head}" for head in order), ALL]
        shares = [*self.mass.mass[order].tolist(), np.nan]
        rows = pd.DataFrame({"head": names, "attention to other tokens": shares})
        for op in OPS:
            mine = table[(table["measure"] == DETECTOR) & (table["op"] == op)].set_index("name").loc[names]
            for name, column in (("lost", "area lost"), ("low", "low"), ("high", "high")):
                rows[f"{column}, {op}"] = mine[name].to_numpy()
            if op == "zero":
                rows["verdict"] = mine["verdict"].to_numpy()
        return rows

    def _neuron_table(self) -> pd.DataFrame:
        table = self.detectors.to_frame().head(min(_NEURONS, len(self.detectors.neurons)))
        names = {"auroc": "area", "first_second": "area, first and second", "second_third": "area, second and third",
                 "score": "score of Yona et al."}  # fmt: skip
        return table.rename(columns=names).drop(columns="selection_auroc")


@guarded
def run_first_layer_study(
    model: Model,
    *,
    texts: Corpus | Sequence[str] | None = None,
    token_ids: Sequence[int] | None = None,
    prefix: Sequence[int] | None = None,
    layer: int | None = None,
    triples: Count = 1000,
    repeats: Count | None = None,
    run: Run | None = None,
) -> FirstLayerStudy:
    """Ask whether layer 0 marks the first token, with which neurons and heads, and what repetitions make of it.

    Args:
        model: the model, in float32.
        texts: a corpus, or texts; held-out English by default.
        token_ids: tokens that are repeated; the most frequent of held-out English by default.
        prefix: ids in front of the repetitions; ``"some prefix: "`` by default.
        layer: whose MLP reads the mark; the first that sees layer 0 by default.
        triples: at most so many triples of consecutive tokens.
        repeats: how often a token is repeated; by default 500 times, or what the model reads.
        run: options; with a store, the ablations and every null model are kept.

    Raises:
        InputError: see :func:`find_first_token` and
            :func:`~mechrep.measures.first_token_repeats.first_layer_convergence`.
        StoreError: the store cannot be read or written.

    Source: that the first layer detects other tokens is Yona et al. 2025 (arXiv 2503.08908); the decision beside null
    models and shuffled places is mechrep's own.

    Limits: those of :func:`find_first_token`.

    Example:
        >>> import mechrep
        >>> study = run_first_layer_study(mechrep.load_model("mechrep-tiny"))  # doctest: +SKIP
        >>> study.claims[["claim", "verdict"]]  # doctest: +SKIP
    """
    if layer is not None:
        model.anatomy.check_layer(layer)
    options, corpus = run or Run(), corpus_of(model, texts)
    # First what is quick and refuses most.
    followed = first_layer_convergence(model, token_ids, prefix=prefix, repeats=repeats)
    answer, mass, detectors, heads = _parts(model, corpus, layer, triples, options)
    config = {"study": "first-layer", "layer": layer, "triples": triples, "seed": options.seed}
    config |= {"tokens": list(followed.token_ids), "repeats": followed.repeats[-1]}
    return FirstLayerStudy(model.name, answer, mass, detectors, heads, followed, provenance_of(model, corpus, config))
