"""The first screen: the question answered in a sentence or two, the main claims, three pictures.

Which claims are the main ones is fixed here, before anything is measured; they are shown whatever their verdict is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from mechrep.ablation.effects import NOT_SUPPORTED, SUPPORTED, TOO_FEW
from mechrep.report.view import VERDICTS, ClaimView, FigureView, SectionView, TextView
from mechrep.report.words import Words, words_of
from mechrep.sections import slug

CLAIMS, PICTURES = 10, 3  # on the first screen
_CAUSES = (
    ("ablation", "looping"),
    ("ablation", "stays"),
    ("ablation", "loop"),
    ("neurons", "still_repeating"),
    ("neurons", "escaped"),
)
_MEANS = (("heads", "induction_in_loops"), ("heads", "induction"), ("sinks", "norm_sink"))
MAIN = (  # sections and claims
    *_CAUSES,
    ("ablation", "copying"),
    ("ablation", "loss"),
    ("heads", "induction"),
    ("heads", "induction_in_loops"),
    ("heads", "duplicate_token"),
    ("sinks", "norm_sink"),
    ("sinks", "sink_heads"),
    ("sinks", "sink_neurons"),
    ("sinks", "without_loss"),
    ("first-layer", "detector"),
    ("patch", "drifted"),
    ("text-kinds", "other_heads"),
    ("information", "attention"),
    ("training", "loops"),
)
_DRAWN = (
    ("neurons", "profile"),
    ("heads", "repeats"),
    ("sinks", "norms"),
    ("ablation", "forest"),
    ("first-layer", "detector"),
    ("sinks", "heads"),
    ("training", "measures"),
    ("information", "groups"),
)


@dataclass(frozen=True)
class Front:
    """What the first screen shows.

    Attributes:
        answer: a sentence or two, with markup.
        claims: the main ones, supported ones first.
        pictures: a loop and figures, to draw small.
    """

    answer: Sequence[Markup]
    claims: Sequence[ClaimView]
    pictures: Sequence[FigureView | TextView]


def front_of(views: Sequence[SectionView], texts: Path | None = None) -> Front:
    """Choose what the first screen shows.

    Args:
        views: the sections of the page.
        texts: folder of the words; by default mechrep's own.
    """
    claims = [claim for view in views for claim in view.claims]
    main = [claim for place in MAIN for claim in claims if _place(claim, views) == place]
    first = list({_place(claim, views): claim for claim in reversed(main)}.values())[::-1]
    others = sorted((claim for claim in claims if claim not in first), key=_rank)
    chosen = [*first, *others][:CLAIMS]
    return Front(_answer(views, texts), sorted(chosen, key=_rank), _pictures(views))


def _rank(claim: ClaimView) -> int:
    return VERDICTS.index(claim.verdict)


def _place(claim: ClaimView, views: Sequence[SectionView]) -> tuple[str, str]:
    name = next(view.name for view in views if any(claim is one for one in view.claims))
    return name, str(claim.row["claim"])


def _answer(views: Sequence[SectionView], texts: Path | None) -> list[Markup]:
    """What makes the model repeat itself, and by what means, as far as claims about it have a verdict."""
    asked = [claim for view in views for claim in view.claims if _place(claim, views) in _CAUSES]
    cause = _sentence(_CAUSES, (SUPPORTED, TOO_FEW), views, texts)
    if cause is None:
        intro = words_of("intro", texts)
        cause = intro.html("answer: nothing" if asked else "answer: not asked", {})
    means = _sentence(_MEANS, (SUPPORTED,), views, texts)
    return [cause] if means is None else [cause, means]


def _sentence(
    places: Sequence[tuple[str, str]], verdicts: Sequence[str], views: Sequence[SectionView], texts: Path | None
) -> Markup | None:
    """Of the first claim in this order, verdict by verdict, that its section has a sentence for."""
    for verdict in verdicts:
        for section, key in places:
            heading = f"answer: {key} {verdict}"
            for view in (view for view in views if view.name == section):
                words: Words = words_of(section, texts)
                for claim in view.claims:
                    if claim.row["claim"] == key and claim.verdict == verdict and heading in words:
                        return words.html(heading, claim.told)
    return None


def _pictures(views: Sequence[SectionView]) -> list[FigureView | TextView]:
    """A loop, and the first figures in this order; those of sections whose first claim is not supported come last."""
    anchors = [f"figure-{section}-{slug(key)}" for section, key in _DRAWN]

    def rank(pair: tuple[SectionView, FigureView]) -> tuple[bool, int]:
        place = anchors.index(pair[1].anchor) if pair[1].anchor in anchors else len(anchors)
        first = pair[0].claims[0].verdict if pair[0].claims else TOO_FEW
        return first == NOT_SUPPORTED, place

    loops = [view.seen for view in views if view.seen is not None]
    found = [(view, figure) for view in views for figure in view.figures if not view.null]
    return [*loops[:1], *(figure for _, figure in sorted(found, key=rank))][:PICTURES]
