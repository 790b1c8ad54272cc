"""``mechrep.view``: a text with its tokens coloured, its loop laid out, and what heads look at.

One script draws it everywhere: in a file of its own (:meth:`View.to_html`), in the output of a notebook without a
kernel (``_repr_html_``), on a page with others (:meth:`View.to_fragment`), and with a kernel that reads further layers
when they are asked for (:meth:`View.widget`).  Nothing is loaded from anywhere.

Texts are data: they stand in JSON without any ``<``, and the script sets them as text, never as markup.
"""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float64

from mechrep.disk import write_whole
from mechrep.errors import InputError, MissingPartError
from mechrep.figures import counted
from mechrep.guards import guarded, within
from mechrep.interventions.ops import Intervention
from mechrep.models.anatomy import Site
from mechrep.models.model import Model
from mechrep.text.corpus import Corpus, CorpusLike
from mechrep.text.cycles import detect_cycle, repeats_after_prompt
from mechrep.text.shown import token_texts as texts_of
from mechrep.text.watch import Cycle
from mechrep.viewer.assets import script_hash, viewer_script, viewer_style
from mechrep.viewer.packing import colour_range, pack_attention, pack_values, shares
from mechrep.viewer.quantities import UNITS, Asked, Quantity, maps_wanted, read_quantities
from mechrep.viewer.still import still_of
from mechrep.viewer.text_reader import TextReading, read_text

if TYPE_CHECKING:
    from mechrep.viewer.widget import ViewWidget

Theme = Literal["auto", "light", "dark"]
_MOST_PAIRS = 2**27  # of queries and keys on one page; half of them are packed
_AT_ONCE = 2**28  # bytes of attention that are read in one pass for a widget


@guarded
def view(
    model: Model,
    text: CorpusLike,
    quantities: Asked | Iterable[Asked] = "surprisal",
    *,
    row: int | None = None,
    layers: Iterable[int] = (),
    cycle: Cycle | Literal["auto"] | None = "auto",
    intervention: Intervention | None = None,
    theme: Theme = "auto",
) -> View:
    """Look at one text: its tokens coloured, its loop laid out repetition under repetition, and maps of heads.

    In a notebook the result shows itself.  Everything is read in one pass of the model.

    Args:
        model: the model.
        text: a text, its ids, or a corpus.
        quantities: what tokens are coloured by, one or several: ``"L18N264"`` or ``(18, 264)``, the activation of a
            neuron; ``"L2H0"``, attention of a head from and to the token under the pointer; ``"norm L5"``, of the
            residual stream behind a layer; ``"surprisal"``, in nats; ``{"name": values}``, one number per token.
        row: which text, of a corpus of several.
        layers: layers whose heads are all shown as maps.
        cycle: the loop; by default that of the corpus, and else the one that the text ends with or has left again,
            also one that counts (its copies differ in a number); None for none.
        intervention: what the model is under, at all positions or from the onset on.
        theme: ``"light"`` or ``"dark"``; by default that of the page around it.

    Returns:
        What can be shown, saved (:meth:`View.save`) and put on a page (:meth:`View.to_fragment`).

    Raises:
        InputError: a quantity that is none or does not fit, several texts and no ``row``, a cycle beyond the text.
        MissingPartError: something that the model does not have.

    Example:
        >>> import mechrep
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> view = mechrep.view(model, "the sea and the sea and the sea and the sea", ["L2N5", "surprisal", "L2H0"])
        >>> view
        View(mechrep-tiny, 17 tokens, a loop of 4 tokens; L2N5, surprisal, L2H0)
        >>> view.values["L2N5"].shape, view.attention(2, 0).shape
        ((17,), (17, 17))
    """
    corpus = _one_text(Corpus.of(text, model), row)
    corpus.check_model(model)
    wanted = read_quantities(quantities)
    length = int(corpus.lengths[0])
    for one in wanted:
        one.check(model.anatomy, length)
    heads = maps_wanted(wanted, layers, model.anatomy)
    if len(heads) * length**2 > _MOST_PAIRS:
        raise InputError(
            f"{len(heads)} heads of {length} tokens, {len(heads) * length**2:.1e} pairs",
            f"at most {_MOST_PAIRS:.1e} on one page",
            "choose fewer layers, a shorter text, or view(...).widget(), which reads layers when they are asked for",
        )
    loop = _cycle_of(corpus, model) if cycle == "auto" else cycle
    if loop is not None:
        if loop.end > length:
            raise InputError(f"a cycle that ends at {loop.end}", f"one within the {length} tokens", "count BOS too")
        # Interventions begin at the onset that is shown.
        corpus = corpus.with_columns(start=loop.start, onset=loop.onset, period=loop.period, copies=loop.copies)
    reading = read_text(model, corpus, wanted, heads, intervention=intervention)
    return View(model, corpus, tuple(wanted), reading, loop, intervention, theme)


