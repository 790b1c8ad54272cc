"""Log-probabilities of given tokens under many interventions at once: the rows of a batch are (text, intervention).

The tokens before a text's first edited position are computed once for all of its interventions; from there on each
intervention is a row, edited through one :class:`~mechrep.interventions.apply.EditTable`, and below the first layer
that it edits it is one row with all others (:class:`Branches`).  Texts of one shape share
batches, so nothing is padded.

Rows that are still equal are computed once: they part at the layer in which an edit first sets them apart.

Ablating a head of layer 5 changes nothing below layer 5.  So a batch of one text under many interventions begins as one
row; every layer takes the rows that begin to differ in it from the row that they were until then, and rows that no edit
ever sets apart stay one to the end.  With every head ablated once this halves the work; the numbers are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechrep.errors import InputError
from mechrep.generation.slot_cache import has_states, shares_keys, why_not_kept
from mechrep.guards import Some, guarded
from mechrep.interventions.apply import EditTable
from mechrep.interventions.ops import Intervention
from mechrep.models.finite import no_number
from mechrep.models.memory import in_batches
from mechrep.models.model import Model
from mechrep.progress import progress_bar
from mechrep.text.corpus import Corpus
from mechrep.text.windows import SHORTEST_WINDOW


@dataclass(frozen=True)
class Branches:
    """Which rows of a batch are computed in which layer.

    Attributes:
        rows: for every layer, the rows that it computes, as places in the batch that was asked for; each stands for
            all rows that still equal it.
        sources: where these lie among the rows of the layer below.
        origins: where they lie among the rows of the lowest layer.
        result: where each row that was asked for lies among those of the highest layer.
    """

    rows: list[Int[Tensor, " _"]]
    sources: list[Int[Tensor, " _"]]
    origins: list[Int[Tensor, " _"]]
    result: Int[Tensor, " row"]

    @classmethod
    def of(cls, texts: Sequence[int], first_layers: Sequence[int], n_layers: int) -> Branches:
        """Plan a batch.

        Args:
            texts: number of the text in each row.
            first_layers: the lowest layer in which each row is edited; ``n_layers`` or more where none is.
            n_layers: of the model.

        Example:
            >>> plan = Branches.of([0, 0, 0], first_layers=[2, 0, 1], n_layers=2)
            >>> [rows.tolist() for rows in plan.rows], [sources.tolist() for sources in plan.sources]
            ([[0, 1], [0, 1, 2]], [[0, 1], [0, 1, 0]])
        """
        rows, sources, origins = [], [], []
        below: dict[tuple[int, int | None], int] = {}
        places = torch.zeros(len(texts), dtype=torch.long)
        for layer in range(n_layers):
            # A row that is not edited yet is its text's unedited row.
            keys = [
                (text, row if first <= layer else None)
                for row, (text, first) in enumerate(zip(texts, first_layers, strict=True))
            ]
            firsts = {key: row for row, key in reversed([*enumerate(keys)])}
            computed = sorted(firsts.values())
            here = {keys[row]: place for place, row in enumerate(computed)}
            rows.append(torch.tensor(computed))
            before = below or here
            sources.append(torch.tensor([before[key if key in before else (key[0], None)] for key in here]))
            origins.append(origins[-1][sources[-1]] if origins else sources[-1])
            below, places = here, torch.tensor([here[key] for key in keys])
        return cls(rows, sources, origins, places)

    def places(self, layer: int) -> Int[Tensor, " row"]:
        """Where each row that was asked for lies among the rows of a layer.

        Example:
            >>> Branches.of([0, 0, 0], first_layers=[2, 0, 1], n_layers=2).places(0).tolist()
            [0, 1, 0]
        """
        places = self.result
        for above in range(len(self.rows) - 1, layer, -1):
            places = self.sources[above][places]
        return places

    @contextmanager
    def applied(self, model: Model, entering: Callable[[Int[Tensor, " row"]], None]) -> Iterator[None]:
        """While open, a forward pass of the plain view that is given ``rows[0]`` computes and returns ``rows[-1]``.

        Args:
            model: the model.
            entering: called with the rows of every layer before it runs.
        """
        assert model.handles is not None
        with ExitStack() as stack:
            for layer, module in enumerate(model.handles.layers):
                hook = partial(self._enter, layer=layer, entering=entering)
                stack.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)
            yield

    def _enter(
        self,
        _module: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        layer: int,
        entering: Callable[[Int[Tensor, " row"]], None],
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Take the hidden states from the layer below; masks and the like are those of the lowest layer."""
        entering(self.rows[layer])
        sources, origins, size = self.sources[layer], self.origins[layer], len(self.rows[0])
        hidden = {"hidden_states": _pick(kwargs["hidden_states"], sources)} if "hidden_states" in kwargs else {}
        given = args if hidden else args[1:]
        beside = [_beside(value, origins, size) for value in given]
        named = {name: _beside(value, origins, size, name) for name, value in kwargs.items() if name not in hidden}
        return tuple(beside if hidden else [_pick(args[0], sources), *beside]), named | hidden


