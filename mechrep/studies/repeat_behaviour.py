"""Can the model repeat a token?  What it says after n repetitions of one, with and without an intervention.

A text is a prefix (BOS, or a chat in which the user asks for the word) and n repetitions of one token x::

    p_next(n)    = P(next token = x | prefix, n times x)          continues(n): whether x is the most probable one
    run(n)       = how often the model goes on to write x greedily, up to ``new_tokens``
    abandoned(n) = whether run(n) < new_tokens

The first two read given repetitions (teacher-forced), the others leave the model to its own.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from mechrep.ablation.effects import ABLATION, BASELINE, Condition, Effects, Measure
from mechrep.ablation.outcomes import Cost
from mechrep.ablation.run import Cell, measure_effects
from mechrep.ablation.score import ScoredText, score_tokens
from mechrep.ablation.sink_outcomes import foretold_repetitions
from mechrep.errors import InputError
from mechrep.figures import DASHES, INK, SEQUENCE, counted, finished, panels, place_of, plain, style_of, translucent
from mechrep.generation.decode import Decoding, Request, run_requests
from mechrep.guards import Count, each_once, guarded, within
from mechrep.interventions.apply import fingerprint_of, first_edited
from mechrep.interventions.ops import Intervention
from mechrep.measures.sink_norms import repeat_grid
from mechrep.models.model import Model
from mechrep.run import LARGE_WEIGHTS, Run
from mechrep.text.corpus import Corpus
from mechrep.text.stimuli import RepeatedToken, single_token_id
from mechrep.text.token_kinds import ordinary_ids

if TYPE_CHECKING:
    import plotly.graph_objects as go

INSTRUCTION = "Repeat the word {word} again and again, and say nothing else."
_TOKENS = 32

Interventions = Mapping[str, Intervention] | Sequence[Cell]


@guarded
def repeat_behaviour(
    model: Model,
    tokens: Sequence[int | str] | int = _TOKENS,
    ns: Sequence[int] | None = None,
    interventions: Interventions = (),
    *,
    new_tokens: Count = 32,
    prompt: str = "bare",
    bos: bool = True,
    run: Run | None = None,
) -> Effects:
    """Gives repetitions of a token and sees whether the model goes on with it.

    Args:
        model: the model.
        tokens: ids, or words of one token; a number means so many ordinary tokens drawn at random.
        ns: numbers of repetitions that are given; by default some from 1 to 512, as far as the context allows (the
            effort says how many).
        interventions: what to change, by name; or conditions with controls, the baseline first, for instance of
            :func:`~mechrep.studies.sink_ablation.sink_conditions`.  One that begins ``"from_onset"`` begins at the
            position that predicts the second repetition.
        new_tokens: how many further repetitions are asked for.
        prompt: ``"bare"``: the repetitions alone.  ``"chat"``: the tokenizer's chat template with a user who asks for
            the word; the repetitions are the beginning of the answer.  Other text with ``{word}`` in it: what the user
            says.
        bos: whether bare repetitions follow BOS; without it the first one is the first position.
        run: options.  Texts are written under the first ``run.sizes.regenerated_draws`` draws of each control.

    Returns:
        Effects; measures ``p_next``, ``continues``, ``run`` and ``abandoned``, each for every number of repetitions
        (column ``copy``); units are tokens.

    Raises:
        InputError: no tokens or repetitions, one twice, texts longer than the context, an intervention called
            ``"baseline"``, or a chat for a tokenizer without a chat template.

    Source: that repeating fails after many repetitions is Nasr et al. 2023 (arXiv 2311.17035) and Yona et al. 2025
    (arXiv 2503.08908).  The paper's own measure of success is not known to us; these are mechrep's.

    Limits: greedy; a model that samples leaves off earlier.  After few repetitions nobody expects another: read
    ``p_next`` at n = 1 as a floor, and compare conditions with the baseline token by token.

    Example:
        >>> import mechrep
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> without = {"one neuron": mechrep.Neurons([(0, 3)], "zero", when="all")}
        >>> effects = repeat_behaviour(model, [300, 301], [1, 8], without, new_tokens=4)
        >>> effects.of("run", copy=8).shape, bool(effects.of("run", copy=8).max() <= 4)
        ((2, 2), True)
    """
    options = run or Run()
    cells = _cells(interventions)
    ids = _token_ids(model, tokens, options.seed)
    prefixes = [_prefix(model, token, prompt, bos) for token in ids]
    counts = _counts(model, ns, max(map(len, prefixes)), new_tokens, options)
    corpus = _corpus(model, ids, prefixes, counts, "as given" if prompt != "bare" else "prepended" if bos else "absent")
    foretold = NextRepetition(model, corpus, counts, options)
    outcomes = [foretold, WrittenRepetitions(model, corpus, counts, new_tokens, options, foretold.left_off)]
    config = {"study": "repeat behaviour", "prompt": prompt, "bos": bos, "repeats": counts, "new_tokens": new_tokens}
    return measure_effects(model, cells, outcomes, config=config, run=options)


class _AfterRepetitions:
    """What both outcomes share: texts by token and number of repetitions, in this order; units are tokens."""

    regenerates = False

    def __init__(self, model: Model, corpus: Corpus, counts: Sequence[int]) -> None:
        self.model, self.corpus, self.counts = model, corpus, list(counts)
        self.units = [str(token) for token in dict.fromkeys(corpus.frame["token_id"])]
        self.clusters = self.units
        self.facts: dict[str, Any] = {"texts": corpus.fingerprint()}
        self.cost = Cost(read=int(corpus.lengths.sum()))
        self.measures: list[Measure] = []

    def _rows(self, values: Float[Tensor, "kind intervention text"]) -> Float[Tensor, "measure intervention token"]:
        """Kinds of numbers by text, as measures (kind by kind, each at every number of repetitions) by token."""
        return values.unflatten(2, (len(self.units), len(self.counts))).permute(0, 3, 1, 2).flatten(0, 1)

    def _start(self, text: int, intervention: Intervention | None) -> int:
        facts = self.corpus.frame.iloc[[text]]
        return first_edited(facts, [int(self.corpus.lengths[text])], [intervention])[0]


class NextRepetition(_AfterRepetitions):
    """``p_next`` and ``continues`` after given repetitions."""

    def __init__(self, model: Model, corpus: Corpus, counts: Sequence[int], run: Run) -> None:
        super().__init__(model, corpus, counts)
        self.foretold = foretold_repetitions(model, run)
        self.left_off: set[tuple[str, int]] = set()  # where another token is the most probable one: nothing to write
        self.regenerates = model.n_weights > LARGE_WEIGHTS  # dear there: as few draws as where texts are written
        self.cost = Cost(read=int(corpus.lengths[len(counts) - 1 :: len(counts)].sum()))
        self.measures = [Measure("p_next", "share", over="token", copy=n) for n in self.counts]
        self.measures += [Measure("continues", "share", over="token", copy=n, trials=1) for n in self.counts]

    def values(
        self, interventions: Sequence[Intervention | None], progress: bool | None
    ) -> Float[Tensor, "measure intervention token"]:
        """The measures."""
        table = torch.zeros(2, len(interventions), len(self.units), len(self.counts), dtype=torch.float64)
        after = torch.tensor(self.counts) - 1
        by_when: dict[str, list[int]] = {}
        for place, intervention in enumerate(interventions):
            kept = self._kept(intervention)
            if kept is None:
                by_when.setdefault("all" if intervention is None else intervention.when, []).append(place)
            else:
                table[:, place] = torch.stack([kept[0].double().exp(), kept[1].double()])[..., after]
        for mine in by_when.values():
            some = [interventions[place] for place in mine]
            example = next((one for one in some if one is not None), None)
            texts = [self._whole(token, example, self.counts[0]) for token in range(len(self.units))]
            scored = score_tokens(self.model, texts, some, progress=progress, what="one more repetition")
            for token, scores in enumerate(scored):
                table[0, mine, token] = scores.log_probability[:, after - after[0]].double().exp()
                table[1, mine, token] = scores.correct[:, after - after[0]].double()
        for place, one in enumerate(interventions):
            if one is None or (one.when == "all" and not one.differs_by_text):
                texts = (table[1, place].flatten() == 0).nonzero().flatten().tolist()
                self.left_off |= {(fingerprint_of(self.model, [one]), text) for text in texts}
        return self._rows(table.flatten(2))

    def _whole(self, token: int, intervention: Intervention | None, after: int = 1) -> ScoredText:
        """The longest text of a token, and one repetition more: what comes after few repetitions is in it."""
        text = (token + 1) * len(self.counts) - 1
        ids = self.corpus.row(text)
        first = len(ids) - self.counts[-1] + after
        return ScoredText((*ids, ids[-1]), first, self._start(text, intervention), text)

    def _kept(self, intervention: Intervention | None) -> tuple[Tensor, Tensor] | None:
        """Log-probabilities and hits ``[token, repetition]`` that another study has read; None where it has not."""
        if intervention is not None and intervention.differs_by_text:
            return None  # the same token is another text there
        key, n = fingerprint_of(self.model, [intervention]), self.counts[-1]
        texts = [self._whole(token, None) for token in range(len(self.units))]
        found = [self.foretold.get((one.tokens[: one.first], key)) for one in texts]
        kept = [(scores[:n], hits[:n]) for scores, hits in filter(None, found) if len(scores) >= n]
        if len(kept) < len(texts):
            return None
        return torch.stack([scores for scores, _ in kept]), torch.stack([hits for _, hits in kept])


class WrittenRepetitions(_AfterRepetitions):
    """``run`` and ``abandoned``: what the model writes after given repetitions."""

    regenerates = True

    def __init__(
        self,
        model: Model,
        corpus: Corpus,
        counts: Sequence[int],
        new_tokens: int,
        run: Run,
        left_off: Collection[tuple[str, int]] = (),
    ) -> None:
        super().__init__(model, corpus, counts)
        self.left_off = left_off
        self.new_tokens, self.batch_size = new_tokens, run.batch_size or 256
        self.measures = [Measure("run", "count", over="token", copy=n) for n in self.counts]
        self.measures += [Measure("abandoned", "share", over="token", copy=n, trials=1) for n in self.counts]
        self.facts |= {"new_tokens": new_tokens}
        self.cost = Cost(self.cost.read, new_tokens * len(corpus))

    def values(
        self, interventions: Sequence[Intervention | None], progress: bool | None
    ) -> Float[Tensor, "measure intervention token"]:
        """The measures."""
        keys = [fingerprint_of(self.model, [one]) for one in interventions]
        shape = len(interventions), len(self.corpus)
        places = [
            (place, text)
            for place, key in enumerate(keys)
            for text in range(len(self.corpus))
            if (key, text) not in self.left_off  # its first token would be another one
        ]
        requests = [
            Request(
                tuple(self.corpus.row(text)),
                self.new_tokens,
                interventions[place],
                self._start(text, interventions[place]),
                text,
            )
            for place, text in places
        ]
        if not requests:  # no repetition is gone on with, under any condition
            return self._rows(torch.stack([torch.zeros(shape), torch.ones(shape)]).double())
        decoding = Decoding(lambda ids: ids[-1] != ids[-2])
        answers = run_requests(
            self.model, requests, decoding, batch_size=self.batch_size, progress=progress, what="going on repeating"
        )
        run = torch.zeros(shape, dtype=torch.float64)
        for (place, text), answer, ask in zip(places, answers, requests, strict=True):
            run[place, text] = _repetitions(list(answer.ids), len(ask.prompt))
        return self._rows(torch.stack([run, (run < self.new_tokens).double()]))


def _repetitions(ids: list[int], prompt_length: int) -> int:
    """How many of the new tokens are the prompt's last one, without a gap."""
    token, new = ids[prompt_length - 1], ids[prompt_length:]
    return next((place for place, other in enumerate(new) if other != token), len(new))