@dataclass(frozen=True, eq=False, repr=False)
class View:
    """A text with what was read of it; made by :func:`view`.

    Attributes:
        model: the model.
        corpus: of this one text.
        quantities: what its tokens are coloured by.
        reading: the numbers.
        cycle: its loop, or None.
        intervention: what the model was under.
        theme: light, dark, or that of the page.
    """

    model: Model
    corpus: Corpus
    quantities: tuple[Quantity, ...]
    reading: TextReading
    cycle: Cycle | None
    intervention: Intervention | None = None
    theme: Theme = "auto"

    @property
    def tokens(self) -> list[str]:
        """The tokens as text, BOS included; empty for the later pieces of one character."""
        return token_texts(self.model, self.corpus.row(0))

    @property
    def values(self) -> dict[str, Float64[np.ndarray, " pos"]]:
        """The numbers by which tokens are coloured, exactly as they were read; heads are in :meth:`attention`."""
        return {name: self.reading.values[row].numpy() for row, name in enumerate(self.reading.names)}

    def attention(self, layer: int, head: int) -> Float64[np.ndarray, "query_pos key_pos"]:
        """Attention of one of the heads that are shown, as exact as the viewer has it.

        Raises:
            InputError: a head that is not shown.
        """
        heads = [tuple(one) for one in self.reading.heads]
        if (layer, head) not in heads:
            raise InputError(f"L{layer}H{head}", f"one of the {len(heads)} heads that are shown", "ask view() for it")
        length = int(self.corpus.lengths[0])
        pattern = np.zeros((length, length))
        pattern[np.tril_indices(length)] = shares(self.reading.attention[heads.index((layer, head))]).numpy()
        return pattern

    @property
    def _model_name(self) -> str:
        return self.model.name.replace("\\", "/").rstrip("/").rpartition("/")[2]  # of a folder the last part

    def payload(self) -> dict[str, Any]:
        """Everything that the script is given, ready for JSON."""
        facts, cycle = self.corpus.frame.iloc[0], self.cycle
        heads = [tuple(head) for head in self.reading.heads]
        return {
            "model": self._model_name,
            "text": str(facts["id"]),
            "under": "" if self.intervention is None else str(self.intervention),
            "tokens": self.tokens,
            "ids": self.corpus.row(0),
            "prompt": int(facts["prompt_length"]),
            "cycle": None if cycle is None else {"start": cycle.start, "period": cycle.period, "end": cycle.end},
            "quantities": [self._packed(one) for one in self.quantities],
            "maps": [
                {"layer": layer, "head": head, "data": pack_attention(self.reading.attention[row])}
                for row, (layer, head) in enumerate(heads)
            ],
            "layers": sorted({layer for layer, _ in heads}),
            "theme": self.theme,
        }

    def _packed(self, one: Quantity) -> dict[str, Any]:
        shown = {"name": one.name, "unit": UNITS[one.kind]}
        if one.kind == "head":
            return shown | {"layer": one.layer, "head": one.number}
        values = self.values[one.name]
        if one.kind != "given":  # a token that the model holds for impossible has no colour; the rest is shown
            values = np.where(np.isinf(values), np.nan, values)
        colours = colour_range(values)
        return shown | pack_values(values) | {"low": colours.low, "high": colours.high, "beyond": colours.beyond}

    def to_fragment(self, *, assets: bool = True) -> str:
        """HTML for a page of others.

        Args:
            assets: with the script and the style; a page that has several views needs them once
                (:mod:`mechrep.viewer.assets`).
        """
        return fragment_of(self.payload(), assets=assets)

    def to_html(self) -> str:
        """A whole file that opens from disk and loads nothing."""
        title = html.escape(f"{self.corpus.frame['id'][0]} in {self._model_name}")
        policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src '{script_hash()}'"
        return (
            '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f'<title>{title}</title></head><body class="mv-page">{self.to_fragment()}</body></html>\n'
        )

    def to_svg(self) -> str:
        """A still picture of what the view shows when it is opened; it needs no script."""
        return still_of(self.payload())

    def save(self, path: str | Path) -> None:
        """Write the view to a file: ``.svg`` is a still picture, anything else the page of :meth:`to_html`.

        Raises:
            StoreError: the file cannot be written.
        """
        target = Path(path)
        write_whole(target, self.to_svg() if target.suffix.lower() == ".svg" else self.to_html())

    def widget(self) -> ViewWidget:
        """The same beside a running kernel: maps of all layers, read when they are asked for.

        Raises:
            MissingPartError: anywidget is not installed.
        """
        try:
            import anywidget  # noqa: F401
        except ModuleNotFoundError as error:
            raise MissingPartError(
                "a widget without the package anywidget", "anywidget", 'pip install "mechrep[widget]"; or show the view'
            ) from error
        from mechrep.viewer.widget import ViewWidget

        layers = list(self.model.anatomy.layers_with(Site.PATTERN))
        return ViewWidget(self.payload() | {"layers": layers}, self._on_demand(), self.to_fragment())

    def maps_of(self, layers: Iterable[int]) -> dict[int, list[dict[str, Any]]]:
        """Maps of all heads of some layers, read now in one pass, ready for JSON.

        Raises:
            InputError: a layer that does not exist.
            MissingPartError: a layer without attention.
        """
        heads = maps_wanted([], layers, self.model.anatomy)
        reading = read_text(self.model, self.corpus, [], heads, intervention=self.intervention)
        found: dict[int, list[dict[str, Any]]] = {}
        for (layer, head), levels in zip(heads, reading.attention, strict=True):
            found.setdefault(layer, []).append({"layer": layer, "head": head, "data": pack_attention(levels)})
        return found

    def _on_demand(self) -> Callable[[int], list[dict[str, Any]]]:
        """Reads a layer when it is asked for; all of them at once where they are not too many bytes."""
        anatomy, length = self.model.anatomy, int(self.corpus.lengths[0])
        every = anatomy.layers_with(Site.PATTERN)
        at_once = len(every) * anatomy.n_heads * length * (length + 1) // 2 <= _AT_ONCE
        kept: dict[int, list[dict[str, Any]]] = {}

        def maps(layer: int) -> list[dict[str, Any]]:
            anatomy.check_site(Site.PATTERN, layer)
            if layer not in kept:
                kept.update(self.maps_of(every if at_once else [layer]))
            return kept[layer]

        return maps

    def _repr_html_(self) -> str:
        return self.to_fragment()

    def _repr_svg_(self) -> str:  # for paper, and for readers of notebooks that show no script
        return self.to_svg()

    def __repr__(self) -> str:
        loop = "no loop" if self.cycle is None else f"a loop of {counted(self.cycle.period, 'token')}"
        names = ", ".join(one.name for one in self.quantities)
        return f"View({self._model_name}, {counted(int(self.corpus.lengths[0]), 'token')}, {loop}; {names})"


