"""``run_patch_study``: what does the sink patch do to norms, attention, repetition and language?

Each condition holds as many neurons as the patch: the patched ones, then, several times each, random neurons of the
model, random ones of the sink layer, and ones of the sink layer that are as active on ordinary text.  Under every
condition the same ordinary texts and the same repeated tokens are read, on the plain view where the model has it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mechrep.analyzers.sinks.attention_sinks import AttentionSinkResult, AttentionSinks
from mechrep.analyzers.sinks.find_sink import find_sink
from mechrep.analyzers.sinks.norms import SinkNormResult, SinkNorms
from mechrep.analyzers.sinks.repeat_norms import RepeatNormResult, RepeatNorms
from mechrep.cache.corpus_cache import CorpusCache
from mechrep.errors import InputError, NothingFoundError
from mechrep.generation.patched_model import PatchedModel
from mechrep.interventions.base import Combined, Intervention
from mechrep.interventions.sink_patch import SinkPatch
from mechrep.models.anatomy import Site
from mechrep.models.model import Model
from mechrep.models.reading import choose_view
from mechrep.progress import progress_bar
from mechrep.provenance import provenance_of
from mechrep.studies.controls import CONTROLS, Unit, as_seeds
from mechrep.studies.patch_result import ORIGINAL, PATCHED
from mechrep.studies.patch_result import PatchStudyResult as PatchStudyResult
from mechrep.studies.sink_measures import (
    Cell,
    control_cells,
    ordinary_texts,
    predictions,
    repeated_stimulus,
    second_half,
    text_losses,
)
from mechrep.text.corpus import Corpus


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
    corpus = ordinary_texts(model, texts)
    chosen = _found_patch(model, corpus, seed) if patch is None else _checked(model, patch)
    stimulus = repeated_stimulus(model, corpus, tokens, repeats)
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


def _conditions(
    model: Model, patch: SinkPatch, controls: Sequence[str], seeds: Sequence[int], corpus: Corpus, view: Any
) -> list[Cell]:
    """The untouched model, the patch, and every control from every seed."""
    drawn = control_cells(model, patch.layer, patch.neurons, controls, seeds, corpus, view)
    return [(ORIGINAL, 0, ()), (PATCHED, 0, patch.units), *drawn]


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
    half = second_half(stimulus)
    continued = [hits[:, half:].float().mean(1) for _, hits, _ in predictions(model, stimulus, view)]
    return _Measured(norms, heads, repeats, torch.cat(continued), text_losses(model, corpus, view))


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
