"""``TokenInformation``: does a loop look at tokens that carry little information?

For the queries ``Q`` of a text (positions from the second copy on) and the keys ``V_i`` that query ``i`` sees, sinks
left out, with attention ``A`` and any group ``c`` of tokens::

    share_att(c) = mean_{i in Q} [ sum_{j in V_i, j in c} A[i, j] / sum_{j in V_i} A[i, j] ]
    share_vis(c) = mean_{i in Q} [ |{j in V_i: j in c}| / |V_i| ]
    bias(c)      = share_att(c) / share_vis(c)                      (uniform attention: exactly 1)

    matched(c)   = share_vis(c) with every key weighted as the head weights its distance in other text
    s_att, s_vis = the same with the information s_j of the key in the place of "j in c"

The same keys stand above and below the line, so no group gains by being frequent in the loop.  What a head gives to
sinks is reported apart.  All of these are averages of features over keys, so one product serves them all, and of the
patterns only sums per text are kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mechrep.analyzers.token_information.distances import TOKENS_PER_BATCH, DistanceProfileResult, distance_profile
from mechrep.analyzers.token_information.facts import TokenFacts, reference_text, token_facts
from mechrep.analyzers.token_information.result import TokenInformationResult
from mechrep.cache.analyzer import Analyzer, Batch
from mechrep.cache.corpus_cache import CorpusCache
from mechrep.errors import InputError, ModelError
from mechrep.models.anatomy import Anatomy, Site
from mechrep.models.model import Model
from mechrep.provenance import Provenance
from mechrep.text.corpus import Corpus

PRESETS = ("mechrep", "mahaut2025")
SINK = 0.3  # more mean attention from the queries behind it makes a key a sink of a head
_LEAST = 1e-6  # of a row's attention: less is rounding error of what lies on sinks


class TokenInformation(Analyzer):
    """Attention of every head by class, frequency and surprisal of the attended token; formulas in the module.

    Args:
        facts: of the corpus that will be read, from :func:`~mechrep.analyzers.token_information.facts.token_facts`.
        profile: of the model, from :func:`~mechrep.analyzers.token_information.distances.distance_profile`, for the
            position-matched version; without it that version is NaN.
        sink: a key other than the first is a sink of a head in a text if the queries behind it give it more than this
            on average (only keys seen by at least half as many queries as the first); None: the first position only.
        preset: ``"mechrep"``, or ``"mahaut2025"``, the published code: queries at the ends of copies, only the argmax
            key counts, sinks included, and the share of the *prompt's* tokens stands below the line.  Give it facts
            with ``on="piece"``.

    Raises:
        InputError: an unknown preset, a threshold outside (0, 1), facts of other texts, no query at all.
        ModelError: a model without attention patterns.

    Source: Mahaut & Franzon 2025 (arXiv 2504.01100) claim that natural loops attend to low-information tokens.  Their
    ratio divides attention over prompt and loop by the share in the prompt alone, so a loop that writes newlines
    inflates newlines; the definitions here are mechrep's own.

    Limits: attention is not effect: see :func:`~mechrep.analyzers.token_information.cuts.information_cut`.  In a loop
    of period 1 all visible keys are one token.  The state has a row per text: texts x heads x groups numbers.

    Example:
        >>> import mechrep
        >>> from mechrep.analyzers.token_information import token_facts
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> corpus = mechrep.Corpus.from_texts(["The sea, the sea, the sea, the sea."], model=model)
        >>> facts = token_facts(model, corpus, reference=corpus)
        >>> (result,) = mechrep.CorpusCache(model, corpus).run(TokenInformation(facts))
        >>> result.bias().shape == (model.anatomy.n_layers, model.anatomy.n_heads, len(result.groups))
        True
    """

    sites: ClassVar[frozenset[Site]] = frozenset({Site.PATTERN})

    def __init__(
        self,
        facts: TokenFacts,
        profile: DistanceProfileResult | None = None,
        *,
        sink: float | None = SINK,
        preset: str = "mechrep",
    ) -> None:
        if preset not in PRESETS or (sink is not None and not 0 < sink < 1):
            raise InputError(f"preset={preset!r}, sink={sink}", f"one of {PRESETS}, sink in (0, 1)", "correct them")
        self.facts, self.profile, self.sink, self.preset = facts, profile, sink, preset
        self._features = facts.features()
        self.state = {}

    @property
    def config(self) -> dict[str, Any]:
        """Settings, and fingerprints of the facts and of the profile's model."""
        known = None if self.profile is None else [self.profile.provenance.corpus, self.profile.provenance.model]
        return {"facts": self.facts.fingerprint(), "profile": known, "sink": self.sink, "preset": self.preset}

    def prepare(self, anatomy: Anatomy, frame: pd.DataFrame) -> None:
        """Empty sums for this corpus and this model's heads."""
        if not anatomy.has(Site.PATTERN):
            raise ModelError(anatomy.architecture, "attention patterns", "this model has no heads to read")
        texts, heads = len(frame), (anatomy.n_layers, anatomy.n_heads)
        if len(self._features) != texts:
            raise InputError(
                f"facts of {len(self._features)} texts for a corpus of {texts}",
                "facts of this corpus",
                "make them anew",
            )
        if self.profile is not None and tuple(self.profile.weights.shape[:2]) != heads:
            raise InputError(
                f"a profile of {tuple(self.profile.weights.shape[:2])} heads", f"{heads}", "measure it on this model"
            )
        self._frame, features = frame, self._features.shape[-1]
        self.state = {
            name: torch.zeros(texts, *heads, features, dtype=torch.float64)
            for name in ("attended", "visible", "matched")
        }
        for name in ("queries", "dropped", "on_first", "on_sinks"):
            self.state[name] = torch.zeros(texts, *heads, dtype=torch.float64)

    def observe(self, activation: Tensor, site: Site, layer: int, batch: Batch) -> None:  # noqa: ARG002 - it has one
        """Add one layer of one batch."""
        rows = _Rows.of(activation, batch, self._features, self._queries())
        if not bool(rows.queries.any()):
            return
        sums = self._published(rows) if self.preset == "mahaut2025" else self._shares(rows, layer)
        texts = list(batch.texts)
        for name, value in sums.items():
            self.state[name][texts, layer] += value.double().cpu()

    def _queries(self) -> Bool[Tensor, "text pos"]:
        return self.facts.ends if self.preset == "mahaut2025" else self.facts.queries

    def _shares(self, rows: _Rows, layer: int) -> dict[str, Tensor]:
        """Sums over queries of the shares over visible keys, ``[batch head feature]``, and what lies on sinks."""
        sinks = rows.sinks(self.sink)
        visible = rows.keys & ~sinks  # [batch head key]
        pattern = rows.pattern[:, :, rows.first :]
        counts = visible.cumsum(-1)[:, :, rows.first :]
        seen = pattern.masked_fill(~visible[:, :, None], 0.0)
        mass = seen.sum(-1)
        use = rows.asked & (counts > 0) & (mass >= _LEAST)
        attended = _averages(seen, rows.features) / mass.clamp_min(_LEAST)[..., None]
        by_key = visible[..., None] * rows.features[:, None]
        shown = by_key.cumsum(2)[:, :, rows.first :] / counts.clamp_min(1)[..., None]
        matched = torch.full_like(attended, torch.nan)
        if self.profile is not None:
            positions = torch.arange(rows.first, rows.pattern.shape[2])
            usual = self.profile.of_rows(layer, positions, rows.pattern.shape[3]).to(seen)
            weighted = usual[None].masked_fill(~visible[:, :, None], 0.0)
            matched = _averages(weighted, rows.features) / weighted.sum(-1).clamp_min(1e-30)[..., None]
        asked = rows.asked.expand_as(use)
        others = pattern.masked_fill(~sinks[:, :, None], 0.0).sum(-1)
        return {
            "attended": attended.masked_fill(~use[..., None], 0.0).sum(2),
            "visible": shown.masked_fill(~use[..., None], 0.0).sum(2),
            "matched": matched.masked_fill(~use[..., None], 0.0).sum(2),
            "queries": use.sum(2),
            "dropped": (asked & ~use).sum(2),
            "on_first": pattern[..., 0].masked_fill(~asked, 0.0).sum(2),
            "on_sinks": others.masked_fill(~asked, 0.0).sum(2),
        }

    def _published(self, rows: _Rows) -> dict[str, Tensor]:
        """One vote per query, for the key with most attention, against the make-up of the prompt."""
        pattern = rows.pattern[:, :, rows.first :]
        best = pattern.masked_fill(~rows.causal[rows.first :], -1.0).argmax(-1)  # [batch head query]
        batch = torch.arange(len(best), device=best.device)[:, None, None]
        votes = rows.features[batch, best].masked_fill(~rows.asked[..., None], 0.0).sum(2)
        prompt = self.facts.prompt[rows.texts, : rows.pattern.shape[3]].to(rows.features)
        make_up = torch.einsum("bk,bkf->bf", prompt, rows.features) / prompt.sum(-1).clamp_min(1)[:, None]
        queries = rows.asked.sum(-1).expand(-1, best.shape[1])
        shown = make_up[:, None] * queries[..., None]
        return {
            "attended": votes,
            "visible": shown,
            "matched": torch.full_like(votes, torch.nan),
            "queries": queries,
            "on_first": ((best == 0) & rows.asked).sum(2),
        }

    def result(self, provenance: Provenance) -> TokenInformationResult:
        """Sums per text, which every ratio and interval is made of.

        Raises:
            InputError: no query in any text.
        """
        if not bool(self.state["queries"].any() | self.state["dropped"].any()):
            raise InputError(
                f"{len(self._frame)} texts without a query", "texts with a second copy of a cycle", "use longer texts"
            )
        return TokenInformationResult.from_state(self.state, self._frame, provenance)

    def load_result(self, folder: Path) -> TokenInformationResult:
        """Read a stored result."""
        return TokenInformationResult.load(folder)


