"""``sink_cut_study``: what becomes of norm, attention, language and repetition when the sink neurons are set to zero?

Conditions: nothing; all sink neurons; the first alone, where there are several; and for each of these cuts, several
times each, as many random neurons of the model, random ones of the sink layer, and ones of the sink layer that are as
active on ordinary text.  Under every condition the same texts and the same repeated tokens are read.

``SinkCutResult``: what a model loses without its sink neurons, beside what it loses without others.

What studies of a sink's neurons share: the texts, the repeated tokens, the controls, and reading under an edit.

What sink neurons cause: every measure's change without them, beside the same cut of other neurons.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechrep.ablation.old_controls import CONTROLS, Unit, _nearest, as_seeds, control_units
from mechrep.errors import InputError, NothingFoundError
from mechrep.figures import AXIS, INK, counted, plain, style_of, styled
from mechrep.interventions.apply import EditTable
from mechrep.interventions.ops import Intervention, Neurons
from mechrep.measures.find_sink import SinkResult
from mechrep.measures.sink_neurons import begins_with_bos
from mechrep.measures.sink_norms import norms_of, other_positions
from mechrep.models import tiny
from mechrep.models.anatomy import Site
from mechrep.models.model import Model
from mechrep.models.reading import choose_view, read_activations
from mechrep.progress import progress_bar
from mechrep.provenance import provenance_of
from mechrep.results import Result, check_count
from mechrep.stats import paired_bootstrap_interval, percentile_interval
from mechrep.text.corpus import Corpus, windows_of_text
from mechrep.text.stimuli import repeated_tokens

if TYPE_CHECKING:
    import plotly.graph_objects as go

UNTOUCHED, CUT = "none", "top"  # selections; every other one is a control
ALL, FIRST = "all", "first"  # cuts: all sink neurons, and the first of them alone
_SAME = 1e-4  # relative: texts that differ by less differ by rounding

# Field, and whether it is a norm, a share or a loss.
MEASURES: Mapping[str, str] = {
    "first_norm": "norm",
    "typical_norm": "norm",
    "attention": "share",
    "losses": "nats",
    "repeat_norm": "norm",
    "continued": "share",
    "p_next": "share",
}


@dataclass(frozen=True, eq=False)
class SinkCutResult(Result):
    """Measures under every condition; row 0 is the untouched model.

    Neurons are set to zero after the product, at every position, BOS included.  Norms are those after the sink layer.

    Attributes:
        layer: the sink layer.
        neurons: the sink neurons, the largest contribution first.
        cuts: per condition the cut that it is or is a control of: ``"all"`` sink neurons or the ``"first"`` alone (only
            where there are several); ``"none"`` for the untouched model.
        selections: ``"none"``, ``"top"`` (the sink neurons themselves) or the name of a control.
        seeds: of the control's draw; 0 where nothing is drawn.
        units: ``[layer, neuron]`` of the neurons set to zero.
        token_ids: the repeated tokens.
        repeats: how often they are repeated.
        bos: whether texts and repeats begin with BOS.
        head: ``[layer, head]`` that attends most to the first position in the untouched model.
        first_norm: norm at the first position of ordinary text.
        typical_norm: mean norm at the other positions.
        attention: mean attention of that head to the first position, over all queries but the first.
        losses: nats per token, all positions.
        repeat_norm: norm at the last copy of each token.
        continued: share of the second half of the copies after which the same token is the most probable next one.
        p_next: mean probability of the same token after a copy of the second half.
    """

    layer: int
    neurons: Sequence[int]
    cuts: Sequence[str]
    selections: Sequence[str]
    seeds: Sequence[int]
    units: Sequence[Sequence[Sequence[int]]]
    token_ids: Sequence[int]
    repeats: int
    bos: bool
    head: Sequence[int]
    first_norm: Float[Tensor, "condition text"]
    typical_norm: Float[Tensor, "condition text"]
    attention: Float[Tensor, "condition text"]
    losses: Float[Tensor, "condition text"]
    repeat_norm: Float[Tensor, "condition token"]
    continued: Float[Tensor, "condition token"]
    p_next: Float[Tensor, "condition token"]

    @property
    def cut_names(self) -> list[str]:
        """``"all"``, and ``"first"`` where it is another cut."""
        return [name for name in dict.fromkeys(self.cuts) if name != UNTOUCHED]

    def neurons_of(self, cut: str) -> list[int]:
        """The sink neurons that a cut sets to zero.

        Raises:
            InputError: no cut of this name.
        """
        if cut not in self.cut_names:
            raise InputError(f"cut {cut!r}", f"one of {self.cut_names}", "choose among these")
        return list(self.neurons if cut == ALL else self.neurons[:1])

    def to_frame(self) -> pd.DataFrame:
        """One row per condition, every measure as its mean over texts or tokens."""
        columns = {name: getattr(self, name).double().mean(1).tolist() for name in MEASURES}
        facts = {"cut": list(self.cuts), "selection": list(self.selections), "seed": list(self.seeds)}
        return pd.DataFrame({**facts, "neurons": [len(units) for units in self.units], **columns})

    def draws(self, cut: str, measure: str) -> dict[str, list[float]]:
        """Mean change of a measure under each draw of each control of a cut.

        Raises:
            InputError: no such cut or measure.
        """
        self.neurons_of(cut)
        values = self._values(measure).mean(1)
        drawn: dict[str, list[float]] = {}
        for row, (name, selection) in enumerate(zip(self.cuts, self.selections, strict=True)):
            if name == cut and selection != CUT:
                drawn.setdefault(selection, []).append(float(values[row] - values[0]))
        return drawn

    def summary(self) -> pd.DataFrame:
        """One row per cut and measure: the untouched value, the value under the cut, the change, and the controls.

        ``low`` and ``high`` are a 95 % bootstrap interval of the change over texts or tokens, paired, ``n`` of them.
        ``alike``: the change is the same in all of them up to rounding, as at BOS, where nothing else has been seen;
        the interval is then a point.  Of each control: the mean change over draws, and its central 95 % range.
        ``beyond``: the interval lies beyond every draw of every control and beyond 0; missing without controls.
        """
        rows = []
        for cut in self.cut_names:
            top = next(r for r, cell in enumerate(zip(self.cuts, self.selections, strict=True)) if cell == (cut, CUT))
            for measure in MEASURES:
                values = self._values(measure)
                change, drawn = (values[top] - values[0]).tolist(), self.draws(cut, measure)
                low, high = paired_bootstrap_interval(change)
                row = {"cut": cut, "measure": measure, "neurons": len(self.units[top])}
                row |= {"untouched": float(values[0].mean()), "value": float(values[top].mean())}
                row |= {"change": float(np.mean(change)), "low": low, "high": high, "n": len(change)}
                row |= {"alike": bool(np.ptp(change) <= _SAME * float(values[0].abs().mean()))}
                row |= {"beyond": beyond(low, high, [one for draws in drawn.values() for one in draws])}
                for control, draws in drawn.items():
                    row[control] = float(np.mean(draws))
                    row[f"{control}_low"], row[f"{control}_high"] = percentile_interval(draws)
                rows.append(row)
        return pd.DataFrame(rows).astype({"beyond": "boolean"})

    def top(self, k: int) -> list[tuple[int, int]]:
        """The first ``k`` sink neurons, as ``(layer, neuron)``.

        Raises:
            InputError: ``k`` larger than their number.
        """
        check_count(k, len(self.neurons), "sink neurons")
        return [(self.layer, neuron) for neuron in self.neurons[:k]]

    def _values(self, measure: str) -> Float[Tensor, "condition unit"]:
        if measure not in MEASURES:
            raise InputError(f"measure {measure!r}", f"one of {list(MEASURES)}", "choose among these")
        return torch.as_tensor(getattr(self, measure)).double()


def beyond(low: float, high: float, draws: Sequence[float]) -> bool | None:
    """Whether an interval of changes lies beyond every draw of every control, and beyond 0; ``None`` of no draws.

    Example:
        >>> beyond(-0.9, -0.5, [-0.4, 0.1]), beyond(-0.9, -0.3, [-0.4, 0.1]), beyond(-0.9, -0.5, [])
        (True, False, None)
    """
    if not draws:
        return None
    return high < min(0.0, *draws) or low > max(0.0, *draws)


_LENGTH, _WINDOWS = 64, 100
_TOKENS, _REPEATS = 16, 512
_LOGITS_PER_BATCH = 2**24
TOKENS_PER_BATCH = 4096

Cell = tuple[str, int, tuple[Unit, ...]]
Editing = Callable[[Tensor], AbstractContextManager[None]]


def untouched(_tokens: Tensor) -> AbstractContextManager[None]:
    """No edit at all."""
    return nullcontext()


def ordinary_texts(model: Model, texts: Corpus | Sequence[str] | None, held_out_text: str | None = None) -> Corpus:
    """A corpus, or texts; by default up to 100 windows of 64 tokens of held-out text, English unless given.

    Raises:
        InputError: a corpus of another model, no tokenizer for texts, or a text of one token.
    """
    if isinstance(texts, Corpus):
        texts.check_model(model)
        corpus = texts
    elif model.tokenizer is None:
        raise InputError(
            f"{model.name}, which has no tokenizer", "a corpus of ids", "pass texts=Corpus.from_tokens(...)"
        )
    elif texts is not None:
        corpus = Corpus.from_texts(texts, model=model)
    else:
        length = min(_LENGTH, model.anatomy.n_ctx)
        corpus = windows_of_text(model, held_out_text or tiny.held_out_text(), length=length, limit=_WINDOWS)
    if int(corpus.lengths.min()) < 2:
        raise InputError("a text of one token", "at least two, one of them to predict", "leave it out")
    return corpus


def repeated_stimulus(
    model: Model, corpus: Corpus, tokens: Sequence[int | str] | None, repeats: int | None = None
) -> Corpus:
    """Repeated tokens, with BOS where the texts have it; by default the 16 most frequent of the texts, 512 times.

    Raises:
        InputError: fewer than two repeats or no tokens, and what ``repeated_tokens`` refuses.
    """
    bos = begins_with_bos(model, corpus)
    n = min(model.anatomy.n_ctx - bos, _REPEATS) if repeats is None else repeats
    if n < 2:
        raise InputError(f"repeats={n}", "at least 2", "raise it")
    if tokens is None:
        counted = Counter(token for text in range(len(corpus)) for token in corpus.row(text))
        tokens = [token for token, _ in counted.most_common() if token not in model.special_ids][:_TOKENS]
    if not tokens:
        raise InputError("no token to repeat", "at least one", "pass tokens=, or texts that are not all special tokens")
    return repeated_tokens(model, tokens, n, bos)


def control_cells(
    model: Model,
    layer: int,
    neurons: Sequence[int],
    controls: Sequence[str],
    seeds: Sequence[int],
    corpus: Corpus,
    view: Any,
) -> list[Cell]:
    """Every control of some neurons of one layer from every seed: its name, the seed, the units.

    Activation-matched ones have nearly the same mean absolute activation (after the product) in the texts, at all
    positions but the first.

    Raises:
        InputError: an unknown control or one twice, or more neurons than a control can match.
    """
    unknown = set(controls) - set(CONTROLS)
    if unknown or len(set(controls)) < len(controls):
        raise InputError(f"controls={list(controls)}", f"some of {CONTROLS}, each once", "choose among these")
    cells: list[Cell] = []
    sizes = _sizes(model, corpus, layer, view) if "activation_matched" in controls else np.zeros(0)
    shape: dict[str, Any] = {"n_layers": model.anatomy.n_layers, "d_mlp": model.anatomy.d_mlp}
    units = [(layer, neuron) for neuron in neurons]
    for control in controls:
        for seed in seeds:
            if control != "activation_matched":
                drawn = control_units(control, units, **shape, seed=seed)
            else:
                # Asked first, because it refuses a layer in which too few neurons are left.
                control_units("layer_matched", units, **shape, seed=seed)
                free = np.setdiff1d(np.arange(shape["d_mlp"]), neurons)
                generator = np.random.default_rng([seed, CONTROLS.index(control), len(neurons)])
                drawn = [(layer, n) for n in sorted(_nearest(sizes, neurons, free, generator))]
            cells.append((control, seed, tuple(drawn)))
    return cells


def _sizes(model: Model, corpus: Corpus, layer: int, view: Any) -> np.ndarray:
    """Mean absolute activation of every neuron of the layer, after the product, at all positions but the first."""
    total = torch.zeros(model.anatomy.d_mlp, dtype=torch.float64)
    for rows in torch.arange(len(corpus)).split(max(1, TOKENS_PER_BATCH // corpus.tokens.shape[1])):
        inside = other_positions(corpus.lengths[rows], corpus.tokens.shape[1])

        def add(activation: Tensor, _site: Site, _layer: int, inside: Tensor = inside) -> None:
            nonlocal total
            total += activation[inside.to(activation.device)].abs().double().sum(0).cpu()

        read_activations(model, corpus.tokens[rows].to(model.device), {Site.MLP_POST: [layer]}, add, view=view)
    return (total / (corpus.lengths - 1).sum()).numpy()


@contextmanager
def edited(
    model: Model, intervention: Intervention | None, view: str, tokens: Int[Tensor, "text pos"]
) -> Iterator[None]:
    """While open, ``view`` runs these tokens under an intervention that is active at every position."""
    if intervention is None:
        yield
    elif view == "plain":
        rows = torch.arange(len(tokens), device=tokens.device)
        table = EditTable(model, [intervention] * len(tokens), rows.tolist())
        table.aim(rows, torch.ones_like(tokens, dtype=torch.bool))
        with table.applied():
            yield
    else:
        with model.hooks(fwd_hooks=intervention.hooks(model)):
            yield


def predictions(
    model: Model, corpus: Corpus, view: str, editing: Editing = untouched
) -> Iterator[tuple[Int[Tensor, " text"], Bool[Tensor, "text pos"], Float[Tensor, "text pos"]]]:
    """Batches: lengths; whether each next token is the most probable one; its log-probability."""
    width = corpus.tokens.shape[1]
    for rows in torch.arange(len(corpus)).split(max(1, _LOGITS_PER_BATCH // (width * model.anatomy.d_vocab))):
        tokens = corpus.tokens[rows].to(model.device)
        with editing(tokens):
            logits: Float[Tensor, "text pos d_vocab"] = model.plain_logits(tokens) if view == "plain" else model(tokens)
        logits, following = logits[:, :-1].float(), tokens[:, 1:].to(logits.device)
        scores = logits.gather(-1, following[..., None]).squeeze(-1) - logits.logsumexp(-1)
        yield corpus.lengths[rows], (logits.argmax(-1) == following).cpu(), scores.cpu()


def text_losses(model: Model, corpus: Corpus, view: str, editing: Editing = untouched) -> Float[Tensor, " text"]:
    """Mean loss of each text in nats per token, all positions."""
    losses = []
    for lengths, _, scores in predictions(model, corpus, view, editing):
        inside = torch.arange(scores.shape[1]) < (lengths - 1)[:, None]
        losses.append(-(scores * inside).sum(1) / inside.sum(1))
    return torch.cat(losses)


def second_half(stimulus: Corpus) -> int:
    """Of repeated tokens: the first position after which a copy of the second half is predicted."""
    return int(stimulus.lengths[0]) - int(stimulus.frame["repeats"].iloc[0]) // 2 - 1


_Condition = tuple[str, str, int, tuple[Unit, ...]]  # cut, selection, seed, units


@torch.no_grad()
def sink_cut_study(
    model: Model,
    sink: SinkResult,
    *,
    texts: Corpus | Sequence[str] | None = None,
    tokens: Sequence[int | str] | None = None,
    repeats: int | None = None,
    controls: Sequence[str] = CONTROLS,
    seeds: int | Sequence[int] = 3,
    progress: bool | None = None,
) -> SinkCutResult:
    """Sets sink neurons to zero, at every position, and measures what changes, beside as many other neurons.

    Args:
        model: the model.
        sink: of :func:`~mechrep.measures.find_sink.find_sink`; its ``neurons`` are cut.
        texts: ordinary texts for norms, attention and loss: a corpus, or texts.  By default up to 100 windows of 64
            tokens of held-out English, with BOS by the model's habit.
        tokens: ids, or words of one token, to repeat; by default the 16 most frequent ones of the texts.
        repeats: how often; by default 512, or what the context holds.
        controls: ``"random"``, ``"layer_matched"``, ``"activation_matched"``; the last matches the mean absolute
            activation on the texts, first position left out.
        seeds: number of draws of each control, or the seeds.
        progress: show a progress bar.

    Returns:
        Measures per condition; ``summary()`` has each change with its interval, its controls, and whether it lies
        beyond them.

    Raises:
        NothingFoundError: the model has no norm sink, so there are no neurons to cut.
        InputError: a corpus of another model, texts of one token, no tokens to repeat, an unknown control or more
            neurons than a control can match.

    Source: zeroing the neurons and reading norms on repeats is Yona et al. 2025 (arXiv 2503.08908); that language
    suffers is Oh et al. 2024 (arXiv 2410.01866) and Yu et al. 2024 (arXiv 2411.07191).  The other measures, the
    controls and the intervals are mechrep's own.

    Limits: zero can lie far from anything a neuron does.  The neurons are those that were chosen for what they do to
    the norm, on the same default texts, so that the norm falls is no surprise; the other measures had no say.  No
    other neuron is as active at the first position, so activations are matched at the others.  "Continued" reads the
    most probable token after true copies.

    Example:
        >>> import dataclasses, mechrep
        >>> from mechrep.models.load import reinitialised
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> texts = ["The sea was calm that day.", "It rained, and it rained."]
        >>> sink = mechrep.find_sink(reinitialised(model), texts=texts)
        >>> sink = dataclasses.replace(sink, layer=0, neurons=[[0, 3]])  # any neuron will do for an example
        >>> result = sink_cut_study(model, sink, texts=texts, tokens=[300], repeats=9, seeds=1, progress=False)
        >>> list(result.selections), result.summary()["measure"].tolist()[0]
        (['none', 'top', 'random', 'layer_matched', 'activation_matched'], 'first_norm')
    """
    if sink.layer is None or not sink.neurons:
        raise NothingFoundError(
            f"{model.name}: {sink.reason}",
            "a norm sink, whose neurons could be cut",
            "there is nothing to cut here; to see what other neurons do, use ablation_study",
        )
    corpus = ordinary_texts(model, texts)
    stimulus = repeated_stimulus(model, corpus, tokens, repeats)
    view = choose_view(model, {Site.RESID_POST, Site.MLP_POST, Site.PATTERN})
    conditions = _conditions(model, sink, controls, as_seeds(seeds), corpus, view)
    measured = []
    with progress_bar(len(conditions), "cutting sink neurons", "condition", progress) as bar:
        for *_, units in conditions:
            cut = Neurons(units, "zero", site=Site.MLP_POST, when="all") if units else None
            editing = partial(edited, model, cut, view)
            measured.append(_measure(model, corpus, stimulus, sink, view, editing))
            bar.update(1)
    config = {
        "study": "sink cuts",
        "controls": list(controls),
        "conditions": [[cut, name, seed, [list(unit) for unit in units]] for cut, name, seed, units in conditions],
        "stimulus": stimulus.fingerprint(),
    }
    return SinkCutResult(
        provenance_of(model, corpus, config),
        layer=sink.layer,
        neurons=[neuron for _, neuron in sink.neurons],
        cuts=[cut for cut, *_ in conditions],
        selections=[selection for _, selection, *_ in conditions],
        seeds=[seed for *_, seed, _ in conditions],
        units=[[list(unit) for unit in units] for *_, units in conditions],
        token_ids=[int(token) for token in stimulus.frame["token_id"]],
        repeats=int(stimulus.frame["repeats"].iloc[0]),
        bos=bool(stimulus.frame["bos"].iloc[0]),
        head=list(sink.best_head),
        **{name: torch.stack([each[name] for each in measured]).float() for name in measured[0]},
    )


def _conditions(
    model: Model, sink: SinkResult, controls: Sequence[str], seeds: Sequence[int], corpus: Corpus, view: Any
) -> list[_Condition]:
    """The untouched model, then every cut with its own controls, which are as large as it is."""
    assert sink.layer is not None
    neurons = [neuron for _, neuron in sink.neurons]
    cuts = {ALL: neurons} | ({FIRST: neurons[:1]} if len(neurons) > 1 else {})
    conditions: list[_Condition] = [(UNTOUCHED, UNTOUCHED, 0, ())]
    for name, cut in cuts.items():
        conditions.append((name, CUT, 0, tuple((sink.layer, neuron) for neuron in cut)))
        cells = control_cells(model, sink.layer, cut, controls, seeds, corpus, view)
        conditions += [(name, *cell) for cell in cells]
    return conditions


def _measure(
    model: Model, corpus: Corpus, stimulus: Corpus, sink: SinkResult, view: Any, editing: Editing
) -> dict[str, Tensor]:
    """Every measure under one condition, by the name of its field."""
    assert sink.layer is not None
    half, continued, p_next = second_half(stimulus), [], []
    for _, hits, scores in predictions(model, stimulus, view, editing):
        continued.append(hits[:, half:].double().mean(1))
        p_next.append(scores[:, half:].double().exp().mean(1))
    norms, last = (_norms(model, texts, sink.layer, view, editing) for texts in (corpus, stimulus))
    return {
        "first_norm": norms[:, 0],
        "typical_norm": norms[:, 1],
        "repeat_norm": last[:, 2],
        "attention": attention_to_first(model, corpus, sink.best_head, view, editing),
        "losses": text_losses(model, corpus, view, editing),
        "continued": torch.cat(continued),
        "p_next": torch.cat(p_next),
    }


def _norms(
    model: Model, corpus: Corpus, layer: int, view: Any, editing: Editing
) -> Float[Tensor, "text first_others_last"]:
    """Per text the norm after ``layer`` at the first position, the mean at the others, and at the last one."""
    found = torch.zeros(len(corpus), 3, dtype=torch.float64)

    def receive(rows: Tensor, residual: Tensor) -> None:
        norms, lengths = norms_of(residual).cpu().double(), corpus.lengths[rows]
        others = other_positions(lengths, norms.shape[1])
        mean = (norms * others).sum(1) / others.sum(1)
        found[rows] = torch.stack([norms[:, 0], mean, norms[torch.arange(len(rows)), lengths - 1]], dim=1)

    _read(model, corpus, Site.RESID_POST, layer, view, editing, receive)
    return found


@torch.no_grad()
def attention_to_first(
    model: Model, corpus: Corpus, head: tuple[int, int], view: Any, editing: Editing = untouched
) -> Float[Tensor, " text"]:
    """Mean attention of one ``(layer, head)`` to the first position, per text, over all queries but the first.

    Args:
        model: the model.
        corpus: short texts of at least two tokens: patterns are read whole.
        head: the head.
        view: ``"auto"``, or one of the two views by name.
        editing: what to hold open while a batch is read; nothing by default.
    """
    found = torch.zeros(len(corpus), dtype=torch.float64)

    def receive(rows: Tensor, pattern: Tensor) -> None:
        column = pattern[:, head[1], :, 0].float().cpu().double()
        others = other_positions(corpus.lengths[rows], column.shape[1])
        found[rows] = (column * others).sum(1) / others.sum(1)

    _read(model, corpus, Site.PATTERN, head[0], view, editing, receive)
    return found


def _read(model: Model, corpus: Corpus, site: Site, layer: int, view: Any, editing: Editing, receive: Any) -> None:
    """Hand over one site of one layer, batch by batch."""
    for rows in torch.arange(len(corpus)).split(max(1, TOKENS_PER_BATCH // corpus.tokens.shape[1])):
        tokens = corpus.tokens[rows].to(model.device)

        def hand_over(activation: Tensor, _site: Site, _layer: int, rows: Tensor = rows) -> None:
            receive(rows, activation)

        with editing(tokens):
            read_activations(model, tokens, {site: [layer]}, hand_over, view=view)


# What is measured, in a few words.
LABELS = {
    "first_norm": "norm at the first position",
    "typical_norm": "norm at the other positions",
    "attention": "attention to the first position, best head",
    "losses": "loss on ordinary text",
    "repeat_norm": "norm at the last copy of a repeated token",
    "continued": "repeats continued",
    "p_next": "probability of one more copy",
}
_UNITS = {"norm": "units of the norm", "share": "share", "nats": "nats per token"}
_LINE, _BETWEEN = 54, 76  # pixels: a cut in a panel; between panels


def sink_cause_figure(result: SinkCutResult) -> go.Figure:
    """One panel per measure, one line per cut: its change with a 95 % interval, and every draw of its controls.

    Args:
        result: what was measured.

    Source: Yona et al. 2025 (arXiv 2503.08908), figure 5, draw norms only; measures and controls are mechrep's.

    Example:
        >>> import torch
        >>> from mechrep.provenance import Provenance
        >>> values = torch.tensor([[9.0, 9.0], [1.0, 1.0], [8.0, 9.0]])
        >>> result = SinkCutResult(
        ...     Provenance({"name": "net"}, {}, {}), layer=0, neurons=[3], cuts=["none", "all", "all"],
        ...     selections=["none", "top", "random"], seeds=[0, 0, 0], units=[[], [[0, 3]], [[0, 5]]],
        ...     token_ids=[7, 8], repeats=9, bos=True, head=[1, 0], **{name: values for name in LABELS},
        ... )
        >>> sink_cause_figure(result).data[0].x
        (-8.0,)
    """
    from plotly.subplots import make_subplots

    cuts, summary = result.cut_names, result.summary().set_index(["cut", "measure"])
    height = len(MEASURES) * len(cuts) * _LINE + (len(MEASURES) - 1) * _BETWEEN
    titles = [f"<b>{plain(LABELS[name])}</b>, change in {_UNITS[kind]}" for name, kind in MEASURES.items()]
    figure = make_subplots(len(MEASURES), 1, subplot_titles=titles, vertical_spacing=_BETWEEN / height)
    named: set[str] = set()
    for panel, measure in enumerate(MEASURES, start=1):
        for line, cut in enumerate(cuts):
            row: pd.Series = summary.loc[(cut, measure)]
            _add_line(figure, row, result.draws(cut, measure), line, panel, named)
        figure.add_vline(0, line={"color": INK, "dash": "dot", "width": 1.5}, row=panel, col=1)  # type: ignore[arg-type]
    figure.update_annotations(font_size=13, x=0, xanchor="left")
    texts, tokens = counted(result.losses.shape[1], "text"), counted(len(result.token_ids), "token")
    styled(
        figure,
        title="What is lost without the sink neurons",
        subtitle=f"{result.provenance.model['name']}, layer {result.layer}; {texts}, {tokens} {result.repeats:,} times",
        x="",
        y="",
    )
    labels = [_label(result, cut) for cut in cuts]
    axis = {"tickvals": list(range(len(cuts))), "ticktext": labels, "range": [len(cuts) - 0.4, -0.6]}
    figure.update_xaxes(AXIS | {"showgrid": True})
    figure.update_yaxes(AXIS | axis | {"showgrid": False, "ticks": ""})
    figure.update_layout(height=height + 230, margin={"l": 150, "t": 170, "b": 60})
    return figure.update_layout(legend={"y": 1, "yref": "container", "yanchor": "top", "x": 0})


def _add_line(
    figure: go.Figure, row: pd.Series, draws: dict[str, list[float]], line: int, panel: int, named: set[str]
) -> None:
    change = float(row["change"])
    selections = {CUT: [change], **draws}
    offsets = np.linspace(-0.3, 0.3, max(2, len(selections)))
    bars = {"type": "data", "symmetric": False, "thickness": 1.6, "width": 4}
    bars |= {"array": [max(0.0, row["high"] - change)], "arrayminus": [max(0.0, change - row["low"])]}
    for (selection, changes), offset in zip(selections.items(), offsets, strict=False):
        style, top = style_of(selection), selection == CUT
        name = "the sink neurons" if top else plain(style.label)
        figure.add_scatter(
            x=changes,
            y=[line + offset] * len(changes),
            mode="markers",
            name=name,
            legendgroup=selection,
            showlegend=selection not in named,
            marker={"color": style.colour, "symbol": style.symbol, "size": 10 if top else 7},
            error_x=bars if top else None,
            hovertemplate=f"{name}: %{{x:+.3g}}<extra></extra>",
            row=panel,
            col=1,
        )
        named.add(selection)


def _label(result: SinkCutResult, cut: str) -> str:
    n = len(result.neurons_of(cut))
    if len(result.cut_names) == 1:
        return f"{counted(n, 'sink neuron')}"
    return f"all {n:,} of them" if cut == ALL else "the first alone"
