"""Do loops look at tokens that carry little information, and do they need them?  Beside texts that do not loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mechrep.ablation.effects import Effects, detection, judge
from mechrep.ablation.masking import Way, information_masking
from mechrep.ablation.texts import shared_loops
from mechrep.cache.corpus_cache import CorpusCache
from mechrep.errors import InputError, ModelError, NothingFoundError
from mechrep.generation.loops import without_counter
from mechrep.guards import Some, guarded
from mechrep.measures.distance_profile import TOKENS_PER_BATCH, distance_profile
from mechrep.measures.token_facts import reference_text, token_facts, token_surprisal
from mechrep.measures.token_information import (
    GROUP_WORDS,
    TokenInformation,
    TokenInformationResult,
    head_information_figure,
    information_figure,
)
from mechrep.models import tiny
from mechrep.models.model import Model
from mechrep.provenance import Provenance, provenance_of
from mechrep.results import Shown
from mechrep.run import Run
from mechrep.sections import Section
from mechrep.text.corpus import Corpus
from mechrep.text.windows import windows_of_text

LOOPS, FREE, HELD_OUT = "natural", "loop_free", "held_out"
WAYS: tuple[Way, ...] = ("mask", "swap")
_REPETITIONS = 4  # a loop says no more after so many, and the context is finite
_KIND_WORDS = {LOOPS: "loops", FREE: "loop-free texts", HELD_OUT: "held-out text"}
_COLUMN_WORDS = {
    "share_att": "share of attention", "share_vis": "share of tokens", "bias": "over expected",
    "visible": "over share of tokens", "published": "Mahaut and Franzon",
}  # fmt: skip
_COLUMNS = ("id", "text_kind", "prompt", "prompt_length", "start", "onset", "period")


@dataclass(frozen=True)
class InformationStudy(Shown):
    """What was found and tried.

    Attributes:
        model_name: how the model was named.
        preset: whose detector decided what a loop is.
        corpus: looping texts (``text_kind`` ``"natural"``) and their controls (``"loop_free"``, ``"held_out"``).
        attention: sums per text, sinks apart.
        published: the same texts by the published ratio, in which sinks count.
        masked: by way, what loops lose without low-information tokens, and without as many others.
        left_out: what could not be done, and why.
        seed: of the draws.
        provenance: of the whole study.
    """

    model_name: str
    preset: str
    corpus: Corpus
    attention: TokenInformationResult
    published: TokenInformationResult
    masked: Mapping[str, Effects]
    left_out: Mapping[str, str]
    seed: int
    provenance: Provenance

    @guarded
    def n(self, text_kind: str) -> int:
        """Different texts of a kind: a control text may stand beside several loops."""
        frame = self.corpus.frame
        return int(frame.loc[frame["text_kind"] == text_kind, "prompt"].nunique())

    @property
    def controls(self) -> list[str]:
        """The kinds of control texts that there are."""
        return [name for name in (FREE, HELD_OUT) if name in set(self.corpus.frame["text_kind"])]

    def claims(self) -> pd.DataFrame:
        """Attention beyond distance, attention beyond each control, and what hiding low tokens does: one family."""
        matched = self.attention.summary(matched=True, seed=self.seed).set_index(["text_kind", "group"])
        low = matched.loc[(LOOPS, "low_surprisal")]
        value, draws = self.attention.preference(LOOPS, seed=self.seed)
        ends = tuple(np.log2([low["low"], low["high"]]).tolist())
        rows = [self._row("attention", "bias, log2", value, draws, ends)]
        for name in self.controls:
            value, draws = self.attention.difference(LOOPS, name, seed=self.seed)
            table = self.attention.compare(LOOPS, name, matched=True, seed=self.seed).set_index("group")
            ends = tuple(table.loc["low_surprisal", ["low", "high"]].astype(float).tolist())
            rows.append(self._row(f"attention_{name}", f"bias over {name}, log2", value, draws, ends))
        for way, effects in self.masked.items():
            rows += effects.summary().assign(claim=way).to_dict("records")
        table = pd.DataFrame(rows).drop(columns=["q", "family", "verdict"], errors="ignore")
        return judge(table, family="all claims of this section")

    def _row(self, claim: str, measure: str, value: float, draws: Sequence[float], ends: Any) -> dict[str, Any]:
        row = detection("low-information tokens", measure, value, draws, interval=ends, n=self.n(LOOPS))
        exchanged = {
            "baseline": 0.0,
            "effect": value,
            "low": ends[0],
            "high": ends[1],
            "controls": "random swaps of labels",
        }
        return row | exchanged | {"claim": claim}

    def section(self) -> Section:
        """Numbers, tables and figures of the report."""
        bias = {
            name: self.attention.summary(matched=name == "matched", seed=self.seed) for name in ("matched", "visible")
        }
        low = {
            name: table.set_index(["text_kind", "group"]).loc[(LOOPS, "low_surprisal")] for name, table in bias.items()
        }
        sinks = self.attention.sinks().groupby("text_kind", sort=False)[["first_position", "other_sinks"]].mean()
        fields: dict[str, Any] = {
            "model": self.model_name, "preset": self.preset, "loops": self.n(LOOPS), "repetitions": _REPETITIONS,
            "free": self.n(FREE), "held_out": self.n(HELD_OUT),
            **{f"bias_{name}": row["bias"] for name, row in low.items()},
            **{f"low_{name}": row["low"] for name, row in low.items()},
            **{f"high_{name}": row["high"] for name, row in low.items()},
            "first_position": sinks.loc[LOOPS, "first_position"],
        }  # fmt: skip
        figures = {
            "groups": information_figure(self.attention, matched=True),
            "heads": head_information_figure(self.attention, "low_surprisal", text_kind=LOOPS),
            **{way: effects.plot() for way, effects in self.masked.items()},
        }
        keys = ["text_kind", "group"]
        groups = bias["matched"].set_index(keys)
        groups["visible"] = bias["visible"].set_index(keys)["bias"]
        groups["published"] = self.published.summary().set_index(keys)["bias"]
        groups = groups.reset_index()
        groups = groups[groups["text_kind"] == LOOPS].round(3)
        groups["group"] = groups["group"].replace(GROUP_WORDS).str.replace("_", " ")
        left_out = pd.DataFrame(self.left_out.items(), columns=["what", "why"]).replace({"what": _KIND_WORDS})
        tables = {
            "groups": groups.drop(columns="text_kind").rename(columns=_COLUMN_WORDS),
            "sinks": sinks.reset_index().replace({"text_kind": _KIND_WORDS}).round(3),
            **({"left_out": left_out} if self.left_out else {}),
        }
        return Section("information", self.provenance, fields, self.claims(), tables, figures)


@guarded
def run_information_study(
    model: Model,
    *,
    corpus: Corpus | None = None,
    preset: str = "mechrep",
    ways: Some[Way] = WAYS,
    held_out_text: str | None = None,
    run: Run | None = None,
) -> InformationStudy:
    """Read where loops look by the information of the attended token, and hide low-information tokens.

    Args:
        model: the model; it needs attention patterns and a tokenizer.
        corpus: looping and loop-free texts of an earlier study; by default the model writes them.
        preset: whose detector decides what a loop is.
        ways: how tokens are taken away, "mask" (hidden) and "swap" (exchanged).
        held_out_text: control text; also where frequencies and usual distances are from.  English by default.
        run: options.

    Raises:
        NothingFoundError: no looping text.
        InputError: a corpus without looping texts, texts of another model.
        ModelError: a model without attention patterns.

    Source: Mahaut & Franzon 2025 (arXiv 2504.01100) claim that natural loops attend to low-information tokens; the
    definitions are mechrep's, see :class:`mechrep.TokenInformation`.

    Limits: held-out controls come from the text that frequencies and usual distances were measured on.

    Example:
        >>> import mechrep
        >>> from mechrep.run import Run
        >>> study = run_information_study(mechrep.load_model("mechrep-tiny"), ways=[], run=Run(effort="quick"))
        >>> sorted(set(study.corpus.frame["text_kind"]) - {"loop_free"})
        ['held_out', 'natural']
    """
    options = run or Run()
    given = shared_loops(model, options, preset) if corpus is None else corpus
    left_out: dict[str, str] = {}
    known = held_out_text or tiny.held_out_text()
    texts = matched_texts(model, given, options.sizes_on(model).windows, known, options.seed, left_out)
    reference = None if held_out_text is None else _reference(model, held_out_text)
    surprisal = token_surprisal(model, texts)
    attention, published = _attention(model, texts, reference, surprisal, options)
    own = texts.frame["text_kind"].to_numpy() == LOOPS
    loops = texts.select(own)
    here = surprisal[torch.from_numpy(own)][:, : loops.tokens.shape[1]]
    facts = token_facts(model, loops, reference=reference, surprisal=here)
    masked = {}
    for way in ways:
        if way == "swap" and _hurried(model, options):
            left_out[way] = "each draw reads whole texts: not at effort quick in models of many weights"
            continue
        try:
            masked[way] = information_masking(model, loops, facts, way=way, run=options)
        except (NothingFoundError, ModelError) as error:
            left_out[way] = str(error)
    config = {"study": "information", "preset": preset, "ways": list(ways), "effort": options.effort}
    provenance = provenance_of(model, texts, config)
    return InformationStudy(model.name, preset, texts, attention, published, masked, left_out, options.seed, provenance)


def _hurried(model: Model, run: Run) -> bool:
    return run.effort == "quick" and run.sizes_on(model).brief is not None


def _attention(
    model: Model, texts: Corpus, reference: Corpus | None, surprisal: Tensor, run: Run
) -> tuple[TokenInformationResult, TokenInformationResult]:
    """By our definitions and by the published ones, in one pass."""
    words, pieces = (
        token_facts(model, texts, reference=reference, on=on, surprisal=surprisal) for on in ("word", "piece")
    )
    usual = reference_text(model) if reference is None else reference
    if run.sizes_on(model).brief is not None:
        usual = usual.select(range(min(len(usual), run.sizes_on(model).windows)))
    ours = TokenInformation(words, distance_profile(model, usual))
    batch_size = max(1, TOKENS_PER_BATCH // texts.tokens.shape[1])
    cache = CorpusCache(model, texts, batch_size=batch_size, run=run)
    return cache.run(ours, TokenInformation(pieces, None, preset="mahaut2025"))


def matched_texts(
    model: Model, corpus: Corpus, n_loops: int, held_out: str, seed: int, left_out: dict[str, str]
) -> Corpus:
    """Looping texts of a few repetitions, and beside each one loop-free and one held-out text of its length.

    In the controls the queries are at the positions at which they are in the loop: from its second repetition on.

    Args:
        model: the model.
        corpus: looping texts, with ``onset``, and loop-free ones where there are such texts.
        n_loops: looping texts, at most.
        held_out: text to cut windows from.
        seed: of the choice.
        left_out: takes the reasons for controls that could not be made.

    Raises:
        InputError: no looping text.
    """
    corpus = Corpus.of(corpus, model)
    loops = corpus.frame["onset"].notna().to_numpy()
    numbers = np.flatnonzero(loops)[:n_loops]
    if not len(numbers):
        raise InputError(f"{len(corpus)} texts without a loop", "texts with an onset", "collect some")
    looping = corpus.select(numbers)
    facts, rows = [], []
    for i, (name, start, onset) in enumerate(looping.frame[["id", "start", "onset"]].itertuples(index=False)):
        period = int(onset) - int(start)
        row = looping.row(i)[: int(start) + _REPETITIONS * period]
        rows.append(row)
        facts.append((f"{name}/loop", LOOPS, name, int(onset), int(start), int(onset), period))
    lengths = [len(row) for row in rows]
    others = _beginning_alike(model, windows_of_text(model, held_out, length=max(lengths), limit=len(rows)), rows)
    may = {
        FREE: (corpus, ~loops & without_counter(model, corpus)),
        HELD_OUT: (others, np.ones(len(others), dtype=bool)),
    }
    for kind, (source, usable) in may.items():
        found = 0
        for i, donor in enumerate(_donors(source.lengths.numpy() * usable, lengths, seed)):
            if donor is not None:
                found += 1
                name, onset = str(source.frame["id"][donor]), facts[i][3]
                facts.append((f"{facts[i][2]}/{kind}", kind, name, onset, None, None, None))
                rows.append(source.row(donor)[: lengths[i]])
        if found < len(looping):
            left_out[kind] = f"{found} of {len(looping)} looping texts have a control that is as long"
    frame = pd.DataFrame(facts, columns=list(_COLUMNS)).astype({name: "Int64" for name in _COLUMNS[3:]})
    return Corpus.from_tokens(rows, model=model, attention_mask=True, frame=frame, bos_policy=corpus.bos_policy)


def _beginning_alike(model: Model, windows: Corpus, rows: Sequence[Sequence[int]]) -> Corpus:
    """The windows with BOS in front if the loops have it there: by a family's habit windows may have none."""
    firsts = {row[0] for row in rows} | {windows.row(i)[0] for i in range(len(windows))}
    if model.bos_id is None or {row[0] for row in rows} != {model.bos_id} or firsts == {model.bos_id}:
        return windows
    begun = [[model.bos_id, *windows.row(i)[:-1]] for i in range(len(windows))]
    return Corpus.from_tokens(begun, model=model, attention_mask=True, frame=windows.frame, bos_policy="prepended")


def _donors(available: np.ndarray, lengths: Sequence[int], seed: int) -> list[int | None]:
    """For each length a text that is as long, those used least first; ``None`` where there is none."""
    generator = np.random.default_rng(seed)
    used, chosen = np.zeros(len(available)), []
    for length in lengths:
        order = generator.permutation(np.flatnonzero(available >= length))
        chosen.append(int(order[np.argmin(used[order])]) if len(order) else None)
        if len(order):
            used[chosen[-1]] += 1
    return chosen


def _reference(model: Model, text: str) -> Corpus:
    """What :func:`~mechrep.measures.token_facts.reference_text` is for the embedded text."""
    return windows_of_text(model, text, length=min(model.anatomy.n_ctx, 512), limit=32)
