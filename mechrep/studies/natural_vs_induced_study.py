"""Do natural loops and copying in context rest on the same heads?  From one list of prompts to the verdicts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import numpy as np
import pandas as pd
from jaxtyping import Float
from torch import Tensor

from mechrep.ablation.effects import ABLATION, Effects, judge
from mechrep.ablation.screening import Agreement
from mechrep.ablation.study import agreements
from mechrep.ablation.texts import shared_loops, shared_repeats
from mechrep.cache.corpus_cache import CorpusCache
from mechrep.errors import InputError, NothingFoundError
from mechrep.generation.text_kinds import COPIES, control_texts, induced_texts, natural_texts, text_flow
from mechrep.generation.written import Builder, already_written, text_kind_preset
from mechrep.guards import Count, Some, guarded, one_of
from mechrep.measures.head_scores import HeadScores
from mechrep.measures.natural_vs_induced import (
    TextKindContrastResult,
    confidence_figure,
    contrast_text_kinds,
    lens_figure,
)
from mechrep.measures.text_kind_design import FIRST, SECOND, HeadEffects, head_contrast_figure
from mechrep.models import tiny
from mechrep.models.model import Model
from mechrep.provenance import Provenance, provenance_of
from mechrep.results import Shown
from mechrep.run import Run
from mechrep.sections import Section
from mechrep.studies.text_kind_effects import (
    OPS,
    ablation_contrast,
    compare_heads,
    head_dissociation,
    head_effects,
    patching_contrast,
)
from mechrep.studies.text_kind_outcomes import LOG_PROBABILITY
from mechrep.text.corpus import Corpus
from mechrep.text.windows import windows_of_text

BUILDERS: tuple[Builder, ...] = ("text", "cycle")
CONTROLS = ("random", "layer_matched")
SCORES = ("induction", "duplicate_token", "previous_token", "first_token")
SHOWN = {"text": "texts shown again", "cycle": "cycles shown again"}
ABLATED, WRITES, PATCHED = "ablated alone", "direct logit attribution", "patched from other texts"
MEASURED = {
    "common": "share of the effect in the same heads",
    "shared_top": "heads that lead in both kinds",
    "gini": "Gini coefficient, induced minus natural",
    "differing_heads": "heads with a different effect",
}
_SHOWN = 20  # heads in a table of the page
_LENGTH = 32  # tokens of a prompt, as published
_FEW_LOOPS = 12  # where each text is expensive
T = TypeVar("T")


@dataclass(frozen=True)
class TextKindContrastStudy:
    """One builder's induced texts against natural loops.

    Attributes:
        builder: its name in all tables, ``"icl_from_cycle(2)"``.
        induced: its texts.
        seen: confidence, logit lens and direct attribution.
        ablated: every head ablated alone.
        patched: every head patched from texts without repetition; ``None`` where there is no such text.
        sets: heads that lead, ablated together in texts on which they were not found; ``None`` with too few texts.
        compared: of every estimator, the rows of :func:`~mechrep.studies.text_kind_effects.compare_heads`.
        left_out: what could not be done, and why.
    """

    builder: str
    induced: Corpus
    seen: TextKindContrastResult
    ablated: Effects
    patched: Effects | None
    sets: Effects | None
    compared: pd.DataFrame
    left_out: Mapping[str, str]

    @property
    def screened(self) -> dict[str, Agreement]:
        """How well estimates foretold what ablating does, by measure; empty where every head was ablated."""
        return agreements(self.ablated)

    @property
    def heads(self) -> dict[str, HeadEffects]:
        """One number per text and head, by estimator."""
        found = {ABLATED: head_effects(self.ablated), WRITES: self.seen.head_effects()}
        return found if self.patched is None else found | {PATCHED: head_effects(self.patched)}

    def head_table(self) -> pd.DataFrame:
        """Every head ablated alone, with ``D`` of the other estimators: one row per head, the largest ``|D|`` first."""
        table = self.heads[ABLATED].contrast()
        for name, effects in self.heads.items():
            if name != ABLATED:
                other = effects.contrast(draws=2)[["layer", "head", "D"]].rename(columns={"D": f"D, {name}"})
                table = table.merge(other, on=["layer", "head"])
        return table

    def claims(self) -> pd.DataFrame:
        """Rows of tests, each with its ``claim``; not yet judged together."""
        rows = self.compared[self.compared["name"] == self.heads[ABLATED].measure]
        named = {"common": "other_heads", "differing_heads": "degree", "gini": "fewer_heads"}
        tables = [rows.assign(claim=rows["measure"].map(named)).dropna(subset=["claim"])]
        if self.sets is not None:
            table = _beside_the_hardest(self.sets)
            own = [f"{LOG_PROBABILITY}, {name.removesuffix(' heads')}" for name in table["name"]]
            claim = table["name"].str.replace(" heads", "_heads", regex=False)
            tables.append(table.assign(claim=claim)[(table["measure"] == own).to_numpy()])
        return pd.concat(tables, ignore_index=True)

    @property
    def estimators(self) -> dict[str, str]:
        """The names of the estimators by the measure that stands in :attr:`compared`."""
        return {effects.measure: name for name, effects in self.heads.items()}


@dataclass(frozen=True)
class TextKindStudy(Shown):
    """Everything that the report shows about natural loops and induced copies.

    Attributes:
        model_name: how the model was named.
        preset: whose protocol made the texts.
        prompts: the list of prompts.
        k: heads compared and ablated together.
        op: what stands in the place of an ablated head.
        natural: texts that loop by themselves.
        control: continuations that do not loop; ``None`` if every text loops.
        flow: for each builder, how many texts loop, may be shown again, and are copied.
        texts: for each builder, the same text by text.
        contrasts: for each builder that gave texts.
        scores: of all heads, on random repeats, by name.
        new_tokens: tokens generated for all kinds; ablating and patching generate none.
        left_out: what could not be built, and why.
        provenance: of the whole study.
    """

    model_name: str
    preset: str
    prompts: Corpus
    k: int
    op: str
    natural: Corpus
    control: Corpus | None
    flow: Mapping[str, pd.DataFrame]
    texts: Mapping[str, pd.DataFrame]
    contrasts: Mapping[str, TextKindContrastStudy]
    scores: Mapping[str, Float[Tensor, "layer head"]]
    new_tokens: int
    left_out: Mapping[str, str]
    provenance: Provenance

    def claims(self) -> pd.DataFrame:
        """All claims, judged as one family; the same test of the same natural loops stands there once."""
        tables = [found.claims().assign(induced_texts=SHOWN[shown]) for shown, found in self.contrasts.items()]
        if not tables:
            return pd.DataFrame()
        rows = pd.concat(tables, ignore_index=True)
        again = rows.duplicated([name for name in rows if name not in ("induced_texts", "components")])
        return judge(rows[~again | (rows["claim"] != "natural_heads")], family="natural loops beside induced texts")

    @property
    def copied(self) -> list[str]:
        """The builders with a text that the model copies by itself."""
        return [shown for shown in self.contrasts if _flags(self.flow[shown])["copies_in_icl"] > 0]

    def overlap(self) -> pd.DataFrame:
        """Which kinds of heads lead when ablated alone, see :meth:`HeadEffects.overlap`; one row per builder and kind.

        Columns: ``induced_texts`` and those of :meth:`HeadEffects.overlap`.
        """
        tables = [
            found.heads[ABLATED].overlap(self.scores, self.k).assign(induced_texts=SHOWN[shown])
            for shown, found in self.contrasts.items()
        ]
        return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()

    def section(self) -> Section:
        """The section of the report; figures and tables of heads only of texts that the model copies by itself."""
        missing = [(SHOWN.get(name, name), why) for name, why in self.left_out.items()]
        missing += [(f"{SHOWN[shown]}, {name}", why)
                    for shown, found in self.contrasts.items() for name, why in found.left_out.items()]  # fmt: skip
        missing += [(f"{SHOWN[shown]}, figures and tables of heads", "the model copies none of these texts by itself")
                    for shown in self.contrasts if shown not in self.copied]  # fmt: skip
        tables, figures = {"flow": _flow_rows(self.flow)}, {}
        for shown in self.copied:
            found = self.contrasts[shown]
            tables |= {f"heads_{shown}": _head_rows(found), f"compared_{shown}": _compared_rows(found)}
            figures[f"heads_{shown}"] = head_contrast_figure(found.heads[ABLATED])
            figures |= {f"confidence_{shown}": confidence_figure(found.seen), f"lens_{shown}": lens_figure(found.seen)}
        sets = {SHOWN[shown]: _set_rows(found.sets)
                for shown, found in self.contrasts.items() if found.sets is not None}  # fmt: skip
        sets = {
            shown: rows for shown, rows in sets.items() if rows["heads"].nunique() > 1
        }  # one set: the claims say it
        if sets:
            tables["sets"] = _stacked(sets).drop_duplicates(["heads", "measured in", "change"])
        if self.contrasts:
            tables["kinds"] = _kind_rows(self.overlap())
        told = [
            {"induced_texts": SHOWN[shown], "measure": measure, **asdict(one)}
            for shown, found in self.contrasts.items() for measure, one in found.screened.items()
        ]  # fmt: skip
        if told:
            tables["screened"] = pd.DataFrame(told)
        if missing:
            tables["left_out"] = pd.DataFrame(missing, columns=["part", "reason"])
        fields = {
            "model": self.model_name, "prompts": len(self.prompts), "loops": len(self.natural), "k": self.k,
            "op": self.op, "preset": self.preset, "new_tokens": self.new_tokens, "value": None, "baseline": None,
        }  # fmt: skip
        for shown in BUILDERS:
            flags = _flags(self.flow[shown]) if shown in self.contrasts else {}
            fields |= {f"{shown}_shown": flags.get("shown"), f"{shown}_copied": flags.get("copies_in_icl")}
        variant = "" if len(self.contrasts) == len(BUILDERS) else next(iter(self.contrasts), "not_compared")
        return Section("text-kinds", self.provenance, fields, self.claims(), tables, figures, variant)


@guarded
def run_text_kind_study(
    model: Model,
    *,
    prompts: Corpus | None = None,
    preset: str = "mechrep",
    builders: Mapping[Builder, int] | Some[Builder] = BUILDERS,
    max_new_tokens: Count | None = None,
    k: Count = 3,
    op: str = "mean",
    run: Run | None = None,
) -> TextKindStudy:
    """Build natural loops, induced copies and controls from one list of prompts, and compare the heads behind them.

    Args:
        model: the model.
        prompts: the fixed list; by default windows of 32 tokens of the embedded English text.
        preset: see :mod:`mechrep.generation.written`.
        builders: ``"text"`` shows texts that do not loop, ``"cycle"`` the cycles of those that do; with how often:
            ``{"cycle": 3}``; by default the preset's number.
        max_new_tokens: greedy tokens after each prompt; the preset's by default.
        k: heads compared and ablated together, at most half of the model's.
        op: what stands in the place of an ablated head: see
            :func:`~mechrep.studies.text_kind_effects.ablation_contrast`.
        run: options; the effort says how many prompts, controls, and texts that are patched.

    Raises:
        NothingFoundError: no text loops by itself.
        InputError: an unknown preset or operation, prompts that leave no room in the context.
        StoreError: the store cannot be read or written.

    Source: Mahaut & Franzon 2025 (arXiv 2504.01100) for the question and the kinds of text; see
    :mod:`mechrep.measures.natural_vs_induced` for what is measured otherwise.

    Limits: with few prompts or few families of loops every verdict is "too few".

    Example:
        >>> import mechrep
        >>> model, run = mechrep.load_model("mechrep-tiny"), mechrep.run.Run(effort="quick", progress=False)
        >>> prompts = mechrep.generation.sample_prompts(model, 8)
        >>> study = run_text_kind_study(
        ...     model, prompts=prompts, builders=["cycle"], max_new_tokens=100, k=1, op="zero", run=run
        ... )
        >>> list(study.contrasts), len(study.contrasts["cycle"].head_table()) == study.scores["induction"].numel()
        (['cycle'], True)
    """
    one_of("op", op, OPS)
    text_kind_preset(preset)
    options, listed = run or Run(), prompts
    brief = options.sizes_on(model).brief
    if listed is None and brief is not None:
        listed, max_new_tokens = _shared_prompts(model, options, preset)
        builders = ("cycle",) if builders is BUILDERS else builders
    if listed is None:
        begin = 1 if model.default_prepend_bos and model.bos_id is not None else 0
        listed = windows_of_text(
            model, tiny.held_out_text(), length=_LENGTH + begin, limit=options.sizes_on(model).loops
        )
    common: dict[str, Any] = {"preset": preset, "max_new_tokens": max_new_tokens, "progress": options.progress}
    natural = natural_texts(model, listed, **common)
    left_out: dict[str, str] = {}
    control = _unless_nothing(lambda: control_texts(model, listed, **common), "control", left_out)
    k = min(k, max(1, model.anatomy.n_layers * model.anatomy.n_heads // 2))
    flow, texts, contrasts, tokens = {}, {}, {}, int(natural.frame.attrs["new_tokens"])
    usual = text_kind_preset(preset).copies
    shown_as = dict(builders) if isinstance(builders, Mapping) else dict.fromkeys(builders, usual)
    for shown, copies in shown_as.items():
        found = text_flow(model, listed, copies=copies, builder=shown, **common)
        flow[shown], texts[shown] = found.counts(), found.frame
        tokens += found.new_tokens - found.texts.new_tokens
        induced = _unless_nothing(
            lambda shown=shown, copies=copies: induced_texts(model, listed, copies, shown, **common), shown, left_out
        )
        if induced is not None:
            contrasts[shown] = _contrast(model, natural, induced, control, k, op, options)
    config = {
        "study": "text kinds", "preset": preset, "builders": shown_as, "max_new_tokens": max_new_tokens, "k": k,
        "op": op, "effort": options.effort, "seed": options.seed,
    }  # fmt: skip
    return TextKindStudy(
        model.name, preset, listed, k, op, natural, control, flow, texts, contrasts, _scores(model, options), tokens,
        left_out, provenance_of(model, listed, config),
    )  # fmt: skip


def _shared_prompts(model: Model, run: Run, preset: str) -> tuple[Corpus, int]:
    """Prompts of the run's loops, which are not written again: few loops, and the texts that do not loop."""
    texts = shared_loops(model, run)
    loops = np.flatnonzero(texts.frame["onset"].notna())[:_FEW_LOOPS]
    others = np.flatnonzero(texts.frame["onset"].isna())
    return already_written(model, texts.select(sorted([*loops.tolist(), *others.tolist()])), preset)


