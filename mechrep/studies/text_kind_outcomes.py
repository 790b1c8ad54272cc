"""What is measured on the texts of one kind: repetitions given, one token patched, texts regenerated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from mechrep.ablation.effects import Measure
from mechrep.ablation.outcomes import Cost
from mechrep.ablation.score import ScoredText, score_tokens
from mechrep.ablation.screening import WeightedText
from mechrep.cache.corpus_cache import CorpusCache
from mechrep.generation.decode import Request, run_requests
from mechrep.generation.text_kinds import clusters_of, copy_run, labels_of
from mechrep.guards import one_of
from mechrep.interventions import Heads, mean
from mechrep.interventions.ops import Intervention, When
from mechrep.models.anatomy import Site
from mechrep.models.model import Model
from mechrep.progress import progress_bar
from mechrep.text.corpus import Corpus

LOG_PROBABILITY, COPIED, NEW_TOKENS = "log_probability", "copied_share", "new_tokens"


class _OfKind:
    """What outcomes over the texts of one kind share; ``places`` are their numbers among all texts."""

    regenerates = False

    def __init__(self, model: Model, corpus: Corpus, text_kind: str, **facts: Any) -> None:
        self.model, self.corpus, self.text_kind = model, corpus, text_kind
        self.places = [i for i, name in enumerate(labels_of(corpus.frame)) if name == text_kind]
        ids, clusters = corpus.frame["id"].astype(str).tolist(), clusters_of(corpus.frame)
        self.units: Sequence[str] = [ids[i] for i in self.places]
        self.clusters: Sequence[str] = [clusters[i] for i in self.places]
        self.measures: Sequence[Measure] = []
        self.facts: Mapping[str, Any] = {"texts": corpus.fingerprint(), "text_kind": text_kind, **facts}
        self.cost = Cost(read=int(corpus.lengths[self.places].sum()))


class RepetitionLogProbability(_OfKind):
    """Log-probability of the tokens of the repetitions behind the first, teacher-forced, in nats per token.

    A repetition's tokens count equally, without the first where the seam is not the text's own; ``copy`` 1 is the
    second repetition, and without ``copy`` it is the mean over those that a text has.

    Args:
        model: the model.
        corpus: joined texts with cycles, of all kinds.
        text_kind: the kind that is measured.
        when: ``"all"``: edited at every position; ``"from_onset"``: from the one that predicts the second repetition.
        copies: repetitions beyond the first.
        by_copy: measure each repetition as well.
        brief: of the second repetition only so many tokens count, and no others: where each token costs much.
    """

    def __init__(
        self,
        model: Model,
        corpus: Corpus,
        text_kind: str,
        when: When,
        copies: int,
        by_copy: bool = True,
        brief: int | None = None,
    ) -> None:
        one_of("when", when, ("from_onset", "all"))
        facts = {} if brief is None else {"brief": brief}
        super().__init__(model, corpus, text_kind, when=when, copies=copies, **facts)
        self.brief = brief
        self.copies, name = copies, f"{LOG_PROBABILITY}, {text_kind}"
        self.measures = [Measure(name, copy=copy) for copy in (None, *(range(1, copies + 1) if by_copy else ()))]
        onsets = corpus.frame["onset"].astype(int).tolist()
        self.texts = []
        for i in self.places:
            tokens, start = corpus.row(i), 0 if when == "all" else onsets[i] - 1
            if brief is not None:
                seam = int(bool(corpus.frame["seam"][i]))
                tokens = tokens[: onsets[i] + seam + min(brief, int(corpus.frame["period"][i]) - seam)]
            self.texts.append(ScoredText(tuple(tokens), onsets[i], start, i))

    @property
    def screened(self) -> str:
        """The mean over repetitions."""
        return self.measures[0].label

    def weighted(self) -> list[WeightedText]:
        """What each token counts in the mean over repetitions."""
        chosen = []
        for place, text in zip(self.places, self.texts, strict=True):
            facts, n = self.corpus.frame.iloc[place], len(text.tokens) - text.first
            period, skipped, weights = int(facts["period"]), int(bool(facts["seam"])), torch.zeros(n)
            whole = 1 if self.brief is not None else max(1, min(self.copies, n // period))
            for copy in range(whole):
                part = weights[copy * period + skipped : (copy + 1) * period]
                part += 1 / (max(1, len(part)) * whole)
            chosen.append(WeightedText(text, weights))
        return chosen

    def values(
        self, interventions: Sequence[Intervention | None], progress: bool | None
    ) -> Float[Tensor, "measure intervention text"]:
        """Means over the repetitions, and of each."""
        what = f"ablating heads, {self.text_kind} texts"
        scored = score_tokens(self.model, self.texts, interventions, progress=progress, what=what)
        by_copy = torch.full((self.copies, len(interventions), len(self.texts)), torch.nan, dtype=torch.float64)
        for number, (place, scores) in enumerate(zip(self.places, scored, strict=True)):
            facts, found = self.corpus.frame.iloc[place], scores.log_probability
            period, skipped = int(facts["period"]), int(bool(facts["seam"]))
            if self.brief is not None:
                by_copy[0, :, number] = found[:, skipped:].double().mean(1)
                continue
            whole = min(self.copies, found.shape[1] // period)
            if whole and period > skipped:
                means = found[:, : whole * period].double().unflatten(1, (whole, period))[..., skipped:].mean(-1)
                by_copy[:whole, :, number] = means.T
        return torch.cat([by_copy.nanmean(0, keepdim=True), by_copy])[: len(self.measures)]


class Patched(_OfKind):
    """Log-probability of the first token of a repetition with heads taken from a donor text at one position.

    The interventions name the heads; what is put in their place is what they wrote in the donor.
    """

    def __init__(self, model: Model, corpus: Corpus, text_kind: str, donors: Corpus, copy: int, seed: int) -> None:
        super().__init__(model, corpus, text_kind, donors=donors.fingerprint(), patched=copy, seed=seed)
        self.cache, self.copy, self.seed = CorpusCache(model, donors, progress=False), copy, seed
        self.measures = [Measure(f"{LOG_PROBABILITY}, {text_kind}")]

    def values(
        self, interventions: Sequence[Intervention | None], progress: bool | None
    ) -> Float[Tensor, "1 intervention text"]:
        """One number per text; NaN where no donor is as long."""
        values = torch.full((1, len(interventions), len(self.places)), torch.nan, dtype=torch.float64)
        with progress_bar(len(self.places), f"patching heads, {self.text_kind} texts", "text", progress) as bar:
            for number, text in enumerate(self.places):
                place = _place(self.corpus, text, self.copy)
                donor = None if place is None else _donor(self.corpus, text, place, self.cache.corpus, self)
                if place is not None and donor is not None:
                    here = slice(donor[1], donor[1] + 1)
                    table = self.cache.get(Site.Z, texts=[donor[0]], positions=here)[:, 0, 0].float()
                    edits = [Heads(one.units, mean(table)) if isinstance(one, Heads) else None for one in interventions]
                    asked = ScoredText(tuple(self.corpus.row(text)[: place + 1]), place, place - 1, text)
                    (scores,) = score_tokens(self.model, [asked], edits, progress=False)
                    values[0, :, number] = scores.log_probability[:, 0].double()
                bar.update()
        return values


def _place(corpus: Corpus, text: int, copy: int) -> int | None:
    """Position of the first token of a repetition that counts; ``None`` if the text ends before it."""
    facts = corpus.frame.iloc[text]
    place = int(facts["start"]) + copy * int(facts["period"]) + int(bool(facts["seam"]))
    return place if place < int(corpus.lengths[text]) else None


def _donor(corpus: Corpus, text: int, place: int, donors: Corpus, asked: Patched) -> tuple[int, int] | None:
    """A donor text, and the position in it that predicts; ``None`` if no donor is long enough."""
    places = []
    for donor in range(len(donors)):
        found = _place(donors, donor, asked.copy) if pd.notna(donors.frame["start"][donor]) else place
        places.append(found if found is not None and found <= int(donors.lengths[donor]) else None)
    usable = [donor for donor, found in enumerate(places) if found is not None]
    if not usable:
        return None
    same = [donor for donor in usable if donors.frame["prompt"][donor] == corpus.frame["prompt"][text]]
    generator = np.random.default_rng([asked.seed, text])
    chosen = same[0] if same else usable[int(generator.integers(len(usable)))]
    found = places[chosen]
    assert found is not None
    return chosen, found - 1


class Regenerated(_OfKind):
    """Share of ``new`` tokens that go on with the cycle when a text is regenerated, and how many were generated."""

    regenerates = True

    def __init__(self, model: Model, corpus: Corpus, text_kind: str, when: When, new: int) -> None:
        super().__init__(model, corpus, text_kind, when=when, max_new_tokens=new)
        self.new, self.when = new, when
        self.measures = [Measure(f"{COPIED}, {text_kind}", "share"), Measure(f"{NEW_TOKENS}, {text_kind}", "count")]
        self.cost = replace(self.cost, written=new * len(self.places))

    def values(
        self, interventions: Sequence[Intervention | None], progress: bool | None
    ) -> Float[Tensor, "2 intervention text"]:
        """Share of tokens that go on with the cycle, and tokens generated."""
        frame = self.corpus.frame
        seams = {i: int(frame["seam"][i]) for i in self.places}  # a seam is given: nothing could foresee it
        prompts = {i: tuple(self.corpus.row(i)[: int(frame["prompt_length"][i]) + seams[i]]) for i in self.places}
        requests = [Request(prompts[i], self.new, one, 0 if self.when == "all" else len(prompts[i]) - 1, i)
                    for one in interventions for i in self.places]  # fmt: skip
        answers = run_requests(self.model, requests, progress=progress, what=f"regenerating, {self.text_kind} texts")
        rows = []
        for answer in answers:
            i = answer.request.text
            cycle = self.corpus.row(i)[int(frame["start"][i]) : int(frame["onset"][i])]
            run = copy_run(answer.tokens, [*cycle[seams[i] :], *cycle[: seams[i]]])
            rows.append((run / self.new, float(len(answer.tokens))))
        return torch.tensor(rows, dtype=torch.float64).T.reshape(2, len(interventions), len(self.places))
