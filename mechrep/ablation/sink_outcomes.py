"""What ablating or patching sink neurons changes: norms, attention, loss, repetition; all from one forward pass.

The rows of a batch are (text, intervention); while a row is read its residual norms and one head's pattern are taken
inside the pass that also gives its logits.  Interventions are active at every position, BOS included.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechrep.ablation.effects import Measure
from mechrep.ablation.outcomes import Cost
from mechrep.errors import InputError
from mechrep.interventions.apply import EditTable, applied, fingerprint_of
from mechrep.interventions.ops import Intervention
from mechrep.measures.sink_norms import norms_of, other_positions
from mechrep.models.anatomy import Site
from mechrep.models.model import Model
from mechrep.models.reading import choose_view, listening, read_activations
from mechrep.progress import progress_bar
from mechrep.run import Run
from mechrep.text.corpus import Corpus

_TOKENS_PER_BATCH = 4096
_LOGITS_PER_BATCH = 2**26

# Texts and interventions of the rows of a batch, activations by site, logits of the last positions (or none).
# By ids up to the first repetition and fingerprint of an intervention: scores and hits, see foretold_repetitions.
Foretold = dict[tuple[tuple[int, ...], str], tuple[Tensor, Tensor]]
Take = Callable[[Int[Tensor, " row"], Int[Tensor, " row"], Mapping[Site, Tensor], Tensor | None], None]


@torch.no_grad()
def read_rows(
    model: Model,
    corpus: Corpus,
    interventions: Sequence[Intervention | None],
    layers: Mapping[Site, int],
    take: Take,
    *,
    last: int = 0,
    progress: bool | None = None,
) -> None:
    """Read every text once under every intervention.

    Args:
        model: the model.
        corpus: right-padded texts.
        interventions: each with ``when="all"``; ``None`` is the baseline.
        layers: what is handed over, one layer per site.
        take: called once per batch.
        last: positions from the end whose logits are handed over too; 0: none, and passes end with the last layer.
        progress: show a progress bar.
    """
    view, wanted = choose_view(model, layers), {site: [layer] for site, layer in layers.items()}
    width, n_texts = corpus.tokens.shape[1], len(corpus)
    size = _TOKENS_PER_BATCH if not last else min(_TOKENS_PER_BATCH, _LOGITS_PER_BATCH // model.anatomy.d_vocab)
    step = max(1, size // width)

    def read(tokens: Tensor) -> tuple[dict[Site, Tensor], Tensor | None]:
        seen: dict[Site, Tensor] = {}

        def keep(activation: Tensor, site: Site, _layer: int) -> None:
            seen[site] = activation

        if not last:
            read_activations(model, tokens, wanted, keep, view=view)
            return seen, None
        with listening(model, wanted, keep, view=view):
            if view == "plain":
                assert model.plain is not None
                return seen, model.plain(input_ids=tokens, use_cache=False, logits_to_keep=last).logits[:, -last:]
            return seen, model.tl(tokens)[:, -last:]

    with progress_bar(n_texts * len(interventions), "reading", "row", progress) as bar:
        if view == "plain":
            batches = torch.arange(n_texts * len(interventions)).split(step)
            owners = torch.arange(n_texts).repeat_interleave(len(interventions))
            firsts = corpus.tokens[owners, 0].tolist()
            table = EditTable(
                model, [*interventions] * n_texts, owners.tolist(), first_tokens=firsts, starts=[0] * len(owners)
            )
            with table.applied():
                for rows in batches:
                    tokens = corpus.tokens[owners[rows]].to(model.device)
                    positions = torch.arange(width, device=model.device).expand_as(tokens)
                    table.aim(rows.to(model.device), torch.ones_like(tokens, dtype=torch.bool), positions)
                    with model.each_alone(corpus.lengths[owners[rows]]):
                        take(owners[rows], rows % len(interventions), *read(tokens))
                    bar.update(len(rows))
            return
        for number, intervention in enumerate(interventions):
            for texts in torch.arange(n_texts).split(step):
                tokens = corpus.tokens[texts].to(model.device)
                alone = model.each_alone(corpus.lengths[texts])
                with alone, applied(model, intervention, tokens, view=view):
                    take(texts, torch.full_like(texts, number), *read(tokens))
                bar.update(len(texts))


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
        if any(one is not None and one.when != "all" for one in interventions):
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
        table, layers = self._table(interventions), {Site.RESID_POST: self.layer}
        layers |= {} if self.head is None else {Site.PATTERN: self.head[0]}

        def take(texts: Tensor, conditions: Tensor, seen: Mapping[Site, Tensor], logits: Tensor | None) -> None:
            lengths, norms = self.corpus.lengths[texts], norms_of(seen[Site.RESID_POST]).cpu().double()
            others = other_positions(lengths, norms.shape[1])
            found = {"first_norm": norms[:, 0], "typical_norm": (norms * others).sum(1) / others.sum(1)}
            if self.head is not None:
                column = seen[Site.PATTERN][:, self.head[1], :, 0].float().cpu().double()
                found["attention"] = (column * others).sum(1) / others.sum(1)
            if logits is not None:
                scores, _ = _scores(logits, self.corpus.tokens[texts])
                inside = torch.arange(scores.shape[1]) < (lengths - 1)[:, None]
                found["loss"] = -(scores * inside).sum(1) / inside.sum(1)
            for row, measure in enumerate(self.measures):
                table[row, conditions, texts] = found[measure.name].double()

        last = self.corpus.tokens.shape[1] if self.loss else 0
        read_rows(self.model, self.corpus, interventions, layers, take, last=last, progress=progress)
        return table


class SinkOnRepeats(_Reading):
    """What repeated tokens do, token by token.

    ``repeat_norm``: norm after ``layer`` at the last repetition.  ``continued``: share of the second half of the
    repetitions after which the same token is the most probable next one.  ``p_next``: its mean probability there.

    Args:
        model: the model.
        stimulus: of :func:`mechrep.text.stimuli.repeated_tokens`, every token equally often, at least twice.
        layer: the sink layer.
        run: keeps what foretells every repetition, for :class:`~mechrep.studies.repeat_behaviour.NextRepetition`.
    """

    def __init__(self, model: Model, stimulus: Corpus, layer: int, run: Run | None = None) -> None:
        super().__init__(model, stimulus, layer)
        repeats = stimulus.frame["repeats"].unique() if "repeats" in stimulus.frame else []
        if len(repeats) != 1 or repeats[0] < 2:
            raise InputError(
                f"repeats of {list(repeats)} repetitions", "one number, at least 2", "make them with repeated_tokens"
            )
        self.repeats, self.half = int(repeats[0]), int(repeats[0]) // 2  # half: predictions in the second half
        self.foretold = foretold_repetitions(model, run or Run())
        self.measures = [
            Measure("repeat_norm", "norm", over="token", direction=-1),
            Measure("continued", "share", over="token", trials=self.half),
            Measure("p_next", "share", over="token"),
        ]

    def values(
        self, interventions: Sequence[Intervention | None], progress: bool | None
    ) -> Float[Tensor, "measure intervention text"]:
        """The measures."""
        table, keys = self._table(interventions), [fingerprint_of(self.model, [one]) for one in interventions]
        second = slice(self.repeats - self.half - 1, self.repeats - 1)

        def take(texts: Tensor, conditions: Tensor, seen: Mapping[Site, Tensor], logits: Tensor | None) -> None:
            assert logits is not None
            tokens = self.corpus.tokens[texts]
            scores, hits = _scores(logits, torch.cat([tokens[:, -self.repeats :], tokens[:, -1:]], 1))
            table[0, conditions, texts] = norms_of(seen[Site.RESID_POST][:, -1:])[:, 0].cpu().double()
            table[1, conditions, texts] = hits[:, second].double().mean(1)
            table[2, conditions, texts] = scores[:, second].double().exp().mean(1)
            for row, (ids, place) in enumerate(zip(tokens.tolist(), conditions.tolist(), strict=True)):
                begin = tuple(ids[: len(ids) - self.repeats + 1])
                self.foretold[begin, keys[place]] = (scores[row], hits[row])

        layers, last = {Site.RESID_POST: self.layer}, self.repeats
        read_rows(self.model, self.corpus, interventions, layers, take, last=last, progress=progress)
        return table


def foretold_repetitions(model: Model, run: Run) -> Foretold:
    """What foretells each repetition of a token, by what stands before its second one and by the intervention.

    Log-probabilities and hits after 1, 2, ... repetitions, under interventions that are active everywhere: what one
    study of a run has read, the next one need not read again.
    """
    return run.once(("foretold repetitions", model.fingerprint()), dict[Any, Any])


def _scores(
    logits: Float[Tensor, "row _ d_vocab"], tokens: Int[Tensor, "row _"]
) -> tuple[Float[Tensor, "row target"], Tensor]:
    """Log-probability of every token but the first, and whether it was the most probable one."""
    following = tokens[:, 1:].to(logits.device)
    before = logits[:, : following.shape[1]].float()
    scores = before.gather(-1, following[..., None]).squeeze(-1) - before.logsumexp(-1)
    return scores.cpu(), (before.argmax(-1) == following).cpu()


def excess_removed(
    model: Model, corpus: Corpus, layer: int, interventions: Sequence[Intervention]
) -> Float[Tensor, " intervention"]:
    """Share of the first position's excess norm after a layer that each intervention removes.

    With the ratio of the norm at the first position to the mean norm at all others, ``1 - (ratio' - 1) / (ratio - 1)``:
    1: the first position is as large as the others; 0: nothing changed; NaN where it is no larger to begin with.

    Args:
        model: the model.
        corpus: texts of at least two tokens; a few dozen short ones will do.
        layer: the sink layer.
        interventions: active at all positions.

    Source: zeroing the neurons and reading the norms is Yona et al. 2025 (arXiv 2503.08908), figure 5, on repeated
    tokens; the share is mechrep's own.

    Example:
        >>> import mechrep
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> corpus = mechrep.Corpus.from_texts(["The sea was calm.", "It rained all day."], model=model)
        >>> ablation = mechrep.Neurons([(0, 3), (0, 4)], "zero", when="all")
        >>> excess_removed(model, corpus, 0, [ablation]).shape
        torch.Size([1])
    """
    first, others = SinkOnTexts(model, corpus, layer, loss=False).values([None, *interventions], False)
    weights = (corpus.lengths - 1).double()
    excess = first.mean(1) / ((others * weights).sum(1) / weights.sum()) - 1
    return torch.where(excess[0] > 0, 1 - excess[1:] / excess[0], torch.nan).float()
