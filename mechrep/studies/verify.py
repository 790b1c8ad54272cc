"""``verify_model``: what is published about a model, or stands on mechrep's own pages, against what is measured.

The values stand in ``verified.json`` with their sources, and published sinks in
:func:`~mechrep.studies.known_sinks.known_sinks`.  A model is recognised by its name, if its sizes are those of that
model; or, whatever it is called, by its sizes and by how its tokenizer writes "Hello world".  A fine-tuned copy has
both, so a match of sizes says which models it may be.

Only what is cheap is measured: norms and attention on a few windows, heads on a few random repeats, one pass for
neurons.  No value decides about another; a mismatch is a finding.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import torch

from mechrep.cache.corpus_cache import CorpusCache
from mechrep.errors import MissingPartError, ModelError
from mechrep.guards import guarded
from mechrep.measures.attention_sinks import AttentionSinkResult, AttentionSinks
from mechrep.measures.head_scores import HeadScoreResult, score_heads
from mechrep.measures.head_targets import PROTOCOLS
from mechrep.measures.sink_neurons import sink_neurons, spike_weights
from mechrep.measures.sink_norms import SinkNormResult, SinkNorms
from mechrep.models import tiny
from mechrep.models.anatomy import Site
from mechrep.models.model import Model
from mechrep.models.reading import read_activations
from mechrep.provenance import provenance_of
from mechrep.results import Result
from mechrep.run import Run
from mechrep.sections import Section
from mechrep.studies.known_sinks import known_sinks
from mechrep.text.corpus import Corpus

MATCH, MISMATCH, NOT_MEASURED = "match", "mismatch", "not measured"
_VALUES = Path(__file__).parent / "verified.json"
_PROBE = "Hello world"
_LENGTH, _WINDOWS, _SEQUENCES = 64, 16, 12
_NEURONS_BY = {"Yona": "contribution", "Oh": "bos_only"}  # how each source ranks neurons; Yu names weights
_SHARE = 0.8  # of a list of neurons: sources rank with other numbers, and the last of a list are close


@dataclass(frozen=True, eq=False)
class Verification(Result):
    """Published values beside measured ones.

    Attributes:
        recognised: the models that this one may be; empty where no published model has its name or sizes.
        how: ``"name"``, ``"sizes and tokenizer"``, or empty.
        rows: one per value, see :meth:`to_frame`.
    """

    recognised: Sequence[str]
    how: str
    rows: Sequence[Mapping[str, Any]]

    ranked_by: ClassVar[str] = ""

    @guarded
    def count(self, verdict: str) -> int:
        """Rows with this verdict."""
        return sum(row["verdict"] == verdict for row in self.rows)

    def to_frame(self) -> pd.DataFrame:
        """One row per value: model, what, published, measured, verdict, why a value was not measured, source."""
        columns = ["model", "what", "published", "measured", "verdict", "reason", "source"]
        return pd.DataFrame(list(self.rows), columns=columns)

    def section(self) -> Section:
        """What the terminal says."""
        fields = {
            "model": self.provenance.model["name"],
            "recognised": " or ".join(self.recognised),
            "how": self.how,
            "matches": self.count(MATCH),
            "mismatches": self.count(MISMATCH),
            "missing": self.count(NOT_MEASURED),
            "n": len(self.rows),
        }
        return Section(
            "verify",
            self.provenance,
            fields,
            tables={"values": self.to_frame()} if self.rows else {},
            variant="" if self.rows else "unknown",
        )


@guarded
def verify_model(model: Model, *, run: Run | None = None) -> Verification:
    """Compares published values of this model with what is measured on it.

    Args:
        model: the model, unprocessed.
        run: options; the seed is that of the random repeats.

    Returns:
        A row per published value, with one of three verdicts: match, mismatch, not measured.

    Source: each row names its own; see ``verified.json`` and :func:`~mechrep.studies.known_sinks.known_sinks`.

    Limits: texts are other ones than the sources', so shares and norms are compared with a tolerance, which the row
    states.  By sizes a fine-tuned copy is taken for its base model.

    Example:
        >>> import mechrep
        >>> result = verify_model(mechrep.load_model("mechrep-tiny"))
        >>> result.recognised, len(result.to_frame())
        ([], 0)
    """
    options = run or Run()
    names, how = recognise(model)
    measured = _Measured(model, options.seed)
    rows = [_row(value, measured) for name in names for value in published(name)]
    return Verification(
        provenance_of(model, None, {"study": "verify", "seed": options.seed}), recognised=names, how=how, rows=rows
    )


# --- which model ----------------------------------------------------------------------------------------------------


@functools.cache
def _reference() -> Mapping[str, Any]:
    return json.loads(_VALUES.read_text(encoding="utf-8"))


def recognise(model: Model) -> tuple[list[str], str]:
    """The published models that this one may be, and how that was seen.

    Args:
        model: the model.

    Example:
        >>> import mechrep
        >>> recognise(mechrep.load_model("mechrep-tiny"))
        ([], '')
    """
    known = _reference()["models"]
    fitting = [name for name, facts in known.items() if _has_sizes(model, facts["sizes"])]
    own = _plain_name(model.name)
    named = [name for name in fitting if own in known[name]["names"]]
    if named:
        return named, "name"
    alike = [name for name in fitting if _writes(model, known[name]["hello_world"])]
    return alike, "sizes and tokenizer" if alike else ""


def _has_sizes(model: Model, sizes: Mapping[str, int]) -> bool:
    return all(getattr(model.anatomy, name) == size for name, size in sizes.items())


def _writes(model: Model, ids: Sequence[int] | None) -> bool:
    return ids is not None and model.tokenizer is not None and model.encode(_PROBE, prepend_bos=False) == list(ids)


def _plain_name(name: str) -> str:
    """A hub name or a folder without what differs between copies of the same weights.

    Example:
        >>> _plain_name("meta-llama/Meta-Llama-3-8B"), _plain_name("./models/Llama-2-7b-hf/")
        ('llama-3-8b', 'llama-2-7b')
    """
    return re.sub(r"^meta-|-hf$", "", name.rstrip("/").split("/")[-1].lower())


def published(name: str) -> list[dict[str, Any]]:
    """All published values of a model: ``measure``, where (``at``), ``expected``, ``within``, ``source``.

    Args:
        name: a name of ``verified.json``.

    Example:
        >>> [value["expected"] for value in published("Llama-2-7b") if value["measure"] == "massive_dimensions"]
        [[1415, 2533]]
    """
    values = [dict(value) for value in _reference()["values"] if value["model"] == name]
    table = known_sinks()
    layers: set[tuple[int, str]] = set()
    for sink in table[table["model"] == name].to_dict("records"):
        score = _NEURONS_BY.get(sink["source"].split()[0])
        if score is None:  # super weights: with their dimension in verified.json where it is published
            continue
        neurons = {"layer": sink["layer"], "score": score}
        if (sink["layer"], score) not in layers:
            values.append(_value(name, "sink_layer", {}, sink["layer"], sink["source"]))
            layers.add((sink["layer"], score))
        values.append(_value(name, "sink_neurons", neurons, list(sink["neurons"]), sink["source"]))
    return values


def _value(model: str, measure: str, at: Mapping[str, Any], expected: Any, source: str) -> dict[str, Any]:
    return {"model": model, "measure": measure, "at": dict(at), "expected": expected, "source": source}


# --- what is measured -----------------------------------------------------------------------------------------------


class _Measured:
    """Everything that rows ask of a model, each made when it is first asked for."""

    def __init__(self, model: Model, seed: int) -> None:
        self.model, self.seed = model, seed

    def windows(self, bos: bool) -> Corpus:
        """Held-out text in windows of 64 tokens, with BOS or without."""
        if self.model.tokenizer is None or (bos and self.model.bos_id is None):
            raise MissingPartError(f"{self.model.name!r}", "a tokenizer, and BOS where it is asked for", "add them")
        own = _LENGTH - bos
        ids = self.model.encode(tiny.held_out_text()[: 12 * _LENGTH * _WINDOWS], prepend_bos=False)
        rows = [ids[place : place + own] for place in range(0, len(ids) - own + 1, own)][:_WINDOWS]
        start = [self.model.bos_id] if bos and self.model.bos_id is not None else []
        policy = "prepended" if bos else "absent"
        return Corpus.from_tokens(
            [[*start, *row] for row in rows], model=self.model, attention_mask=True, bos_policy=policy
        )

    @functools.cached_property
    def with_bos(self) -> tuple[SinkNormResult, AttentionSinkResult]:
        """Norms and attention of windows that begin with BOS."""
        return self._read(True)

    @functools.cached_property
    def without_bos(self) -> tuple[SinkNormResult, AttentionSinkResult]:
        """The same without BOS."""
        return self._read(False)

    def _read(self, bos: bool) -> Any:
        return CorpusCache(self.model, self.windows(bos), progress=False).run(SinkNorms(), AttentionSinks())

    def sinks(self, at: Mapping[str, Any]) -> tuple[SinkNormResult, AttentionSinkResult]:
        """With BOS unless a row, or a model without one, says otherwise."""
        return self.with_bos if at.get("bos", self.model.bos_id is not None) else self.without_bos

    @functools.cached_property
    def heads(self) -> HeadScoreResult:
        """Scores on random repeats."""
        return score_heads(self.model, sequences=_SEQUENCES, seed=self.seed)

    @functools.cached_property
    def heads_song2025(self) -> HeadScoreResult:
        """Scores on the stimulus of Song et al. 2025."""
        return score_heads(self.model, **{**PROTOCOLS["song2025"], "sequences": _SEQUENCES, "seed": self.seed})

    @functools.cached_property
    def first(self) -> torch.Tensor:
        """The residual stream at the first position after every layer, ``[layer d_model]``."""
        rows: dict[int, torch.Tensor] = {}

        def keep(stream: torch.Tensor, _site: Site, layer: int) -> None:
            rows[layer] = stream[0, 0].detach().float().cpu()

        text = self.windows(self.model.default_prepend_bos and self.model.bos_id is not None).row(0)
        layers = range(self.model.anatomy.n_layers)
        tokens = torch.tensor([text], device=self.model.device)
        read_activations(self.model, tokens, {Site.RESID_POST: layers}, keep)
        return torch.stack([rows[layer] for layer in layers])


At = Mapping[str, Any]


def _massive_dimensions(measured: _Measured, at: At, expected: Any) -> Any:
    """As many dimensions of the first position as are expected, the largest ones where the largest of all is."""
    sizes = measured.first.abs()
    layer = int(at.get("layer", sizes.amax(1).argmax()))
    return sorted(sizes[layer].topk(len(expected)).indices.tolist())


def _massive_value(measured: _Measured, at: At, expected: Any) -> Any:  # noqa: ARG001 - one signature for all
    return float(measured.first[at["layer"], at["dimension"]].abs())


def _sink_layer(measured: _Measured, at: At, expected: Any) -> Any:  # noqa: ARG001
    return measured.sinks(at)[0].ranking()[0]


def _largest_ratio(measured: _Measured, at: At, expected: Any) -> Any:  # noqa: ARG001
    return measured.sinks(at)[0].largest_ratio


def _sink_rate(measured: _Measured, at: At, expected: Any) -> Any:  # noqa: ARG001
    return measured.sinks(at)[1].sink_share


def _resting_heads(measured: _Measured, at: At, expected: Any) -> Any:  # noqa: ARG001
    """Share of all heads that give more than 0.3 of their attention to the first position, on the mean over texts."""
    alpha = measured.sinks(at)[1].alpha
    return float((alpha[~alpha.isnan()] > 0.3).double().mean())


def _sink_neurons(measured: _Measured, at: At, expected: Any) -> Any:
    result = sink_neurons(measured.model, measured.windows(measured.model.bos_id is not None), at["layer"])
    return [neuron for _, neuron in result.top(len(expected), at["score"])]


def _super_weights(measured: _Measured, at: At, expected: Any) -> Any:  # noqa: ARG001
    return [list(one) for one in spike_weights(measured.model)]


def _heads(measured: _Measured, at: At, expected: Any) -> Any:
    """Those of the expected heads whose score is clearly above chance."""
    clear = set(measured.heads.clear(at["score"]))
    return [head for head in expected if tuple(head) in clear]


def _clear_heads(measured: _Measured, at: At, expected: Any) -> Any:  # noqa: ARG001
    return sorted(list(head) for head in measured.heads.clear(at["score"]))


def _head_score(measured: _Measured, at: At, expected: Any) -> Any:  # noqa: ARG001
    scores = measured.heads_song2025 if at["score"] == "song2025" else measured.heads
    return float(scores.of(at["score"])[at["layer"], at["head"]])


def _bos_id(measured: _Measured, at: At, expected: Any) -> Any:  # noqa: ARG001
    return measured.model.bos_id


# Measure: what it is called, how it is measured, how it is compared.
_MEASURES: Mapping[str, tuple[str, Callable[[_Measured, At, Any], Any], str]] = {
    "bos_id": ("id of BOS", _bos_id, "equal"),
    "clear_heads": ("all clear heads", _clear_heads, "equal"),
    "head_score": ("head score", _head_score, "absolute"),
    "heads": ("clear heads among these", _heads, "equal"),
    "largest_ratio": ("largest norm ratio", _largest_ratio, "relative"),
    "massive_dimensions": ("largest dimensions", _massive_dimensions, "equal"),
    "massive_value": ("size of a dimension", _massive_value, "relative"),
    "resting_heads": ("heads resting on the first position", _resting_heads, "absolute"),
    "sink_layer": ("sink layer", _sink_layer, "equal"),
    "sink_neurons": ("sink neurons", _sink_neurons, "share"),
    "sink_rate": ("Sink_1^0.3, per cent", _sink_rate, "absolute"),
    "super_weights": ("super weights", _super_weights, "holds"),
}


def _row(value: Mapping[str, Any], measured: _Measured) -> dict[str, Any]:
    """One value, measured if this model can be asked for it."""
    what, measure, compare = _MEASURES[value["measure"]]
    expected, at, within = value["expected"], value["at"], value.get("within")
    where = ", ".join(_where(name, place) for name, place in at.items())
    tolerance = "" if within is None else f" ± {within:.0%}" if compare == "relative" else f" ± {within:g}"
    row = {
        "model": value["model"],
        "what": f"{what} ({where})" if where else what,
        "published": f"{_text(expected)}{tolerance}",
        "measured": "",
        "verdict": NOT_MEASURED,
        "reason": "",
        "source": value["source"],
    }
    try:
        found = measure(measured, at, expected)
    except ModelError as error:  # this model lacks what the value is about; others can still be compared
        return row | {"reason": " ".join(str(error).split())}
    right = _agrees(compare, found, expected, within)
    return row | {"measured": _text(found), "verdict": MATCH if right else MISMATCH}


def _where(name: str, place: Any) -> str:
    if name == "bos":
        return "with BOS" if place else "without BOS"
    return str(place) if name == "score" else f"{name} {place}"


def _agrees(compare: str, found: Any, expected: Any, within: float | None) -> bool:
    if compare == "absolute":
        return abs(found - expected) <= (within or 0.0)
    if compare == "relative":
        return abs(found - expected) <= (within or 0.0) * abs(expected)
    if compare == "share":
        return len(set(found) & set(expected)) >= _SHARE * len(expected)
    if compare == "holds":
        return all(one in found for one in expected)
    return found == expected


def _text(value: Any) -> str:
    """Numbers and lists as a table shows them; pairs are heads."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        if value and all(isinstance(one, list) and len(one) == 2 for one in value):
            return " ".join(f"L{layer}H{head}" for layer, head in value)
        return ", ".join(".".join(map(str, one)) if isinstance(one, list) else str(one) for one in value) or "none"
    return str(value)
