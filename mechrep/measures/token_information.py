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

``TokenInformationResult`` has intervals over texts and contrasts between text kinds; its figures show which tokens a
loop looks at, beside readers that look anywhere.  What is known of a token before any attention is read:
:mod:`~mechrep.measures.token_facts`.  The reader of the usual distances: :mod:`~mechrep.measures.distance_profile`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mechrep.cache.corpus_cache import Analyzer, Batch, CorpusCache
from mechrep.errors import InputError, ModelError
from mechrep.figures import ACCENT, AXIS, INK, SEQUENCE, counted, new_figure, plain, styled
from mechrep.guards import guarded
from mechrep.measures.distance_profile import TOKENS_PER_BATCH, DistanceProfileResult, distance_profile
from mechrep.measures.token_facts import GROUPS, QUANTITIES, FactRows, TokenFacts, reference_text, token_facts
from mechrep.models.anatomy import Anatomy, Site
from mechrep.models.model import Model
from mechrep.provenance import Provenance
from mechrep.results import Result
from mechrep.text.corpus import Corpus

if TYPE_CHECKING:
    import plotly.graph_objects as go

_TAIL = 2.5  # per cent on each side: intervals are 95 %


@dataclass(frozen=True, eq=False)
class TokenInformationResult(Result):
    """Sums over the queries of each text; every number is a ratio of these, summed over texts.

    Axis ``feature`` runs over ``groups``, shares of keys, and then ``quantities``, information in nats.

    Attributes:
        attended: of what the head attends to.
        visible: of what it could attend to: all visible keys alike.
        matched: the same with keys weighted by distance as the head usually does; NaN without a profile.
        queries: queries behind each sum.
        dropped: queries without a visible key, or with less than 1e-6 of their attention on visible keys.
        on_first: attention to the first position, summed over all queries.
        on_sinks: the same to other sinks.
        ids: of the texts.
        text_kinds: of the texts.
        prompts: what each text is from; intervals draw these.
        groups: names.
        quantities: names.
    """

    attended: Float[Tensor, "text layer head feature"]
    visible: Float[Tensor, "text layer head feature"]
    matched: Float[Tensor, "text layer head feature"]
    queries: Float[Tensor, "text layer head"]
    dropped: Float[Tensor, "text layer head"]
    on_first: Float[Tensor, "text layer head"]
    on_sinks: Float[Tensor, "text layer head"]
    ids: Sequence[str]
    text_kinds: Sequence[str]
    prompts: Sequence[str]
    groups: Sequence[str]
    quantities: Sequence[str]

    @classmethod
    def from_state(
        cls, state: Mapping[str, Tensor], frame: pd.DataFrame, provenance: Provenance
    ) -> TokenInformationResult:
        """Sums with the names of their texts."""
        ids = frame["id"].astype(str).tolist()
        column = "text_kind" if "text_kind" in frame else "condition"
        text_kinds = frame[column] if column in frame else pd.Series(["all"] * len(frame))
        prompts = frame["prompt"].astype(str).tolist() if "prompt" in frame else ids
        return cls(
            provenance,
            **{name: value.clone() for name, value in state.items()},
            ids=ids,
            text_kinds=text_kinds.fillna("all").astype(str).tolist(),
            prompts=prompts,
            groups=list(GROUPS),
            quantities=list(QUANTITIES),
        )

    @guarded
    def share_att(self, text_kind: str | None = None) -> Float[Tensor, "layer head feature"]:
        """Share of a head's attention to visible keys that goes to each group; its mean attended information.

        Args:
            text_kind: texts of one kind; all by default.
        """
        return self._mean("attended", self._ones(text_kind))

    @guarded
    def share_vis(self, text_kind: str | None = None, *, matched: bool = False) -> Float[Tensor, "layer head feature"]:
        """The same for a reader that takes all visible keys alike, or by distance as the head usually does.

        Args:
            text_kind: texts of one kind; all by default.
            matched: by distance.
        """
        return self._mean("matched" if matched else "visible", self._ones(text_kind))

    @guarded
    def bias(self, text_kind: str | None = None, *, matched: bool = False) -> Float[Tensor, "layer head group"]:
        """``share_att / share_vis``: above 1, a head looks at the group more than such a reader; NaN without one.

        Args:
            text_kind: texts of one kind; all by default.
            matched: compare with the reader by distance.
        """
        return self._ratio(self._ones(text_kind), matched)

    @guarded
    def to_frame(self, *, draws: int = 1000, seed: int = 0) -> pd.DataFrame:
        """One row per text kind, head and feature, with 95 % bootstrap intervals over prompts.

        Groups have ``bias`` and ``bias_matched``; for quantities these columns hold *differences*, in nats: attended
        minus visible information.

        Args:
            draws: of the bootstrap.
            seed: of the draws.
        """
        parts = []
        layers, heads = self.attended.shape[1:3]
        index = pd.MultiIndex.from_product(
            [range(layers), range(heads), [*self.groups, *self.quantities]], names=["layer", "head", "group"]
        )
        for text_kind in dict.fromkeys(self.text_kinds):
            ones, counts = self._ones(text_kind), self._counts(text_kind, draws, seed)
            columns: dict[str, Tensor] = {
                "share_att": self._mean("attended", ones),
                "share_vis": self._mean("visible", ones),
            }
            for name, matched in (("bias", False), ("bias_matched", True)):
                low, high = _interval(self._contrast(counts, matched))
                columns |= {name: self._contrast(ones, matched), f"{name}_low": low, f"{name}_high": high}
            table = pd.DataFrame({name: value.flatten().numpy() for name, value in columns.items()}, index=index)
            n_texts = int((self.queries[self._of(text_kind)].sum((1, 2)) > 0).sum())
            parts.append(table.reset_index().assign(text_kind=text_kind, n_texts=n_texts))
        frame = pd.concat(parts, ignore_index=True)
        return frame[["text_kind", *[name for name in frame.columns if name != "text_kind"]]]

    @guarded
    def summary(self, *, matched: bool = False, draws: int = 2000, seed: int = 0) -> pd.DataFrame:
        """The mean over heads for each text kind and group: ``bias`` with its interval over prompts.

        Args:
            matched: compare with the reader by distance.
            draws: of the bootstrap.
            seed: of the draws.
        """
        rows = []
        for text_kind in dict.fromkeys(self.text_kinds):
            value = self._over_heads(self._ones(text_kind), matched)
            low, high = _interval(self._over_heads(self._counts(text_kind, draws, seed), matched))
            att, vis = (self._mean(name, self._ones(text_kind)).nanmean((0, 1)) for name in ("attended", "visible"))
            for place, group in enumerate(self.groups):
                numbers = (att[place], vis[place], value[place], low[place], high[place])
                rows.append((text_kind, group, *map(float, numbers)))
        return pd.DataFrame(rows, columns=["text_kind", "group", "share_att", "share_vis", "bias", "low", "high"])

    @guarded
    def compare(
        self, first: str, second: str, *, matched: bool = False, draws: int = 2000, seed: int = 0
    ) -> pd.DataFrame:
        """Does one kind of text look at a group more than another?  ``log2`` of the quotient of their mean biases.

        Prompts are drawn once for both kinds, so what a prompt adds to both cancels.

        Args:
            first: a kind of text.
            second: another.
            matched: compare with the reader by distance.
            draws: of the bootstrap.
            seed: of the draws.

        Returns:
            ``group, first, second, log2_ratio, low, high``; an interval without 0 is a difference.

        Raises:
            InputError: a kind that no text has.
        """
        ones = [self._over_heads(self._ones(name), matched) for name in (first, second)]
        drawn = [self._over_heads(self._counts(name, draws, seed), matched) for name in (first, second)]
        low, high = _interval((drawn[0] / drawn[1]).log2())
        columns = {"first": ones[0], "second": ones[1], "log2_ratio": (ones[0] / ones[1]).log2()}
        columns |= {"low": low, "high": high}
        frame = pd.DataFrame({name: value.numpy() for name, value in columns.items()})
        frame.insert(0, "group", list(self.groups))
        return frame

    @guarded
    def preference(
        self, text_kind: str, group: str = "low_surprisal", *, draws: int = 999, seed: int = 0
    ) -> tuple[float, list[float]]:
        """``log2`` of the position-matched bias towards a group, and what chance makes of it.

        Without a preference a head's attention and the reader by distance are exchangeable: the draws exchange them in
        prompts chosen at random.

        Args:
            text_kind: texts of one kind.
            group: of tokens.
            draws: how many.
            seed: of the draws.
        """
        place, chosen = list(self.groups).index(group), self._of(text_kind)
        swap, own = self._exchanged(draws, seed), chosen.double()[:, None, None]
        above, below = (getattr(self, name)[..., place].nan_to_num() * own for name in ("attended", "matched"))
        tops = torch.tensordot(1 - swap, above, 1) + torch.tensordot(swap, below, 1)
        bottoms = torch.tensordot(1 - swap, below, 1) + torch.tensordot(swap, above, 1)
        values = (tops / bottoms).nanmean((-2, -1)).log2()
        return float(values[0]), values[1:].tolist()

    @guarded
    def difference(
        self, first: str, second: str, group: str = "low_surprisal", *, draws: int = 999, seed: int = 0
    ) -> tuple[float, list[float]]:
        """``log2`` of the quotient of two kinds' position-matched biases, and the same with labels exchanged.

        If the kinds do not differ, their labels are exchangeable: within a prompt that is in both kinds, and among the
        prompts that are in one.

        Args:
            first: a kind of text.
            second: another.
            group: of tokens.
            draws: how many.
            seed: of the draws.
        """
        place, weights = list(self.groups).index(group), self._labels(first, second, draws, seed)
        biases = []
        for counts in (weights, self._of(first) + self._of(second).double() - weights):
            sums = [torch.tensordot(counts, getattr(self, name)[..., place], 1) for name in ("attended", "matched")]
            biases.append((sums[0] / sums[1]).nanmean((-2, -1)))
        values = (biases[0] / biases[1]).log2()
        return float(values[0]), values[1:].tolist()

    def _labels(self, first: str, second: str, draws: int, seed: int) -> Float[Tensor, "draw text"]:
        """1 where a text is called the first kind: as it is in row 0, exchanged in the others."""
        generator = np.random.default_rng(seed)
        own = [self._of(name).numpy() for name in (first, second)]
        prompts = [{name for name, here in zip(self.prompts, one, strict=True) if here} for one in own]
        both = sorted(prompts[0] & prompts[1])
        alone = sorted(prompts[0] ^ prompts[1])
        labels = np.array([name in prompts[0] for name in alone], dtype=bool)
        taking_part = own[0] | own[1]
        rows = [own[0].astype(float)]
        for _ in range(draws):
            swapped = dict(zip(both, generator.integers(0, 2, len(both)).tolist(), strict=True))
            drawn = dict(zip(alone, generator.permutation(labels).tolist(), strict=True))
            called = [one != bool(swapped[name]) if name in swapped else drawn.get(name, False)
                      for name, one in zip(self.prompts, own[0].tolist(), strict=True)]  # fmt: skip
            rows.append(np.array(called, dtype=float) * taking_part)
        return torch.from_numpy(np.stack(rows))

    def _exchanged(self, draws: int, seed: int) -> Float[Tensor, "draw text"]:
        """In which texts labels are exchanged; none in the first row, whole prompts in the others."""
        names = sorted(set(self.prompts))
        column = {name: place for place, name in enumerate(names)}
        drawn = np.random.default_rng(seed).integers(0, 2, (draws, len(names)))
        rows = torch.from_numpy(np.concatenate([np.zeros((1, len(names)), dtype=int), drawn])).double()
        return rows[:, [column[name] for name in self.prompts]]

    def sinks(self) -> pd.DataFrame:
        """Share of attention on the first position and on other sinks, by text kind and head."""
        rows = []
        for text_kind in dict.fromkeys(self.text_kinds):
            ones = self._ones(text_kind)
            all_queries = torch.tensordot(ones, self.queries + self.dropped, 1)
            shares = [torch.tensordot(ones, part, 1) / all_queries for part in (self.on_first, self.on_sinks)]
            rows += [
                (text_kind, layer, head, float(shares[0][layer, head]), float(shares[1][layer, head]))
                for layer in range(shares[0].shape[0])
                for head in range(shares[0].shape[1])
            ]
        return pd.DataFrame(rows, columns=["text_kind", "layer", "head", "first_position", "other_sinks"])

    @guarded
    def top(self, k: int, group: str = "low_surprisal") -> list[tuple[int, int]]:
        """The ``k`` heads with the largest position-matched bias (plain without a profile) towards a group.

        Args:
            k: how many.
            group: the group.
        """
        place, matched = list(self.groups).index(group), not bool(self.matched.isnan().any())
        values = self.bias(matched=matched)[..., place].nan_to_num(-torch.inf)
        order = values.flatten().argsort(descending=True, stable=True)[:k].tolist()
        return [(index // values.shape[1], index % values.shape[1]) for index in order]

    def plot(self) -> go.Figure:
        """Bias by group, text kind by text kind."""
        return information_figure(self)

    def _of(self, text_kind: str | None) -> Tensor:
        chosen = torch.tensor([text_kind in (None, own) for own in self.text_kinds])
        if not bool(chosen.any()):
            raise InputError(
                f"text_kind {text_kind!r}", f"one of {sorted(set(self.text_kinds))}", "name one that the texts have"
            )
        return chosen

    def _ones(self, text_kind: str | None) -> Float[Tensor, " text"]:
        return self._of(text_kind).double()

    def _counts(self, text_kind: str, draws: int, seed: int) -> Float[Tensor, "draw text"]:
        """How often each text of a kind is in each draw of prompts; the same draw for every kind."""
        names = sorted(set(self.prompts))
        counts = np.random.default_rng(seed).multinomial(len(names), [1 / len(names)] * len(names), size=draws)
        column = {name: place for place, name in enumerate(names)}
        return torch.from_numpy(counts[:, [column[name] for name in self.prompts]]).double() * self._of(text_kind)

    def _mean(self, name: str, counts: Tensor) -> Tensor:
        """Mean over queries for each row of counts, ``[... layer head feature]``."""
        queries = torch.tensordot(counts, self.queries, 1)
        return torch.tensordot(counts, getattr(self, name), 1) / queries[..., None]

    def _ratio(self, counts: Tensor, matched: bool) -> Tensor:
        n = len(self.groups)
        above, below = self._mean("attended", counts), self._mean("matched" if matched else "visible", counts)
        ratio = above[..., :n] / below[..., :n]
        return ratio.masked_fill(below[..., :n] == 0, torch.nan)

    def _contrast(self, counts: Tensor, matched: bool) -> Tensor:
        """Ratios of groups, and differences of quantities."""
        n = len(self.groups)
        above, below = self._mean("attended", counts), self._mean("matched" if matched else "visible", counts)
        return torch.cat([self._ratio(counts, matched), (above - below)[..., n:]], dim=-1)

    def _over_heads(self, counts: Tensor, matched: bool) -> Tensor:
        return self._ratio(counts, matched).nanmean((-3, -2))


def _interval(drawn: Float[Tensor, "draw ..."]) -> tuple[Tensor, Tensor]:
    """Percentiles over draws; NaN where every draw is."""
    values = drawn.numpy()
    empty = np.isnan(values).all(0)
    low, high = np.nanpercentile(np.where(empty, 0.0, values), [_TAIL, 100 - _TAIL], axis=0)
    return torch.from_numpy(np.where(empty, np.nan, low)), torch.from_numpy(np.where(empty, np.nan, high))


PRESETS = ("mechrep", "mahaut2025")
SINK = 0.3  # more mean attention from the queries behind it makes a key a sink of a head
_LEAST = 1e-6  # of a row's attention: less is rounding error of what lies on sinks


class TokenInformation(Analyzer[TokenInformationResult]):
    """Attention of every head by class, frequency and surprisal of the attended token; formulas in the module.

    Args:
        facts: of the corpus that will be read, from :func:`~mechrep.measures.token_facts.token_facts`.
        profile: of the model, from :func:`~mechrep.measures.distance_profile.distance_profile`, for the
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

    Limits: attention is not effect: see :func:`~mechrep.ablation.masking.information_masking`.  In a loop
    of period 1 all visible keys are one token.  The state has a row per text: texts x heads x groups numbers.

    Example:
        >>> import mechrep
        >>> from mechrep.measures.token_information import token_facts
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> corpus = mechrep.Corpus.from_texts(["The sea, the sea, the sea, the sea."], model=model)
        >>> facts = token_facts(model, corpus, reference=corpus)
        >>> result = mechrep.CorpusCache(model, corpus).run(TokenInformation(facts))
        >>> result.bias().shape == (model.anatomy.n_layers, model.anatomy.n_heads, len(result.groups))
        True
    """

    sites: ClassVar[frozenset[Site]] = frozenset({Site.PATTERN})

    @guarded
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
        rows = FactRows.of(activation, batch, self._features, self._queries())
        if not bool(rows.queries.any()):
            return
        sums = self._published(rows) if self.preset == "mahaut2025" else self._shares(rows, layer)
        texts = list(batch.texts)
        for name, value in sums.items():
            self.state[name][texts, layer] += value.double().cpu()

    def _queries(self) -> Bool[Tensor, "text pos"]:
        return self.facts.ends if self.preset == "mahaut2025" else self.facts.queries

    def _shares(self, rows: FactRows, layer: int) -> dict[str, Tensor]:
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

    def _published(self, rows: FactRows) -> dict[str, Tensor]:
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
        corpus: texts with cycles, perhaps of several kinds
            (:func:`mechrep.generation.text_kinds.joined_texts`).
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
    return cache.run(TokenInformation(facts, profile, sink=sink, preset=preset))


_COLOURS = {"natural": ACCENT, "induced": "#3b82c4", "control": "#747c88"}
_CELL = 34  # pixels per layer
GROUP_WORDS = {"low_surprisal": "low surprisal", "low_unigram": "frequent tokens"}


def information_figure(result: TokenInformationResult, *, matched: bool | None = None) -> go.Figure:
    """Bias towards each group, mean over heads, with its 95 % interval over prompts; one marker per text kind.

    Args:
        result: of :class:`mechrep.TokenInformation`.
        matched: compare with the reader by distance; by default where there is a profile.

    Example:
        >>> import mechrep
        >>> from mechrep.measures.token_information import token_information
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> corpus = mechrep.Corpus.from_texts(["The sea, the sea, the sea, the sea."], model=model)
        >>> figure = information_figure(token_information(model, corpus, reference=corpus))
        >>> figure.layout.title.text
        'Where the loop looks'
    """

    by_distance = not bool(result.matched.isnan().any()) if matched is None else matched
    table = result.summary(matched=by_distance)
    figure = new_figure()
    for number, (text_kind, part) in enumerate(table.groupby("text_kind", sort=False)):
        colour = _COLOURS.get(str(text_kind), SEQUENCE[number % len(SEQUENCE)])
        figure.add_scatter(
            x=part["bias"],
            y=[_label(group) for group in part["group"]],
            mode="markers",
            name=_label(str(text_kind)),
            marker={"color": colour, "size": 9, "symbol": number},
            error_x={
                "type": "data",
                "symmetric": False,
                "array": part["high"] - part["bias"],
                "arrayminus": part["bias"] - part["low"],
                "color": colour,
                "thickness": 1.5,
            },
            customdata=np.stack([part["share_att"], part["share_vis"], part["low"], part["high"]], axis=1),
            hovertemplate="%{y}<br>%{x:.2f} times (%{customdata[2]:.2f} to %{customdata[3]:.2f})<br>"
            "attention %{customdata[0]:.3f}, visible %{customdata[1]:.3f}<extra></extra>",
        )
    expected = "attention expected from distance alone" if by_distance else "share of the visible tokens"
    titled = styled(figure, title="Where the loop looks", subtitle=_said(result), x=f"attention over {expected}", y="")
    titled.add_vline(x=1, line={"color": INK, "dash": "dot", "width": 1})
    titled.update_xaxes(type="log", showgrid=True)
    titled.update_yaxes(AXIS | {"autorange": "reversed", "categoryorder": "array"})
    return titled.update_layout(scattermode="group", height=160 + 34 * len(result.groups))


def head_information_figure(
    result: TokenInformationResult, group: str = "low_surprisal", *, text_kind: str | None = None
) -> go.Figure:
    """Bias of every head towards one group, as ``log2``: 0 is a reader of all visible tokens alike.

    Args:
        result: of :class:`mechrep.TokenInformation`.
        group: one of ``result.groups``.
        text_kind: texts of one kind; all by default.

    Example:
        >>> import mechrep
        >>> from mechrep.measures.token_information import token_information
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> corpus = mechrep.Corpus.from_texts(["The sea, the sea, the sea, the sea."], model=model)
        >>> figure = head_information_figure(token_information(model, corpus, reference=corpus))
        >>> len(figure.data[0].z) == model.anatomy.n_layers
        True
    """
    import plotly.graph_objects as go

    values = result.bias(text_kind)[..., list(result.groups).index(group)].log2().numpy()
    finite = values[np.isfinite(values)]
    most = float(np.abs(finite).max()) if len(finite) else 1.0
    heads = go.Heatmap(
        z=np.where(np.isfinite(values), values, np.nan),
        zmin=-most,
        zmax=most,
        colorscale=[[0, ACCENT], [0.5, "rgba(127,127,127,0.08)"], [1, "#3b82c4"]],
        colorbar={"title": {"text": "log2 ratio"}, "outlinewidth": 0, "thickness": 12},
        hovertemplate="layer %{y}, head %{x}<br>log2 of the ratio %{z:.2f}<extra></extra>",
    )
    where = "" if text_kind is None else f", {text_kind}"
    titled = styled(
        go.Figure(heads), title=f"Heads and {_label(group)}", subtitle=_said(result) + where, x="head", y="layer"
    )
    titled.update_xaxes(dtick=1, showline=False)
    titled.update_yaxes(dtick=1, showgrid=False)
    return titled.update_layout(height=180 + _CELL * values.shape[0])


def _label(group: str) -> str:
    """In words: the name of a group of tokens, or of a kind of text."""
    return plain(GROUP_WORDS.get(group, group.replace("_", " ")))


def _said(result: TokenInformationResult) -> str:
    return f"{result.provenance.model['name']}, {counted(len(result.ids), 'text')}, sinks left out"