def _unless_nothing(make: Callable[[], T], name: str, left_out: dict[str, str]) -> T | None:
    """What was made, or ``None`` with the reason kept."""
    try:
        return make()
    except NothingFoundError as error:
        left_out[name] = str(error)
        return None


def _scores(model: Model, run: Run) -> dict[str, Float[Tensor, "layer head"]]:
    repeats = shared_repeats(model, run)
    size = run.batch_size or max(1, 2048 // repeats.tokens.shape[1])
    cache = CorpusCache(model, repeats, batch_size=size, run=run, progress=False)
    scores = cache.run(HeadScores(bos_id=model.bos_id))
    return {name: scores.of(name) for name in SCORES}


def _contrast(
    model: Model, natural: Corpus, induced: Corpus, control: Corpus | None, k: int, op: str, run: Run
) -> TextKindContrastStudy:
    """One builder, by all estimators."""
    left_out: dict[str, str] = {}
    both, all_texts = [natural, induced], [natural, induced, *([control] if control is not None else [])]
    brief = run.sizes_on(model).brief
    copies = COPIES if brief is None else 1
    seen = contrast_text_kinds(model, all_texts, copies=copies, per_copy=brief, run=run)
    ablated = ablation_contrast(model, both, ops=[op], reference=control, copies=copies, run=run)
    if brief is None:
        patched = _patched(model, both, control, run, left_out)
    else:
        patched, left_out["patching"] = None, "each text is expensive in a model of so many weights"
    controls = CONTROLS if brief is None else CONTROLS[1:]
    try:
        sets = head_dissociation(model, both, k=k, op=op, controls=controls, reference=control, copies=copies, run=run)
        left_out |= {f"control heads ({name})": why for name, why in sets.notes["left_out"].items()}
    except InputError as error:  # too few texts to find heads in one half and to ablate them in the other
        sets, left_out["sets of heads"] = None, str(error)
    tables = [head_effects(ablated), seen.head_effects(), *([] if patched is None else [head_effects(patched)])]
    compared = pd.concat([compare_heads(one, k, seed=run.seed) for one in tables], ignore_index=True)
    (builder,) = set(induced.frame["builder"])
    return TextKindContrastStudy(builder, induced, seen, ablated, patched, sets, compared, left_out)


def _patched(
    model: Model, texts: Sequence[Corpus], control: Corpus | None, run: Run, left_out: dict[str, str]
) -> Effects | None:
    """Heads patched from control texts, in the first texts of each kind."""
    if control is None:
        left_out["patching"] = "no text without repetition to patch from"
        return None
    few = [corpus.select(range(min(run.sizes_on(model).windows, len(corpus)))) for corpus in texts]
    found = _unless_nothing(lambda: patching_contrast(model, few, control, run=run), "patching", left_out)
    if found is None:
        return None
    missing = [measure.name.split(", ")[1] for measure in found.measures if bool(_unknown(found, measure.name))]
    if missing:
        left_out["patching"] = f"no control text as long as any text of {', '.join(missing)}"
        return None
    return found


def _unknown(effects: Effects, measure: str) -> bool:
    return bool(pd.isna(effects.of(measure)[0]).all())


# --- tables of the section --------------------------------------------------------------------------------------------


def _flags(flow: pd.DataFrame) -> dict[str, int]:
    """How many texts have each flag, and how many were ``shown``."""
    rows = flow.set_index("flag")
    return {**rows["n"].to_dict(), "shown": int(rows.loc["copies_in_icl", "of"])}


def _flow_rows(flow: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    rows = []
    for shown, table in flow.items():
        flags = _flags(table)
        prompts = int(table.set_index("flag").loc["loops_naturally", "of"])
        rows.append((SHOWN[shown], prompts, *(
            flags[name] for name in ("loops_naturally", "shown", "copies_in_icl", "loops_in_icl")
        )))  # fmt: skip
    columns = ["induced texts", "prompts", "loop by themselves", "shown again", "copied", "loop after being shown"]
    return pd.DataFrame(rows, columns=columns)


def _stacked(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    return pd.concat(tables, names=["induced texts"]).reset_index(level=0).reset_index(drop=True)


def _kind_rows(overlap: pd.DataFrame) -> pd.DataFrame:
    """One row per score, one column per kind of text; natural loops are the same for every builder."""
    kinds = overlap["induced_texts"].where(overlap["text_kind"] == FIRST, "natural loops")
    named = overlap.assign(text_kind=kinds).drop_duplicates(["score", "text_kind"])
    names = list(dict.fromkeys(named["text_kind"]))
    wide = named.pivot(index="score", columns="text_kind", values="shared")[names].reindex(list(SCORES))
    wide["by chance"] = round(float(overlap["chance"].iloc[0]), 1)
    return wide.reset_index().rename(columns={"score": "attention score"}).rename_axis(columns=None)


def _head_rows(found: TextKindContrastStudy) -> pd.DataFrame:
    table = found.head_table().head(_SHOWN)
    table["head"] = [f"L{layer}H{head}" for layer, head in zip(table["layer"], table["head"], strict=True)]
    numbers = [FIRST, SECOND, "D", "D_low", "D_high", *(name for name in table if name.startswith("D, "))]
    table[numbers] = table[numbers].round(3) + 0.0  # no minus before a zero
    return table[["head", *numbers, "q"]].rename(columns={"D_low": "low", "D_high": "high"})


def _compared_rows(found: TextKindContrastStudy) -> pd.DataFrame:
    table = found.compared[found.compared["measure"].isin(MEASURED)]
    ends = {name: table[name] + table["baseline"] for name in ("low", "high", "control_low", "control_high")}
    facts = {"heads": table["name"].replace(found.estimators), "measure": table["measure"].replace(MEASURED)}
    columns = ["heads", "measure", "value", "low", "high", "control_low", "control_high", "q", "verdict"]
    named = {"control_low": "swapped, low", "control_high": "swapped, high"}
    shown = table.assign(**ends, **facts)[columns]
    numbers = columns[2:7]
    return shown.assign(**shown[numbers].round(3)).rename(columns=named)


def _set_rows(sets: Effects) -> pd.DataFrame:
    """One row per set of heads and kind of text it was ablated in; a set chosen in both kinds stands there once."""
    table = judge(_beside_the_hardest(sets), family="sets of heads")
    table["chosen in"] = table["name"].str.removesuffix(" heads")
    table["measured in"] = table["measure"].str.removeprefix(f"{LOG_PROBABILITY}, ")
    alike = ["heads", "measured in"]
    table["chosen in"] = table.groupby(alike)["chosen in"].transform(" and ".join)
    named = {"effect": "change", "control_low": "controls, low", "control_high": "controls, high", "m": "draws",
             "n": "independent units"}  # fmt: skip
    columns = ["chosen in", *alike, "effect", "low", "high", "control_low", "control_high", "m", "n", "verdict"]
    return table.drop_duplicates(alike)[columns].rename(columns=named)


def _beside_the_hardest(sets: Effects) -> pd.DataFrame:
    """Sets of heads with the heads' names; of several kinds of control only the one with the largest p.

    A range over kinds with different numbers of draws would be the range of none of them.
    """
    table, draws = sets.summary(), sets.draws().rename(columns={"control": "controls"})
    heads = {one.name: ", ".join(f"L{layer}H{head}" for layer, head in sorted(map(tuple, one.components["heads"])))
             for one in sets.conditions if one.selection == ABLATION}  # fmt: skip
    keys, of_kind = ["name", "measure"], ["controls", "m", "control_mean", "control_low", "control_high"]
    hardest = draws.sort_values(["p", "m"], ascending=[False, True]).drop_duplicates(keys)[[*keys, *of_kind]]
    if len(hardest) == len(table):
        table = table.drop(columns=of_kind).merge(hardest, on=keys)
    return table.assign(heads=table["name"].map(heads))
