"""``compare``: what a model writes after the same prompts under several interventions, and where the texts part.

Every token keeps the probabilities that it was chosen by, so that *where* two continuations part comes with *why*: how
far apart the two tokens were before anything was changed, and how far afterwards.
"""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeAlias, runtime_checkable

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechrep.errors import InputError
from mechrep.generation.decode import NEW_TOKENS, Decoding, decoding_of, generate
from mechrep.guards import Count, guarded, within
from mechrep.interventions.apply import first_edited, logits
from mechrep.interventions.ops import Heads, Intervention, Neurons
from mechrep.models.model import Model
from mechrep.notation import heads_and_neurons
from mechrep.provenance import provenance_of
from mechrep.results import Result
from mechrep.tables import number
from mechrep.text.corpus import Corpus, CorpusLike
from mechrep.text.shown import printable, token_texts

BASELINE = "baseline"
_VALUES_AT_ONCE = 2**26  # logits that are held at a time: 256 MB
_MARK = "background:rgba(232,66,15,.28);border-bottom:2px solid #e8420f"
_AFTER = "background:rgba(232,66,15,.08)"
_LOOP = "border-bottom:2px dotted #3b82c4"


@runtime_checkable
class _HasIntervention(Protocol):
    """A circuit, or whatever else knows how it is ablated."""

    def intervention(self) -> Intervention:
        """The intervention."""
        ...


Change: TypeAlias = "Intervention | _HasIntervention | str | None"


@dataclass(frozen=True)
class Parting:
    """Where a continuation leaves that of the first condition.

    Attributes:
        condition: which one leaves.
        text: number of the prompt.
        step: number of the first new token that differs, from 0.
        before: the token of the first condition, "" where its text has ended.
        after: the token in its place.
        margin_before: log-probability of ``before`` minus that of ``after`` in the first condition, nats: how near the
            two were.  NaN where a text has ended.
        margin_after: the same under the condition: below 0 where it prefers the other token.
    """

    condition: str
    text: int
    step: int
    before: str
    after: str
    margin_before: float
    margin_after: float


