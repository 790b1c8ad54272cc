"""Sentences about training; each is derived from the numbers, whatever they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from mechrep.ablation.old_sweeps import percent
from mechrep.figures import counted
from mechrep.report.old_head_words import name_of
from mechrep.report.page import Badge, decimals, interval
from mechrep.studies.training import TrainingStudy
from mechrep.studies.training_heads import (
    ALIKE,
    APPEARING,
    BY_ONE,
    CANNOT_TELL,
    CONDITION_WORDS,
    EARLIER,
    ELIGIBLE,
    FADES,
    INDUCED,
    INDUCTION,
    NATURAL,
    SAME,
    UNDECIDED,
    UNSURE,
)

LOOPS, PHRASES, HEADS = "loops_naturally", "phrase_loops", "induction"


@dataclass(frozen=True)
class Named:
    """A measure in words: in a sentence or a table, and on a badge."""

    words: str
    short: str


class _Measures(dict[str, Named]):
    def __missing__(self, name: str) -> Named:  # a measure of somebody's own is called what it is called
        return Named(name, name)


MEASURES = _Measures(
    {
        LOOPS: Named("natural looping", "natural loops"),
        PHRASES: Named("natural looping of phrases", "loops of phrases"),
        "copies_in_icl": Named("copying of texts shown twice", "copying in context"),
        HEADS: Named("induction attention of the best head", "induction"),
        "self_finding": Named("self-finding attention of the best head", "self-finding"),
        "previous_token": Named("previous-token attention of the best head", "previous token"),
        "copying": Named("loss saved by copying random repeats (nats)", "copying"),
        "sink": Named("attention of the best head to the first position", "sink"),
        "sink_heads": Named("share of heads that attend to the first position", "sink heads"),
    }
)


def first_words(study: TrainingStudy) -> str:
    """Which mechanism appears first, as a clause."""
    first, n = study.first, counted(len(study.checkpoints.revisions), "checkpoint")
    if not first:
        return f"no mechanism has a clear step upwards over {n}"
    names = _listed([MEASURES[name].words for name in first])
    point = study.points.set_index("measure").loc[first[0]]
    if len(first) == 1:
        appearing = int(study.points["verdict"].isin(APPEARING).sum())
        verb = "appears first" if appearing > 1 else "is all that appears"
        one = ", which rests on one checkpoint" if point["verdict"] == BY_ONE else ""
        return f"{names} {verb}, between {point['before']} and {point['after']}{one}"
    return f"which appears first is not decided among {names}"


def loops_words(study: TrainingStudy) -> str:
    """Whether natural looping comes before induction, as a clause."""
    if LOOPS not in study.checkpoints.measures:
        return "natural looping was not measured"
    start = study.starts.set_index("measure").loc[LOOPS]
    if start["there"]:
        untrained = ", before any training" if study.starts_untrained else ""
        return f"natural looping is there at the first checkpoint already{untrained}"
    verdict = study.verdict_of(LOOPS)
    if verdict not in APPEARING:
        return {
            FADES: "natural looping becomes rarer",
            UNSURE: "natural looping steps up no more clearly than in shuffled orders of the checkpoints",
        }.get(str(verdict), "natural looping has no clear step")
    return f"natural looping appears {_before(study, LOOPS, HEADS)}"


def earliest_words(study: TrainingStudy) -> str:
    """All measures that appear, in the order of their steps, and those that do not."""
    place = {name: number for number, name in enumerate(study.checkpoints.revisions)}
    points = study.points.sort_values("before", key=lambda names: names.map(place), kind="stable")
    steps = [
        f"{MEASURES[p['measure']].words} between {p['before']} and {p['after']} (95 % {p['earliest']} to "
        f"{p['latest']}; by {interval(p['size'], p['low'], p['high'], sign=True)}, p = {decimals(p['p'], 3)}"
        f"{', by one checkpoint' if p['verdict'] == BY_ONE else ''})"
        for p in points.to_dict("records")
        if p["verdict"] in APPEARING
    ]
    others = [
        f"{MEASURES[p['measure']].words} ({p['verdict']})"
        for p in points.to_dict("records")
        if p["verdict"] not in APPEARING
    ]
    text = f"In the order of their steps: {'; '.join(steps)}." if steps else "No measure has a clear step upwards."
    return f"{text} Without one: {'; '.join(others)}." if others else text


def start_words(study: TrainingStudy) -> str:
    """How much loops at the first checkpoint, and what that means."""
    starts, first = study.starts.set_index("measure"), study.checkpoints.revisions[0]
    if LOOPS not in starts.index:
        return ""
    loops = starts.loc[LOOPS]
    text = f"At {first}, {_share(loops)} of the prompts loop by themselves"
    if PHRASES in starts.index:
        phrases = starts.loc[PHRASES]
        single = round(float(loops["first"] - phrases["first"]) * int(loops["n"]))
        text += f", {single} of {round(float(loops['first']) * int(loops['n']))} of them on one single token"
    text += "."
    if study.starts_untrained and float(loops["first"]) > 0:
        text += (
            " These weights have learned nothing, so such loops need no mechanism that was learned: the rate alone "
            "does not say which mechanism was first."
        )
    if loops["there"] and PHRASES in starts.index:
        text += f" Loops of two tokens or more: {step_words(study, PHRASES)[1]}."
    return text


def pair_words(study: TrainingStudy) -> str:
    """Natural loops, and loops of phrases, beside induction."""
    parts = []
    for name in (LOOPS, PHRASES):
        if study.verdict_of(name) in APPEARING:
            parts.append(f"{MEASURES[name].words} {_before(study, name, HEADS, shares=True)}")
        elif study.verdict_of(name) is not None:
            parts.append(f"{MEASURES[name].words} has no step upwards to compare ({study.verdict_of(name)})")
    return f"Loops and induction: {'; '.join(parts)}." if parts else ""


def agreement_words(study: TrainingStudy) -> str:
    """Whether the same heads carry both at the last checkpoint where it can be told, as a clause."""
    if study.heads is None:
        return "whether the same heads carry both was not measured"
    row = agreement_row(study)
    if row is None:
        return "too few texts loop to say whether the same heads carry both"
    value = f"overlap {interval(row['value'], row['low'], row['high'])} of 1 at {row['revision']}"
    if row["verdict"] == ALIKE:
        less = row["high"] < min(row["reliability_first"], row["reliability_second"])
        short = ", though less alike than two halves of one condition" if less else ""
        return f"natural loops and induced copying rest on the same heads, beyond controls ({value}){short}"
    if row["verdict"] == CANNOT_TELL:
        if row["lead_first"] == row["lead_second"]:
            lead = name_of([int(part) for part in row["lead_first"].split(".")])
            said = f"{lead} does most in natural loops and in induced copying ({value})"
            return f"{said}, which cannot be told from chance among these heads"
        said = f"how far natural loops and induced copying rest on the same heads ({value})"
        return f"{said} cannot be told from chance among these heads"
    return f"that natural loops and induced copying rest on the same heads is not found beyond controls ({value})"


def agreement_row(study: TrainingStudy, first: str = NATURAL, second: str = INDUCED) -> dict[str, Any] | None:
    """Two conditions beside each other at the last checkpoint with enough texts."""
    if study.heads is None:
        return None
    frame = study.heads.agreement
    known = frame[(frame["first"] == first) & (frame["second"] == second) & frame["value"].notna()]
    return None if known.empty else {str(key): value for key, value in known.iloc[-1].items()}


def other_pairs_words(study: TrainingStudy) -> str:
    """Whether these are induction heads, and what the published condition says."""
    parts = []
    for first, second in ((NATURAL, INDUCTION), (INDUCED, INDUCTION), (NATURAL, ELIGIBLE)):
        row, names = agreement_row(study, first, second), f"{CONDITION_WORDS[first]} and {CONDITION_WORDS[second]}"
        if row is None:
            assert study.heads is not None
            counts = study.heads.counts
            most = [counts[counts["condition"] == one]["n"].max() for one in (first, second)]
            parts.append(f"{names}: too few texts at every checkpoint (at most {most[0]} and {most[1]})")
            continue
        value = interval(row["value"], row["low"], row["high"])
        parts.append(f"{names}: {value} at {row['revision']}, {row['verdict']}")
    return f"The same overlap for other pairs: {'; '.join(parts)}."


def specialisation_words(study: TrainingStudy) -> str:
    """How concentrated the heads are at the ends of training, and when that changes."""
    assert study.heads is not None
    parts = []
    points = study.heads.points.set_index("curve")
    for condition in (NATURAL, INDUCED, INDUCTION):
        curve = study.heads.specialisation
        known = curve[(curve["condition"] == condition) & curve["value"].notna()]
        if known.empty:
            parts.append(f"{CONDITION_WORDS[condition]}: too few texts at every checkpoint")
            continue
        first, last = known.iloc[0], known.iloc[-1]
        name = f"specialisation: {condition}"
        beyond = "beyond" if last["low"] > last["null_high"] else "not beyond"
        text = f"{CONDITION_WORDS[condition]}: {interval(first['value'], first['low'], first['high'])} at "
        text += f"{first['revision']}, {interval(last['value'], last['low'], last['high'])} at {last['revision']} "
        text += f"({beyond} heads that changed places, {decimals(last['null_high'])})"
        parts.append(text + (f", {_curve_step(points.loc[name])}" if name in points.index else ""))
    return f"Specialisation (Gini coefficient of what heads do): {'; '.join(parts)}."


def _curve_step(point: Any) -> str:
    if not point["clear"] or point["p"] >= 0.05:
        return f"no clear step (p = {decimals(point['p'], 3)})"
    way = "up" if point["size"] > 0 else "down"
    return (
        f"a step {way} between {point['before']} and {point['after']} (95 % {point['earliest']} to {point['latest']}, "
        f"p = {decimals(point['p'], 3)})"
    )


def step_words(study: TrainingStudy, measure: str) -> tuple[Literal["good", "open", "none"], str]:
    """Kind of badge, and what became of a measure."""
    verdict = study.verdict_of(measure)
    # Only of loops: other measures of an untrained model are what chance gives, and that is not nothing.
    there = measure in (LOOPS, PHRASES) and bool(study.starts.set_index("measure").loc[measure, "there"])
    if verdict in APPEARING:
        point = study.points.set_index("measure").loc[measure]
        kind = "open" if verdict == BY_ONE or there else "good"
        words = f"{'more' if there else 'appears'} between {point['before']} and {point['after']}"
        return kind, words + (" (by one checkpoint)" if verdict == BY_ONE else "")
    if there:
        return "open", "there at the first checkpoint" + (", fewer later" if verdict == FADES else "")
    return ("open" if verdict == UNSURE else "none"), str(verdict or "not measured twice")


def order_badge(study: TrainingStudy) -> Badge | None:
    """Whether the order of loops and induction is decided."""
    if study.verdict_of(LOOPS) is None or study.verdict_of(HEADS) is None:
        return None
    pair = _pair(study, LOOPS, HEADS)
    if study.starts.set_index("measure").loc[LOOPS, "there"]:
        return Badge("open", "loops before induction: there before training says nothing")
    if pair is None:
        return Badge("none", "loops before induction: not both appear")
    if pair["verdict"] == EARLIER:
        first = "loops before induction" if pair["first"] == LOOPS else "induction before loops"
        one = BY_ONE in (study.verdict_of(LOOPS), study.verdict_of(HEADS))
        words = f"{first}: in {percent(pair['earlier'])} of draws"
        return Badge("open", f"{words}, by one checkpoint") if one else Badge("good", words)
    return Badge("open", f"loops and induction: {pair['verdict']}")


def heads_badge(study: TrainingStudy) -> Badge | None:
    """Whether the same heads carry both."""
    if study.heads is None:
        return None
    row = agreement_row(study)
    if row is None:
        return Badge("open", "same heads: too few texts")
    kinds: dict[str, Literal["good", "open"]] = {ALIKE: "good", CANNOT_TELL: "open"}
    return Badge(kinds.get(row["verdict"], "none"), f"same heads: {row['verdict']}")


def _pair(study: TrainingStudy, one: str, other: str) -> dict[str, Any] | None:
    for pair in study.order.to_dict("records"):
        if {pair["first"], pair["second"]} == {one, other}:
            return {str(key): value for key, value in pair.items()}
    return None


def _before(study: TrainingStudy, one: str, other: str, *, shares: bool = False) -> str:
    """Where the step of one lies to that of the other: before it, behind it, at the same place, or not decided."""
    pair, name = _pair(study, one, other), MEASURES[other].words
    if pair is None:
        return f"and {name} does not" if study.verdict_of(other) is not None else f"({name} was not measured)"
    swapped = pair["first"] != one
    words = {
        EARLIER: f"{'after' if swapped else 'before'} {name}",
        SAME: f"between the same checkpoints as {name}",
        UNDECIDED: f"in an order to {name} that is not decided",
    }[pair["verdict"]]
    earlier, later = (pair["later"], pair["earlier"]) if swapped else (pair["earlier"], pair["later"])
    if shares or pair["verdict"] == UNDECIDED:
        said = f"earlier in {percent(earlier)} of draws, at the same place in {percent(pair['same'])}, later in "
        return f"{words} ({said}{percent(later)})"
    return f"{words} (in {percent(max(earlier, later, pair['same']))} of draws)"


def _share(row: Any) -> str:
    known = f" (95 % {percent(row['low'])} to {percent(row['high'])}, n = {int(row['n'])})"
    return percent(float(row["first"])) + (known if int(row["n"]) > 1 else "")


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
