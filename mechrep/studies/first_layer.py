"""Does the first layer tell the first token from others?  By which neurons and heads, and what do repeats make of it?

The measurements are those of :mod:`mechrep.measures.first_token`; the same on null models says what is found.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mechrep.ablation.effects import detection, judge, rank_p_value
from mechrep.ablation.texts import null_models
from mechrep.cache.corpus_cache import CorpusCache
from mechrep.measures.first_token_detectors import (
    ConvergenceResult,
    FirstDetectorResult,
    convergence_figure,
    detector_figure,
    first_layer_convergence,
    first_token_detectors,
)
from mechrep.measures.first_token_heads import HeadCutResult, first_layer_head_cuts, head_cuts_figure
from mechrep.measures.first_token_mass import (
    FirstTokenDetection,
    OtherTokenResult,
    corpus_of,
    other_token_mass_figure,
    windows,
)
from mechrep.models.model import Model
from mechrep.progress import progress_bar
from mechrep.provenance import Provenance, provenance_of
from mechrep.run import Run
from mechrep.sections import Section
from mechrep.store import Journal
from mechrep.text.corpus import Corpus

_KEPT = {
    "mass": OtherTokenResult,
    "detectors": FirstDetectorResult,
    "heads": HeadCutResult,
    "convergence": ConvergenceResult,
}
_DONE = 100_000  # the shard of the journal that is written when all of _KEPT are there; smaller ones are null models


@dataclass(frozen=True)
class FirstLayerStudy:
    """What was measured in the first layer.

    Attributes:
        model_name: how the model was named.
        mass: attention to other tokens, and the identity behind it.
        detectors: neurons that tell first tokens.
        heads: what the best neuron and the first position's norm lose without heads of layer 0.
        convergence: copies of a token, against that token alone.
        nulls: of every null model ``area`` of its best neuron, ``head`` and ``all``: what that loses without the head
            that costs it most, and without all heads.
        provenance: of the whole study.
    """

    model_name: str
    mass: OtherTokenResult
    detectors: FirstDetectorResult
    heads: HeadCutResult
    convergence: ConvergenceResult
    nulls: Sequence[Mapping[str, float]]
    provenance: Provenance

    @property
    def best_head(self) -> int:
        """Head of layer 0 without which the best neuron loses most."""
        return self.heads.ranking()[0]

    @property
    def first_distance(self) -> float:
        """Median relative distance of the first copy from the token alone, after layer 0."""
        return float(self.convergence.relative("layer")[:, 0].median())

    @property
    def last_distance(self) -> float:
        """The same of the last copy."""
        return float(self.convergence.relative("layer")[:, -1].median())

    @property
    def slope_interval(self) -> tuple[float, float]:
        """95 % of the median slope over heads and tokens, bootstrap over tokens."""
        return self.convergence.slope_interval

    def claims(self) -> pd.DataFrame:
        """A neuron tells first tokens; a head, and the attention of layer 0, carry that: one family."""
        seen, lost, ends = self.detectors, self.heads.detector_loss[0], self.heads.detector_interval[0]
        rows = []
        measured = {"area": (seen.best_auroc, seen.intervals[0]), "head": (lost[self.best_head], ends[self.best_head]),
                    "all": (lost[-1], ends[-1])}  # fmt: skip
        for name, (value, interval) in measured.items():
            draws = [null[name] for null in self.nulls]
            rows.append(
                detection("first token", name, float(value), draws, interval=tuple(interval.tolist()), n=seen.n_test)
            )
        shuffled = seen.shuffled_aurocs
        area = rows[0]
        area["p"] = max(area["p"], rank_p_value(seen.best_auroc, shuffled, 1))  # it must stand out from both
        area["controls"] += ", shuffled places"
        area["m"] = min(area["m"], len(shuffled))
        area["control_low"] = min(area["control_low"], min(shuffled) - area["baseline"])
        area["control_high"] = max(area["control_high"], max(shuffled) - area["baseline"])
        return judge(rows, family="all claims of this section").assign(claim=["detector", "head", "attention"])

    def section(self) -> Section:
        """Numbers, tables and figures of the report."""
        figures = {
            "mass": other_token_mass_figure(self.mass),
            "detector": detector_figure(self.detectors),
            "heads": head_cuts_figure(self.heads, "detector"),
            "copies": convergence_figure(self.convergence, "layer"),
        }
        if self.heads.sink_layer is not None:
            figures["norm"] = head_cuts_figure(self.heads, "norm")
        tables = {"heads": self._head_table(), "neurons": self._neuron_table(), "copies": self._copy_table()}
        return Section("first-layer", self.provenance, self._fields(), self.claims(), tables, figures)

    def _fields(self) -> dict[str, Any]:
        seen, copies, (low, high) = self.detectors, self.convergence, self.detectors.intervals[0].tolist()
        best, most = self.best_head, self.mass.ranking()[0]
        return {
            "model": self.model_name, "layer": seen.layer, "neuron": f"L{seen.layer}N{seen.neurons[0]}",
            "area": seen.best_auroc, "low": low, "high": high, "shuffled": max(seen.shuffled_aurocs),
            "null_area": max(null["area"] for null in self.nulls), "nulls": len(self.nulls), "words": seen.n_test,
            "chosen_with": seen.n_selection, "shuffles": len(seen.shuffled_aurocs), "state_area": seen.state_auroc,
            "head": f"L0H{best}", "lost": float(self.heads.detector_loss[0, best]),
            "lost_all": float(self.heads.detector_loss[0, -1]), "most": f"L0H{most}",
            "mass": float(self.mass.mass[most]), "uniform": self.mass.uniform_mass, "texts": self.mass.n_texts,
            "identity_error": float(self.mass.identity_error.max()),
            "same_value_error": float(self.mass.same_value_error.max()),
            "sink_layer": self.heads.sink_layer, "sink_reason": self.heads.sink_reason,
            "log_ratio": self.heads.log_ratio, "norm_lost": float(self.heads.norm_loss[0, -1]),
            "first_distance": self.first_distance, "last_distance": self.last_distance,
            "repeats": copies.repeats[-1], "tokens": len(copies.token_ids), "prefix": copies.prefix_length,
            "slope": copies.median_slope, "slope_low": self.slope_interval[0], "slope_high": self.slope_interval[1],
            "expected": copies.theory, "why": copies.theory_words, "agrees": copies.agrees,
            "found": copies.law if copies.theory == "none" else copies.mass_law,
            "pure_deviation": float(copies.pure_deviation.max()),
        }  # fmt: skip

    def _head_table(self) -> pd.DataFrame:
        """One row per head of layer 0, the largest attention to other tokens first; then all heads together."""
        order, heads = self.mass.ranking(), self.heads
        table = pd.DataFrame(
            {
                "head": [*(f"L0H{head}" for head in order), "all"],
                "on other tokens": [*self.mass.mass[order].tolist(), np.nan],
                "shift": [*self.mass.head_shift[order].tolist(), np.nan],
            }
        )
        rows = [*order, heads.n_heads]
        for number, op in enumerate(("zero", "mean")):
            table[f"lost, {op}"] = heads.detector_loss[number, rows].numpy()
            table[f"low, {op}"], table[f"high, {op}"] = heads.detector_interval[number, rows].numpy().T
        return table

    def _neuron_table(self) -> pd.DataFrame:
        table = self.detectors.to_frame().head(len(self.detectors.neurons))
        names = {"auroc": "area", "first_second": "first, second", "second_third": "second, third",
                 "score": "published score"}  # fmt: skip
        return table.rename(columns=names).drop(columns="selection_auroc")

    def _copy_table(self) -> pd.DataFrame:
        copies, last = self.convergence, f"copy {self.convergence.repeats[-1]}"
        table = pd.DataFrame({"token id": list(copies.token_ids)})
        for place, name in (("attention", "after attention"), ("layer", "after the layer")):
            distance = copies.relative(place)
            table[f"{name}, copy 1"], table[f"{name}, {last}"] = distance[:, 0].numpy(), distance[:, -1].numpy()
        return table.assign(
            slope=copies.head_slope.nanmedian(1).values.numpy(), pure=copies.pure_deviation.max(1).values.numpy()
        )


def run_first_layer_study(
    model: Model,
    *,
    texts: Corpus | Sequence[str] | None = None,
    token_ids: Sequence[int] | None = None,
    prefix: Sequence[int] | None = None,
    layer: int | None = None,
    triples: int = 1000,
    repeats: int | None = None,
    run: Run | None = None,
) -> FirstLayerStudy:
    """Ask whether layer 0 marks the first token, with which neurons and heads, and what copies of a token make of it.

    Args:
        model: the model, in float32.
        texts: a corpus, or texts; held-out English by default.
        token_ids: tokens that are repeated; the most frequent of held-out English by default.
        prefix: ids in front of the copies; ``"some prefix: "`` by default.
        layer: whose MLP reads the mark; the first that sees layer 0 by default.
        triples: at most so many triples of consecutive tokens.
        repeats: number of copies; by default 500, or what the model reads.
        run: options; with a store, the measurements and every null model are kept.

    Raises:
        InputError: see :func:`mechrep.measures.first_token.find_first_token`.
        StoreError: the store cannot be read or written.

    Source: that the first layer detects other tokens is Yona et al. 2025 (arXiv 2503.08908); the decision beside null
    models and shuffled places is mechrep's own.

    Limits: a model may mark BOS by its identity and not by its place, as small models do; then nothing is found here
    although there is a sink (:func:`mechrep.find_sink`).  One null model is held in memory beside the model.

    Example:
        >>> import mechrep
        >>> study = run_first_layer_study(mechrep.load_model("mechrep-tiny"))  # doctest: +SKIP
        >>> study.claims()[["claim", "verdict"]]  # doctest: +SKIP
               claim        verdict
        0   detector  not supported
        1       head  not supported
        2  attention  not supported
    """
    options, corpus = run or Run(), corpus_of(model, texts)
    config = {"study": "first-layer", "layer": layer, "triples": triples, "repeats": repeats, "seed": options.seed}
    given = {"token_ids": None if token_ids is None else list(token_ids), "prefix": prefix and list(prefix)}
    provenance = provenance_of(model, corpus, config | given)
    journal = None if options.store is None else Journal(Path(options.store), provenance)
    common: dict[str, Any] = {"layer": layer, "triples": triples, "seed": options.seed}
    makers, nulls = null_models(model, options), []
    with progress_bar(len(makers) + 1, "first layer", "model", options.progress) as bar:
        measured = None if journal is None or journal.find(_DONE) is None else _read(journal)
        if measured is None:
            text = Corpus.from_tokens(windows(model, corpus), model=model, bos_policy="absent")
            (mass,) = CorpusCache(model, text, progress=False).run(FirstTokenDetection.of(model))
            measured = {
                "mass": mass,
                "detectors": first_token_detectors(model, corpus, k=min(10, model.anatomy.d_mlp), **common),
                "heads": first_layer_head_cuts(model, corpus, **common),
                "convergence": first_layer_convergence(model, token_ids, prefix=prefix, repeats=repeats),
            }
            _keep(journal, measured)
        bar.update()
        for number, make in enumerate(makers):
            one = None if journal is None else journal.find(number)
            if one is None:
                one = [_null(make(), corpus, common)]
                if journal is not None:
                    journal.keep(number, one)
            nulls += one
            bar.update()
    return FirstLayerStudy(model.name, **measured, nulls=nulls, provenance=provenance)


def _null(model: Model, corpus: Corpus, common: Mapping[str, Any]) -> dict[str, float]:
    """The same search in a model that knows nothing."""
    heads = first_layer_head_cuts(model, corpus, **common)
    lost = heads.detector_loss[0]
    return {"area": heads.detector_auroc, "head": float(lost[:-1].max()), "all": float(lost[-1])}


def _read(journal: Journal) -> dict[str, Any]:
    return {name: kind.load(journal.folder / name) for name, kind in _KEPT.items()}


def _keep(journal: Journal | None, measured: Mapping[str, Any]) -> None:
    if journal is None:
        return
    for name, result in measured.items():
        result.save(journal.folder / name)
    journal.keep(_DONE, [{"kept": list(measured)}])