def parting_layers(table: EditTable, *, one_length: bool) -> Int[Tensor, " row"]:
    """The lowest layer in which each row is edited, as :meth:`Branches.of` takes it; ``n_layers`` where none is.

    0 for every row where a row has to be itself in all layers: where layers above look at the rows of layers below, and
    where positions depend on the length of a text and the rows have several.

    Args:
        table: the rows.
        one_length: whether all their texts are equally long.
    """
    model, n_layers = table.model, table.model.anatomy.n_layers
    first = torch.full((int(table.conditions.max()) + 1,), n_layers, device=table.conditions.device)
    for (_, layer), (factor, offset) in table.tables.items():
        changes = ((factor != 1) | (offset != 0)).any(-1)[: len(first)]
        first = torch.where(changes, first.clamp_max(layer), first)
    for layer, on in table.held.on.items():
        first = torch.where(on.any(-1)[: len(first)], first.clamp_max(layer), first)
    if why_not_kept(model) or shares_keys(model) or (model.lengths is not None and not one_length):
        first = torch.zeros_like(first)
    return first[table.conditions]


def _pick(hidden: Tensor, rows: Int[Tensor, " row"]) -> Tensor:
    return hidden[rows.to(hidden.device)]


def _beside(value: Any, origins: Int[Tensor, " row"], size: int, name: str = "") -> Any:
    """What belongs to the rows, row by row; everything else as it is."""
    if isinstance(value, tuple):
        return tuple(_beside(part, origins, size) for part in value)
    if not isinstance(value, Tensor) or value.ndim < 2:
        return value
    if name == "alibi":  # BLOOM's slopes have their rows and heads on one axis
        return _pick(value.unflatten(0, (size, -1)), origins).flatten(0, 1)
    return _pick(value, origins) if len(value) == size else value


_TOKENS_PER_BATCH = 2048
LOGITS_PER_BATCH = 2**25  # 128 MiB in single precision: a large vocabulary makes batches smaller
_LOGITS_AT_ONCE = 2**22  # turned into losses together: that needs copies


@dataclass(frozen=True)
class ScoredText:
    """A text whose tokens from ``first`` on are to be predicted, edited from ``start`` on.

    Attributes:
        tokens: the whole text.
        first: first predicted position, at least 1.
        start: first edited position.
        number: of the text, for resampling.
    """

    tokens: tuple[int, ...]
    first: int
    start: int
    number: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """Texts that agree in this can share a batch: length, first prediction, tokens that no edit touches."""
        return len(self.tokens), self.first, min(self.start, self.first - 1)


@dataclass(frozen=True)
class TokenScores:
    """What a text's tokens got; ``token`` counts from the text's ``first``.

    Attributes:
        log_probability: in nats.
        correct: whether the token was the most probable one.
    """

    log_probability: Float[Tensor, "intervention token"]
    correct: Bool[Tensor, "intervention token"]


@torch.no_grad()
def score_tokens(
    model: Model,
    texts: Sequence[ScoredText],
    interventions: Sequence[Intervention | None],
    *,
    progress: bool | None = None,
    what: str = "scoring",
) -> list[TokenScores]:
    """Score every text under every intervention.

    Args:
        model: the model; on its plain view, or on the TransformerLens view where that is the only one.
        texts: what to predict.
        interventions: ``None`` is the baseline.  Where an edit begins is the text's ``start``, not ``when``.
        progress: show a progress bar.
        what: its name.

    Returns:
        One :class:`TokenScores` per text, on the CPU.

    Raises:
        ModelError: logits that are no numbers.

    Example:
        >>> import mechrep
        >>> from mechrep.interventions import Heads
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> text = ScoredText((0, 5, 6, 7, 5, 6, 7), first=4, start=3, number=0)
        >>> (scores,) = score_tokens(model, [text], [None, Heads([(0, 0)])])
        >>> scores.log_probability.shape
        torch.Size([2, 3])
    """
    groups: dict[tuple[int, int, int], list[int]] = {}
    for index, text in enumerate(texts):
        groups.setdefault(text.shape, []).append(index)
    sizes = [(len(interventions), len(text.tokens) - text.first) for text in texts]
    kept = [(torch.zeros(size, dtype=torch.float64), torch.zeros(size, dtype=torch.bool)) for size in sizes]
    score = _reference if not model.fast else _fast
    with progress_bar(len(texts) * len(interventions), what, "row", progress) as bar:
        for group in groups.values():
            for rows, log_probability, correct in score(model, [texts[i] for i in group], interventions):
                for row, (text, condition) in enumerate(rows):
                    kept[group[text]][0][condition] = log_probability[row]
                    kept[group[text]][1][condition] = correct[row]
                bar.update(len(rows))
    return [TokenScores(*tensors) for tensors in kept]


