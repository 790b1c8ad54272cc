"""Can the model repeat a token?  What it says after n copies of one, with and without an intervention.

A text is a prefix (BOS, or a chat in which the user asks for the word) and n copies of one token x.  Two questions::

    p_next(n) = P(next token = x | prefix, n copies of x)
    run(n)    = how many copies of x the model goes on to write greedily, up to ``new_tokens``

A text *diverges* where ``run < new_tokens``.  The first question is asked with the copies given (teacher-forced), the
second leaves the model to its own copies.

``RepeatBehaviourResult``: how well a model goes on repeating a token, under every condition.

Repeated tokens: whether the model goes on with them, and what a head looks at in them, beside ordinary text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mechrep.errors import InputError
from mechrep.figures import DASHES, INK, SEQUENCE, counted, finished, panels, place_of, plain, shown_token, tick_step
from mechrep.generation.decode import Request, generate, make_requests
from mechrep.interventions.apply import EditTable, position_mask, transformer_lens_hooks
from mechrep.interventions.ops import Intervention, Neurons
from mechrep.measures.sink_neurons import SinkNeuronResult
from mechrep.measures.sink_norms import repeat_grid
from mechrep.models.anatomy import Site
from mechrep.models.model import Model
from mechrep.provenance import provenance_of
from mechrep.results import Result, check_count
from mechrep.stats import paired_bootstrap_interval, proportion_interval
from mechrep.text.corpus import Corpus
from mechrep.text.stimuli import RepeatedToken, ordinary_ids, single_token_id

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclass(frozen=True, eq=False)
class RepeatBehaviourResult(Result):
    """What follows n copies of a token.

    Attributes:
        conditions: names of the interventions; the first is ``"none"``, the untouched model.
        token_ids: the repeated tokens.
        repeats: numbers of copies that were given.
        new_tokens: copies that were asked for.
        prompt: what stood before the copies: ``"bare"`` or ``"chat"``.
        p_next: probability that the token comes once more (teacher-forced).
        top_next: 1 where it is the most probable token.
        run: copies that the model writes greedily before another token, at most ``new_tokens``.
    """

    conditions: Sequence[str]
    token_ids: Sequence[int]
    repeats: Sequence[int]
    new_tokens: int
    prompt: str
    p_next: Float[Tensor, "condition token repeat"]
    top_next: Float[Tensor, "condition token repeat"]
    run: Float[Tensor, "condition token repeat"]

    @property
    def diverged(self) -> Bool[Tensor, "condition token repeat"]:
        """Whether the model left off before it had written all copies."""
        return self.run < self.new_tokens

    def of(self, condition: str) -> int:
        """The row of a condition.

        Raises:
            InputError: no condition of this name.
        """
        if condition not in self.conditions:
            raise InputError(f"condition {condition!r}", f"one of {list(self.conditions)}", "choose among these")
        return list(self.conditions).index(condition)

    def ranking(self, condition: str = "none") -> list[int]:
        """Token ids, those that are repeated least first: the smallest mean run over all numbers of copies."""
        runs = self.run[self.of(condition)].double().mean(1)
        return [self.token_ids[place] for place in runs.argsort(stable=True).tolist()]

    def top(self, k: int, condition: str = "none") -> list[int]:
        """The ``k`` tokens that the model repeats least.

        Raises:
            InputError: ``k`` larger than the number of tokens, or no such condition.
        """
        check_count(k, len(self.token_ids), "tokens")
        return self.ranking(condition)[:k]

    def to_frame(self) -> pd.DataFrame:
        """One row per condition and number of copies, over all tokens, with 95 % intervals.

        Columns: ``condition, repeats, tokens``; ``p_next`` (mean over tokens) with ``p_low, p_high`` (bootstrap over
        tokens); ``continues``, the share whose most probable next token is the same; ``run`` (mean) with ``run_low,
        run_high``; ``diverged`` (share) with ``diverged_low, diverged_high`` (Wilson); and paired differences from the
        untouched model, ``p_change`` and ``run_change``, with intervals (bootstrap over tokens; 0 in its own rows).
        """
        rows = []
        for index, condition in enumerate(self.conditions):
            for place, n in enumerate(self.repeats):
                p_next, run = self.p_next[index, :, place].double(), self.run[index, :, place].double()
                count = int(self.diverged[index, :, place].sum())
                row = {"condition": condition, "repeats": n, "tokens": len(p_next)}
                row |= _with_interval("p_next", "p", p_next)
                row |= {"continues": float(self.top_next[index, :, place].double().mean())}
                row |= _with_interval("run", "run", run) | {"diverged": count / len(run)}
                low, high = proportion_interval(count, len(run))
                row |= {"diverged_low": low, "diverged_high": high}
                row |= _with_interval("p_change", "p_change", p_next - self.p_next[0, :, place].double())
                row |= _with_interval("run_change", "run_change", run - self.run[0, :, place].double())
                rows.append(row)
        return pd.DataFrame(rows)

    def plot(self) -> go.Figure:
        """Probability of going on and share that diverge, against the number of copies."""
        return repeat_behaviour_figure(self)


def _with_interval(name: str, short: str, values: Float[Tensor, " token"]) -> dict[str, float]:
    low, high = paired_bootstrap_interval(values.tolist())
    return {name: float(values.mean()), f"{short}_low": low, f"{short}_high": high}


Prompt = Literal["bare", "chat"]

INSTRUCTION = "Repeat the word {word} again and again, and say nothing else."
_TOKENS, _LONGEST, _POINTS = 32, 512, 8
_TOKENS_PER_BATCH = 8192


def repeat_behaviour(
    model: Model,
    tokens: Sequence[int | str] | int = _TOKENS,
    ns: Sequence[int] | None = None,
    interventions: Mapping[str, Intervention] | None = None,
    *,
    new_tokens: int = 32,
    prompt: Prompt = "bare",
    bos: bool = True,
    instruction: str = INSTRUCTION,
    seed: int = 0,
    batch_size: int = 256,
    progress: bool | None = None,
) -> RepeatBehaviourResult:
    """Gives copies of a token and sees whether the model goes on with it.

    Args:
        model: the model.
        tokens: ids, or words of one token; a number means so many ordinary tokens drawn at random.
        ns: numbers of copies that are given; by default eight from 1 to 512, as far as the context allows.
        interventions: what to change, by name: any interventions, for instance :func:`sink_conditions`.  The untouched
            model is always measured too, as ``"none"``.  One that begins ``"from_onset"`` begins at the position that
            predicts the second copy.
        new_tokens: how many further copies are asked for.
        prompt: ``"bare"``: the copies alone.  ``"chat"``: the tokenizer's chat template with a user who asks for the
            word; the copies are the beginning of the answer.
        bos: whether bare copies follow BOS; without it the first copy is the first position.
        instruction: what the user says, with ``{word}`` where the token stands.
        seed: of the tokens drawn.
        batch_size: rows computed together.
        progress: show a progress bar; by default to people only.

    Returns:
        Probabilities and runs by condition, token and number of copies.

    Raises:
        InputError: no tokens or copies, one twice, texts longer than the context, an intervention called ``"none"``,
            or a chat for a tokenizer without a chat template.

    Source: that repeating fails after many copies is Nasr et al. 2023 (arXiv 2311.17035) and Yona et al. 2025 (arXiv
    2503.08908).  The paper's own measure of success is not known to us; these two are mechrep's.

    Limits: greedy; a model that samples diverges earlier.  After few copies nobody expects a repeat: read ``p_next`` at
    n = 1 as a floor, and compare conditions with the untouched model text by text.

    Example:
        >>> import mechrep
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> cut = {"cut": mechrep.Neurons([(0, 3)], "zero", when="all")}
        >>> result = repeat_behaviour(model, [300, 301], [1, 8], cut, new_tokens=4)
        >>> result.conditions, tuple(result.run.shape), int(result.run.max()) <= 4
        (['none', 'cut'], (2, 2, 2), True)
    """
    named: dict[str, Intervention | None] = {"none": None, **(interventions or {})}
    if interventions and "none" in interventions:
        raise InputError("an intervention called 'none'", "another name: that is the untouched model", "rename it")
    ids = _token_ids(model, tokens, seed)
    prefixes = [_prefix(model, token, prompt, bos, instruction) for token in ids]
    counts = _counts(model, ns, max(map(len, prefixes)), new_tokens)
    corpus = _corpus(model, ids, prefixes, counts, bos, prompt)
    conditions = [intervention for intervention in named.values() for _ in range(len(corpus))]
    repeated = _times(corpus, len(named))
    p_next, top = _next(model, make_requests(repeated, conditions, None), batch_size)
    answers = generate(
        model,
        repeated,
        max_new_tokens=new_tokens,
        interventions=conditions,
        stop_when=_left_off,
        batch_size=batch_size,
        progress=progress,
    )
    run = torch.tensor([_copies(answers.row(i), len(repeated.row(i))) for i in range(len(repeated))]).float()
    shape = (len(named), len(ids), len(counts))
    config = {
        "study": "repeat behaviour",
        "new_tokens": new_tokens,
        "prompt": prompt,
        "bos": bos,
        "instruction": instruction if prompt == "chat" else None,
        "seed": seed,
    }
    return RepeatBehaviourResult(
        provenance_of(model, corpus, config),
        conditions=list(named),
        token_ids=ids,
        repeats=counts,
        new_tokens=new_tokens,
        prompt=prompt,
        p_next=p_next.reshape(shape),
        top_next=top.reshape(shape),
        run=run.reshape(shape),
    )


def sink_conditions(neurons: SinkNeuronResult, k: int = 1, *, draws: int = 3, seed: int = 0) -> dict[str, Intervention]:
    """Interventions for :func:`repeat_behaviour`: sink neurons set to zero, and as many others as controls.

    Args:
        neurons: scores of the sink layer's neurons, see :func:`mechrep.measures.sink_neurons.sink_neurons`.
        k: how many are cut together.
        draws: sets of random other neurons of the layer.
        seed: of these draws.

    Returns:
        ``"sink"``: the ``k`` with the largest contribution.  ``"matched"``: the ``k`` that follow in the ranking.
        ``"random 0"``, ``"random 1"``, ...: drawn from all but the first ``k``.  All at ``MLP_POST``, everywhere.

    Raises:
        InputError: ``k`` more than half of the layer.

    Example:
        >>> import mechrep
        >>> from mechrep.measures.sink_neurons import sink_neurons
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> texts = mechrep.Corpus.from_texts(["The sea was calm."], model=model)
        >>> list(sink_conditions(sink_neurons(model, texts, 0), draws=2))
        ['sink', 'matched', 'random 0', 'random 1']
    """
    ranking = neurons.ranking()
    if not 1 <= k <= len(ranking) // 2 or draws < 0:
        raise InputError(
            f"k={k}, draws={draws}", f"k from 1 to half of the {len(ranking)} neurons, 0 draws or more", "correct them"
        )
    sets = {"sink": ranking[:k], "matched": ranking[k : 2 * k]}
    generator = np.random.default_rng(seed)
    for draw in range(draws):
        sets[f"random {draw}"] = sorted(generator.choice(ranking[k:], k, replace=False).tolist())
    return {
        name: Neurons([(neurons.layer, unit) for unit in units], "zero", site=Site.MLP_POST, when="all")
        for name, units in sets.items()
    }


def _token_ids(model: Model, tokens: Sequence[int | str] | int, seed: int) -> list[int]:
    if isinstance(tokens, int):
        ordinary = ordinary_ids(model)
        if not 1 <= tokens <= len(ordinary):
            raise InputError(f"{tokens} tokens", f"1 to {len(ordinary)} ordinary tokens", "ask for fewer")
        return sorted(np.random.default_rng(seed).choice(ordinary, tokens, replace=False).tolist())
    ids = [single_token_id(model, token) if isinstance(token, str) else token for token in tokens]
    if not ids or len(set(ids)) < len(ids) or not all(0 <= token < model.anatomy.d_vocab for token in ids):
        raise InputError(f"tokens {ids[:5]}", "ids of this model, at least one, none twice", "correct them")
    return ids


def _prefix(model: Model, token: int, prompt: str, bos: bool, instruction: str) -> list[int]:
    """What stands before the copies."""
    if prompt not in ("bare", "chat"):
        raise InputError(f"prompt={prompt!r}", "'bare' or 'chat'", "choose one of these")
    if prompt == "bare":
        return RepeatedToken(token, 1, bos).ids(model.bos_id)[:-1]
    if getattr(model.tokenizer, "chat_template", None) is None:
        raise InputError(f"a chat with {model.name}", "a tokenizer with a chat template", "use prompt='bare'")
    said = [{"role": "user", "content": instruction.format(word=model.decode([token]).strip())}]
    text = model.tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True)
    return model.encode(text, prepend_bos=False)


def _counts(model: Model, ns: Sequence[int] | None, prefix: int, new_tokens: int) -> list[int]:
    room = model.anatomy.n_ctx - prefix - new_tokens
    if ns is None and room >= 1:
        grid = repeat_grid(min(room, _LONGEST))
        return sorted({grid[round(i)] for i in np.linspace(0, len(grid) - 1, min(_POINTS, len(grid)))})
    counts = [] if ns is None else sorted(set(ns))
    if not counts or not 1 <= counts[0] <= counts[-1] <= room or new_tokens < 1:
        raise InputError(
            f"ns={ns}, new_tokens={new_tokens} after {prefix} tokens",
            f"numbers of copies from 1 on; {model.name} reads {model.anatomy.n_ctx} tokens",
            "give fewer copies or ask for fewer new ones",
        )
    return counts


def _corpus(
    model: Model, ids: list[int], prefixes: list[list[int]], counts: list[int], bos: bool, prompt: str
) -> Corpus:
    """One text per token and number of copies, in this order."""
    texts = [(token, prefix, n) for token, prefix in zip(ids, prefixes, strict=True) for n in counts]
    frame = pd.DataFrame(
        {
            "id": [f"{token}-x{n}" for token, _, n in texts],
            "token_id": [token for token, _, _ in texts],
            "repeats": [n for _, _, n in texts],
            "onset": [len(prefix) + 1 for _, prefix, _ in texts],
        }
    )
    policy = "as given" if prompt == "chat" else "prepended" if bos else "absent"
    rows = [[*prefix, *[token] * n] for token, prefix, n in texts]
    return Corpus.from_tokens(rows, model=model, source="repeat behaviour", frame=frame, bos_policy=policy)


def _times(corpus: Corpus, times: int) -> Corpus:
    """The same texts several times over, under names of their own."""
    names = [f"{name}@{copy}" for copy in range(times) for name in corpus.frame["id"]]
    return Corpus(
        corpus.tokens.repeat(times, 1),
        corpus.lengths.repeat(times),
        pd.concat([corpus.frame] * times, ignore_index=True).assign(id=names),
        tokenizer=corpus.tokenizer,
        bos_id=corpus.bos_id,
        bos_policy=corpus.bos_policy,
        d_vocab=corpus.d_vocab,
        model_name=corpus.model_name,
        pad_id=corpus.pad_id,
    )


def _left_off(ids: list[int]) -> bool:
    """Whether the last token is another one than the one before it."""
    return ids[-1] != ids[-2]


def _copies(ids: list[int], prompt_length: int) -> int:
    """How many of the new tokens are the prompt's last one, without a gap."""
    token, new = ids[prompt_length - 1], ids[prompt_length:]
    return next((place for place, other in enumerate(new) if other != token), len(new))


