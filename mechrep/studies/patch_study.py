"""``run_patch_study``: what does the sink patch do to norms, attention, repetition and language?

Each condition holds as many neurons as the patch: the patched ones, then, several times each, random neurons of the
model, random ones of the sink layer, and ones of the sink layer that are as active on ordinary text.  Under every
condition the same ordinary texts and the same repeated tokens are read, on the plain view where the model has it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mechrep.analyzers.sinks.attention_sinks import AttentionSinkResult, AttentionSinks
from mechrep.analyzers.sinks.cause import begins_with_bos
from mechrep.analyzers.sinks.find_sink import find_sink
from mechrep.analyzers.sinks.norms import SinkNormResult, SinkNorms, other_positions
from mechrep.analyzers.sinks.repeat_norms import RepeatNormResult, RepeatNorms
from mechrep.cache.corpus_cache import CorpusCache
from mechrep.errors import InputError, NothingFoundError
from mechrep.generation.patched_model import PatchedModel
from mechrep.interventions.base import Combined, Intervention
from mechrep.interventions.sink_patch import SinkPatch
from mechrep.models import tiny
from mechrep.models.anatomy import Site
from mechrep.models.model import Model
from mechrep.models.reading import choose_view, read_activations
from mechrep.progress import progress_bar
from mechrep.provenance import provenance_of
from mechrep.studies.controls import CONTROLS, Unit, _nearest, as_seeds, control_units
from mechrep.studies.patch_result import ORIGINAL, PATCHED
from mechrep.studies.patch_result import PatchStudyResult as PatchStudyResult
from mechrep.text.corpus import Corpus
from mechrep.text.repeated import repeated_tokens
from mechrep.text.windows import windows_of_text

_LENGTH, _WINDOWS = 64, 100
_TOKENS, _REPEATS = 16, 512
_LOGITS_PER_BATCH = 2**24
_TOKENS_PER_BATCH = 4096


def run_patch_study(
    model: Model,
    patch: SinkPatch | None = None,
    *,
    texts: Corpus | Sequence[str] | None = None,
    tokens: Sequence[int | str] | None = None,
    repeats: int | None = None,
    controls: Sequence[str] = CONTROLS,
    seeds: int | Sequence[int] = 5,
    seed: int = 0,
    progress: bool | None = None,
) -> PatchStudyResult:
    """Measures a model before and after a sink patch, and under the same patch on other neurons.

    Args:
        model: the model.
        patch: by default the layer and neurons that :func:`~mechrep.analyzers.sinks.find_sink.find_sink` finds.
        texts: ordinary texts for norms, attention and loss: a corpus, or texts.  By default up to 100 windows of 64
            tokens of held-out English, with BOS by the model's habit.
        tokens: ids, or words of one token, to repeat; by default the 16 most frequent ones of the texts.
        repeats: how often; by default 512, or what the context holds.
        controls: ``"random"``, ``"layer_matched"``, ``"activation_matched"``; the last matches the mean absolute
            activation on the texts, BOS left out.
        seeds: number of draws of each control, or the seeds.
        seed: of the search for the sink.
        progress: show a progress bar.

    Returns:
        Measures per condition; ``summary()`` has original, patched and controls side by side.

    Raises:
        NothingFoundError: no patch is given and the model has no norm sink.
        InputError: a patch that begins later than at the first token after BOS or does not fit the model; a corpus of
            another model, texts of one token, no tokens to repeat, fewer than two repeats; a control twice or unknown,
            or more neurons than a control can match.

    Source: the patch and the three questions (norms, repetition, benchmarks) are Yona et al. 2025 (arXiv 2503.08908);
    measures, controls and intervals are mechrep's own.  Their measure of repetition is not known to us.

    Limits: "repeats continued" reads the most probable next token after n true copies.  That is what greedy decoding
    does as long as it has gone on repeating; it says nothing about what follows the first other token.  The neurons are
    found on the same default texts that the loss is measured on.

    Example:
        >>> import mechrep
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> result = run_patch_study(
        ...     model, SinkPatch(0, [3]), texts=["The sea was calm that day."], tokens=[300, 301], repeats=20,
        ...     controls=["random"], seeds=1, progress=False,
        ... )
        >>> list(result.selections), result.summary()["measure"].tolist()[-1]
        (['original', 'patched', 'random'], 'perplexity')
    """
    corpus = _corpus_of(model, texts)
    chosen = _found_patch(model, corpus, seed) if patch is None else _checked(model, patch)
    stimulus = _stimulus(model, corpus, tokens, repeats)
    view = choose_view(model, {Site.RESID_PRE, Site.RESID_POST, Site.MLP_POST, Site.PATTERN})
    cells = _conditions(model, chosen, controls, as_seeds(seeds), corpus, view)
    measured = []
    with progress_bar(len(cells), "measuring the patch", "condition", progress) as bar:
        for _, _, units in cells:
            with _patched(model, _patch_of(units), view):
                measured.append(_measure(model, corpus, stimulus, view))
            bar.update(1)
    config = {
        "patch": chosen.to_dict(),
        "found": patch is None,
        "controls": list(controls),
        "seed": seed,
        "conditions": [[selection, draw, [list(unit) for unit in units]] for selection, draw, units in cells],
        "stimulus": stimulus.fingerprint(),
    }
    return _result(provenance_of(model, corpus, config), chosen, cells, measured, stimulus)


@dataclass(frozen=True)
class _Measured:
    norms: SinkNormResult
    heads: AttentionSinkResult
    repeats: RepeatNormResult
    continued: Tensor
    losses: Tensor


def _corpus_of(model: Model, texts: Corpus | Sequence[str] | None) -> Corpus:
    if isinstance(texts, Corpus):
        texts.check_model(model)
        corpus = texts
    elif model.tokenizer is None:
        raise InputError(
            f"{model.name}, which has no tokenizer", "a corpus of ids", "pass texts=Corpus.from_tokens(...)"
        )
    elif texts is not None:
        corpus = Corpus.from_texts(texts, model=model)
    else:
        length = min(_LENGTH, model.anatomy.n_ctx)
        corpus = windows_of_text(model, tiny.held_out_text(), length=length, limit=_WINDOWS)
    if int(corpus.lengths.min()) < 2:
        raise InputError("a text of one token", "at least two, one of them to predict", "leave it out")
    return corpus


def _found_patch(model: Model, corpus: Corpus, seed: int) -> SinkPatch:
    sink = find_sink(model, texts=corpus, seed=seed)
    if sink.layer is None:
        raise NothingFoundError(
            f"{model.name}: {sink.reason}",
            "a norm sink, whose neurons could be patched",
            "there is nothing to patch here; to see what holding other neurons does, pass patch=SinkPatch(...)",
        )
    return SinkPatch(sink.layer, [neuron for _, neuron in sink.neurons])


def _checked(model: Model, patch: SinkPatch) -> SinkPatch:
    patch.check(model.anatomy.n_layers, model.anatomy.d_mlp)
    if patch.when != "all":
        raise InputError(f"when={patch.when!r}", "'all'", "study the patch as it is: from the first token after BOS on")
    return patch


def _stimulus(model: Model, corpus: Corpus, tokens: Sequence[int | str] | None, repeats: int | None) -> Corpus:
    """Repeated tokens, with BOS where the texts have it."""
    bos = begins_with_bos(model, corpus)
    n = min(model.anatomy.n_ctx - bos, _REPEATS) if repeats is None else repeats
    if n < 2:
        raise InputError(f"repeats={n}", "at least 2", "raise it")
    if tokens is None:
        counted = Counter(token for text in range(len(corpus)) for token in corpus.row(text))
        tokens = [token for token, _ in counted.most_common() if token not in model.special_ids][:_TOKENS]
    if not tokens:
        raise InputError("no token to repeat", "at least one", "pass tokens=, or texts that are not all special tokens")
    return repeated_tokens(model, tokens, n, bos)


Cell = tuple[str, int, tuple[Unit, ...]]


def _conditions(
    model: Model, patch: SinkPatch, controls: Sequence[str], seeds: Sequence[int], corpus: Corpus, view: Any
) -> list[Cell]:
    """The untouched model, the patch, and every control from every seed."""
    unknown = set(controls) - set(CONTROLS)
    if unknown or len(set(controls)) < len(controls):
        raise InputError(f"controls={list(controls)}", f"some of {CONTROLS}, each once", "choose among these")
    cells: list[Cell] = [(ORIGINAL, 0, ()), (PATCHED, 0, patch.units)]
    sizes = _sizes(model, corpus, patch.layer, view) if "activation_matched" in controls else np.zeros(0)
    shape: dict[str, Any] = {"n_layers": model.anatomy.n_layers, "d_mlp": model.anatomy.d_mlp}
    for control in controls:
        for seed in seeds:
            if control != "activation_matched":
                drawn = control_units(control, patch.units, **shape, seed=seed)
            else:
                # Asked first, because it refuses a layer in which too few neurons are left.
                control_units("layer_matched", patch.units, **shape, seed=seed)
                free = np.setdiff1d(np.arange(shape["d_mlp"]), patch.neurons)
                generator = np.random.default_rng([seed, CONTROLS.index(control), len(patch.neurons)])
                drawn = [(patch.layer, n) for n in sorted(_nearest(sizes, patch.neurons, free, generator))]
            cells.append((control, seed, tuple(drawn)))
    return cells


def _sizes(model: Model, corpus: Corpus, layer: int, view: Any) -> np.ndarray:
    """Mean absolute activation of every neuron of the layer, after the product, at all positions but the first."""
    total = torch.zeros(model.anatomy.d_mlp, dtype=torch.float64)
    for rows in torch.arange(len(corpus)).split(max(1, _TOKENS_PER_BATCH // corpus.tokens.shape[1])):
        inside = other_positions(corpus.lengths[rows], corpus.tokens.shape[1])

        def add(activation: Tensor, _site: Site, _layer: int, inside: Tensor = inside) -> None:
            nonlocal total
            total += activation[inside.to(activation.device)].abs().double().sum(0).cpu()

        read_activations(model, corpus.tokens[rows].to(model.device), {Site.MLP_POST: [layer]}, add, view=view)
    return (total / (corpus.lengths - 1).sum()).numpy()


def _patch_of(units: Sequence[Unit]) -> Intervention | None:
    """The patch that holds these neurons, which may lie in several layers."""
    layers = sorted({layer for layer, _ in units})
    parts = tuple(SinkPatch(layer, [neuron for place, neuron in units if place == layer]) for layer in layers)
    return None if not parts else parts[0] if len(parts) == 1 else Combined(parts)


@contextmanager
def _patched(model: Model, patch: Intervention | None, view: str) -> Iterator[None]:
    """The view that is going to be read, under the patch."""
    if patch is None:
        yield
    elif view == "plain":
        with PatchedModel(model, patch):
            yield
    else:
        with model.hooks(fwd_hooks=patch.hooks(model)):
            yield


@torch.no_grad()
def _measure(model: Model, corpus: Corpus, stimulus: Corpus, view: Any) -> _Measured:
    norms, heads = CorpusCache(model, corpus, view=view, progress=False).run(SinkNorms(), AttentionSinks())
    (repeats,) = CorpusCache(model, stimulus, view=view, progress=False).run(RepeatNorms())
    assert isinstance(norms, SinkNormResult) and isinstance(heads, AttentionSinkResult)
    assert isinstance(repeats, RepeatNormResult)
    half = int(stimulus.lengths[0]) - repeats.repeats[-1] // 2 - 1
    continued = [hits[:, half:].float().mean(1) for _, hits, _ in _predictions(model, stimulus, view)]
    losses = []
    for lengths, _, scores in _predictions(model, corpus, view):
        inside = torch.arange(scores.shape[1]) < (lengths - 1)[:, None]
        losses.append(-(scores * inside).sum(1) / inside.sum(1))
    return _Measured(norms, heads, repeats, torch.cat(continued), torch.cat(losses))


def _predictions(model: Model, corpus: Corpus, view: str) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Batches: lengths; whether each next token is the most probable one; its log-probability ``[text pos]``."""
    width = corpus.tokens.shape[1]
    for rows in torch.arange(len(corpus)).split(max(1, _LOGITS_PER_BATCH // (width * model.anatomy.d_vocab))):
        tokens = corpus.tokens[rows].to(model.device)
        logits: Float[Tensor, "text pos d_vocab"] = model.plain_logits(tokens) if view == "plain" else model(tokens)
        logits, following = logits[:, :-1].float(), tokens[:, 1:].to(logits.device)
        scores = logits.gather(-1, following[..., None]).squeeze(-1) - logits.logsumexp(-1)
        yield corpus.lengths[rows], (logits.argmax(-1) == following).cpu(), scores.cpu()


def _result(
    provenance: Any, patch: SinkPatch, cells: Sequence[Cell], measured: Sequence[_Measured], stimulus: Corpus
) -> PatchStudyResult:
    original, depth = measured[0], patch.layer + 1
    best = original.heads.ranking()[0]
    moves = [each.repeats.moved(patch.layer, original.norms.other_norm) for each in measured]

    def stacked(values: Sequence[Any]) -> Tensor:
        return torch.stack([torch.as_tensor(value).float().cpu() for value in values])

    return PatchStudyResult(
        provenance,
        layer=patch.layer,
        neurons=list(patch.neurons),
        selections=[selection for selection, _, _ in cells],
        seeds=[seed for _, seed, _ in cells],
        units=[[list(unit) for unit in units] for _, _, units in cells],
        token_ids=original.repeats.token_ids,
        repeats=original.repeats.repeats[-1],
        bos=bool(stimulus.frame["bos"].iloc[0]),
        first_norm=stacked([each.norms.first_norm[depth] for each in measured]),
        typical_norm=stacked([each.norms.other_norm[depth] for each in measured]),
        repeat_norm=stacked([each.repeats.norm[:, depth, -1] for each in measured]),
        moved=stacked([move.values[:, -1] for move in moves]),
        moved_reason=moves[0].reason,
        head=list(best),
        attention=stacked([each.heads.alpha[best] for each in measured]),
        mean_attention=stacked([each.heads.alpha.mean() for each in measured]),
        continued=stacked([each.continued for each in measured]),
        losses=stacked([each.losses for each in measured]),
    )