@guarded
def token_losses(
    model: Model, corpus: Corpus, interventions: Some[Intervention | None], *, progress: bool | None = None
) -> Float[Tensor, "intervention text"]:
    """Mean loss in nats per token on the second half of every text, under each intervention.

    The edit is active at every position from the middle of the text on, that is wherever a loss is counted.

    Args:
        model: the model.
        corpus: windows of held-out text, all of one length.
        interventions: ``None`` is the baseline.
        progress: show a progress bar.

    Raises:
        InputError: windows of different lengths.

    Example:
        >>> import mechrep
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> token_losses(model, mechrep.Corpus.from_tokens([[0, *range(20, 40)]], model=model), [None]).shape
        torch.Size([1, 1])
    """
    corpus.check_model(model)
    length = int(corpus.lengths[0])
    if not bool((corpus.lengths == length).all()) or length < SHORTEST_WINDOW:
        raise InputError(
            f"windows of {int(corpus.lengths.min())} to {int(corpus.lengths.max())} tokens",
            f"one length of at least {SHORTEST_WINDOW}",
            "make them with windows_of_text",
        )
    half = length // 2
    texts = [ScoredText(tuple(corpus.row(i)), half, half - 1, i) for i in range(len(corpus))]
    scored = score_tokens(model, texts, interventions, progress=progress, what="measuring loss")
    return torch.stack([-scores.log_probability.mean(1) for scores in scored], dim=1)


Scored = tuple[list[tuple[int, int]], Tensor, Tensor]  # (text, intervention) of each row, and what the rows got


