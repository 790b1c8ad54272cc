"""Made-up sections with words of their own, for the tests of the report."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mechrep.ablation.effects import detection, example_effects, judge
from mechrep.provenance import Provenance
from mechrep.report.words import TEXT
from mechrep.sections import Section
from mechrep.viewer.packing import pack_values

SCRIPT = "</script><script>alert(1)</script>"
HEADS = """# title
Which heads of {model}?
# lead
The head {head} has {score:.2f} of {n:,}; {nothing} and {share:.1%}.

A second paragraph with a [link](#term-control).
# claim: loss
With {name} ablated ({k} of them), the loss rises.
# claim: few
With {name} ablated, something happens.
# figure title: forest
What {head} does
# table: scores
Scores of {head}.
# table: long
All of them.
# figure: forest
Effects beside {m} draws.
# view title: seen
A text of {model}
# view: seen
By surprisal.
# notes
- First note.
- Second note that
  goes on.
# limits
- A limit.
# source
Somebody 2024 (arXiv 2301.00001).
"""
SINKS = """# title
Sinks?
# lead
The ratio is {ratio}.
# lead: not_found
None: {ratio:.3f}.
# claim: norm
The norm stands out.
# claim: attention
Attention does.
"""
FIELDS = {"model": "net", "head": "L2H0", "score": 0.8123, "n": 1408, "nothing": float("nan"), "share": 0.125, "m": 99}


def provenance(name: str = "net") -> Provenance:
    return Provenance({"name": name, "fingerprint": "abc"}, {"texts": 12}, {"study": "made up", "bar": float("nan")})


def heads(**changes: object) -> Section:
    effects = example_effects()
    claims = pd.concat(
        [
            example_effects(m=9, seed=1).summary(family="few").assign(claim="few"),
            effects.summary(family="heads").assign(claim="loss"),
        ],
        ignore_index=True,
    )
    scores = pd.DataFrame({"head": ["L0H0", "L2H0"], "prefix_matching": [0.25, 0.75], "top": [False, True]})
    long = pd.DataFrame({"layer": range(300), "norm": np.linspace(0.5, 80, 300)})
    facts = {
        "name": "heads", "provenance": provenance(), "fields": FIELDS, "claims": claims,
        "tables": {"scores": scores, "long": long}, "figures": {"forest": effects.plot()},
    }  # fmt: skip
    return Section(**(facts | changes))  # pyright: ignore[reportArgumentType]


def seen() -> dict[str, Any]:
    """What a viewer is given, of a text whose tokens would do harm."""
    values = {**pack_values(np.array([0.5, 2.0, 1.0])), "low": 0.0, "high": 2.0, "beyond": None}
    return {
        "model": "net", "text": "t", "under": "", "tokens": [SCRIPT, " <b>b", "c"], "ids": [1, 2, 3], "prompt": 1,
        "cycle": None, "quantities": [{"name": "surprisal", "unit": "nats"} | values], "maps": [], "layers": [],
        "theme": "auto",
    }  # fmt: skip


def sinks(**changes: object) -> Section:
    null = [1 + i / 100 for i in range(39)]
    rows = [
        detection("norm sink", "ratio", 9.25, null, unit="ratio"),
        detection(
            "sink heads", "attention", 0.5, [value / 2 for value in null], unit="share", interval=(0.4, 0.6), n=9
        ),
    ]
    claims = judge(rows, family="sinks").assign(claim=["norm", "attention"])
    facts = {"name": "sinks", "provenance": provenance(), "fields": {"ratio": 9.25}, "claims": claims}
    return Section(**(facts | changes))  # pyright: ignore[reportArgumentType]


def missing() -> Section:
    fields = {"model": "net", "given": "nothing", "expected": "a sink", "remedy": "name one"}
    return Section("first-layer", provenance(), fields, variant="missing")


def words(folder: Path) -> Path:
    """Mechrep's own general words beside those of the made-up sections."""
    for name in ("intro", "glossary", "missing"):
        shutil.copy(TEXT / f"{name}.md", folder)
    for name, text in (("heads", HEADS), ("sinks", SINKS), ("first-layer", "# title\nFirst layer?\n# lead\nYes.\n")):
        (folder / f"{name}.md").write_text(text, encoding="utf-8")
    return folder