@dataclass(frozen=True)
class _Rows:
    """One layer of one batch.

    Attributes:
        pattern: ``[batch head query key]``, zero where padding takes part.
        features: ``[batch key feature]``.
        queries: ``[batch query]``.
        asked: the same from query ``first`` on, with an axis for heads.
        keys: real positions but the first, ``[batch 1 key]``.
        causal: ``[query key]``.
        first: the first query of any text.
        texts: numbers of the texts.
    """

    pattern: Tensor
    features: Tensor
    queries: Tensor
    asked: Tensor
    keys: Tensor
    causal: Tensor
    first: int
    texts: list[int]

    @classmethod
    def of(cls, activation: Tensor, batch: Batch, features: Tensor, queries: Tensor) -> _Rows:
        """Cut facts to the batch and silence the padding."""
        width, device, texts = activation.shape[-1], activation.device, list(batch.texts)
        wide = torch.float32 if device.type == "mps" else torch.float64
        real = torch.arange(width, device=device) < batch.lengths.to(device)[:, None]
        pattern = activation.to(wide).masked_fill(~(real[:, None, :, None] & real[:, None, None]), 0.0)
        chosen = queries[texts, :width].to(device)
        position = torch.arange(width, device=device)
        first = int(chosen.any(0).int().argmax()) if bool(chosen.any()) else 0
        return cls(
            pattern,
            features[texts, :width].to(device, wide),
            chosen,
            chosen[:, None, first:],
            (real & (position > 0))[:, None],
            position[:, None] >= position,
            first,
            texts,
        )

    def sinks(self, threshold: float | None) -> Bool[Tensor, "batch head key"]:
        """Keys other than the first to which the queries behind them give more than the threshold on average."""
        heads = self.pattern.shape[1]
        if threshold is None:
            return torch.zeros_like(self.keys.expand(-1, heads, -1))
        lengths = self.keys.sum(-1, keepdim=True) + 1
        behind = (lengths - 1 - torch.arange(self.keys.shape[-1], device=self.keys.device)).clamp_min(0)
        received = self.pattern.tril(-1).sum(2) / behind.clamp_min(1)
        # Of the last keys so few queries say anything that a previous-token head would make sinks of them.
        enough = 2 * behind >= lengths - 1
        return self.keys & enough & (received > threshold)