def _fast(model: Model, texts: Sequence[ScoredText], interventions: Sequence[Intervention | None]) -> Iterator[Scored]:
    """Plain view; all texts have one shape."""
    length, first, _ = texts[0].shape
    begin, end = first_read(model, texts[0].shape), length - 1
    if any(one is not None and one.holds(model.anatomy) for one in interventions):
        begin = 0  # levels are caught at a text's first token after BOS, which therefore must go by
    if model.lengths is not None and length > model.lengths.switch:
        end = length  # the text without its end might have other angles
    tokens = torch.tensor([text.tokens for text in texts], device=model.device)
    pairs = [(text, condition) for text in range(len(texts)) for condition in range(len(interventions))]
    table = EditTable(
        model,
        [interventions[condition] for _, condition in pairs],
        [texts[text].number for text, _ in pairs],
        first_tokens=[texts[text].tokens[0] for text, _ in pairs],
        starts=[texts[text].start for text, _ in pairs],
    )
    starts = torch.tensor([texts[text].start for text, _ in pairs], device=model.device)
    positions = torch.arange(begin, end, device=model.device)[None]
    first_layers = parting_layers(table, one_length=True)
    kept = end - first + 1  # positions with logits
    size = min(_TOKENS_PER_BATCH // positions.shape[1], LOGITS_PER_BATCH // (model.anatomy.d_vocab * kept))
    known, prefixes = list[int](), None

    def score(rows: Int[Tensor, " row"]) -> tuple[Tensor, Tensor]:
        nonlocal known, prefixes
        here = [pairs[row] for row in rows.tolist()]
        branches = Branches.of([text for text, _ in here], first_layers[rows].tolist(), model.anatomy.n_layers)

        def aim(some: Tensor) -> None:
            chosen = rows[some]
            table.aim(chosen, positions >= starts[chosen, None], positions.expand(len(chosen), -1))

        distinct = sorted({text for text, _ in here})
        place = torch.tensor([distinct.index(text) for text, _ in here], device=model.device)
        if distinct != known:  # the beginning of these texts is read once, whatever the batches
            table.rest()
            known, prefixes = distinct, prefixes_of(model, tokens[distinct, :begin])
        chosen = tokens[distinct][place]
        with branches.applied(model, aim):
            assert model.plain is not None
            logits = model.plain(
                input_ids=chosen[branches.rows[0], begin:end],
                logits_to_keep=kept,
                **go_on_from(prefixes, [place[some] for some in branches.rows]),
            ).logits[:, : length - first]
        log_probability, correct = judged_tokens(logits, chosen[branches.rows[-1], first:], model.name)
        return log_probability[branches.result], correct[branches.result]

    with table.applied():
        for rows, found in in_batches(torch.arange(len(pairs), device=model.device), size, score, "scoring"):
            yield [pairs[row] for row in rows.tolist()], *found


def first_read(model: Model, shape: tuple[int, int, int]) -> int:
    """First position of texts of this shape that every intervention reads anew; what lies before is read once."""
    length, _, begin = shape
    if why_not_kept(model) or has_states(model) or shares_keys(model):
        return 0
    if model.lengths is not None and length > model.lengths.switch:
        return 0  # keys of the beginning alone have other angles
    return begin


def prefixes_of(model: Model, tokens: Int[Tensor, "text pos"]) -> Any:
    """Keys and values of the unedited beginnings; ``None`` where there are none."""
    from transformers import DynamicCache

    if tokens.shape[1] == 0:
        return None
    cache = DynamicCache()  # without a configuration: sliding layers then keep all their columns
    assert model.plain is not None
    model.plain(input_ids=tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return cache


def go_on_from(prefixes: Any, rows: Sequence[Int[Tensor, " _"]]) -> dict[str, Any]:
    """Options that let a forward pass go on from these prefixes; for every layer, the prefix of each of its rows."""
    from transformers import DynamicCache

    if prefixes is None:
        return {"use_cache": False}
    cache = DynamicCache()
    for number, (layer, some) in enumerate(zip(prefixes.layers, rows, strict=True)):
        cache.update(_pick(layer.keys, some), _pick(layer.values, some), number)
    return {"past_key_values": cache, "use_cache": True}


def _reference(
    model: Model, texts: Sequence[ScoredText], interventions: Sequence[Intervention | None]
) -> Iterator[Scored]:
    """TransformerLens view; the whole texts once per intervention."""
    first = texts[0].first
    for some in torch.arange(len(texts)).split(max(1, _TOKENS_PER_BATCH // len(texts[0].tokens))):
        here = some.tolist()
        tokens = torch.tensor([texts[i].tokens for i in here], device=model.device)
        starts = torch.tensor([texts[i].start for i in here])
        for condition, intervention in enumerate(interventions):
            hooks = []
            if intervention is not None:
                hooks = intervention.hooks(model, starts, texts=[texts[i].number for i in here])
            with model.each_alone(torch.full((len(here),), len(texts[0].tokens))):
                logits = model.run_with_hooks(tokens, fwd_hooks=hooks)[:, first - 1 : -1]
            yield [(i, condition) for i in here], *judged_tokens(logits, tokens[:, first:], model.name)


def judged_tokens(
    logits: Float[Tensor, "row token d_vocab"], tokens: Int[Tensor, "row token"], name: str = ""
) -> tuple[Float[Tensor, "row token"], Bool[Tensor, "row token"]]:
    """Log-probability of each token, and whether it was the most probable one; some logits at a time.

    Args:
        logits: of what comes next.
        tokens: which of them are asked for.
        name: of the model, for messages.

    Raises:
        ModelError: logits that are no numbers.

    Example:
        >>> scores, correct = judged_tokens(torch.tensor([[[0.0, 0.0], [0.0, 9.0]]]), torch.tensor([[0, 1]]))
        >>> scores.exp().round(decimals=2).tolist(), correct.tolist()
        ([[0.5, 1.0]], [[True, True]])
    """
    wide, targets = logits.flatten(0, 1), tokens.flatten()
    targets = targets.to(wide.device)  # the head of a spread model is not where ids go in
    at_once = max(1, _LOGITS_AT_ONCE // wide.shape[1])
    pairs = list(zip(wide.split(at_once), targets.split(at_once), strict=True))
    losses = torch.cat(
        [torch.nn.functional.cross_entropy(part.float(), some, reduction="none") for part, some in pairs]
    )
    if bool(losses.isnan().any()):
        raise no_number(name, logits.dtype, "logits")
    correct = torch.cat([part.argmax(-1) == some for part, some in pairs])
    return -losses.view_as(tokens).cpu(), correct.view_as(tokens).cpu()
