"""The figures of the section on repetition neurons, in the order of the argument: find, place, test, price."""

from __future__ import annotations

from collections.abc import Iterator

from mechrep.ablation.old_loss import plot_perplexity
from mechrep.ablation.old_sweeps import plot_sweep
from mechrep.measures.neurons import plot_layer_distribution, plot_onset_profile, plot_sorted_delta
from mechrep.report.page import ReportFigure
from mechrep.studies.neurons import RepetitionStudy


def neuron_figures(study: RepetitionStudy) -> list[ReportFigure]:
    """The figures of a study."""
    return [*_of_neurons(study), *_of_sweeps(study)]


def _of_neurons(study: RepetitionStudy) -> Iterator[ReportFigure]:
    result = study.neurons
    window = result.provenance.config.get("window", "")
    normal = "before the first copy of the loop" if window == "clean" else f"the {result.r} positions before the onset"
    yield ReportFigure(
        "profile",
        plot_onset_profile(result, k=min(4, result.n_neurons)),
        "Each line is one neuron’s activation, averaged over texts that are laid on top of each other at the onset; "
        "the tinted "
        "part is where the model repeats.",
        "the neurons were chosen because they rise here, so that they rise is no finding; the shape is, and what "
        "cutting "
        "them does.",
    )
    yield ReportFigure(
        "sorted",
        plot_sorted_delta(result),
        f"Every neuron’s mean over the {result.r} positions from the onset minus its mean {normal}, largest first; a "
        f"steep "
        "start means that few neurons carry the change.",
        "even with no effect the first of many neurons are above zero, and a neuron with a large scale ranks high "
        "without being reliable: look at the band, and at t in the table.",
    )
    yield ReportFigure(
        "layers",
        plot_layer_distribution(result, k=None if result.published_k else min(4, result.n_neurons)),
        "Bars count the neurons of the published share (the top 0.5 %) in each layer; the dashed line is what an "
        "even spread "
        "over layers would give.",
        "activations grow with depth in many models, and Δ has no common scale across layers, so late layers win "
        "easily.",
    )


def _of_sweeps(study: RepetitionStudy) -> Iterator[ReportFigure]:
    yield ReportFigure(
        "deactivation",
        plot_sweep(study.deactivation),
        "Each text is cut at its onset and continued with k neurons held at zero; the strong line is the top of the "
        "ranking, the other lines are as many neurons drawn by chance, in the same layers, or with the same activity.",
        "a falling line means something only where the controls do not fall with it; bands of controls show the "
        "draws, not the texts, which all lines share.",
    )
    if study.activation is not None:
        yield ReportFigure(
            "activation",
            plot_sweep(study.activation),
            "Loop-free texts are cut after 50 tokens and continued with the activation of k neurons raised by 1; "
            "shown is how "
            "many of them fall into a loop.",
            "plus 1 is little for some neurons and enormous for others, and any strong push can break a model into "
            "repeating: compare with the controls.",
        )
    reading = (
        "Loss on text that the model did not write, exponentiated, with the same neurons changed at every scored "
        "position. The dotted line is the untouched model."
    )
    yield ReportFigure(
        "deactivation-perplexity",
        plot_perplexity(study.deactivation_loss),
        reading,
        "if perplexity rises as loops vanish, the cut may be harming the model at large and not a mechanism of "
        "repetition.",
    )
    yield ReportFigure(
        "activation-perplexity",
        plot_perplexity(study.activation_loss),
        reading,
        "one English text at one window length: the level cannot be compared between models with different tokenizers.",
    )
