"""``run_patch_study``: what does the sink patch do to norms, attention, repetition and language?

Each condition holds as many neurons as the patch: the patched ones, then, several times each, random neurons of the
model, random ones of the sink layer, and ones of the sink layer that are as active on ordinary text.  Under every
condition the same ordinary texts and the same repeated tokens are read, on the plain view where the model has it.

``PatchStudyResult``: what a sink patch changes, beside the same patch on other neurons.

The published repair, tried on one model: find the sink, hold its neurons, and see what changes and what it costs.

1. :func:`mechrep.find_sink` looks for a sink.  Where there is none, nothing can be patched, and that is the answer.
2. :func:`mechrep.studies.run_patch_study` measures norms, attention, repetition and perplexity before and after, beside
   the same patch on other neurons.
3. :func:`mechrep.studies.benchmark_study` asks the same questions before and after, beside the same controls, where
   lm-evaluation-harness is installed.

What the sink patch changes: every measure with its interval, beside the same patch on other neurons.

What a sink patch changed, beside what the same patch on other neurons changed: numbers for figures and sections.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from mechrep.ablation.benchmark_tasks import EMBEDDED_TASKS
from mechrep.ablation.old_benchmarks import BENCHMARK_CONTROLS, UNTOUCHED, BenchmarkResult, benchmark_study
from mechrep.ablation.old_controls import CONTROLS, Unit, as_seeds
from mechrep.ablation.old_sweeps import Verdict
from mechrep.cache.corpus_cache import CorpusCache
from mechrep.errors import InputError, NothingFoundError
from mechrep.figures import AXIS, INK, counted, plain, style_of, styled
from mechrep.generation.patched_model import PatchedModel
from mechrep.interventions.ops import Combined, Intervention, SinkPatch
from mechrep.measures.attention_sinks import AttentionSinkResult, AttentionSinks
from mechrep.measures.sink_norms import RepeatNormResult, RepeatNorms, SinkNormResult, SinkNorms
from mechrep.models.anatomy import Site
from mechrep.models.model import Model
from mechrep.models.reading import choose_view
from mechrep.progress import progress_bar
from mechrep.provenance import Provenance, provenance_of
from mechrep.results import Result, check_count
from mechrep.run import Run
from mechrep.stats import paired_bootstrap_interval, percentile_interval
from mechrep.studies.find_sink import find_sink, ordinary_texts
from mechrep.studies.old_sink_reading import Cell, control_cells, predictions, second_half, text_losses
from mechrep.studies.sink_ablation import repeated_stimulus
from mechrep.text.corpus import Corpus

if TYPE_CHECKING:
    import plotly.graph_objects as go

ORIGINAL, PATCHED = "original", "patched"


@dataclass(frozen=True, eq=False)
class PatchStudyResult(Result):
    """Measures of a model under every condition; row 0 is the untouched model, row 1 the patch, then the controls.

    Norms are those after the sink layer.

    Attributes:
        layer: the sink layer.
        neurons: the patched neurons in it.
        selections: ``"original"``, ``"patched"`` or the name of a control, per condition.
        seeds: of the control's draw; 0 where nothing is drawn.
        units: ``[layer, neuron]`` of the neurons held in each condition.
        token_ids: the repeated tokens.
        repeats: how often they are repeated.
        bos: whether texts and repeats begin with BOS.
        first_norm: mean norm at the first position of ordinary text.
        typical_norm: mean norm at the other positions.
        repeat_norm: norm at the last copy of each token.
        moved: how far that norm has moved from the typical (0) to the BOS norm (1) of the untouched model, on the log
            scale; NaN where these two do not differ clearly.
        moved_reason: why ``moved`` is NaN, or empty.
        head: ``[layer, head]`` that attends most to the first position of ordinary text in the untouched model.
        attention: mean attention of that head to the first position, per condition.
        mean_attention: the same over all heads.
        continued: share of the second half of the copies after which the same token is the most probable next one:
            greedy decoding goes on repeating there.
        losses: nats per token on ordinary text, all positions.
    """

    layer: int
    neurons: Sequence[int]
    selections: Sequence[str]
    seeds: Sequence[int]
    units: Sequence[Sequence[Sequence[int]]]
    token_ids: Sequence[int]
    repeats: int
    bos: bool
    first_norm: Float[Tensor, " condition"]
    typical_norm: Float[Tensor, " condition"]
    repeat_norm: Float[Tensor, "condition token"]
    moved: Float[Tensor, "condition token"]
    moved_reason: str
    head: Sequence[int]
    attention: Float[Tensor, " condition"]
    mean_attention: Float[Tensor, " condition"]
    continued: Float[Tensor, "condition token"]
    losses: Float[Tensor, "condition text"]

    @property
    def drifted(self) -> Float[Tensor, "condition token"]:
        """1 where a token's last copy has moved at least half-way to BOS, else 0; NaN where ``moved`` is."""
        return torch.where(self.moved.isnan(), torch.nan, (self.moved >= 0.5).float())

    def _measures(self) -> dict[str, Tensor]:
        """Per condition one value, or one per token or text."""
        return {
            "norm of the first position": self.first_norm[:, None],
            "typical norm": self.typical_norm[:, None],
            "norm at the last repeat": self.repeat_norm,
            "share of tokens that drift": self.drifted,
            "attention to the first position, best head": self.attention[:, None],
            "attention to the first position, all heads": self.mean_attention[:, None],
            "repeats continued": self.continued,
            "loss": self.losses,
        }

    def to_frame(self) -> pd.DataFrame:
        """One row per condition, every measure as its mean; perplexity beside the loss."""
        columns: dict[str, list[float]] = {
            name: values.double().mean(1).tolist() for name, values in self._measures().items()
        }
        frame = pd.DataFrame({"selection": list(self.selections), "seed": list(self.seeds), **columns})
        return frame.assign(perplexity=np.exp(frame["loss"]))

    def summary(self) -> pd.DataFrame:
        """One row per measure: original, patched, their difference, and the same difference under each control.

        ``low`` and ``high`` are a 95 % bootstrap interval of the difference over tokens or texts, paired; a single
        number per model has none.  Of a control: the mean of the difference over draws, and its central 95 % range.
        """
        controls = [name for name in dict.fromkeys(self.selections) if name not in (ORIGINAL, PATCHED)]
        measures: list[tuple[str, Tensor, Callable[[float], float]]] = [
            (name, values, float) for name, values in self._measures().items()
        ]
        measures.append(("perplexity", self.losses, lambda value: float(np.exp(value))))
        rows = []
        for name, values, shown in measures:
            means = [shown(value) for value in values.double().mean(1).tolist()]
            row: dict[str, object] = {"measure": name, "original": means[0], "patched": means[1]}
            row |= {"difference": means[1] - means[0], "low": float("nan"), "high": float("nan")}
            if values.shape[1] > 1 and shown is float and not bool(values[:2].isnan().any()):
                row["low"], row["high"] = paired_bootstrap_interval((values[1] - values[0]).tolist())
            for control in controls:
                drawn = [means[i] - means[0] for i, selection in enumerate(self.selections) if selection == control]
                row[control] = float(np.mean(drawn))
                row[f"{control}_low"], row[f"{control}_high"] = percentile_interval(drawn)
            rows.append(row)
        return pd.DataFrame(rows)

    def top(self, k: int) -> list[int]:
        """The ``k`` tokens whose norm at the last repeat the patch lowers most.

        Raises:
            InputError: ``k`` larger than the number of tokens.
        """
        check_count(k, len(self.token_ids), "tokens")
        fall = self.repeat_norm[0] - self.repeat_norm[1]
        return [self.token_ids[token] for token in torch.argsort(fall, descending=True, stable=True).tolist()[:k]]

    def of(self, selection: str) -> list[int]:
        """Conditions of this name.

        Raises:
            InputError: there is none.
        """
        found = [row for row, name in enumerate(self.selections) if name == selection]
        if not found:
            raise InputError(f"selection {selection!r}", f"one of {sorted(set(self.selections))}", "choose among these")
        return found

    def plot(self) -> go.Figure:
        """What the patch changes, beside the same patch on other neurons (:mod:`mechrep.studies.sink_patch`)."""
        return patch_figure(self)


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
        patch: by default the layer and neurons that :func:`~mechrep.studies.find_sink.find_sink` finds.
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
    sink = find_sink(model, texts=corpus, run=Run(seed=seed))
    if sink.layer is None:
        raise NothingFoundError(
            f"{model.name}: {sink.facts}",
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


NOT_INSTALLED = "lm-evaluation-harness is not installed: pip install mechrep[evals]"


@dataclass(frozen=True)
class RepairStudy:
    """Everything that the report shows about the sink patch.

    Attributes:
        model_name: how the model was named.
        patch: what the patch changes, beside controls; ``None`` where there is no sink to patch.
        reason: why there is no patch, or empty.
        benchmarks: questions with and without the patch, beside controls; ``None`` where they were not asked.
        benchmarks_reason: why not, or empty.
        provenance: of the whole study.
    """

    model_name: str
    patch: PatchStudyResult | None
    reason: str
    benchmarks: BenchmarkResult | None
    benchmarks_reason: str
    provenance: Provenance


def run_repair_study(
    model: Model,
    *,
    texts: Corpus | Sequence[str] | None = None,
    layer: int | None = None,
    repeats: int | None = None,
    seeds: int | Sequence[int] = 3,
    tasks: Sequence[str] = EMBEDDED_TASKS,
    limit: int | None = 100,
    data: str | Path | None = None,
    store: str | Path | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> RepairStudy:
    """Patches the sink that is found in a model, and measures what that repairs and what it costs.

    Args:
        model: the model.
        texts: a corpus, or texts, for the sink, norms, attention and loss; up to 100 windows of 64 tokens of held-out
            English by default.
        layer: a layer to take as the sink layer, see :func:`mechrep.find_sink`.
        repeats: how often a token is repeated; by default 512, or what the context holds.
        seeds: draws of each control, or the seeds.
        tasks: benchmarks, see :data:`mechrep.ablation.benchmark_tasks.TASKS`; none with ``()``.  Those made from the
            embedded text by default.
        limit: ask only so many questions of each.
        data: folder of the files of questions, for benchmarks that are files.
        store: folder in which finished benchmarks are kept.
        seed: of the search for the sink.
        progress: show progress bars.

    Returns:
        A study whose ``patch`` is ``None`` where no sink was found, and whose ``benchmarks`` is ``None`` where there is
        no patch or they cannot be asked, with the reason.

    Raises:
        InputError: see :func:`mechrep.studies.run_patch_study` and :func:`mechrep.studies.benchmark_study`.
        StoreError: the store cannot be read or written.

    Source: the patch and its three questions (norms, repetition, benchmarks) are Yona et al. 2025 (arXiv 2503.08908);
    measures, controls and intervals are mechrep's own.

    Limits: benchmarks that a model answers at chance cannot show what a patch costs.  The sink is looked for, and the
    loss measured, on the same texts.

    Example:
        >>> import mechrep
        >>> from mechrep.models.load import reinitialised
        >>> untrained = reinitialised(mechrep.load_model("mechrep-tiny"))
        >>> few = ["The sea was calm that day.", "It rained, and it rained."]
        >>> study = run_repair_study(untrained, texts=few, progress=False)
        >>> study.patch is None, study.reason.startswith("no")
        (True, True)
    """
    drawn = as_seeds(seeds)
    sink = find_sink(model, texts=texts, layer=layer, run=Run(seed=seed))
    found = SinkPatch(sink.layer, [neuron for _, neuron in sink.neurons]) if sink.layer is not None else None
    patch, benchmarks, why = None, None, ""
    if found is not None:
        patch = run_patch_study(model, found, texts=texts, repeats=repeats, seeds=drawn, seed=seed, progress=progress)
        why = _unasked(model, tasks)
        if not why:
            benchmarks = benchmark_study(
                model,
                found,
                data=data,
                tasks=tasks,
                limit=limit,
                controls=BENCHMARK_CONTROLS,
                seeds=drawn,
                store=store,
                progress=progress,
            )
    config = {
        "study": "patch",
        "patch": None if found is None else found.to_dict(),
        "tasks": list(tasks),
        "limit": limit,
        "seeds": list(drawn),
        "seed": seed,
    }
    return RepairStudy(
        model_name=model.name,
        patch=patch,
        reason="" if found is not None else sink.facts,
        benchmarks=benchmarks,
        benchmarks_reason=why if found is not None else "there is no patch to ask about",
        provenance=Provenance(sink.provenance.model, sink.provenance.corpus, config),
    )


def _unasked(model: Model, tasks: Sequence[str]) -> str:
    """Why benchmarks are not asked; empty where they are."""
    if not tasks:
        return "no benchmark was asked for"
    if model.plain is None:
        return f"{model.name} has no plain Hugging Face module, which the harness needs"
    return NOT_INSTALLED if importlib.util.find_spec("lm_eval") is None else ""


_FEW = 8  # tokens or texts below which an interval over them means little
_OVER = {  # what the interval of a measure is over; the others are one number per model
    "norm at the last repeat": "token",
    "share of tokens that drift": "token",
    "repeats continued": "token",
    "loss": "text",
}
_SHARES = ("drift", "attention", "continued")

DRIFT, LOSS = "share of tokens that drift", "loss"


@dataclass(frozen=True)
class Change:
    """One measure, before and after.

    Attributes:
        measure: its name in the result.
        unit: ``"share"``, ``"norm"`` or ``"nats"``.
        original: of the untouched model.
        patched: under the patch.
        change: the difference.
        low: lower end of its 95 % interval (paired bootstrap); NaN where there is one number per model.
        high: upper end.
        n: how many tokens, texts or questions the interval is over; 0 without one.
        over: what these are; empty without an interval.
        controls: name of each control with the changes of its draws.
        verdict: ``"beyond controls"`` when the interval lies beyond every draw of every control, and beyond 0 (with
            ``"few texts"`` when it is over fewer than eight); ``None`` without an interval, which cannot be judged.
    """

    measure: str
    unit: Literal["share", "norm", "nats"]
    original: float
    patched: float
    change: float
    low: float
    high: float
    n: int
    over: str
    controls: dict[str, list[float]]
    verdict: Verdict | None

    @property
    def draws(self) -> list[float]:
        """The changes of all draws of all controls."""
        return [change for changes in self.controls.values() for change in changes]


def patch_changes(result: PatchStudyResult) -> dict[str, Change]:
    """Every measure of a patch by its name, perplexity left out: it is the exponential of the loss."""
    frame, summary = result.to_frame(), result.summary().set_index("measure")
    controls = [name for name in dict.fromkeys(result.selections) if name not in (ORIGINAL, PATCHED)]
    sizes = {"token": len(result.token_ids), "text": result.losses.shape[1]}
    found = {}
    for measure in summary.index.drop("perplexity"):
        row, values = summary.loc[measure], frame[measure]
        draws = {name: (values[frame["selection"] == name] - values[0]).tolist() for name in controls}
        low, high = float(row["low"]), float(row["high"])
        over = "" if math.isnan(low) else _OVER[measure]
        n = sizes.get(over, 0)
        found[str(measure)] = Change(
            measure=str(measure),
            unit="nats" if measure == LOSS else "share" if any(word in measure for word in _SHARES) else "norm",
            original=float(row["original"]),
            patched=float(row["patched"]),
            change=float(row["difference"]),
            low=low,
            high=high,
            n=n,
            over=over,
            controls=draws,
            verdict=judged(low, high, n, [draw for changes in draws.values() for draw in changes]) if over else None,
        )
    return found


def benchmark_changes(result: BenchmarkResult) -> list[Change]:
    """Every measure of every benchmark under the first intervention, named by the title of the benchmark."""
    frame = result.to_frame()
    name = next(one["condition"] for one in result.conditions if one["condition"] != UNTOUCHED)
    found = []
    for (title, metric), rows in frame.groupby(["title", "metric"], sort=False):
        own = rows[rows["condition"] == name]
        cut = own[own["selection"] == "intervention"].iloc[0]
        controls = own[own["selection"] != "intervention"].groupby("selection", sort=False)["difference"]
        draws = {str(kind): differences.tolist() for kind, differences in controls}
        low, high, n = float(cut["difference_low"]), float(cut["difference_high"]), int(cut["n"])
        found.append(
            Change(
                measure=f"{title}, {metric}",
                unit="nats" if metric == "margin" else "share",
                original=float(rows[rows["condition"] == UNTOUCHED]["value"].iloc[0]),
                patched=float(cut["value"]),
                change=float(cut["difference"]),
                low=low,
                high=high,
                n=n,
                over="question",
                controls=draws,
                verdict=judged(low, high, n, [draw for changes in draws.values() for draw in changes]),
            )
        )
    return found


def judged(low: float, high: float, n: int, draws: Sequence[float]) -> Verdict:
    """Whether an interval lies beyond every draw and beyond 0.

    Example:
        >>> judged(0.1, 0.2, 16, [0.0, 0.05]), judged(0.1, 0.2, 16, [0.0, 0.15]), judged(-0.2, -0.1, 4, [0.0])
        ('beyond controls', 'not beyond controls', 'beyond controls, few texts')
    """
    if not draws:
        return "no controls"
    if not (high < min(0.0, *draws) or low > max(0.0, *draws)):
        return "not beyond controls"
    return "beyond controls" if n >= _FEW else "beyond controls, few texts"


_LINE, _BETWEEN = 66, 76  # pixels: a panel; between panels
_UNITS = {"share": "change in points", "norm": "change of the norm", "nats": "change in nats"}
_TITLES = {"loss": "loss on ordinary text"}


def patch_figure(result: PatchStudyResult) -> go.Figure:
    """One panel per measure: its change under the patch, with a 95 % interval where there is one, and every control.

    Filled is the patch, open are the same patch on other neurons; the dotted line is the untouched model.

    Args:
        result: of :func:`mechrep.studies.run_patch_study`.

    Source: mechrep's own; the questions are those of Yona et al. 2025 (arXiv 2503.08908).

    Limits: norms of ordinary positions and attention are one number per model, and have no interval.

    Example:
        >>> import torch
        >>> from mechrep.provenance import Provenance
        >>> two = torch.tensor([[1.0, 1.0], [0.0, 0.0], [1.0, 1.0]])
        >>> result = PatchStudyResult(
        ...     Provenance({"name": "a model"}, {"texts": 2}, {}), layer=0, neurons=[3],
        ...     selections=["original", "patched", "random"], seeds=[0, 0, 0], units=[[], [[0, 3]], [[1, 2]]],
        ...     token_ids=[7, 8], repeats=9, bos=True, first_norm=two[:, 0], typical_norm=two[:, 0], repeat_norm=two,
        ...     moved=two, moved_reason="", head=[0, 0], attention=two[:, 0], mean_attention=two[:, 0], continued=two,
        ...     losses=two,
        ... )
        >>> sorted({part.name for part in patch_figure(result).data})
        ['random neurons', 'the patch']
    """
    from plotly.subplots import make_subplots

    changes = [change for change in patch_changes(result).values() if not np.isnan(change.change)]
    titles = [f"<b>{plain(_TITLES.get(one.measure, one.measure))}</b>, {_UNITS[one.unit]}" for one in changes]
    height = len(changes) * _LINE + (len(changes) - 1) * _BETWEEN
    figure = make_subplots(len(changes), 1, subplot_titles=titles, vertical_spacing=_BETWEEN / height)
    named: set[str] = set()
    for row, one in enumerate(changes, start=1):
        _add_change(figure, one, row, named)
        figure.add_vline(0, line={"color": INK, "dash": "dot", "width": 1.5}, row=row, col=1)  # type: ignore[arg-type]
    figure.update_annotations(font_size=13, x=0, xanchor="left")
    neurons = counted(len(result.neurons), "neuron")
    tokens = f"{result.repeats:,} repeats of {counted(len(result.token_ids), 'token')}"
    styled(
        figure,
        title="What the patch changes, beside the same patch on other neurons",
        subtitle=f"{result.provenance.model['name']}, {neurons} of layer {result.layer}; {tokens}",
        x="",
        y="",
    )
    figure.update_xaxes(AXIS | {"showgrid": True})
    figure.update_yaxes(AXIS | {"showgrid": False, "showticklabels": False, "ticks": "", "range": [0.5, -0.5]})
    figure.update_layout(height=height + 230, margin={"l": 20, "t": 170, "b": 60})
    return figure.update_layout(legend={"y": 1, "yref": "container", "yanchor": "top", "x": 0})


def _add_change(figure: go.Figure, one: Change, row: int, named: set[str]) -> None:
    scale = 100.0 if one.unit == "share" else 1.0
    shown = {"top": [one.change], **one.controls}
    offsets = np.linspace(-0.35, 0.35, max(2, len(shown)))
    for (selection, changes), offset in zip(shown.items(), offsets, strict=False):
        top = selection == "top"
        style, name = style_of(selection, 1), "the patch" if top else style_of(selection, 1).label
        bars = {"type": "data", "symmetric": False, "thickness": 1.6, "width": 4}
        bars |= {"array": [scale * (one.high - one.change)], "arrayminus": [scale * (one.change - one.low)]}
        figure.add_scatter(
            x=[scale * change for change in changes],
            y=[offset] * len(changes),
            mode="markers",
            name=plain(name),
            legendgroup=selection,
            showlegend=selection not in named,
            marker={"color": style.colour, "symbol": style.symbol, "size": 10 if top else 7},
            error_x=bars if top and one.over else None,
            hovertemplate=f"{plain(name)}: %{{x:+.3g}}<extra></extra>",
            row=row,
            col=1,
        )
        named.add(selection)