@dataclass(frozen=True, eq=False)
class Comparison(Result):
    """Continuations of the same prompts, side by side.  Printed, it is text; in a notebook, a table.

    Attributes:
        conditions: names; the first is what the others are compared with.
        prompts: the prompts as text.
        written: what follows, token by token as text: ``[condition][text][step]``.
        ids: the same as ids; -1 behind the end.
        log_probability: of each written token, under its condition.
        top_ids: the most probable tokens of each step, the best first.
        top_log_probability: theirs.
        words: of every id in ``top_ids``, by its number.
        onsets: place of the loop's second copy among the new tokens ``[condition][text]``; ``None``: no loop.
        partings: where each other condition leaves the first; texts that never do are not listed.
    """

    conditions: Sequence[str]
    prompts: Sequence[str]
    written: Sequence[Sequence[Sequence[str]]]
    ids: Int[Tensor, "condition text step"]
    log_probability: Float[Tensor, "condition text step"]
    top_ids: Int[Tensor, "condition text step rank"]
    top_log_probability: Float[Tensor, "condition text step rank"]
    words: Mapping[str, str]
    onsets: Sequence[Sequence[int | None]]
    partings: Sequence[Parting]

    nested: ClassVar[Mapping[str, type]] = {"partings": Parting}

    @guarded
    def text(self, condition: str, text: int = 0) -> str:
        """A continuation.

        Raises:
            InputError: a condition that is not there.
        """
        return "".join(self.written[self._place(condition)][text])

    @guarded
    def parting(self, condition: str, text: int = 0) -> Parting | None:
        """Where a continuation leaves that of the first condition; ``None``: nowhere.

        Raises:
            InputError: a condition that is not there.
        """
        self._place(condition)
        return next((one for one in self.partings if (one.condition, one.text) == (condition, text)), None)

    def _place(self, condition: str) -> int:
        if condition not in self.conditions:
            raise InputError(f"condition {condition!r}", f"one of {', '.join(self.conditions)}", "choose one")
        return list(self.conditions).index(condition)

    def to_frame(self) -> pd.DataFrame:
        """One row per prompt and condition: the continuation, where its loop begins, where and how it parts."""
        rows = []
        for text, prompt in enumerate(self.prompts):
            for place, condition in enumerate(self.conditions):
                one = self.parting(condition, text)
                rows.append(
                    {
                        "prompt": prompt,
                        "condition": condition,
                        "continuation": self.text(condition, text),
                        "onset": self.onsets[place][text],
                        "parts_at": None if one is None else one.step,
                        "before": None if one is None else one.before,
                        "after": None if one is None else one.after,
                        "margin_before": None if one is None else one.margin_before,
                        "margin_after": None if one is None else one.margin_after,
                    }
                )
        kinds = {"onset": "Int64", "parts_at": "Int64", "margin_before": float, "margin_after": float}
        return pd.DataFrame(rows).astype(kinds)

    def steps(self) -> pd.DataFrame:
        """One row per prompt, condition, step and rank: the token written, the candidate, and their probabilities."""
        rows = []
        for place, condition in enumerate(self.conditions):
            for text in range(len(self.prompts)):
                for step, token in enumerate(self.written[place][text]):
                    chosen = float(self.log_probability[place, text, step].exp())
                    best = self.top_ids[place, text, step].tolist()
                    chances = self.top_log_probability[place, text, step].exp().tolist()
                    for rank, (one, chance) in enumerate(zip(best, chances, strict=True)):
                        rows.append((text, condition, step, token, chosen, rank, self.words[str(one)], chance))
        columns = ["text", "condition", "step", "token", "probability", "rank", "candidate", "candidate_probability"]
        return pd.DataFrame(rows, columns=columns)

    # --- shown ------------------------------------------------------------------------------------------------------

    def __str__(self) -> str:
        wide, lines = max(map(len, self.conditions)), []
        for text, prompt in enumerate(self.prompts):
            lines.append(f"{prompt}│")
            for place, condition in enumerate(self.conditions):
                pieces, one = list(self.written[place][text]), self.parting(condition, text)
                if one is not None and one.step < len(pieces):
                    pieces[one.step] = f"⟦{pieces[one.step]}⟧"
                lines.append(f"{condition:>{wide}}  {' '.join(''.join(pieces).splitlines())}")
                if one is not None:
                    lines.append(f"{'':>{wide}}  {_why(one)}")
            lines.append("")
        return printable("\n".join(lines).rstrip())

    def _repr_html_(self) -> str:
        heads = "".join(f'<th style="text-align:left">{html.escape(name)}</th>' for name in self.conditions)
        rows = []
        for text, prompt in enumerate(self.prompts):
            shown = (
                f'<td colspan="{len(self.conditions)}" style="text-align:left;opacity:.7">{html.escape(prompt)}</td>'
            )
            cells = "".join(
                f'<td style="text-align:left;vertical-align:top;white-space:pre-wrap">{self._cell(place, text)}</td>'
                for place in range(len(self.conditions))
            )
            rows.append(f"<tr>{shown}</tr><tr>{cells}</tr>")
        caption = html.escape(f"{self.provenance.model['name']}: the first token that differs is marked")
        table = f"<table><thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
        return f'<div style="overflow-x:auto;max-width:100%"><p><strong>{caption}</strong></p>{table}</div>'

    def _cell(self, place: int, text: int) -> str:
        """The continuation of one condition, each token with the candidates of its step as its title."""
        one, onset = self.parting(self.conditions[place], text), self.onsets[place][text]
        spans = []
        for step, token in enumerate(self.written[place][text]):
            style = [] if one is None or step < one.step else [_MARK if step == one.step else _AFTER]
            style += [_LOOP] if onset is not None and step >= onset else []
            title = html.escape(self._candidates(place, text, step), quote=True)
            spans.append(f'<span style="{";".join(style)}" title="{title}">{html.escape(token)}</span>')
        if one is not None:
            spans.append(f'<br><small style="opacity:.7">{html.escape(_why(one))}</small>')
        return "".join(spans)

    def _candidates(self, place: int, text: int, step: int) -> str:
        chance = float(self.log_probability[place, text, step].exp())
        best = zip(self.top_ids[place, text, step].tolist(), self.top_log_probability[place, text, step], strict=True)
        listed = [f"{self.words[str(one)]!r} {number(float(value.exp()))}" for one, value in best]
        return f"step {step}, p = {number(chance)}\n" + "\n".join(listed)