def fragment_of(payload: Mapping[str, Any], *, assets: bool = True) -> str:
    """HTML of a view for a page of others, from the data that the script is given.

    Args:
        payload: of :meth:`View.payload`.
        assets: with the script and the style; a page that has several views needs them once.

    Example:
        >>> import mechrep
        >>> view = mechrep.view(mechrep.load_model("mechrep-tiny"), "the sea")
        >>> fragment_of(view.payload()) == view.to_fragment()
        True
    """
    data = json.dumps(payload, ensure_ascii=True, separators=(",", ":")).replace("<", "\\u003c")
    style, script = (viewer_style(), viewer_script()) if assets else ("", "")
    return (
        (f"<style>{style}</style>" if assets else "")
        + f'<div class="mechrep-view" data-theme="{html.escape(payload["theme"])}">'
        + f'<p class="mv-plain">{html.escape("".join(payload["tokens"]))}</p>'
        + f'<script type="application/json">{data}</script></div>'
        + (f'<script type="module">{script}</script>' if assets else "")
    )


def _one_text(corpus: Corpus, row: int | None) -> Corpus:
    if row is None and len(corpus) > 1:
        raise InputError(f"{len(corpus)} texts", "one", "pass row=0, the number of the text to look at")
    return corpus.select([within("row", 0 if row is None else row, 0, len(corpus) - 1, "a text")])


def _cycle_of(corpus: Corpus, model: Model) -> Cycle | None:
    """What the corpus says, and else what is found in the whole text."""
    facts, ids = corpus.frame.iloc[0], corpus.row(0)
    if not (pd.isna(facts["start"]) or pd.isna(facts["period"])):
        start, period = int(facts["start"]), int(facts["period"])
        copies = (len(ids) - start) / period if pd.isna(facts["copies"]) else float(facts["copies"])
        end = min(len(ids), start + round(copies * period))
        return Cycle.of(ids, start=start, period=period, end=end, detector="corpus")
    first = int(ids[0] in model.special_ids)
    eos, special = model.eos_ids, model.special_ids
    found = detect_cycle(ids, prompt_length=first, eos_id=eos, special_ids=special)
    if found is not None:
        return found
    # One that the text has left again, or one that counts.
    decode = None if model.tokenizer is None else model.decode
    ended = repeats_after_prompt(ids, first, eos_id=eos, special_ids=special, decode=decode)
    if ended is None:
        return None
    end = ended.end
    while end < len(ids) and ids[end] == ids[end - ended.period]:
        end += 1
    return Cycle.of(ids, start=ended.start, period=ended.period, end=end, detector=ended.detector)


def token_texts(model: Model, ids: Sequence[int]) -> list[str]:
    """The text of each token, as it stands in the text: with its blank in front, special tokens by their names.

    Args:
        model: whose tokens they are; without a tokenizer the ids stand for themselves.
        ids: of the text.

    Example:
        >>> import mechrep
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> token_texts(model, model.encode("the sea"))
        ['<|bos|>', 't', 'he', ' se', 'a']
    """
    if model.tokenizer is None:
        return [str(number) for number in ids]
    return texts_of(ids, model.decode, model.special_ids)
