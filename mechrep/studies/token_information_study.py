"""Do loops look at tokens that carry little information, and do they need them?  Beside texts that do not loop.

Looping texts are cut after a few copies.  Beside each stand texts of its length that do not loop, read at the same
positions: continuations of the same model (as far as there are long enough ones), and windows of held-out text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd

from mechrep.ablation.old_controls import as_seeds
from mechrep.errors import InputError, ModelError, NothingFoundError
from mechrep.measures.token_information import TokenFacts, TokenInformationResult, token_facts, token_information
from mechrep.measures.token_information_masks import InformationCut, Way, information_cut
from mechrep.models import tiny
from mechrep.models.model import Model
from mechrep.provenance import Provenance, provenance_of
from mechrep.store import Journal
from mechrep.studies.neurons import collect_texts
from mechrep.text.corpus import Corpus, windows_of_text

LOOPS, FREE, HELD_OUT = "natural", "loop_free", "held_out"
WAYS: tuple[Way, ...] = get_args(Way)
_COPIES = 4  # a loop says no more after so many, and the context is finite
_COLUMNS = ("id", "condition", "prompt", "prompt_length", "start", "onset", "period")


@dataclass(frozen=True)
class InformationStudy:
    """Everything that the report shows about token information.

    Attributes:
        model_name: how the model was named.
        preset: whose detector decided what a loop is.
        corpus: looping texts (``condition`` ``"natural"``) and their controls (``"loop_free"``, ``"held_out"``).
        attention: sums per text, sinks apart.
        published: the same texts by the published ratio, in which sinks count.
        bias: by ``"matched"`` (a reader by distance) and ``"visible"`` (one of all visible keys alike), the mean over
            heads for each condition and group, with intervals.
        compared: loops against each control, position-matched.
        sinks: attention on the first position and on other sinks, by condition and head.
        cuts: by way, what loops lose without low-information tokens, and without as many others.
        left_out: what could not be done, and why.
        provenance: of the whole study.
    """

    model_name: str
    preset: str
    corpus: Corpus
    attention: TokenInformationResult
    published: TokenInformationResult
    bias: Mapping[str, pd.DataFrame]
    compared: Mapping[str, pd.DataFrame]
    sinks: pd.DataFrame
    cuts: Mapping[str, InformationCut]
    left_out: Mapping[str, str]
    provenance: Provenance

    def n(self, condition: str) -> int:
        """Different texts of a condition: a control text may stand beside several loops."""
        frame = self.corpus.frame
        return int(frame.loc[frame["condition"] == condition, "prompt"].nunique())


def run_information_study(
    model: Model,
    *,
    corpus: Corpus | None = None,
    preset: str = "mechrep",
    n_loops: int = 100,
    n_others: int = 40,
    seeds: int | Sequence[int] = 4,
    ways: Sequence[Way] = WAYS,
    held_out_text: str | None = None,
    store: str | Path | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> InformationStudy:
    """Read where loops look by the information of the attended token, and cut low-information tokens.

    Args:
        model: the model; it needs attention patterns and a tokenizer.
        corpus: texts of an earlier study, with ``condition`` ``"looping"`` and ``"loop_free"``; by default they are
            collected (and shared through the store).
        preset: whose detector decides what a loop is.
        n_loops: looping texts to collect, or to take from ``corpus`` at most.
        n_others: loop-free texts to collect.
        seeds: draws of partner tokens (and of new tokens) per text, or a list of as many.
        ways: ``"mask"``, ``"swap"``.
        held_out_text: control text; also where frequencies and usual distances are from.  English by default.
        store: folder that lets a stopped study go on.
        seed: of prompts and draws.
        progress: show progress bars.

    Raises:
        NothingFoundError: no looping text.
        InputError: a corpus without looping texts, texts of another model.
        ModelError: a model without attention patterns.

    Source: Mahaut & Franzon 2025 (arXiv 2504.01100) claim that natural loops attend to low-information tokens; the
    definitions are mechrep's, see :class:`mechrep.TokenInformation`.

    Limits: held-out controls come from the text that frequencies and usual distances were measured on.

    Example:
        >>> import mechrep
        >>> study = run_information_study(mechrep.load_model("mechrep-tiny"), n_loops=4, n_others=2, seeds=1)
        >>> sorted(set(study.corpus.frame["condition"]) - {"loop_free"})
        ['held_out', 'natural']
    """
    if corpus is None:
        corpus = collect_texts(model, n_loops, n_others, preset, seed, store, progress)
    left_out: dict[str, str] = {}
    texts = matched_texts(model, corpus, n_loops, held_out_text or tiny.held_out_text(), seed, left_out)
    reference = None if held_out_text is None else _reference(model, held_out_text)
    attention, published = (
        token_information(model, texts, reference=reference, preset=name, store=store, progress=progress)
        for name in ("mechrep", "mahaut2025")
    )
    loops = texts.where(condition=LOOPS)
    facts = token_facts(model, loops, reference=reference)
    cuts = {}
    for way in ways:
        try:
            cuts[way] = _cut(model, loops, facts, way, len(as_seeds(seeds)), seed, store, progress)
        except (NothingFoundError, ModelError) as error:
            left_out[f"cut ({way})"] = str(error)
    controls = [name for name in (FREE, HELD_OUT) if name in set(texts.frame["condition"])]
    config = {
        "study": "information",
        "preset": preset,
        "seeds": list(as_seeds(seeds)),
        "ways": list(ways),
        "seed": seed,
    }
    return InformationStudy(
        model_name=model.name,
        preset=preset,
        corpus=texts,
        attention=attention,
        published=published,
        bias={name: attention.summary(matched=name == "matched", seed=seed) for name in ("matched", "visible")},
        compared={name: attention.compare(LOOPS, name, matched=True, seed=seed) for name in controls},
        sinks=attention.sinks(),
        cuts=cuts,
        left_out=left_out,
        provenance=provenance_of(model, texts, config),
    )


def matched_texts(
    model: Model, corpus: Corpus, n_loops: int, held_out: str, seed: int, left_out: dict[str, str]
) -> Corpus:
    """Looping texts of a few copies, and beside each one loop-free and one held-out text of its length.

    In the controls the queries are at the positions at which they are in the loop: from its second copy on.

    Args:
        model: the model.
        corpus: with ``condition`` ``"looping"``, and ``"loop_free"`` where there are such texts.
        n_loops: looping texts, at most.
        held_out: text to cut windows from.
        seed: of the choice.
        left_out: takes the reasons for controls that could not be made.

    Raises:
        InputError: no looping text.
    """
    kinds = corpus.frame["condition"].to_numpy(dtype=object)
    numbers = np.flatnonzero((kinds == "looping") & corpus.frame["onset"].notna().to_numpy())[:n_loops]
    if not len(numbers):
        raise InputError(f"{len(corpus)} texts without a loop", "texts with condition 'looping'", "collect some")
    looping = corpus.select(numbers)
    facts, rows = [], []
    for i, (name, start, onset) in enumerate(looping.frame[["id", "start", "onset"]].itertuples(index=False)):
        period = int(onset) - int(start)
        row = looping.row(i)[: int(start) + _COPIES * period]
        rows.append(row)
        facts.append((f"{name}/loop", LOOPS, name, int(onset), int(start), int(onset), period))
    lengths = [len(row) for row in rows]
    others = windows_of_text(model, held_out, length=max(lengths), limit=len(rows))
    may = {FREE: (corpus, kinds == "loop_free"), HELD_OUT: (others, np.ones(len(others), dtype=bool))}
    for condition, (source, usable) in may.items():
        found = 0
        for i, donor in enumerate(_donors(source.lengths.numpy() * usable, lengths, seed)):
            if donor is not None:
                found += 1
                name, onset = str(source.frame["id"][donor]), facts[i][3]
                facts.append((f"{facts[i][2]}/{condition}", condition, name, onset, None, None, None))
                rows.append(source.row(donor)[: lengths[i]])
        if found < len(looping):
            left_out[condition] = f"{found} of {len(looping)} looping texts have a control that is as long"
    frame = pd.DataFrame(facts, columns=list(_COLUMNS)).astype({name: "Int64" for name in _COLUMNS[3:]})
    return Corpus.from_tokens(rows, model=model, frame=frame, bos_policy=corpus.bos_policy)


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
    """What :func:`~mechrep.measures.token_information.reference_text` is for the embedded text."""
    return windows_of_text(model, text, length=min(model.anatomy.n_ctx, 512), limit=32)


def _cut(
    model: Model, loops: Corpus, facts: TokenFacts, way: Way, draws: int, seed: int,
    store: str | Path | None, progress: bool | None,
) -> InformationCut:  # fmt: skip
    """:func:`information_cut`, kept in the store when it is done."""
    if store is None:
        return information_cut(model, loops, facts, way=way, draws=draws, seed=seed, progress=progress)
    config = {"study": "information cut", "way": way, "draws": draws, "seed": seed, "facts": facts.fingerprint()}
    folder = Journal(Path(store), provenance_of(model, loops, config)).folder / "result"
    if folder.is_dir():
        return InformationCut.load(folder)
    found = information_cut(model, loops, facts, way=way, draws=draws, seed=seed, progress=progress)
    found.save(folder)
    return found