def _why(one: Parting) -> str:
    """Where it parts, and by how much the two tokens were apart."""
    place = f"parts at new token {one.step}: {one.before or '(end)'!r} → {one.after or '(end)'!r}"
    if one.margin_before != one.margin_before:
        return place
    before, after = (number(float(f"{margin:.2g}")) for margin in (one.margin_before, one.margin_after))
    return f"{place}; the first was ahead by {before} nats before, {after} after"


@guarded
def compare(
    model: Model,
    prompts: CorpusLike,
    conditions: Mapping[str, Change] | Change,
    *,
    max_new_tokens: Count = NEW_TOKENS,
    top_k: int = 5,
    decoding: Decoding | None = None,
    progress: bool | None = None,
    **fields: Any,
) -> Comparison:
    """Continue the same prompts under several interventions, and see where and why the continuations part.

    Args:
        model: the model.
        prompts: one or several, or what :meth:`mechrep.Corpus.of` makes some of.
        conditions: interventions by name, ``None`` for the model as it is; the first is what the others are compared
            with.  An intervention is one of :mod:`mechrep.interventions`, a circuit, or components to set to zero by
            name, ``"L18H6,L2N57"``.  A single one is compared with the model as it is.
        max_new_tokens: continue by at most so many tokens.
        top_k: candidates that are kept at each step.
        decoding: as in :func:`mechrep.generate`; by default greedy.  When sampling, all conditions get the same random
            numbers.
        progress: show a progress bar; by default to people only.
        **fields: those of :class:`~mechrep.Decoding`, in place of ``decoding``.

    Raises:
        InputError: a single condition, what is no intervention, or as :func:`mechrep.generate`.

    Example:
        >>> import mechrep
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> heads = {"baseline": None, "without L2H0": mechrep.Heads("L2H0")}
        >>> both = compare(model, "The sea was", heads, max_new_tokens=12)
        >>> both.parting("without L2H0").step < 12
        True
        >>> print(both)  # doctest: +ELLIPSIS
        <|bos|>The sea was│
            baseline  ...
        without L2H0  ...
    """
    chosen, rules = _conditions(conditions), decoding_of(decoding, fields)
    top_k = within("top_k", top_k, 1, model.anatomy.d_vocab, "a number of candidates")
    corpus = Corpus.of(prompts, model)
    lengths, decode = corpus.lengths.tolist(), model.decode
    texts = [
        generate(
            model, corpus, max_new_tokens=max_new_tokens, decoding=rules, interventions=one, progress=progress
        ).with_cycles(eos_id=model.eos_ids)
        for one in chosen.values()
    ]
    most = max(int(length) - first for written in texts for length, first in zip(written.lengths, lengths, strict=True))
    ids = _padded([[written.row(i)[lengths[i] :] for i in range(len(corpus))] for written in texts], most)
    kept = _Kept(ids, top_k)
    for place, one in enumerate(chosen.values()):
        starts = first_edited(corpus.frame, lengths, [one] * len(corpus))
        for text, table in enumerate(_scored(model, texts[place], lengths, one, starts)):
            kept.take(place, text, table)
    special = model.special_ids
    pieces = [[token_texts(w.row(i), decode, special)[lengths[i] :] for i in range(len(corpus))] for w in texts]
    config = {"study": "compare", "max_new_tokens": max_new_tokens, "top_k": top_k}
    config |= {"conditions": {name: repr(one) for name, one in chosen.items()}}
    config |= {"temperature": rules.temperature, "sampled_from": rules.top_k, "seed": rules.seed}
    return Comparison(
        provenance_of(model, corpus, config),
        list(chosen),
        [decode(corpus.row(i)) for i in range(len(corpus))],
        pieces,
        ids,
        kept.chances,
        kept.best,
        kept.best_chances,
        {str(one): decode([one]) for one in kept.best[kept.best >= 0].unique().tolist()},
        [[_onset(written, i, lengths[i]) for i in range(len(corpus))] for written in texts],
        _partings(list(chosen), pieces, kept),
    )


