"""``ablation_study``: ablate circuits, and measure what loops, copying and language lose, beside controls.

Every condition (circuit, part, operation, control draw) on every text is one row of a batch; nothing is a run of the
model of its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor

from mechrep.ablation.circuit import Circuit
from mechrep.ablation.controls import CONTROLS, draw_controls
from mechrep.ablation.effects import ABLATION, Condition, Effects
from mechrep.ablation.outcomes import (
    CopyAccuracy,
    HeldOutLoss,
    LoopDecoding,
    LoopLogProbability,
    Outcome,
    Regeneration,
    Screens,
    loop_free_texts,
    looping_texts,
    unseen,
)
from mechrep.ablation.run import Cell, measure_effects
from mechrep.ablation.screening import (
    ALL_EXACTLY,
    Agreement,
    WeightedText,
    agreement,
    estimated_effects,
    screened_heads,
    screening_of,
)
from mechrep.ablation.texts import shared_loops, shared_repeats, shared_windows
from mechrep.errors import InputError
from mechrep.guards import Count, check_fields, each_once, guarded, one_of, some_of
from mechrep.interventions.ops import Heads, Op, When, as_op
from mechrep.interventions.whole_layers import Cut, op_name
from mechrep.models.model import Model
from mechrep.models.units import units_per_layer
from mechrep.run import Run
from mechrep.text.corpus import Corpus

READ_OUTCOMES = ("loop_log_probability", "copy_accuracy", "loss")
OUTCOMES = (*READ_OUTCOMES, "still_looping", "newly_looping")

Circuits = Circuit | Sequence[Circuit]


@dataclass(frozen=True)
class Controls:
    """Which controls a study draws, and how many of each.

    Attributes:
        kinds: keys of :data:`~mechrep.ablation.controls.CONTROLS`; a circuit gets those that its components have.
        draws: of each kind; by default what the run's effort says.
        exclude: named circuits of the same mechanism, which no control may hold.
        match: for matched kinds, a number per component: ``"activation_matched"`` ``[layer neuron]``,
            ``"bos_matched"`` ``[layer head]``.
        strict: refuse a control that cannot be drawn; otherwise it is left out, and the table's ``notes`` say why.

    Example:
        >>> Controls(["random", "layer_matched"], draws=19, strict=False).kinds
        ['random', 'layer_matched']
    """

    kinds: Sequence[str] = ("layer_matched",)
    draws: Count | None = None
    exclude: Sequence[Circuit] = ()
    match: Mapping[str, Float[Tensor, "layer unit"]] = field(default_factory=dict)
    strict: bool = True

    def __post_init__(self) -> None:
        check_fields(self)
        for name in self.kinds:
            one_of("control", name, CONTROLS)


@dataclass(frozen=True)
class StudyTexts:
    """The texts of a study of ablations; what is left out is made or collected.

    Attributes:
        loops: texts with ``start`` and ``onset`` for the loops, loop-free ones for ``newly_looping``.
        repeats: random repeats for ``copy_accuracy``, on which no head was scored.
        windows: held-out windows of one length for ``loss``.
        copies: repetitions of a loop whose tokens are predicted.
        decoding: how texts are regenerated.
        held_out: leave out texts that the circuits' provenance names.
        brief: of each repetition of a loop, and at the end of random repeats, only so many tokens count (and there is
            no ``copy_loss_drop``): for models in which each token costs much.

    Example:
        >>> import mechrep
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> loops = mechrep.Corpus.from_tokens([[0, *range(30, 50), *[9, 8, 7, 6, 5] * 4]], model=model).with_cycles()
        >>> (outcome,) = StudyTexts(loops).outcomes(model, ["loop_log_probability"], when="all", run=Run())
        >>> outcome.measures[0].name
        'loop_log_probability'
    """

    loops: Corpus | None = None
    repeats: Corpus | None = None
    windows: Corpus | None = None
    copies: Count = 3
    decoding: LoopDecoding = field(default_factory=LoopDecoding)
    held_out: bool = True
    brief: Count | None = None

    def __post_init__(self) -> None:
        check_fields(self)

    def outcomes(
        self, model: Model, names: Sequence[str], *, when: When, seen: frozenset[str] = frozenset(), run: Run
    ) -> list[Outcome]:
        """The measurements of these names, on texts outside ``seen``.

        Raises:
            InputError: an unknown name, one given twice, none at all, an unknown ``when``, texts that do not serve.
            NothingFoundError: no text of the kind that an outcome needs.
        """
        some_of("outcomes", names, OUTCOMES)
        one_of("when", when, ("from_onset", "all"))

        def texts() -> Corpus:
            given = self.loops
            if given is None:
                given = shared_loops(model, run, self.decoding.preset)
            return unseen(given, seen) if self.held_out else given

        def log_probability() -> Outcome:
            return LoopLogProbability(model, *looping_texts(texts()), self.copies, when, self.brief)

        def still_looping() -> Outcome:
            corpus, loops = looping_texts(texts())
            prompts = [loop.onset for loop in loops]
            return Regeneration("still_looping", model, corpus, prompts, loops, self.decoding, when)

        def newly_looping() -> Outcome:
            free = loop_free_texts(model, texts(), self.decoding.prompt_length)
            prompts = [self.decoding.prompt_length] * len(free)
            return Regeneration("newly_looping", model, free, prompts, None, self.decoding, when)

        makers: dict[str, Callable[[], Outcome]] = {
            "loop_log_probability": log_probability,
            "copy_accuracy": lambda: CopyAccuracy(model, self.repeats or shared_repeats(model, run), self.brief),
            "loss": lambda: HeldOutLoss(model, self.windows or shared_windows(model, run)),
            "still_looping": still_looping,
            "newly_looping": newly_looping,
        }
        return [makers[name]() for name in names]


@guarded
def ablation_study(
    model: Model,
    circuits: Circuits,
    *,
    outcomes: Sequence[str] = READ_OUTCOMES,
    texts: StudyTexts | Corpus | None = None,
    ops: Sequence[Cut] = ("zero",),
    controls: Controls | Sequence[str] = Controls(),
    when: When = "auto",
    run: Run | None = None,
) -> Effects:
    """Ablate circuits and measure what changes, beside controls.

    Of a circuit of several kinds (a union of neurons and heads) each kind is also ablated alone (column ``part``).

    Outcomes, those that only read first:

    * ``loop_log_probability``: with the prompt ``ids[:onset]`` and the loop's own continuation after it, the mean
      ``log p`` of its tokens in repetition 1, 2, ...; 0 is the onset token alone.  Teacher-forced, nats per token.
    * ``copy_accuracy`` and ``copy_loss_drop``: on random repeats, the share of the second half's tokens that are the
      most probable ones, and the loss on the first half minus that on the second.  Edited at every position.
    * ``loss``: on the second half of windows of held-out text, which is edited, nats per token.
    * ``still_looping``: share of looping texts that still loop when they are regenerated from their onset on, with
      what became of them.  Expensive, as every text is generated.
    * ``newly_looping``: share of loop-free texts that loop when regenerated after 50 tokens.  Expensive.

    Args:
        model: the model.
        circuits: one circuit or several; those of one name are sizes of one ranking.
        outcomes: which of the above; ``copy_loss_drop`` comes with ``copy_accuracy``.
        texts: looping texts, or all kinds of texts as :class:`StudyTexts`.
        ops: operations; a pair is one for neurons and one for heads.
        controls: kinds of controls, or :class:`Controls`.  No control holds a component of the set under test, of a
            larger set of the same name, or of ``controls.exclude``.
        when: ``"auto"``, the same as ``"from_onset"``: loops are edited from the position that predicts the onset
            token (or the first new one) on, so the prompt is read by the whole model; ``"all"``: at every position.
            What a head wrote into the first repetition, as a previous-token head does, only ``"all"`` removes.
        run: options; the effort says how many draws.

    Returns:
        Effects; ``summary()`` has the verdicts, ``to_frame()`` one row per measure and condition.

    Raises:
        InputError: a circuit of another model, an unknown outcome or control, a control that cannot be drawn, texts
            that do not serve.
        NothingFoundError: no looping (or loop-free) text where an outcome needs one.

    Source: ablating heads and copying: Olsson et al. 2022 (arXiv 2209.11895); the counts: Hiraoka & Inui 2025
    (arXiv 2410.13497); matched controls and the measures by repetition are mechrep's own.

    Limits: an ablated part can be replaced by others in the same pass, so a small effect does not show that it does
    nothing.  Zero may lie far from what a part does on text; compare operations.

    Example:
        >>> import mechrep
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> texts = mechrep.Corpus.from_tokens([[0, *range(30, 50), *[9, 8, 7, 6, 5] * 4]], model=model).with_cycles()
        >>> heads = Circuit("two heads", heads=[(1, 0), (2, 1)])
        >>> effects = ablation_study(
        ...     model, heads, texts=texts, outcomes=["loop_log_probability"], controls=Controls(["random"], draws=1)
        ... )
        >>> effects.to_frame()["selection"].tolist()[:3]
        ['baseline', 'ablation', 'random']
    """
    options, chosen, when = run or Run(), as_circuits(circuits), _from_where(when)
    given = texts if isinstance(texts, StudyTexts) else StudyTexts(loops=texts)
    wanted = controls if isinstance(controls, Controls) else Controls(tuple(controls))
    cells, notes = ablation_cells(model, chosen, ops=ops, controls=wanted, when=when, run=options)
    seen = frozenset[str]().union(*(circuit.seen_texts for circuit in chosen))
    measured = given.outcomes(model, outcomes, when=when, seen=seen, run=options)
    config = {"study": "ablation", "circuits": [[one.label, one.found] for one in chosen], "when": when}
    return measure_effects(model, cells, measured, config=config, run=options, notes=notes)


def _from_where(when: When) -> When:
    """Texts of a study have an onset, or a place that stands for one."""
    return "from_onset" if when == "auto" else when


def as_circuits(circuits: Circuits) -> list[Circuit]:
    """One circuit or several as a list.

    Raises:
        InputError: none, something else, or two of one name and size.
    """
    chosen = [circuits] if isinstance(circuits, Circuit) else list(circuits)
    names = [(one.name, len(one)) for one in chosen if isinstance(one, Circuit)]
    if not chosen or len(names) < len(chosen) or len(set(names)) < len(names):
        raise InputError(
            f"circuits {names or chosen!r:.200}",
            "at least one Circuit, one for each name and size",
            "make them with Circuit.from_neurons, Circuit.from_heads or Circuit(name, heads=[...])",
        )
    return chosen


def ablation_cells(
    model: Model, circuits: Sequence[Circuit], *, ops: Sequence[Cut], controls: Controls, when: When, run: Run
) -> tuple[list[Cell], dict[str, dict[str, str]]]:
    """The baseline; each circuit, whole and by kinds, under each operation, with the draws of its controls.

    Returns:
        The cells, and notes: ``excluded``, what no control may hold; ``left_out``, controls that cannot be drawn.

    Raises:
        InputError: a circuit of another model, an unknown control, one named twice or defined for no circuit, one
            that cannot be drawn (if strict), two operations of one name.
    """
    names = each_once("ops", map(op_name, ops), remedy="study them one after the other")
    pieces = [piece for circuit in circuits for piece in _pieces(circuit)]
    usable = {kind for _, piece in pieces for kind in CONTROLS if _has(piece, kind)}
    for kind in each_once("controls", controls.kinds, least=0):
        one_of("controls", kind, sorted(usable))
    cells: list[Cell] = [(Condition(), None)]
    notes: dict[str, dict[str, str]] = {"excluded": {}, "left_out": {}}
    for part, piece in pieces:
        piece.check_model(model)
        family = [one for one in circuits if one.name == piece.name and len(one) > len(piece)]
        barred = [*controls.exclude, *family]
        if barred:
            notes["excluded"][piece.label] = ", ".join(dict.fromkeys(one.label for one in barred))
        chosen: list[tuple[str, int, Circuit]] = [(ABLATION, 0, piece)]
        for kind in controls.kinds:
            if not _has(piece, kind):
                continue
            try:
                sets = _draw(model, piece, kind, barred, controls, run)
            except InputError as error:
                if controls.strict:
                    raise
                notes["left_out"][f"{kind}, {piece.label}"] = f"{error.given}; there are {error.expected}"
                continue
            chosen += [(kind, draw, one) for draw, one in enumerate(sets)]
        for op, name in zip(ops, names, strict=True):
            facts = {"name": piece.name, "k": len(piece), "op": name, "part": part}
            for selection, draw, one in chosen:
                condition = Condition(selection=selection, seed=draw, components=one.components, **facts)
                cells.append((condition, one.intervention(op, when)))
    return cells, notes


def _pieces(circuit: Circuit) -> list[tuple[str, Circuit]]:
    alone = [(kind, circuit.only(kind)) for kind in circuit.kinds] if len(circuit.kinds) > 1 else []
    return [("whole", circuit), *alone]


_DRAWN_FOR = {
    "neurons": ("random", "layer_matched", "activation_matched"),
    "heads": ("random", "layer_matched", "bos_matched"),
    "layers": ("random",),
}


def _has(circuit: Circuit, kind: str) -> bool:
    return all(kind in _DRAWN_FOR[of] for of in circuit.kinds)


def _draw(
    model: Model, piece: Circuit, kind: str, barred: Sequence[Circuit], controls: Controls, run: Run
) -> list[Circuit]:
    """Other circuits with as many components of each kind."""
    draws = run.sizes_on(model).draws if controls.draws is None else controls.draws
    anatomy, by_kind = model.anatomy, {}
    for of in piece.kinds:
        units = getattr(piece, of)
        exclude = {unit for one in barred for unit in getattr(one, of)}
        if of == "layers":  # other layers of the same part, attention or MLP
            parts = sorted({part for part, _ in units})
            own, others = ([(parts.index(p), n) for p, n in some if p in parts] for some in (units, exclude))
            drawn = draw_controls(
                "layer_matched", own, layers=len(parts), width=anatomy.n_layers, draws=draws, seed=run.seed,
                exclude=others,
            )  # fmt: skip
            by_kind[of] = [[(parts[part], layer) for part, layer in one] for one in drawn]
        else:
            assert of == "neurons" or of == "heads"
            by_kind[of] = draw_controls(
                kind, units, layers=anatomy.n_layers, width=units_per_layer(anatomy, of), draws=draws, seed=run.seed,
                exclude=exclude, match=controls.match.get(kind),
            )  # fmt: skip
    number = min(map(len, by_kind.values()))
    return [
        Circuit(piece.name, found=f"{kind} control", **{of: sets[draw] for of, sets in by_kind.items()})
        for draw in range(number)
    ]


@guarded
def single_head_sweep(
    model: Model,
    *,
    outcomes: Sequence[str] = ("loop_log_probability",),
    texts: StudyTexts | Corpus | None = None,
    op: Op | str = "zero",
    when: When = "auto",
    run: Run | None = None,
) -> Effects:
    """Ablate every head alone and measure what changes; each head's controls are all other heads.

    Each (head, text) is one row of a batch; what lies before a text's first edited position is computed once for all
    heads, and so are, where given texts are scored, the layers below each head.  Heads are told apart by texts, not by
    ranks (see :mod:`mechrep.ablation.effects`): a head is supported if over texts it does something, and more than the
    middle head.

    Of more than 40 heads, all are screened by a first-order estimate (:mod:`mechrep.ablation.screening`) of what they
    do to ``loop_log_probability``; the 20 with the largest estimates and 12 random others are ablated.  The middle
    head is then that of the random ones.

    Args:
        model: the model.
        outcomes: see :func:`ablation_study`, as for all that follows.
        texts: looping texts, or all kinds of texts.
        op: an operation on heads.
        when: ``"auto"`` or ``"all"``.
        run: options.

    Returns:
        Effects; the condition of head ``h`` of layer ``l`` is named ``"L{l}H{h}"``.  Where heads were screened,
        :func:`~mechrep.ablation.screening.screening_of` says by what, and how well that foretold the effects.

    Raises:
        InputError: an unknown outcome, an operation that is not for heads, texts that do not serve.
        NothingFoundError: no looping (or loop-free) text where an outcome needs one.

    Limits: heads that do the same work hide each other: ablated alone, neither matters.  Ablate them together with
    :func:`ablation_study`.

    Example:
        >>> import mechrep
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> rows = [[0, *range(30, 50), *[9, 8, 7, 6, 5] * 4], [0, *range(50, 70), *[4, 8, 3, 6] * 5]]
        >>> effects = single_head_sweep(model, texts=mechrep.Corpus.from_tokens(rows, model=model).with_cycles())
        >>> len(effects.conditions) == 1 + model.anatomy.n_layers * model.anatomy.n_heads
        True
    """
    options, when = run or Run(), _from_where(when)
    given, op = texts if isinstance(texts, StudyTexts) else StudyTexts(loops=texts), as_op(op)
    measured = given.outcomes(model, outcomes, when=when, run=options)
    return heads_alone(model, measured, op, when=when, peers="other heads", study="single heads", run=options)


def heads_alone(
    model: Model,
    outcomes: Sequence[Outcome],
    op: Op | str,
    *,
    when: When,
    peers: str,
    study: str,
    run: Run,
    named: str | None = None,
) -> Effects:
    """Heads ablated one at a time: all of them, or those that screening chooses.

    Args:
        model: the model.
        outcomes: what is measured; those that are a :class:`~mechrep.ablation.outcomes.Screens` screen.
        op: an operation on heads.
        when: where they are ablated.
        peers: what a head's controls are called.
        study: name of the study.
        run: options.
        named: how the operation is called in tables; by default by its name.

    Returns:
        Effects; where heads were screened, :func:`screening_of` gives by what.
    """
    heads = [(layer, head) for layer in model.anatomy.attention_layers for head in range(model.anatomy.n_heads)]
    by, notes = [one for one in outcomes if isinstance(one, Screens)], {"peers": peers}
    name = op_name(op) if named is None else named
    if by and len(heads) > ALL_EXACTLY:
        chosen = screened_heads(_estimates(model, by, op, run), seed=run.seed)
        heads, notes = chosen.heads, notes | {"screened": chosen.facts, "middle": [_name(*u) for u in chosen.sampled]}
    cells: list[Cell] = [(Condition(), None)]
    for layer, head in heads:
        components = {"heads": [[layer, head]]}
        condition = Condition(_name(layer, head), ABLATION, 1, name, components=components)
        cells.append((condition, Heads([(layer, head)], op, when)))
    return measure_effects(model, cells, outcomes, config={"study": study, "when": when}, run=run, notes=notes)


def _name(layer: int, head: int) -> str:
    return f"L{layer}H{head}"


def estimates_by_text(
    model: Model, outcomes: Sequence[Outcome], op: Op | str, run: Run
) -> dict[str, Float[Tensor, "text layer head"]]:
    """First-order estimates of ablating each head alone, by the measure that they foretell; once per run."""
    found: dict[str, Tensor] = {}
    for one in outcomes:
        if not isinstance(one, Screens):
            continue
        texts = one.weighted()
        facts = [[list(t.text.tokens), t.text.first, t.text.start, t.text.number, t.weights.tolist()] for t in texts]
        key = hashlib.sha256(repr((facts, as_op(op).fingerprint)).encode()).hexdigest()[:16]

        def make(texts: Sequence[WeightedText] = texts) -> Float[Tensor, "text layer head"]:
            return estimated_effects(model, texts, op, progress=run.progress)

        found[one.screened] = run.once(("estimates", model.fingerprint(), key), make)
    return found


def _estimates(
    model: Model, outcomes: Sequence[Outcome], op: Op | str, run: Run
) -> dict[str, Float[Tensor, "layer head"]]:
    return {name: table.nanmean(0) for name, table in estimates_by_text(model, outcomes, op, run).items()}


def agreements(effects: Effects) -> dict[str, Agreement]:
    """How well the estimates that chose a table's heads foretold their effects, by measure; empty if all were ablated.

    Args:
        effects: of :func:`single_head_sweep`, or another table of heads ablated alone.
    """
    screening = screening_of(effects.notes)
    if screening is None:
        return {}
    found = {}
    units = [tuple(one.components["heads"][0]) for one in effects.conditions[1:]]
    for measure, means in zip(effects.measures, effects.mean_effects(), strict=True):
        if measure.label in screening.estimates:
            exact = dict(zip(units, means[1:].tolist(), strict=True))
            found[measure.label] = agreement(screening, measure.label, exact)
    return found