def _averages(
    weights: Float[Tensor, "batch head query key"], features: Float[Tensor, "batch key feature"]
) -> Float[Tensor, "batch head query feature"]:
    """Sums of features over keys, by weight."""
    return torch.einsum("bhqk,bkf->bhqf", weights, features)


def token_information(
    model: Model,
    corpus: Corpus,
    *,
    reference: Corpus | None = None,
    sink: float | None = SINK,
    preset: str = "mechrep",
    store: str | Path | None = None,
    progress: bool | None = None,
) -> TokenInformationResult:
    """Facts, profile and attention in one call.

    Args:
        model: the model.
        corpus: texts with cycles, perhaps of several conditions
            (:func:`mechrep.generation.conditions.joined_conditions`).
        reference: text that does not repeat, for frequencies and for the usual distances; by default the embedded
            held-out text, which is English.
        sink: see :class:`TokenInformation`, as for the preset.
        preset: ``"mechrep"`` or ``"mahaut2025"``.
        store: folder of a cache's results, see :class:`~mechrep.cache.corpus_cache.CorpusCache`.
        progress: show a progress bar.

    Raises:
        InputError: as :class:`TokenInformation`.

    Example:
        >>> import mechrep
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> corpus = mechrep.Corpus.from_texts(["The sea, the sea, the sea, the sea."], model=model)
        >>> result = token_information(model, corpus, reference=corpus)
        >>> set(result.summary()["group"]) == set(result.groups)
        True
    """
    reference = reference_text(model) if reference is None else reference
    facts = token_facts(model, corpus, reference=reference, on="piece" if preset == "mahaut2025" else "word")
    profile = None if preset == "mahaut2025" else distance_profile(model, reference)
    batch_size = max(1, TOKENS_PER_BATCH // corpus.tokens.shape[1])
    cache = CorpusCache(model, corpus, batch_size=batch_size, store=store, progress=progress)
    (result,) = cache.run(TokenInformation(facts, profile, sink=sink, preset=preset))
    assert isinstance(result, TokenInformationResult)
    return result