def _conditions(given: Mapping[str, Change] | Change) -> dict[str, Intervention | None]:
    """Interventions by name.

    Raises:
        InputError: fewer than two, or what is no intervention.
    """
    if not isinstance(given, Mapping):
        name = f"without {given}" if isinstance(given, str) else str(given)[:80]
        given = {BASELINE: None, name: given}
    if len(given) < 2:
        raise InputError(
            f"{len(given)} conditions", "at least two", "compare with the model as it is: 'baseline': None"
        )
    return {str(name): _intervention(one) for name, one in given.items()}


def _intervention(given: Change) -> Intervention | None:
    if given is None or isinstance(given, Intervention):
        return given
    if isinstance(given, str):
        named = heads_and_neurons(given)
        made = [make(named[kind]) for kind, make in (("head", Heads), ("neuron", Neurons)) if named[kind]]
        return made[0] if len(made) == 1 else made[0] + made[1]
    if isinstance(given, _HasIntervention):
        return given.intervention()
    raise InputError(f"a {type(given).__name__}", "an intervention, or components by name", "use mechrep.Heads('L2H0')")


def _scored(
    model: Model, written: Corpus, lengths: Sequence[int], one: Intervention | None, starts: Sequence[int]
) -> Iterator[Float[Tensor, "step d_vocab"]]:
    """Log-probabilities of every new place, text by text, read under the intervention that it was written under."""
    at_once = max(1, _VALUES_AT_ONCE // (written.tokens.shape[1] * model.anatomy.d_vocab))
    for begin in range(0, len(written), at_once):
        some = list(range(begin, min(begin + at_once, len(written))))
        sizes = written.lengths[some]
        tokens = written.tokens[some][:, : int(sizes.max())].to(model.device)
        raw = logits(
            model,
            tokens,
            one,
            starts=torch.tensor([starts[i] for i in some]),
            lengths=sizes.to(model.device),
            texts=some,
        )
        for row, i in enumerate(some):
            yield raw[row, lengths[i] - 1 : int(sizes[row]) - 1].float().log_softmax(-1).cpu()


def _padded(rows: Sequence[Sequence[Sequence[int]]], most: int) -> Int[Tensor, "condition text step"]:
    """Ids side by side, -1 behind the end."""
    return torch.tensor([[[*text, *[-1] * (most - len(text))] for text in texts] for texts in rows])


class _Kept:
    """What is kept of the log-probabilities of each text, which are too many for all texts together."""

    def __init__(self, ids: Int[Tensor, "condition text step"], k: int) -> None:
        self.ids, self.k = ids, k
        self.chances, self.best = torch.full(ids.shape, torch.nan), torch.full((*ids.shape, k), -1)
        self.best_chances = torch.full((*ids.shape, k), torch.nan)
        differs = [(int(c), int(text), int(step)) for c, text, step in (ids != ids[:1]).nonzero()]
        self.steps = {(c, text): step for c, text, step in reversed(differs)}  # the first that differs
        self.margins: dict[tuple[int, int, bool], float] = {}  # (condition, text, whether under it)

    def take(self, place: int, text: int, table: Float[Tensor, "step d_vocab"]) -> None:
        """Keep what was written and the best candidates of each step, and the margins where texts part."""
        n = len(table)
        self.chances[place, text, :n] = table.gather(1, self.ids[place, text, :n, None])[:, 0]
        top = table.topk(self.k, dim=-1)
        self.best[place, text, :n], self.best_chances[place, text, :n] = top.indices, top.values
        for condition in range(1, len(self.ids)) if place == 0 else [place]:
            step = self.steps.get((condition, text))
            if step is not None and (self.ids[[0, condition], text, step] >= 0).all():
                one, other = self.ids[[0, condition], text, step].tolist()
                self.margins[condition, text, place > 0] = float(table[step, one] - table[step, other])


def _onset(written: Corpus, text: int, length: int) -> int | None:
    onset = written.frame["onset"].iloc[text]
    return None if pd.isna(onset) else max(0, int(onset) - length)


def _partings(names: Sequence[str], pieces: Sequence[Sequence[Sequence[str]]], kept: _Kept) -> list[Parting]:
    found = []
    for (place, text), step in sorted(kept.steps.items()):
        before, after = (pieces[c][text][step] if kept.ids[c, text, step] >= 0 else "" for c in (0, place))
        margins = [kept.margins.get((place, text, under), float("nan")) for under in (False, True)]
        found.append(Parting(names[place], text, step, before, after, margins[0], margins[1]))
    return found
