"""``ablation_study``: cut circuits out of a model, and see what loops, copying and language lose, beside controls.

Every condition (circuit, part, operation, control, seed) on every text is one row of a batch; nothing is a run of the
model of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mechrep.analyzers.heads.result import HeadScoreResult
from mechrep.analyzers.neuron_result import RepetitionNeuronResult
from mechrep.analyzers.sinks.attention_sinks_result import AttentionSinkResult
from mechrep.interventions.base import When
from mechrep.models.model import Model
from mechrep.studies.ablation.conditions import Circuits, MatchBy, ablation_conditions, as_circuits
from mechrep.studies.ablation.ops import Cut, as_ops
from mechrep.studies.ablation.plan import CHEAP_OUTCOMES, Settings, run_plan
from mechrep.studies.ablation.result import AblationResult
from mechrep.studies.controls import as_seeds
from mechrep.studies.sweeps import ACTIVATION_PROMPT, NEW_TOKENS
from mechrep.text.corpus import Corpus


def ablation_study(
    model: Model,
    circuits: Circuits,
    *,
    corpus: Corpus | None = None,
    ops: Sequence[Cut] = ("zero",),
    ks: Sequence[int] | None = None,
    controls: Sequence[str] = ("random", "layer_matched"),
    seeds: int | Sequence[int] = 5,
    outcomes: Sequence[str] = CHEAP_OUTCOMES,
    when: When = "from_onset",
    copies: int = 3,
    repeats: Corpus | None = None,
    windows: Corpus | None = None,
    preset: str = "mechrep",
    max_new_tokens: int = NEW_TOKENS,
    prompt_length: int = ACTIVATION_PROMPT,
    head_scores: HeadScoreResult | None = None,
    sinks: AttentionSinkResult | None = None,
    neurons: RepetitionNeuronResult | None = None,
    held_out: bool = True,
    store: str | Path | None = None,
    progress: bool | None = None,
) -> AblationResult:
    """Cut circuits and measure what changes, beside controls.

    Of a circuit of several kinds (a union of neurons and heads) each kind is also cut alone (column ``part``).

    Outcomes, cheap ones first:

    * ``loop_log_probability``: with the prompt ``ids[:onset]`` and the loop's own continuation after it, the mean
      ``log p`` of its tokens in copy 1, 2, ...; copy 0 is the onset token alone.  Teacher-forced, nats per token.
    * ``copy_accuracy`` and ``copy_loss_drop``: on random repeats, the share of the second copy's tokens that are the
      most probable ones, and the loss on the first copy minus that on the second.  Edited at every position.
    * ``loss``: on the second half of windows of held-out text, which is edited; the table adds the perplexity.
    * ``still_looping``: share of looping texts that, written again from their onset on, still loop: what
      :func:`mechrep.studies.deactivation_sweep` counts.  Dear, as every text is generated.
    * ``newly_looping``: share of loop-free texts that loop when written again after ``prompt_length`` tokens.  Dear.

    Args:
        model: the model.
        circuits: a circuit, a result whose ranking is cut at ``ks`` (heads by induction score), or several of these.
        corpus: texts with ``start`` and ``onset`` for the loops, loop-free ones for ``newly_looping``; by default 64
            that the model writes itself.
        ops: operations; a pair is one for neurons and one for heads.
        ks: numbers of components of ranked results.
        controls: ``"random"`` (anything), ``"layer_matched"`` (neurons, heads), ``"activation_matched"`` (neurons),
            ``"bos_matched"`` (heads); a part gets those that are defined for all its kinds.
        seeds: number of draws of each control, or the seeds.
        outcomes: which of the above; ``copy_loss_drop`` comes with ``copy_accuracy``.
        when: ``"from_onset"``: loops are edited from the position that predicts the onset token (or the first new
            one) on, so the prompt is read by the whole model; ``"all"``: at every position.  What a head wrote into
            the first copy, as a previous-token head does, only ``"all"`` removes.
        copies: copies of the loop whose tokens are predicted.
        repeats: by default 32 texts of ``random_repeats`` with another seed than that of head scores.
        windows: by default those of ``windows_of_text`` on the embedded held-out text, which is English.
        preset: detector of ``still_looping`` and ``newly_looping``.
        max_new_tokens: tokens that these two write.
        prompt_length: of ``newly_looping``.
        head_scores: for ``"bos_matched"``, unless the circuits are cut from such a result.
        sinks: for ``"bos_matched"``: where given, heads are matched by its ``alpha``.
        neurons: for ``"activation_matched"``, unless the circuits are cut from such a result.
        held_out: leave out texts that the circuits' provenance names.
        store: folder in which finished shards are kept, so that a stopped study goes on.
        progress: show progress bars.

    Returns:
        An :class:`AblationResult`; ``to_frame()`` has one row per outcome (and copy) and condition.

    Raises:
        InputError: a circuit of another model, ``k`` larger than a ranking, an unknown outcome or control, a control
            that cannot be drawn, texts that do not serve.
        NothingFoundError: no looping (or loop-free) text where an outcome needs one.

    Source: cutting heads and copying: Olsson et al. 2022 (arXiv 2209.11895); the counts: Hiraoka & Inui 2025
    (arXiv 2410.13497); matched controls and the measures by copy are mechrep's own.

    Limits: a cut part can be replaced by others in the same pass, so a small effect does not show that it does
    nothing.  Zero may lie far from what a part does on text; compare operations.

    Example:
        >>> import mechrep
        >>> from mechrep.studies.circuit import Circuit
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> texts = mechrep.Corpus.from_tokens([[0, *range(30, 50), *[9, 8, 7, 6, 5] * 4]], model=model).with_cycles()
        >>> circuit = Circuit("two heads", heads=[(1, 0), (2, 1)])
        >>> study = ablation_study(
        ...     model, circuit, corpus=texts, outcomes=["loop_log_probability"], controls=["random"], seeds=1, copies=1
        ... )
        >>> study.to_frame()[["selection", "copy"]].values.tolist()
        [['none', 0], ['top', 0], ['random', 0], ['none', 1], ['top', 1], ['random', 1]]
    """
    chosen = as_circuits(circuits, ks)
    conditions = ablation_conditions(
        model,
        chosen,
        ops=ops,
        controls=controls,
        seeds=as_seeds(seeds),
        match_by=MatchBy(head_scores, sinks, neurons),
        when=when,
    )
    seen = frozenset[str]().union(*(circuit.seen_texts for circuit, _ in chosen)) if held_out else frozenset[str]()
    settings = Settings(corpus, repeats, windows, when, copies, preset, max_new_tokens, prompt_length)
    config = {
        "study": "ablation",
        "circuits": [[circuit.label, circuit.found] for circuit, _ in chosen],
        "ops": [[one.fingerprint for one in as_ops(op)] for op in ops],
        "controls": list(controls),
        "held_out": held_out,
    }
    found = run_plan(
        model, conditions, settings.outcomes(model, outcomes, seen), config, store=store, progress=progress
    )
    return AblationResult(**found)