def _cells(interventions: Interventions) -> list[Cell]:
    if not isinstance(interventions, Mapping):
        return list(interventions) or [(Condition(), None)]
    if BASELINE in interventions:
        raise InputError("an intervention called 'baseline'", "another name: that is the model itself", "rename it")
    return [(Condition(), None), *((Condition(name, ABLATION), one) for name, one in interventions.items())]


def _token_ids(model: Model, tokens: Sequence[int | str] | int, seed: int) -> list[int]:
    if isinstance(tokens, int):
        ordinary = ordinary_ids(model)
        within("tokens", tokens, 1, len(ordinary), "a number of ordinary tokens")
        return sorted(np.random.default_rng(seed).choice(ordinary, tokens, replace=False).tolist())
    ids = [single_token_id(model, token) if isinstance(token, str) else token for token in tokens]
    return each_once("tokens", [within("tokens", one, 0, model.anatomy.d_vocab - 1, "an id") for one in ids])


def _prefix(model: Model, token: int, prompt: str, bos: bool) -> list[int]:
    """What stands before the repetitions."""
    if prompt == "bare":
        return RepeatedToken(token, 1, bos).ids(model.bos_id)[:-1]
    instruction = INSTRUCTION if prompt == "chat" else prompt
    if "{word}" not in instruction:
        raise InputError(f"prompt={prompt!r}", "'bare', 'chat' or an instruction with {word} in it", "correct it")
    if getattr(model.tokenizer, "chat_template", None) is None:
        raise InputError(f"a chat with {model.name}", "a tokenizer with a chat template", "use prompt='bare'")
    said = [{"role": "user", "content": instruction.format(word=model.decode([token]).strip())}]
    text = model.tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True)
    return model.encode(text, prepend_bos=False)


