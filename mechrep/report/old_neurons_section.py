"""The section on repetition neurons: which rise when a loop begins, and what cutting and boosting them does."""

from __future__ import annotations

import html
import math
from typing import Any

from mechrep.ablation.old_sweeps import (
    SweepResult,
    activation_finding,
    cost_sentence,
    deactivation_finding,
    escape_sentence,
    percent,
    percent_range,
)
from mechrep.figures import counted
from mechrep.report.old_neuron_figures import neuron_figures
from mechrep.report.old_neuron_tables import neuron_table, perplexity_table, sweep_table
from mechrep.report.page import Badge, Section
from mechrep.studies.neurons import RepetitionStudy

escape = html.escape
_EXAMPLES = 3
_CONTROLS = {
    "random": "drawn from all",
    "layer_matched": "drawn within the same layers",
    "activation_matched": "drawn within the same layers with nearly the same activity in normal text",
}
_DETECTORS = {
    "hiraoka2025": "one sequence of 10 tokens occurs three times, equally spaced (published detector)",
    "mechrep": "the text ends in at least three copies of one block, of any length (mechrep’s detector)",
}
_SOURCE = (
    "After T. Hiraoka and K. Inui, Repetition Neurons: How Do Language Models Produce Repetitions?, NAACL 2025, "
    "arXiv 2410.13497."
)


def neurons_section(study: RepetitionStudy) -> Section:
    """Which neurons rise when the model begins to repeat itself, and what changing them does."""
    finding = deactivation_finding(study.deactivation, study.model_name)
    more = [
        escape_sentence(study.deactivation),
        activation_finding(study.activation).sentence,
        cost_sentence(study.deactivation_loss),
    ]
    tables = [neuron_table(study.neurons), sweep_table(study.deactivation)]
    if study.activation is not None:
        tables.append(sweep_table(study.activation))
    tables += [perplexity_table(study.deactivation_loss), perplexity_table(study.activation_loss)]
    return Section(
        title="Which neurons rise when it repeats, and what changing them does",
        anchor="neurons",
        finding=finding.sentence,
        answer=[" ".join(part for part in more if part)],
        badges=[Badge.of(finding.verdict)],
        figures=neuron_figures(study),
        tables=tables,
        notes=_notes(study),
        limits=_limits(study),
        source=_SOURCE,
        opening=[_question(study), _key_numbers(study)],
        closing=[_examples(study)],
    )


def _question(study: RepetitionStudy) -> str:
    """What was asked and what was done."""
    test = _texts(study.deactivation)
    if study.preset == "hiraoka2025":
        split = f"They were searched and tested on the same {counted(study.neurons.n_texts, 'text')}, as published."
    else:
        split = f"They were searched on {counted(study.neurons.n_texts, 'text')} and tested on {test:,} others."
    boosted = (
        "" if study.activation is None else f" and boosted in {counted(_texts(study.activation), 'loop-free text')}"
    )
    return (
        '<div class="box"><div><h3>What was asked</h3><p>Which neurons become more active when this model begins '
        "to "
        "repeat itself? Does the repetition stop when they are switched off, does it begin when they are switched "
        "on, and "
        "is that more than any other neurons would do?</p></div><div><h3>What was done</h3><p>"
        f"The model continued {study.prompts:,} prompts of its own greedily. Neurons were ranked by how much they rise "
        f"when a loop begins. {split} They were cut from the onset on{boosted}, beside as many control neurons, and "
        f"the "
        "same changes were priced on held-out text.</p></div></div>"
    )


def _key_numbers(study: RepetitionStudy) -> str:
    """The few numbers that say how large the study is."""
    conditions = study.corpus.frame["condition"].value_counts()
    looping, free = int(conditions.get("looping", 0)), int(conditions.get("loop_free", 0))
    ((layer, neuron),) = study.neurons.top(1)
    delta, error = (float(table[layer, neuron]) for table in (study.neurons.delta, study.neurons.standard_error))
    low, high = study.loop_share_interval
    share = f"95 % interval {percent_range(low, high)}" if math.isfinite(low) else ""
    return _tiles(
        [
            (percent(study.loop_share), "of prompts loop", share),
            (
                f"{looping:,}",
                "looping texts",
                f"{study.neurons.n_texts:,} to search, {_texts(study.deactivation):,} to test",
            ),
            (f"{free:,}", "loop-free texts", f"from {counted(study.prompts, 'prompt')} tried"),
            (
                f"L{layer} N{neuron}",
                "rises most",
                f"Δ = {delta:.3f}" + (f" ± {error:.3f}" if math.isfinite(error) else ""),
            ),
            (
                f"{study.neurons.n_neurons:,}",
                "neurons",
                f"{study.neurons.delta.shape[0]} layers of {study.neurons.delta.shape[1]:,}",
            ),
        ]
    )


