"""Commands that show texts: ``compare`` and ``look``."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
from cyclopts import Parameter

from mechrep.commands import ABLATED, MODEL, PROMPT, PROMPTS, Options, Writing, prompts_of, read_components
from mechrep.disk import write_whole
from mechrep.errors import InputError
from mechrep.generation.compare import BASELINE, Comparison
from mechrep.generation.compare import compare as compare_texts
from mechrep.generation.decode import generate
from mechrep.interventions.ops import Intervention
from mechrep.report.look import ColouredText, colours_wanted
from mechrep.text.corpus import Corpus
from mechrep.viewer.quantities import UNITS
from mechrep.viewer.show import View, view

_WRITING, _USUAL = Writing(), Options()


def compare(
    model: MODEL,
    prompt: PROMPT = None,
    *,
    prompts: PROMPTS = None,
    ablate: Annotated[
        list[str] | None,
        Parameter(
            name=["--ablate", "--zero"],
            help="Components to set to zero: L18H6,L2N57, or a circuit's file; given several times, each is a text.",
            negative=(),
        ),
    ] = None,
    top_k: Annotated[int, Parameter(name="--candidates", help="Likeliest tokens kept at each step.")] = 5,
    html: Annotated[Path | None, Parameter(help="Write the texts to this file, with candidates on hover.")] = None,
    writing: Writing = _WRITING,
    options: Options = _USUAL,
) -> None:
    """Continue prompts with and without components, side by side: where they part, and how near that was."""
    if not ablate:
        raise InputError("nothing to compare with", "components", "add for instance --ablate L2H0")
    texts, loaded = prompts_of(prompt, prompts), options.load(model)
    conditions: dict[str, Intervention | None] = {BASELINE: None}
    for one in ablate:
        circuit = read_components(one)
        circuit.check(loaded.anatomy)
        conditions[f"without {circuit.name}"] = circuit.intervention()
    result = compare_texts(
        loaded, Corpus.from_texts(texts, model=loaded, source="prompt"), conditions,
        max_new_tokens=writing.max_new_tokens, top_k=top_k, progress=options.progress,
        decoding=writing.decoding(options.seed),
    )  # fmt: skip
    if options.out is not None:
        result.save(options.out / "comparison")
    if html is not None:
        write_whole(html, _page(f"{loaded.name}: continuations compared", result._repr_html_()))
    sys.stdout.write((_as_json(result) if options.json else str(result)) + "\n")


def _as_json(result: Comparison) -> str:
    return json.dumps(json.loads(result.to_frame().to_json(orient="records")), indent=1, ensure_ascii=False)


def look(
    model: MODEL,
    prompt: PROMPT = None,
    *,
    prompts: PROMPTS = None,
    by: Annotated[
        str, Parameter(help="What colours the tokens: surprisal, L18N264, L2H0, norm L5; with commas, the first.")
    ] = "surprisal",
    ablate: ABLATED = None,
    html: Annotated[Path | None, Parameter(help="Write the viewer to this file too: it opens in any browser.")] = None,
    writing: Writing = _WRITING,
    options: Options = _USUAL,
) -> None:
    """Show one text with its tokens coloured and its loop laid out, repetition under repetition.

    The prompt is continued first; --max-new-tokens 0 shows it as it is.

    """
    texts = prompts_of(prompt, prompts)
    if len(texts) > 1:
        raise InputError(f"{len(texts)} texts", "one to look at", "give one prompt")
    loaded = options.load(model)
    change: Intervention | None = None
    if ablate is not None:
        circuit = read_components(ablate)
        circuit.check(loaded.anatomy)
        change = circuit.intervention(when="all")
    corpus = Corpus.from_texts(texts, model=loaded, source="prompt")
    if writing.max_new_tokens:
        corpus = generate(
            loaded, corpus, max_new_tokens=writing.max_new_tokens, decoding=writing.decoding(options.seed),
            interventions=change, progress=options.progress,
        )  # fmt: skip
    seen = view(loaded, corpus, [part.strip() for part in by.split(",")], intervention=change)
    text = _coloured(seen)
    if html is not None:
        seen.save(html)
    if options.json:
        sys.stdout.write(_json_of(text, corpus) + "\n")
        return
    sys.stdout.write(text.drawn(colours=colours_wanted(sys.stdout)) + "\n")
    if html is not None:
        sys.stdout.write(f"{html}\n")


def _coloured(seen: View) -> ColouredText:
    """The text, by the first quantity; of a head what the last token looks at."""
    one = seen.quantities[0]
    if one.kind == "head":
        values, name = seen.attention(one.layer, one.number)[-1], f"{one.name}, attention of the last token"
    else:
        values, name = seen.values[one.name], one.name
    prompt_length = int(seen.corpus.frame["prompt_length"].iloc[0])
    return ColouredText(seen.tokens, values, name, UNITS[one.kind], prompt_length, seen.cycle)


def _json_of(text: ColouredText, corpus: Corpus) -> str:
    cycle = text.cycle
    loop = None if cycle is None else {"start": cycle.start, "period": cycle.period, "end": cycle.end}
    values: Sequence[float | None] = [None if np.isnan(value) else float(value) for value in text.values]
    record = {"name": text.name, "unit": text.unit, "prompt_length": text.prompt_length, "loop": loop}
    record |= {"ids": corpus.row(0), "tokens": list(text.tokens), "values": values}
    return json.dumps(record, indent=1, ensure_ascii=False)


def _page(title: str, body: str) -> str:
    """A file of its own around what a notebook shows; it loads nothing."""
    from html import escape

    style = "body{font-family:system-ui,sans-serif;margin:2rem;color-scheme:light dark}td,th{padding:.3rem .8rem}"
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>:root{{color-scheme:light dark}}{style}</style></head><body>{body}</body></html>\n"
    )