def _counts(model: Model, ns: Sequence[int] | None, prefix: int, new_tokens: int, run: Run) -> list[int]:
    room = model.anatomy.n_ctx - prefix - new_tokens
    if ns is None and room >= 1:
        grid = repeat_grid(min(room, run.sizes_on(model).repeats))
        several = np.linspace(len(grid) - 1, 0, min(run.sizes_on(model).curve, len(grid)))  # one: the most
        return sorted({grid[round(i)] for i in several})
    counts = [] if ns is None else sorted(set(ns))
    if not counts or not 1 <= counts[0] <= counts[-1] <= room or new_tokens < 1:
        raise InputError(
            f"ns={ns}, new_tokens={new_tokens} after {prefix} tokens",
            f"numbers of repetitions from 1 on; {model.name} reads {model.anatomy.n_ctx} tokens",
            "give fewer repetitions or ask for fewer new ones",
        )
    return counts


def _corpus(model: Model, ids: list[int], prefixes: list[list[int]], counts: list[int], policy: Any) -> Corpus:
    """One text per token and number of repetitions, in this order."""
    texts = [(token, prefix, n) for token, prefix in zip(ids, prefixes, strict=True) for n in counts]
    frame = pd.DataFrame(
        {
            "id": [f"{token}-x{n}" for token, _, n in texts],
            "token_id": [token for token, _, _ in texts],
            "repeats": [n for _, _, n in texts],
            "onset": [len(prefix) + 1 for _, prefix, _ in texts],
        }
    )
    rows = [[*prefix, *[token] * n] for token, prefix, n in texts]
    return Corpus.from_tokens(
        rows, model=model, attention_mask=True, source="repeat behaviour", frame=frame, bos_policy=policy
    )


