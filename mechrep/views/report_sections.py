"""The report's words: question, key numbers, examples, methods and provenance.  Text from models is escaped here."""

from __future__ import annotations

import html
import json
import math
from typing import Any

from mechrep.results import Result
from mechrep.studies.repetition_study import RepetitionStudy
from mechrep.studies.sweep_result import SweepResult
from mechrep.views.finding import (
    Verdict,
    activation_finding,
    cost_sentence,
    deactivation_finding,
    escape_sentence,
    percent,
    percent_range,
)
from mechrep.views.theme import counted

escape = html.escape
_EXAMPLES = 3
_CONTROLS = {
    "random": "drawn from all",
    "layer_matched": "drawn within the same layers",
    "activation_matched": "drawn within the same layers with nearly the same activity in normal text",
}
_BADGES: dict[Verdict, tuple[str, str]] = {
    "beyond controls": ("good", "beyond every control"),
    "beyond controls, few texts": ("open", "beyond controls, but few texts"),
    "not beyond controls": ("none", "not beyond controls"),
    "no controls": ("open", "no controls"),
}


def header(study: RepetitionStudy) -> str:
    """Title line, the finding, and what the same change does elsewhere."""
    finding = deactivation_finding(study.deactivation, study.model_name)
    kind, badge = _BADGES[finding.verdict]
    more = [
        escape_sentence(study.deactivation),
        activation_finding(study.activation).sentence,
        cost_sentence(study.deactivation_loss),
    ]
    return (
        f'<header><p class="kicker">Repetition neurons in <span class="model">{escape(study.model_name)}</span></p>'
        f'<h1>{escape(finding.sentence)}</h1><p class="verdict {kind}">{escape(badge)}</p>'
        f"<p>{escape(' '.join(more))}</p></header>"
    )


def question(study: RepetitionStudy) -> str:
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
        '<section class="box"><div><h2>What was asked</h2><p>Which neurons become more active when this model begins '
        "to "
        "repeat itself? Does the repetition stop when they are switched off, does it begin when they are switched "
        "on, and "
        "is that more than any other neurons would do?</p></div><div><h2>What was done</h2><p>"
        f"The model continued {study.prompts:,} prompts of its own greedily. Neurons were ranked by how much they rise "
        f"when a loop begins. {split} They were cut from the onset on{boosted}, beside as many control neurons, and "
        f"the "
        "same changes were priced on held-out text.</p></div></section>"
    )


def key_numbers(study: RepetitionStudy) -> str:
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


def examples(study: RepetitionStudy) -> str:
    """A few looping texts with their onset, and what the model writes when the top neurons are cut."""
    if not study.examples:
        return ""
    shown = "".join(_example(example, first=i == 0) for i, example in enumerate(study.examples[:_EXAMPLES]))
    return (
        "<section><h2>What it looks like</h2>"
        '<p class="legend"><span class="prompt">prompt</span> · what the model wrote · '
        '<span class="copy">first copy</span><span class="onset">onset</span><mark>the loop</mark></p>'
        f"{shown}</section>"
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


def methods(study: RepetitionStudy) -> str:
    """How the numbers were made, and what they cannot say."""
    config = study.neurons.provenance.config
    r, window, site = study.neurons.r, config.get("window", "?"), config.get("site", "?")
    detectors = {
        "hiraoka2025": "one sequence of 10 tokens occurs three times, equally spaced (published detector)",
        "mechrep": "the text ends in at least three copies of one block, of any length (mechrep’s detector)",
    }
    how = [
        f"<b>Loop.</b> {escape(detectors.get(study.preset, study.preset))}; the onset is where the second copy begins.",
        "<b>Texts.</b> Begin-of-text and 10 sampled tokens, then greedy decoding, until enough texts loop.",
        f"<b>Activation.</b> Site {escape(str(site))}: the output of the activation function, before the product "
        f"with the "
        "up-projection in gated MLPs.",
        f"<b>Score.</b> Δ = mean activation in the {r} positions from the onset minus the mean in the normal window "
        f"({escape(str(window))}), pooled over positions, signed.",
        "<b>Cut and boost.</b> a ← 0 from the position that predicts the onset token; a ← a + 1 after 50 tokens of a "
        "loop-free text. At most 160 new tokens, greedy.",
        f"<b>Controls.</b> {escape(_controls(study.deactivation))}",
    ]
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
    return (
        f"<section><h2>Methods and limits</h2><ul>{''.join(f'<li>{line}</li>' for line in how)}</ul>"
        f"<h3>What this cannot say</h3><ul>{''.join(f'<li>{escape(line)}</li>' for line in limits)}</ul>"
        '<p class="note">After T. Hiraoka and K. Inui, Repetition Neurons: How Do Language Models Produce '
        "Repetitions?, "
        "NAACL 2025, arXiv 2410.13497.</p></section>"
    )


def provenance(study: RepetitionStudy) -> str:
    """Model, texts, versions and settings as folded JSON."""
    parts: dict[str, Result | None] = {
        "deactivation": study.deactivation,
        "activation": study.activation,
        "deactivation_loss": study.deactivation_loss,
        "activation_loss": study.activation_loss,
    }
    record: dict[str, Any] = {"study": study.provenance.to_dict(), "neurons": study.neurons.provenance.to_dict()}
    for name, part in parts.items():
        if part is not None:
            record[name] = part.provenance.to_dict()
            # The drawn neurons of every condition are long, and stand whole in the saved results.
            record[name]["config"] = {
                key: value for key, value in record[name]["config"].items() if key != "conditions"
            }
    text = escape(json.dumps(record, indent=2, ensure_ascii=False, default=str))
    summary = "<summary>Provenance: model, texts, versions, settings</summary>"
    return f"<section><details>{summary}<pre>{text}</pre></details></section>"


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
