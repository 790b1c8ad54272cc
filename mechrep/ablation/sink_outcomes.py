"""What ablating or patching sink neurons changes: norms, attention, loss, repetition; all from one forward pass.

The rows of a batch are (text, intervention); while a row is read its residual norms and one head's attention are taken
inside the pass that also scores its tokens.  Interventions are active at every position, BOS included.  Below the first
layer that is edited all rows of a text are one row (:class:`~mechrep.ablation.score.Branches`), and where nothing is to
be scored a pass ends behind the last layer that is looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechrep.ablation.effects import FEWEST_UNITS, Measure
from mechrep.ablation.outcomes import Cost
from mechrep.ablation.score import Branches, judged_tokens, parting_layers
from mechrep.errors import InputError
from mechrep.interventions.apply import EditTable, applied, fingerprint_of
from mechrep.interventions.ops import Intervention
from mechrep.measures.sink_norms import norms_of, other_positions
from mechrep.models.anatomy import Site
from mechrep.models.attention import AllRead
from mechrep.models.memory import in_batches
from mechrep.models.model import Model
from mechrep.models.reading import choose_view, listening
from mechrep.progress import progress_bar
from mechrep.run import LARGE_WEIGHTS, Run
from mechrep.text.corpus import Corpus

_TOKENS_PER_BATCH = 4096
_LOGITS_PER_BATCH = 2**26

LONGEST_READ, _FEWEST_TEXTS = 64, FEWEST_UNITS + 2  # a text more or two: one may say nothing

# By ids up to the first repetition and fingerprint of an intervention: scores and hits, see foretold_repetitions.
Foretold = dict[tuple[tuple[int, ...], str], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Wanted:
    """What is read of every row.

    Attributes:
        norms: layers after which the norms of the residual stream are taken.
        head: ``(layer, head)`` whose attention to the first position is taken; ``None``: nobody's.
        targets: for every text what each of its last positions is to predict; ``None``: nothing is scored.
    """

    norms: Sequence[int]
    head: tuple[int, int] | None = None
    targets: Int[Tensor, "text last"] | None = None

    @property
    def layers(self) -> dict[Site, list[int]]:
        """Layers by site."""
        return {Site.RESID_POST: [*self.norms]} | ({} if self.head is None else {Site.PATTERN: [self.head[0]]})


@dataclass
class ReadRows:
    """What some rows gave, on the CPU.

    Attributes:
        texts: number of the text in each row.
        conditions: number of its intervention.
        norms: of the residual stream, by layer.
        attention: of the head, from every position to the first; ``None`` without one.
        scores: log-probability of each target; ``None`` where nothing is scored.
        hits: whether it is the most probable token.
    """

    texts: Int[Tensor, " row"]
    conditions: Int[Tensor, " row"]
    norms: dict[int, Float[Tensor, "row pos"]]
    attention: Float[Tensor, "row pos"] | None = None
    scores: Float[Tensor, "row last"] | None = None
    hits: Bool[Tensor, "row last"] | None = None


@torch.no_grad()
def read_rows(
    model: Model,
    corpus: Corpus,
    interventions: Sequence[Intervention | None],
    wanted: Wanted,
    take: Callable[[ReadRows], None],
    *,
    progress: bool | None = None,
) -> None:
    """Read every text once under every intervention.

    Args:
        model: the model.
        corpus: right-padded texts.
        interventions: each with ``when="all"``; ``None`` is the baseline.
        wanted: what is read.
        take: called once per batch.
        progress: show a progress bar.
    """
    width, size = corpus.tokens.shape[1], _TOKENS_PER_BATCH
    if wanted.targets is not None:
        size = min(size, _LOGITS_PER_BATCH // model.anatomy.d_vocab * width // wanted.targets.shape[1])
    step = max(1, size // width)
    read = _read_plain if choose_view(model, wanted.layers) == "plain" else _read_transformer_lens
    with progress_bar(len(corpus) * len(interventions), "reading", "row", progress) as bar:
        for rows in read(model, corpus, interventions, wanted, step):
            take(rows)
            bar.update(len(rows.texts))


def _read_plain(
    model: Model, corpus: Corpus, interventions: Sequence[Intervention | None], wanted: Wanted, step: int
) -> Iterator[ReadRows]:
    """Rows of the same text stand together, so that few are computed below the first edited layer."""
    n, layers, tokens = len(interventions), model.anatomy.n_layers, corpus.tokens.to(model.device)
    owners = torch.arange(len(corpus)).repeat_interleave(n)
    table = EditTable(
        model, [*interventions] * len(corpus), owners.tolist(),
        first_tokens=corpus.tokens[owners, 0].tolist(), starts=[0] * len(owners),
    )  # fmt: skip
    first_layers = parting_layers(table, one_length=False).cpu()
    positions = torch.arange(tokens.shape[1], device=model.device)[None]

    def read(rows: Int[Tensor, " row"]) -> ReadRows:
        texts = owners[rows]
        branches = Branches.of(texts.tolist(), first_layers[rows].tolist(), layers)

        def aim(some: Tensor) -> None:
            everywhere = positions.expand(len(some), -1)
            table.aim(rows[some].to(model.device), torch.ones_like(everywhere, dtype=torch.bool), everywhere)

        lowest = texts[branches.rows[0]]
        found = ReadRows(texts, rows % n, {})
        with model.each_alone(corpus.lengths[lowest]), branches.applied(model, aim):
            logits = _pass(model, tokens[lowest.to(model.device)], wanted, found, branches)
        if logits is not None and wanted.targets is not None:
            scores, hits = judged_tokens(logits, wanted.targets[texts[branches.rows[-1]]], model.name)
            found.scores, found.hits = scores[branches.result], hits[branches.result]
        return found

    with table.applied():
        for _, found in in_batches(torch.arange(len(owners)), step, read, "reading"):
            yield found


def _pass(
    model: Model, tokens: Int[Tensor, "row pos"], wanted: Wanted, found: ReadRows, branches: Branches
) -> Tensor | None:
    """One pass of the plain view; what it gives on the way is put into ``found``, the logits are handed back."""
    plain = model.plain
    assert plain is not None
    missing = {(site, layer) for site, layers in wanted.layers.items() for layer in layers}

    def keep(activation: Tensor, site: Site, layer: int) -> None:
        _keep(activation, (site, layer), wanted, found, branches.places(layer))
        missing.discard((site, layer))
        if not missing and wanted.targets is None:
            raise AllRead

    with suppress(AllRead), listening(model, wanted.layers, keep, view="plain"):
        if wanted.targets is None:
            plain(input_ids=tokens, use_cache=False, logits_to_keep=1)
            return None
        last = wanted.targets.shape[1]
        return plain(input_ids=tokens, use_cache=False, logits_to_keep=last).logits[:, -last:]
    return None


def _keep(activation: Tensor, where: tuple[Site, int], wanted: Wanted, found: ReadRows, places: Tensor | slice) -> None:
    site, layer = where
    if site is Site.RESID_POST:
        found.norms[layer] = norms_of(activation).cpu().double()[places]
    else:
        assert wanted.head is not None
        found.attention = activation[:, wanted.head[1], :, 0].cpu().double()[places]


def _read_transformer_lens(
    model: Model, corpus: Corpus, interventions: Sequence[Intervention | None], wanted: Wanted, step: int
) -> Iterator[ReadRows]:
    """The whole texts once per intervention."""
    last_layer = max(layer for layers in wanted.layers.values() for layer in layers) + 1
    stop = last_layer if wanted.targets is None and last_layer < model.anatomy.n_layers else None
    for number, intervention in enumerate(interventions):
        for texts in torch.arange(len(corpus)).split(step):
            tokens = corpus.tokens[texts].to(model.device)
            found = ReadRows(texts, torch.full_like(texts, number), {})

            def keep(activation: Tensor, site: Site, layer: int, found: ReadRows = found) -> None:
                _keep(activation, (site, layer), wanted, found, slice(None))

            alone = model.each_alone(corpus.lengths[texts])
            edited = applied(model, intervention, tokens, view="transformer_lens")
            with alone, edited, listening(model, wanted.layers, keep, view="transformer_lens"):
                logits = model.tl(tokens, stop_at_layer=stop)
            if wanted.targets is not None:
                found.scores, found.hits = judged_tokens(
                    logits[:, -wanted.targets.shape[1] :], wanted.targets[texts], model.name
                )
            yield found


class _Reading:
    """What both outcomes share."""

    regenerates = False

    def __init__(self, model: Model, corpus: Corpus, layer: int) -> None:
        corpus.check_model(model)
        model.anatomy.check_layer(layer)
        self.model, self.corpus, self.layer = model, corpus, layer
        self.units = [str(name) for name in corpus.frame["id"]]
        self.clusters = self.units
        self.measures: list[Measure] = []
        self.facts: dict[str, object] = {"texts": corpus.fingerprint(), "layer": layer}
        self.cost = Cost(read=int(corpus.lengths.sum()))

    def _table(self, interventions: Sequence[Intervention | None]) -> Float[Tensor, "measure intervention text"]:
        if any(one is not None and one.needs_start for one in interventions):
            raise InputError("interventions that begin in mid-text", "when='all': BOS is edited too", "make them so")
        return torch.full((len(self.measures), len(interventions), len(self.units)), torch.nan, dtype=torch.float64)


class SinkOnTexts(_Reading):
    """The sink of ordinary texts, text by text.

    ``first_norm``, ``typical_norm``: norm of the residual stream after ``layer`` at the first position, and its mean at
    the others.  ``attention``: mean attention of ``head`` to the first position, over all queries but the first.
    ``loss``: nats per token, all positions.

    Args:
        model: the model.
        corpus: texts of at least two tokens.
        layer: the sink layer.
        head: ``(layer, head)`` whose attention is read; ``None``: nobody's.
        loss: whether the loss is measured too; without it a pass ends at the last layer that is needed.
    """

    def __init__(
        self, model: Model, corpus: Corpus, layer: int, head: tuple[int, int] | None = None, *, loss: bool = True
    ) -> None:
        super().__init__(model, corpus, layer)
        if int(corpus.lengths.min()) < 2:
            raise InputError("a text of one token", "at least two: other positions to compare with", "leave it out")
        self.head, self.loss = head, loss
        self.measures = [Measure("first_norm", "norm", direction=-1), Measure("typical_norm", "norm")]
        self.measures += [] if head is None else [Measure("attention", "share", direction=-1)]
        self.measures += [Measure("loss", direction=1)] if loss else []
        self.facts |= {"head": None if head is None else list(head)}

    def values(
        self, interventions: Sequence[Intervention | None], progress: bool | None
    ) -> Float[Tensor, "measure intervention text"]:
        """The measures."""
        table, tokens = self._table(interventions), self.corpus.tokens
        targets = torch.cat([tokens[:, 1:], tokens[:, -1:]], 1) if self.loss else None  # nobody asks what comes last

        def take(rows: ReadRows) -> None:
            lengths = self.corpus.lengths[rows.texts]
            norms = rows.norms[self.layer]
            others = other_positions(lengths, norms.shape[1])
            found = {"first_norm": norms[:, 0], "typical_norm": _mean(norms, others)}
            if rows.attention is not None:
                found["attention"] = _mean(rows.attention, others)
            if rows.scores is not None:
                inside = torch.arange(rows.scores.shape[1]) < (lengths - 1)[:, None]
                found["loss"] = -_mean(rows.scores, inside)
            for row, measure in enumerate(self.measures):
                table[row, rows.conditions, rows.texts] = found[measure.name].double()

        wanted = Wanted([self.layer], self.head, targets)
        read_rows(self.model, self.corpus, interventions, wanted, take, progress=progress)
        return table


def _mean(values: Float[Tensor, "row pos"], inside: Bool[Tensor, "row pos"]) -> Float[Tensor, " row"]:
    return torch.where(inside, values.double(), 0.0).sum(1) / inside.sum(1)


class SinkOnRepeats(_Reading):
    """What repeated tokens do, token by token.

    ``repeat_norm``: norm after ``layer`` at the last repetition.  ``continued``: share of the second half of the
    repetitions after which the same token is the most probable next one.  ``p_next``: its mean probability there.

    Args:
        model: the model.
        stimulus: of :func:`mechrep.text.stimuli.repeated_tokens`, every token equally often, at least twice.
        layer: the sink layer.
        run: keeps what foretells every repetition, for :class:`~mechrep.studies.repeat_behaviour.NextRepetition`.
        norm: whether ``repeat_norm`` is measured.
        scores: whether ``continued`` and ``p_next`` are; without them a pass ends behind ``layer``.

    Source: which token is to come is asked of true repetitions; the measures are mechrep's own.
    """

    def __init__(
        self,
        model: Model,
        stimulus: Corpus,
        layer: int,
        run: Run | None = None,
        *,
        norm: bool = True,
        scores: bool = True,
    ) -> None:
        super().__init__(model, stimulus, layer)
        repeats = stimulus.frame["repeats"].unique() if "repeats" in stimulus.frame else []
        if len(repeats) != 1 or repeats[0] < 2:
            raise InputError(
                f"repeats of {list(repeats)} repetitions", "one number, at least 2", "make them with repeated_tokens"
            )
        self.repeats, self.half = int(repeats[0]), int(repeats[0]) // 2  # half: predictions in the second half
        self.foretold = foretold_repetitions(model, run or Run())
        # Expensive in large models: then as few draws as where texts are written.
        self.regenerates = scores and not norm
        self.measures = [Measure("repeat_norm", "norm", over="token", direction=-1)] if norm else []
        if scores:
            self.measures.append(Measure("continued", "share", over="token", trials=self.half))
            self.measures.append(Measure("p_next", "share", over="token"))

    def values(
        self, interventions: Sequence[Intervention | None], progress: bool | None
    ) -> Float[Tensor, "measure intervention text"]:
        """The measures."""
        table, keys = self._table(interventions), [fingerprint_of(self.model, [one]) for one in interventions]
        second = slice(self.repeats - self.half - 1, self.repeats - 1)

        def take(rows: ReadRows) -> None:
            found = {"repeat_norm": rows.norms[self.layer][:, -1]}
            if rows.scores is not None and rows.hits is not None:
                found["continued"] = rows.hits[:, second].double().mean(1)
                found["p_next"] = rows.scores[:, second].double().exp().mean(1)
            for number, measure in enumerate(self.measures):
                table[number, rows.conditions, rows.texts] = found[measure.name]
            if rows.scores is None or rows.hits is None:
                return
            for row, (text, place) in enumerate(zip(rows.texts.tolist(), rows.conditions.tolist(), strict=True)):
                begin = tuple(self.corpus.row(text)[: 1 - self.repeats])
                self.foretold[begin, keys[place]] = (rows.scores[row], rows.hits[row])

        last = self.corpus.tokens[:, -self.repeats :]
        targets = torch.cat([last[:, 1:], last[:, -1:]], 1)  # after the last repetition one more
        wanted = Wanted([self.layer], None, targets if len(self.measures) > 1 else None)
        read_rows(self.model, self.corpus, interventions, wanted, take, progress=progress)
        return table


def sink_outcomes(
    model: Model, corpus: Corpus, stimulus: Corpus, layer: int, head: tuple[int, int], run: Run
) -> list[SinkOnTexts | SinkOnRepeats]:
    """What sink neurons are studied by, as expensive as the model allows.

    In a model of a million weights every measure is taken of every text.  In a large one a draw of a control costs as
    much as the model has layers above the sink: ordinary texts are few and short (``run.sizes_on(model).reading``
    tokens), and what is foretold in long repeats is read under as few draws as where texts are written.  Norms of
    repeats, for which a pass ends behind the sink layer, are read under all.

    Args:
        model: the model.
        corpus: ordinary texts.
        stimulus: repeated tokens.
        layer: the sink layer.
        head: whose attention to the first position is read.
        run: options.

    Example:
        >>> import mechrep
        >>> from mechrep.text.stimuli import repeated_tokens
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> texts = mechrep.Corpus.from_texts(["The sea was calm that day."], model=model)
        >>> repeats = repeated_tokens(model, [300], 8, True)
        >>> [type(one).__name__ for one in sink_outcomes(model, texts, repeats, 0, (0, 0), Run())]
        ['SinkOnTexts', 'SinkOnRepeats']
    """
    on_texts = SinkOnTexts(model, short_texts(model, corpus, run), layer, head)
    if model.n_weights <= LARGE_WEIGHTS:
        return [on_texts, SinkOnRepeats(model, stimulus, layer, run)]
    scores = SinkOnRepeats(model, stimulus, layer, run, norm=False)
    return [on_texts, SinkOnRepeats(model, stimulus, layer, run, scores=False), scores]


def short_texts(model: Model, corpus: Corpus, run: Run) -> Corpus:
    """Beginnings of texts, of ``run.sizes_on(model).reading`` tokens together; all of them, if they are no more.

    Example:
        >>> import mechrep
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> windows = mechrep.Corpus.from_tokens([list(range(400))] * 50, model=model)
        >>> short_texts(model, windows, Run(effort="quick")).tokens.shape
        torch.Size([16, 64])
    """
    budget = run.sizes_on(model).reading
    if int(corpus.lengths.sum()) <= budget:
        return corpus
    n = min(len(corpus), max(_FEWEST_TEXTS, budget // LONGEST_READ))
    rows = [corpus.row(text)[: max(2, budget // n)] for text in range(n)]
    frame = corpus.frame.iloc[:n][["id"]].reset_index(drop=True)
    return Corpus.from_tokens(rows, model=model, attention_mask=True, frame=frame, bos_policy=corpus.bos_policy)


def foretold_repetitions(model: Model, run: Run) -> Foretold:
    """What foretells each repetition of a token, by what stands before its second one and by the intervention.

    Log-probabilities and hits after 1, 2, ... repetitions, under interventions that are active everywhere: what one
    study of a run has read, the next one need not read again.
    """
    return run.once(("foretold repetitions", model.fingerprint()), dict[Any, Any])