def _examples(study: RepetitionStudy) -> str:
    """A few looping texts with their onset, and what the model writes when the top neurons are cut."""
    if not study.examples:
        return ""
    shown = "".join(_example(example, first=i == 0) for i, example in enumerate(study.examples[:_EXAMPLES]))
    return (
        "<h3>What it looks like</h3>"
        '<p class="legend"><span class="prompt">prompt</span> · what the model wrote · '
        '<span class="copy">first copy</span><span class="onset">onset</span><mark>the loop</mark></p>'
        f"{shown}"
    )


def _example(example: dict[str, Any], *, first: bool) -> str:
    """One text; every piece of it came from the model."""
    before, loop = example["loop_before"], example["loop"]
    copy, cut = example.get("first_copy", ""), example["cut"]
    length = min(len(loop), len(cut))
    same = length > 0 and loop[:length] == cut[:length]
    verdict = "the loop goes on as it was" if same else "another text"
    return (
        f'<article class="example"><h3>{escape(str(example["text_id"]))}</h3>'
        f'<p class="text"><span class="prompt">{escape(example["prompt"])}</span>{escape(before)}'
        f'<span class="copy">{escape(copy)}</span><span class="onset">onset</span><mark>{escape(loop)}</mark></p>'
        f"<details{' open' if first else ''}><summary>with the top {counted(int(example['k']), 'neuron')} "
        f"cut from the onset on: {verdict}</summary>"
        f'<p class="text"><span class="onset">onset</span>{escape(cut)}</p></details></article>'
    )


def _notes(study: RepetitionStudy) -> list[tuple[str, str]]:
    """How the numbers were made."""
    config = study.neurons.provenance.config
    return [
        ("Loop", f"{_DETECTORS.get(study.preset, study.preset)}; the onset is where the second copy begins."),
        ("Texts", "Begin-of-text and 10 sampled tokens, then greedy decoding, until enough texts loop."),
        (
            "Activation",
            f"Site {config.get('site', '?')}: the output of the activation function, before the product with the "
            "up-projection in gated MLPs.",
        ),
        (
            "Score",
            f"Δ = mean activation in the {study.neurons.r} positions from the onset minus the mean in the normal "
            f"window ({config.get('window', '?')}), pooled over positions, signed.",
        ),
        (
            "Cut and boost",
            "a ← 0 from the position that predicts the onset token; a ← a + 1 after 50 tokens of a loop-free text. At "
            "most 160 new tokens, greedy.",
        ),
        ("Controls", _controls(study.deactivation)),
    ]


def _limits(study: RepetitionStudy) -> list[str]:
    """What the numbers cannot say."""
    limits = [
        "That a neuron rises is a correlation. Only the sweeps, against their controls, speak about causes.",
        "Zero is not what a neuron does on ordinary text; the mean or a resampled value is a gentler cut and may "
        "show less.",
        "A text counts as repeating as soon as the detector is sure, and its decoding ends there: later escapes are "
        "not seen.",
        "Greedy decoding only. Sampling hides most loops and would need its own study.",
        "The largest k is the largest that was tried, not a natural size; read the whole curve.",
    ]
    if study.preset == "hiraoka2025":
        limits.append(
            "Neurons were searched and tested on the same texts, which inflates the effect of the top neurons."
        )
    if study.activation is None:
        limits.append("There was no loop-free text long enough for the activation sweep.")
    return limits


def _tiles(tiles: list[tuple[str, str, str]]) -> str:
    cells = "".join(
        f'<div><dt>{escape(what)}</dt><dd class="value">{escape(value)}</dd><dd class="more">{escape(more)}</dd></div>'
        for value, what, more in tiles
    )
    return f'<dl class="tiles">{cells}</dl>'


def _controls(sweep: SweepResult) -> str:
    """The controls that were run, and with how many draws."""
    table = sweep.summary()
    run = [name for name in table["selection"].unique() if name not in ("none", "top")]
    if not run:
        return "None were run, so nothing here is specific to the top neurons."
    words = "; ".join(f"{name}: {_CONTROLS.get(name, 'as named')}" for name in run)
    draws = int(table[table["selection"].isin(run)]["draws"].max())
    return f"As many neurons ({words}), {counted(draws, 'draw')} each."


def _texts(sweep: SweepResult) -> int:
    """Texts of a sweep."""
    return int(sweep.outcome_frame()["text"].nunique())
