"""What each head does in natural loops and in induced texts: ablated, patched, in sets, and with texts regenerated.

One estimator for all kinds, at the same positions: the log-probability of the tokens that go on with the cycle, which
are known.  Every measure is named ``"what, text kind"`` and has the texts of that kind as units; texts of one prompt or
of one family of loops are one cluster.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from mechrep.ablation.controls import draw_controls
from mechrep.ablation.effects import ABLATION, Condition, Effects, detection, judge
from mechrep.ablation.outcomes import Outcome
from mechrep.ablation.run import Cell, measure_effects
from mechrep.ablation.study import estimates_by_text, heads_alone
from mechrep.cache.corpus_cache import CorpusCache
from mechrep.errors import InputError, NothingFoundError
from mechrep.generation.text_kinds import COPIES, clusters_of, joined_texts, labels_of
from mechrep.guards import Count, Some, guarded, one_of, some_of
from mechrep.interventions import Heads, mean, resample, zero
from mechrep.interventions.ops import Op, When
from mechrep.measures.text_kind_design import FIRST, SECOND, SWAPS, HeadEffects
from mechrep.models import tiny
from mechrep.models.anatomy import Site
from mechrep.models.model import Model
from mechrep.models.units import units_per_layer
from mechrep.run import Run
from mechrep.studies.text_kind_outcomes import Patched, Regenerated, RepetitionLogProbability
from mechrep.text.corpus import Corpus
from mechrep.text.windows import windows_of_text

OPS = ("mean", "zero", "resample", "to_bos")
PEERS = "other heads"
_SAMPLES, _REFERENCE_LENGTH, _REFERENCE_TEXTS = 256, 128, 16
_Z_BYTES = 2**28  # of what all heads of some texts gave, at a time
_SETS = {  # of the numbers of compare_heads: unit, and the sign that tells the kinds apart as published
    "common": ("share", -1),
    "rank_correlation": ("score", -1),
    "shared_top": ("count", -1),
    "gini": ("score", 1),
    "effective_heads": ("score", -1),  # no whole number: half a head is no floor for it
    "differing_heads": ("count", 1),
}
Head = tuple[int, int]


# --- from a table of effects to one number per text and head ----------------------------------------------------------


def head_effects(effects: Effects, *, op: str | None = None, copy: int | None = None) -> HeadEffects:
    """Effects of every head ablated (or patched) alone, text by text, for the tables of :class:`HeadEffects`.

    Args:
        effects: of :func:`ablation_contrast`, :func:`patching_contrast` or :func:`regenerated_contrast`.
        op: an operation; by default the first.
        copy: the repetition, 1 is the second; by default the mean over all.

    Raises:
        InputError: an operation or a repetition that was not measured.
    """
    alone = [(i, one) for i, one in enumerate(effects.conditions) if one.selection == ABLATION and one.k == 1]
    ops = list(dict.fromkeys(one.op for _, one in alone))
    chosen = ops[0] if op is None and ops else op
    one_of("op", chosen, ops)
    columns = {tuple(one.components["heads"][0]): i for i, one in alone if one.op == chosen}
    shape = tuple(1 + max(head[axis] for head in columns) for axis in (0, 1))
    order = [columns[layer, head] for layer in range(shape[0]) for head in range(shape[1])]
    what = effects.measures[0].name.split(", ")[0]
    tables, kinds, clusters, ids = [], [], [], []
    for name in dict.fromkeys(one.name for one in effects.measures if one.name.startswith(f"{what}, ")):
        place = effects.number(name, copy)
        tables.append(effects.effect_of(name, copy)[order].T.reshape(-1, *shape))
        kinds += [name.split(", ", 1)[1]] * len(effects.units[place])
        clusters, ids = [*clusters, *effects.clusters[place]], [*ids, *effects.units[place]]
    return HeadEffects(np.concatenate(tables), kinds, clusters, f"{what.replace('_', ' ')}, {chosen}", ids)


def compare_heads(
    effects: HeadEffects, k: int, *, first: str = FIRST, second: str = SECOND, swaps: int = SWAPS, seed: int = 0
) -> pd.DataFrame:
    """How far two kinds of text differ in their heads, judged beside swapped labels of the kinds.

    Two samples of texts never rank heads alike, so a number of how alike two rankings are says nothing by itself.  The
    swaps are its draws: see :mod:`mechrep.measures.text_kind_design`.  Signs were named before: the published claim is
    that induced texts rest on other, and on fewer heads.

    Args:
        effects: of one measure.
        k: heads that lead.
        first: a kind.
        second: the other.
        swaps: of the labels.
        seed: of draws and swaps.

    Returns:
        Rows of :func:`mechrep.ablation.effects.judge`, one for each number of :meth:`HeadEffects.compare`: ``value``,
        and ``effect``, what it exceeds the mean of the swaps by.

    Raises:
        InputError: a kind without texts, ``k`` larger than the number of heads.

    Source: the question: Mahaut & Franzon 2025 (arXiv 2504.01100).

    Limits: with few heads ranks are coarse.  A swap that by chance leaves most labels as they are makes the two
    halves differ as the kinds do: with few texts the first three find little; ``differing_heads`` is sharper.

    Example:
        >>> values = np.random.default_rng(0).normal(size=(400, 1, 6)) + [3, 2, 1, 0, 0, 0]
        >>> values[200:] = values[200:, :, ::-1]
        >>> names = ["induced"] * 200 + ["natural"] * 200
        >>> table = compare_heads(HeadEffects(values, names, [str(i) for i in range(400)], "made up"), 2, swaps=200)
        >>> table.set_index("measure")["verdict"][["common", "gini"]].tolist()
        ['supported', 'not supported']
    """
    n = min(len({c for c, kind in zip(effects.clusters, effects.text_kinds, strict=True) if kind == name})
            for name in (first, second))  # fmt: skip
    rows = []
    for name, found in effects.compare(k, first, second, swaps=swaps, seed=seed).items():
        unit, direction = _SETS[name]
        known = found.swaps[~np.isnan(found.swaps)].tolist()
        exact = {} if len(found.draws) == 0 else {"n": n, "interval": found.interval}
        row = detection(effects.measure, name, found.value, known, unit=unit, direction=direction, **exact)
        rows.append(row | {"controls": "swapped labels"})
    return judge(rows, family=f"how two kinds of text differ, {effects.measure}")


# --- what stands in the place of a head -------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class HeadReference:
    """Outputs ``z`` of all heads at positions of reference text.

    Attributes:
        samples: at positions drawn from it, all heads of a position together.
        mean: over all its positions.
    """

    samples: Float[Tensor, "sample layer head d_head"]
    mean: Float[Tensor, "layer head d_head"]

    def op(self, name: str, seed: int = 0) -> Op | str:
        """An operation on heads by its name.

        Raises:
            InputError: an unknown name.
        """
        one_of("op", name, OPS)
        return {"mean": mean(self.mean), "resample": resample(self.samples, seed), "zero": zero()}.get(name, name)


def head_reference(model: Model, corpus: Corpus, *, seed: int = 0, progress: bool | None = None) -> HeadReference:
    """Read what heads write in reference texts, without the first position, which is a sink in most models.

    Args:
        model: the model.
        corpus: texts that do not repeat: controls, or held-out windows.
        seed: of the draw of positions.
        progress: show a progress bar.

    Raises:
        InputError: texts of one token only.

    Example:
        >>> import mechrep
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> corpus = mechrep.Corpus.from_texts(["The sea was calm that day, and the ships lay still."], model=model)
        >>> reference = head_reference(model, corpus)
        >>> tuple(reference.mean.shape) == (model.anatomy.n_layers, model.anatomy.n_heads, model.anatomy.d_head)
        True
    """
    places = [(text, position) for text in range(len(corpus)) for position in range(1, int(corpus.lengths[text]))]
    if not places:
        raise InputError(f"{len(corpus)} reference texts of one token", "text to read", "pass longer reference texts")
    cache, total = CorpusCache(model, corpus, progress=progress), 0.0
    drawn = np.random.default_rng(seed).choice(len(places), min(_SAMPLES, len(places)), replace=False)
    samples: list[Tensor] = []
    anatomy = model.anatomy
    width = anatomy.n_layers * anatomy.n_heads * anatomy.d_head * int(corpus.lengths.max()) * model.dtype.itemsize
    for texts in torch.arange(len(corpus)).split(max(1, _Z_BYTES // width)):  # all may be larger than the memory
        z = cache.get(Site.Z, texts=texts.tolist())  # [layer text pos head d_head]
        for row, text in enumerate(texts.tolist()):
            own = z[:, row, 1 : int(corpus.lengths[text])].transpose(0, 1)  # [pos layer head d_head]
            total = total + own.double().sum(0)
            samples += [own[places[i][1] - 1] for i in drawn if places[i][0] == text]
    return HeadReference(torch.stack(samples).float(), (torch.as_tensor(total) / len(places)).float())


def _operations(model: Model, ops: Sequence[str], reference: Corpus | None, run: Run) -> dict[str, Op | str]:
    """The operations by name; what ``mean`` and ``resample`` need is read once per run."""
    some_of("ops", ops, OPS)
    if not {"mean", "resample"} & set(ops):
        return {name: name for name in ops}
    length = min(model.anatomy.n_ctx, _REFERENCE_LENGTH)
    sizes = run.sizes_on(model)
    limit = _REFERENCE_TEXTS if sizes.brief is None else min(_REFERENCE_TEXTS, sizes.windows)
    texts = reference or windows_of_text(model, tiny.held_out_text(), length=length, limit=limit)
    key = ("head reference", model.fingerprint(), texts.fingerprint())
    known = run.once(key, lambda: head_reference(model, texts, progress=False))
    return {name: known.op(name, run.seed) for name in ops}


# --- the studies ------------------------------------------------------------------------------------------------------


def cyclic_texts(corpus: Corpus) -> Corpus:
    """The texts with a cycle.

    Raises:
        InputError: there is none.
    """
    has = corpus.frame["start"].notna()
    if not has.any():
        raise InputError(
            f"{len(corpus)} texts without a cycle",
            "natural or induced texts",
            "build some with mechrep.natural_texts",
        )
    return corpus.select(has)


def _joined(model: Model, texts: Sequence[Corpus], copies: int) -> Corpus:
    joined = joined_texts(*texts, n_ctx=model.anatomy.n_ctx, copies=copies)
    joined.check_model(model)
    return cyclic_texts(joined)


def _kinds(corpus: Corpus) -> list[str]:
    return list(dict.fromkeys(labels_of(corpus.frame)))


def _alone(model: Model, ops: Mapping[str, Op | str], when: When = "all") -> list[Cell]:
    """The baseline, and every head ablated alone by each operation."""
    cells: list[Cell] = [(Condition(), None)]
    for name, op in ops.items():
        for layer in model.anatomy.attention_layers:
            for head in range(model.anatomy.n_heads):
                facts = {"k": 1, "op": name, "components": {"heads": [[layer, head]]}}
                cells.append((Condition(f"L{layer}H{head}", ABLATION, **facts), Heads([(layer, head)], op, when)))
    return cells


@guarded
def ablation_contrast(
    model: Model,
    texts: Some[Corpus],
    *,
    ops: Sequence[str] = ("mean",),
    reference: Corpus | None = None,
    when: When = "all",
    copies: Count = COPIES,
    run: Run | None = None,
) -> Effects:
    """Ablate every head alone and see what each kind of text loses.  Nothing is generated.

    With the text ``prefix, cycle, cycle, ...`` and its tokens given, the effect is the mean over a repetition's tokens
    of ``log p`` with the head ablated minus without, in nats per token.  The same estimator at the same positions for
    all kinds; the same call in one run computes it once.

    Args:
        model: the model.
        texts: natural and induced, built from one list of prompts; texts without a cycle are left out.
        ops: ``"mean"`` (the head's mean over reference text), ``"zero"``, ``"resample"`` (what all heads wrote at one
            position of it), ``"to_bos"``.
        reference: texts that do not repeat, for ``mean`` and ``resample``: controls; by default windows of the embedded
            held-out text.
        when: ``"all"``: ablated at every position, so what a head writes into the first repetition is gone too (as a
            previous-token head does); ``"from_onset"``: from the position that predicts the second repetition on.
        copies: repetitions beyond the first.
        run: options.

    Returns:
        Effects with the measures ``"log_probability, KIND"``; each head's controls are the other heads.  For what tells
        the kinds apart see :func:`head_effects` and :func:`compare_heads`.

    Raises:
        InputError: texts that cannot be joined, none with a cycle, an unknown operation.
        StoreError: the store cannot be read or written.

    Source: ablating heads in both kinds is Mahaut & Franzon 2025's (arXiv 2504.01100), who regenerate every text under
    every ablation and count loops.  A natural prompt loops by construction before the ablation, so counts have a
    ceiling there and none in induced texts; log-probabilities have none in either.

    Limits: heads that do the same work hide each other when each is ablated alone.

    Example:
        >>> import mechrep
        >>> from mechrep.generation.text_kinds import induced_texts, natural_texts
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> prompts = mechrep.generation.sample_prompts(model, 6)
        >>> natural = natural_texts(model, prompts, max_new_tokens=100)
        >>> induced = induced_texts(model, prompts, 2, "cycle", max_new_tokens=100)
        >>> effects = ablation_contrast(model, [natural, induced], ops=["zero"], copies=1)
        >>> len(head_effects(effects).contrast()) == model.anatomy.n_layers * model.anatomy.n_heads
        True
    """
    some_of("ops", ops, OPS)
    options, corpus = run or Run(), _joined(model, texts, copies)
    given = None if reference is None else reference.fingerprint()
    key = ("heads alone", model.fingerprint(), corpus.fingerprint(), tuple(ops), given, when, copies)

    brief = options.sizes_on(model).brief

    def measured() -> Effects:
        if brief is not None:
            return _brief_contrast(model, corpus, _operations(model, ops, reference, options), brief, options)
        cells = _alone(model, _operations(model, ops, reference, options), when)
        outcomes: list[Outcome] = [
            RepetitionLogProbability(model, corpus, kind, when, copies) for kind in _kinds(corpus)
        ]
        config = {"study": "ablation contrast", "when": when}
        return measure_effects(model, cells, outcomes, config=config, run=options, notes={"peers": PEERS})

    return options.once(key, measured)


def _brief_contrast(model: Model, corpus: Corpus, ops: Mapping[str, Op | str], brief: int, run: Run) -> Effects:
    """Heads screened; of those that are not ablated the first-order estimate stands in the table.

    From the position that predicts the second repetition on, and at its first tokens.
    """
    outcomes: list[Outcome] = [
        RepetitionLogProbability(model, corpus, kind, "from_onset", 1, by_copy=False, brief=brief)
        for kind in _kinds(corpus)
    ]
    ((name, op),) = list(ops.items())[:1]
    exact = heads_alone(
        model, outcomes, op, when="from_onset", peers=PEERS, study="ablation contrast", run=run, named=name
    )
    by_text = estimates_by_text(model, outcomes, op, run)
    if "screened" not in exact.notes:
        return exact
    places = {one.name: place for place, one in enumerate(exact.conditions)}
    conditions, columns = [exact.conditions[0]], [exact.values[:, :1]]
    for condition, _ in _alone(model, {name: op})[1:]:
        (layer, head), place = condition.components["heads"][0], places.get(condition.name)
        conditions.append(condition)
        if place is not None:
            columns.append(exact.values[:, place : place + 1])
            continue
        told = torch.full_like(exact.values[:, :1], torch.nan)
        for row, measure in enumerate(exact.measures):
            estimates = by_text[measure.label][:, layer, head]
            told[row, 0, : len(estimates)] = exact.values[row, 0, : len(estimates)] + estimates
        columns.append(told)
    return replace(exact, conditions=conditions, values=torch.cat(columns, 1))


@guarded
def patching_contrast(
    model: Model, texts: Some[Corpus], donors: Corpus, *, copy: Count = 1, run: Run | None = None
) -> Effects:
    """Activation patching of every head alone, from donor texts into others.

    ``effect = log p(e | z_h from the donor) - log p(e)`` at the position that predicts the first token ``e`` of a
    repetition (the second, where the seam is not the text's own), in nats.  Donors are from the same prompt where there
    is one, else drawn.  A donor with a cycle gives the position that predicts the same repetition, one without gives
    the same position in the text, so that heads which attend by position see the same distances.

    Args:
        model: the model.
        texts: that are patched; those without a cycle are left out.
        donors: one kind of text, which gives ``z``; not patched itself.
        copy: repetition whose first token is predicted, from 1, the second, on.
        run: options; its seed chooses donors.

    Returns:
        Effects, the operation named after the donors' builder; NaN for texts without a donor that is as long.

    Raises:
        InputError: fewer than one repetition, texts that cannot be joined.
        NothingFoundError: no text has a donor that is as long.

    Source: interchange of activations between runs: Vig et al. 2020 (arXiv 2004.12265), Geiger et al. 2021
    (2106.02997).

    Limits: one position is patched; what heads wrote into earlier ones stays.

    Example:
        >>> import mechrep
        >>> from mechrep.generation.text_kinds import induced_texts, natural_texts
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> prompts = mechrep.generation.sample_prompts(model, 4)
        >>> natural = natural_texts(model, prompts, max_new_tokens=100)
        >>> induced = induced_texts(model, prompts, 2, "cycle", max_new_tokens=100)
        >>> patching_contrast(model, [natural], induced).conditions[1].op
        'patched from icl_from_cycle(2)'
    """
    options, corpus = run or Run(), _joined(model, texts, copy)
    giving = joined_texts(donors, n_ctx=model.anatomy.n_ctx, copies=copy)
    giving.check_model(model)
    op = "patched from " + "+".join(sorted(set(donors.frame["builder"])))
    outcomes: list[Outcome] = [Patched(model, corpus, kind, giving, copy, options.seed) for kind in _kinds(corpus)]
    cells = [(replace(one, op=op) if do else one, do) for one, do in _alone(model, {"zero": "zero"})]
    config = {"study": "patching contrast"}
    effects = measure_effects(model, cells, outcomes, config=config, run=options, notes={"peers": PEERS})
    if effects.values[:, 0].isnan().all():
        raise NothingFoundError(
            f"{len(giving)} donors, none as long as any of {len(corpus)} texts at the position asked about",
            "donors that reach that far",
            "build controls with more max_new_tokens, or patch from another kind of text",
        )
    return effects


@guarded
def regenerated_contrast(
    model: Model,
    texts: Some[Corpus],
    *,
    op: str = "mean",
    reference: Corpus | None = None,
    when: When = "all",
    sample: Count | None = 16,
    max_new_tokens: Count = 64,
    run: Run | None = None,
) -> Effects:
    """Regenerate texts, greedily, with every head ablated alone: the expensive way to the same question.

    ``copied_share`` is the share of ``max_new_tokens`` that goes on with the cycle before another token comes.  Where
    two copies meet at a seam that is not the text's own, the first token of the next copy is given.

    Args:
        model: the model.
        texts: natural and induced.
        op: as in :func:`ablation_contrast`, as are the next two.
        reference: as there.
        when: as there.
        sample: at most so many texts of each kind; ``None`` takes all.
        max_new_tokens: after each prompt.
        run: options; its seed draws the sample.

    Returns:
        Effects with the measures ``"copied_share, KIND"`` and ``"new_tokens, KIND"``, tokens that were generated.

    Raises:
        InputError: an unknown operation, prompts that leave no room, texts without a cycle.

    Example:
        >>> import mechrep
        >>> from mechrep.generation.text_kinds import natural_texts
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> natural = natural_texts(model, mechrep.generation.sample_prompts(model, 4), max_new_tokens=100)
        >>> effects = regenerated_contrast(model, [natural], op="zero", sample=1, max_new_tokens=4)
        >>> float(effects.of("new_tokens, natural").sum()) <= 4 * len(effects.conditions)
        True
    """
    options = run or Run()
    ops = _operations(model, [op], reference, options)
    corpus = _sample(cyclic_texts(Corpus.concatenate(*texts)), sample, options.seed)
    outcomes: list[Outcome] = [Regenerated(model, corpus, kind, when, max_new_tokens) for kind in _kinds(corpus)]
    config = {"study": "regenerated contrast", "when": when}
    return measure_effects(
        model, _alone(model, ops, when), outcomes, config=config, run=options, notes={"peers": PEERS}
    )


def _sample(corpus: Corpus, texts: int | None, seed: int) -> Corpus:
    if texts is None:
        return corpus
    generator, labels = np.random.default_rng(seed), np.array(labels_of(corpus.frame), dtype=object)
    chosen: list[int] = []
    for name in dict.fromkeys(labels):
        here = np.flatnonzero(labels == name)
        chosen += sorted(generator.choice(here, min(texts, len(here)), replace=False).tolist())
    return corpus.select(chosen)


@guarded
def head_dissociation(
    model: Model,
    texts: Some[Corpus],
    *,
    k: Count,
    op: str = "mean",
    controls: Sequence[str] = ("random",),
    reference: Corpus | None = None,
    copies: Count = COPIES,
    run: Run | None = None,
) -> Effects:
    """Ablate the ``k`` heads that matter most in each kind of text, together, in texts on which they were not found.

    Args:
        model: the model.
        texts: natural and induced, built from one list of prompts.
        k: heads ablated together.
        op: as in :func:`ablation_contrast`, as are ``reference`` and ``copies``.
        controls: ``"random"``, ``"layer_matched"``, see :func:`mechrep.ablation.controls.draw_controls`; none holds a
            head of either set.  One that cannot be drawn is left out, and ``notes["left_out"]`` says why.
        reference: as there.
        copies: as there.
        run: options; the effort says how many draws, and the seed splits the texts.

    Returns:
        Effects with a condition ``"KIND heads"`` for each kind, beside its controls, and the measures
        ``"log_probability, KIND"`` of the other half of the texts.

    Raises:
        InputError: fewer than two clusters of a kind, ``k`` larger than there are heads.

    Example:
        >>> import mechrep
        >>> from mechrep.generation.text_kinds import induced_texts, natural_texts
        >>> model, run = mechrep.load_model("mechrep-tiny"), mechrep.run.Run(effort="quick")
        >>> prompts = mechrep.generation.sample_prompts(model, 10)
        >>> natural = natural_texts(model, prompts, max_new_tokens=100)
        >>> induced = induced_texts(model, prompts, 2, "cycle", max_new_tokens=100)
        >>> effects = head_dissociation(model, [natural, induced], k=1, op="zero", copies=1, run=run)
        >>> sorted({one.name for one in effects.conditions})
        ['baseline', 'induced heads', 'natural heads']
    """
    one_of("op", op, OPS)
    for kind in controls:
        one_of("control", kind, ("random", "layer_matched"))
    options, corpus = run or Run(), _joined(model, texts, copies)
    find, test = halves(corpus, options.seed)
    single = ablation_contrast(model, texts, ops=[op], reference=reference, copies=copies, run=options)
    found = head_effects(single).select(find.frame["id"].astype(str).tolist())
    tops = {f"{kind} heads": found.top(k, kind) for kind in _kinds(find)}
    edit, brief = _operations(model, [op], reference, options)[op], options.sizes_on(model).brief
    when: When = "all" if brief is None else "from_onset"
    cells, left_out = sets_of_heads(model, tops, controls, op, edit, options, when)
    outcomes: list[Outcome] = [
        RepetitionLogProbability(model, test, kind, when, copies, by_copy=False, brief=brief) for kind in _kinds(test)
    ]
    named = {name: ", ".join(other for other in tops if other != name) for name in tops}
    notes = {"excluded": named, "left_out": left_out}
    return measure_effects(model, cells, outcomes, config={"study": "head dissociation"}, run=options, notes=notes)


def sets_of_heads(
    model: Model,
    tops: Mapping[str, Sequence[Head]],
    controls: Sequence[str],
    op: str,
    edit: Op | str,
    run: Run,
    when: When = "all",
) -> tuple[list[Cell], dict[str, str]]:
    """The baseline, the sets with their controls, and why some control is not among them."""
    anatomy, left_out, sizes = model.anatomy, dict[str, str](), run.sizes_on(model)
    draws = sizes.draws if sizes.brief is None else 2 * sizes.regenerated_draws + 1
    cells: list[Cell] = [(Condition(), None)]
    for name, top in tops.items():
        others = [head for other, heads in tops.items() if other != name for head in heads]
        sets = [(ABLATION, 0, list(top))]
        for kind in controls:
            try:
                drawn = draw_controls(
                    kind, top, layers=anatomy.n_layers, width=units_per_layer(anatomy, "heads"),
                    draws=draws, seed=run.seed, exclude=others,
                )  # fmt: skip
            except InputError as error:
                left_out[f"{kind}, {name}"] = f"{error.given}; there are {error.expected}"
                continue
            sets += [(kind, draw, heads) for draw, heads in enumerate(drawn)]
        for selection, draw, heads in sets:
            components = {"heads": [list(head) for head in heads]}
            condition = Condition(name, selection, len(top), op, seed=draw, components=components)
            cells.append((condition, Heads(heads, edit, when)))
    return cells, left_out


def halves(corpus: Corpus, seed: int) -> tuple[Corpus, Corpus]:
    """Two halves, each with texts of every kind; texts of one prompt or one family of loops stay together.

    Raises:
        InputError: a kind with fewer than two clusters.
    """
    generator, labels = np.random.default_rng(seed), np.array(labels_of(corpus.frame), dtype=object)
    clusters = np.array(clusters_of(corpus.frame), dtype=object)
    kinds: dict[str, list[str]] = {}
    for cluster, label in zip(clusters, labels, strict=True):
        kinds.setdefault(cluster, []).append(label)
    chosen: set[str] = set()
    for pattern in dict.fromkeys(tuple(sorted(set(own))) for own in kinds.values()):
        group = [cluster for cluster, own in kinds.items() if tuple(sorted(set(own))) == pattern]
        order = generator.permutation(len(group))
        chosen |= {group[i] for i in order[: (len(group) + 1) // 2]}
    mask = np.array([cluster in chosen for cluster in clusters])
    for name in dict.fromkeys(labels):
        if not mask[labels == name].any() or mask[labels == name].all():
            raise InputError(
                f"text kind {name!r} with {int((labels == name).sum())} texts",
                "texts of at least two clusters (prompts, families of loops)",
                "try more prompts",
            )
    return corpus.select(mask), corpus.select(~mask)