_PANELS = {"p_next": "probability of one more repetition", "abandoned": "share of tokens abandoned"}


def repeat_behaviour_figure(effects: Effects) -> go.Figure:
    """Left: probability that the token comes once more.  Right: share of tokens that the model abandons.

    Both against the number of repetitions given: a line for the baseline and each ablation with 95 % intervals over
    tokens, a band from the least to the largest draw of each control.

    Args:
        effects: of :func:`repeat_behaviour`.

    Example:
        >>> import mechrep
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> figure = repeat_behaviour_figure(repeat_behaviour(model, [300, 301], [1, 8], new_tokens=4))
        >>> [line.name for line in figure.data], figure.layout.xaxis.type
        (['baseline', 'baseline'], 'log')
    """
    figure, frame = panels([plain(title) for title in _PANELS.values()], 300), effects.to_frame()
    for panel, measure in enumerate(_PANELS):
        here = frame[(frame["measure"] == measure) & frame["value"].notna()]
        for place, ((name, selection), part) in enumerate(here.groupby(["name", "selection"], sort=False)):
            if selection in (BASELINE, ABLATION):
                _add_line(figure, part, str(name), place, panel)
            else:
                _add_band(figure, part, f"{name}: {str(selection).replace('_', '-')}", str(selection), panel)
    model, tokens = effects.provenance.model["name"], len(effects.units[0])
    finished(
        figure, title="Whether the model goes on repeating a token",
        subtitle=f"{model}, {counted(tokens, 'token')}; 95 % intervals over tokens",
        x="repetitions given (logarithmic)", y="",
    )  # fmt: skip
    for panel, axis in enumerate(("probability", "share")):
        where = place_of(panel)
        figure.update_yaxes(title_text=axis, row=where["row"], col=where["col"])
    figure.update_layout(legend={"orientation": "v", "x": 1.02, "y": 1, "yanchor": "top"})
    return figure.update_xaxes(type="log", dtick=1, tickformat=",").update_yaxes(range=[-0.03, 1.03])