@torch.no_grad()
def _next(
    model: Model, requests: Sequence[Request], batch_size: int
) -> tuple[Float[Tensor, " request"], Float[Tensor, " request"]]:
    """Of every prompt's last token: its probability of coming next, and 1 where it is the most probable one."""
    probabilities, top = torch.zeros(len(requests)), torch.zeros(len(requests))
    forward = _reference_logits if not model.fast else _plain_logits
    by_length: dict[tuple[int, int], list[int]] = {}
    for number, request in enumerate(requests):
        # The reference applies one intervention at a time.
        group = 0 if forward is _plain_logits else id(request.intervention)
        by_length.setdefault((len(request.prompt), group), []).append(number)
    for (length, _), numbers in by_length.items():
        for part in torch.tensor(numbers).split(max(1, min(batch_size, _TOKENS_PER_BATCH // length))):
            some = [requests[number] for number in part.tolist()]
            tokens = torch.tensor([request.prompt for request in some], device=model.device)
            logits = forward(model, tokens, some).float()
            last = tokens[:, -1:]
            probabilities[part] = logits.softmax(-1).gather(-1, last).squeeze(-1).cpu()
            top[part] = (logits.argmax(-1, keepdim=True) == last).squeeze(-1).float().cpu()
    return probabilities, top


def _plain_logits(model: Model, tokens: Tensor, requests: Sequence[Request]) -> Float[Tensor, "batch d_vocab"]:
    """Logits after the last token, each row under its own intervention."""
    starts = torch.tensor([request.start for request in requests], device=tokens.device)
    table = EditTable(
        model,
        [request.intervention for request in requests],
        [request.text for request in requests],
        first_tokens=tokens[:, 0].tolist(),
        starts=starts.tolist(),
    )
    rows, places = torch.arange(len(tokens), device=tokens.device), torch.arange(tokens.shape[1], device=tokens.device)
    table.aim(rows, position_mask(starts, tokens.shape[1]), places.expand_as(tokens))
    assert model.plain is not None
    with table.applied():
        return model.plain(input_ids=tokens, use_cache=False, logits_to_keep=1).logits[:, -1]


def _reference_logits(model: Model, tokens: Tensor, requests: Sequence[Request]) -> Float[Tensor, "batch d_vocab"]:
    """The same on the TransformerLens view, for rows that share one intervention."""
    intervention = requests[0].intervention
    hooks: list[Any] = []
    if intervention is not None:
        starts = torch.tensor([request.start for request in requests])
        hooks = transformer_lens_hooks(intervention, model, starts, [request.text for request in requests])
    return model.run_with_hooks(tokens, fwd_hooks=hooks)[:, -1]


_SYMBOLS = ("circle", "square-open", "diamond-open", "triangle-up-open", "cross-open", "x-open")
_MEASURES = {"p_next": ("p_low", "p_high"), "diverged": ("diverged_low", "diverged_high")}


def repeat_behaviour_figure(result: RepeatBehaviourResult) -> go.Figure:
    """Left: probability that the token comes once more.  Right: share of tokens that the model leaves off.

    Both against the number of copies given, one line per condition, with 95 % intervals over tokens.

    Args:
        result: what was measured.

    Example:
        >>> import mechrep
        >>> from mechrep.studies.repeat_behaviour import repeat_behaviour
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> figure = repeat_behaviour_figure(repeat_behaviour(model, [300, 301], [1, 8], new_tokens=4))
        >>> [line.name for line in figure.data], figure.layout.xaxis.type
        (['none', 'none'], 'log')
    """
    titles = ["probability of one more copy", f"share that leave off within {counted(result.new_tokens, 'token')}"]
    figure, frame = panels([plain(title) for title in titles], 300), result.to_frame()
    for place, condition in enumerate(result.conditions):
        rows = frame[frame["condition"] == condition]
        for panel, (measure, ends) in enumerate(_MEASURES.items()):
            _add_line(figure, rows, measure, ends, place, panel)
    prompts = {"bare": "copies alone", "chat": "copies in a chat"}
    subtitle = (
        f"{result.provenance.model['name']}, {counted(len(result.token_ids), 'token')}, {prompts[result.prompt]}; "
        "95 % intervals over tokens"
    )
    finished(
        figure, title="Repeating a token", subtitle=subtitle, x="copies given (logarithmic)", y="share or probability"
    )
    figure.update_layout(legend={"orientation": "v", "x": 1.02, "y": 1, "yanchor": "top"})
    return figure.update_xaxes(type="log", dtick=1, tickformat=",").update_yaxes(range=[-0.03, 1.03])


def _add_line(
    figure: go.Figure, rows: pd.DataFrame, measure: str, ends: tuple[str, str], place: int, panel: int
) -> None:
    colour = INK if place == 0 else SEQUENCE[(place - 1) % len(SEQUENCE)]
    value, name = rows[measure], plain(rows["condition"].iloc[0])
    low, high = (value - rows[ends[0]]).clip(lower=0), (rows[ends[1]] - value).clip(lower=0)
    figure.add_scatter(
        x=rows["repeats"].to_numpy(),
        y=value.to_numpy(),
        error_y={"array": high.to_numpy(), "arrayminus": low.to_numpy(), "thickness": 1, "width": 3},
        name=name,
        legendgroup=str(place),
        showlegend=panel == 0,
        mode="lines+markers",
        line={"color": colour, "dash": DASHES[place % len(DASHES)], "width": 3 if place < 2 else 1.6},
        marker={"symbol": _SYMBOLS[place % len(_SYMBOLS)], "size": 7},
        customdata=[name] * len(rows),  # never inside the template, where a name could be taken for a variable
        hovertemplate="%{customdata}<br>%{x:,} copies: %{y:.3f}<extra></extra>",
        **place_of(panel),
    )


def text_against_repeats_figure(
    patterns: Sequence[Float[Tensor, "_ _"]],
    tokens: Sequence[Sequence[str]],
    *,
    head: tuple[int, int],
    name: str,
    titles: Sequence[str] = ("text", "one token, repeated"),
) -> go.Figure:
    """What one head looks at in ordinary text and in repeats, side by side on one scale from 0 to 1.

    Args:
        patterns: attention on each text.
        tokens: of each text, decoded one by one.
        head: the ``(layer, head)``.
        name: of the model.
        titles: of the panels.

    Raises:
        InputError: not one list of tokens and one title per pattern, or a pattern of another length than its tokens.

    Source: Yona et al. 2025 (arXiv 2503.08908) draw scores before the softmax, averaged over heads; this is one head,
    after it.

    Example:
        >>> patterns = [torch.eye(2), torch.tensor([[1.0, 0.0], [0.5, 0.5]])]
        >>> figure = text_against_repeats_figure(patterns, [["a", "b"], ["a", "a"]], head=(1, 0), name="mechrep-tiny")
        >>> figure.layout.title.text, figure.data[1].z[1].tolist()
        ('What L1 H0 looks at', [0.5, 0.5])
    """
    if not len(patterns) == len(tokens) == len(titles) >= 1:
        raise InputError(
            f"{len(patterns)} patterns, {len(tokens)} lists of tokens, {len(titles)} titles", "one each", "correct them"
        )
    figure = panels([plain(title) for title in titles], 380)
    for panel, (pattern, words) in enumerate(zip(patterns, tokens, strict=True)):
        n = len(words)
        if tuple(pattern.shape) != (n, n):
            raise InputError(
                f"a pattern of {tuple(pattern.shape)} with {counted(n, 'token')}", "one query per token", "correct it"
            )
        future = torch.ones(n, n, dtype=torch.bool).triu(1)
        figure.add_heatmap(
            x=list(range(n)),
            y=list(range(n)),
            z=pattern.detach().cpu().float().masked_fill(future, torch.nan).numpy(),
            coloraxis="coloraxis",
            hoverongaps=False,
            hovertemplate="query %{y:d}: %{y}<br>key %{x:d}: %{x}<br>attention %{z:.3f}<extra></extra>",
            **place_of(panel),
        )
    lengths = ", ".join(counted(len(words), "token") for words in tokens)
    title = f"What L{head[0]} H{head[1]} looks at"
    finished(figure, title=title, subtitle=f"{name}; {lengths}", x="key (token)", y="query (token)", share="attention")
    for panel, words in enumerate(tokens):
        names, where = {str(place): shown_token(token) for place, token in enumerate(words)}, place_of(panel)
        axis = {"labelalias": names, "tickformat": "d", "tick0": 0, "dtick": tick_step(len(words), 24)}
        figure.update_xaxes(
            axis | {"range": [-0.5, len(words) - 0.5], "tickangle": -90}, row=where["row"], col=where["col"]
        )
        figure.update_yaxes(axis | {"range": [len(words) - 0.5, -0.5]}, row=where["row"], col=where["col"])
    return figure