def _add_line(figure: go.Figure, rows: pd.DataFrame, name: str, place: int, panel: int) -> None:
    value = rows["value"]
    low, high = (value - rows["value_low"]).clip(lower=0), (rows["value_high"] - value).clip(lower=0)
    figure.add_scatter(
        x=rows["copy"].to_numpy(int), y=value.to_numpy(), name=plain(name), legendgroup=name, showlegend=panel == 0,
        error_y={"array": high.to_numpy(), "arrayminus": low.to_numpy(), "thickness": 1, "width": 3},
        mode="lines+markers", opacity=1 if place else 0.6, marker={"size": 7 if place else 13},  # equal lines overlap
        line={"color": INK if place == 0 else SEQUENCE[(place - 1) % len(SEQUENCE)], "width": 2 if place else 6,
              "dash": DASHES[place % len(DASHES)]},
        customdata=[plain(name)] * len(rows),  # never inside the template: a name could be taken for a variable
        hovertemplate="%{customdata}<br>%{x:,} repetitions: %{y:.3f}<extra></extra>", **place_of(panel),
    )  # fmt: skip


def _add_band(figure: go.Figure, rows: pd.DataFrame, name: str, selection: str, panel: int) -> None:
    drawn = rows.groupby("copy")["value"]
    x, low, high = drawn.min().index.to_numpy(int), drawn.min().to_numpy(), drawn.max().to_numpy()
    figure.add_scatter(
        x=np.concatenate([x, x[::-1]]), y=np.concatenate([high, low[::-1]]), fill="toself", mode="none",
        fillcolor=translucent(style_of(selection).colour, 0.2), name=plain(name), legendgroup=name,
        showlegend=panel == 0, hoverinfo="skip", **place_of(panel),
    )  # fmt: skip
