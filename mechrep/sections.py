"""A section of the report as data: numbers, tables, figures and claims; its words stand in a Markdown file.

A study gives a :class:`Section`; :mod:`mechrep.report` lays it on the page.  Neither composes a sentence: what is said
stands in ``report/text/NAME.md``, with fields in braces.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pandas as pd

from mechrep.provenance import Provenance

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclass(frozen=True, eq=False)
class Section:
    """One question and what was measured for it.

    Attributes:
        name: of the section, and of its text ``report/text/NAME.md``.
        provenance: how the numbers were made.
        fields: numbers and short names that the text mentions.
        claims: rows of :func:`mechrep.ablation.effects.judge` with one column more, ``claim``: the key of the claim's
            wording in the text.
        tables: frames by the key of their caption.
        figures: figures by the key of their caption.
        variant: a case with words of its own, ``# lead: VARIANT``; ``"missing"``: this model has nothing to study.
    """

    name: str
    provenance: Provenance
    fields: Mapping[str, Any]
    claims: pd.DataFrame = field(default_factory=pd.DataFrame)
    tables: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    figures: Mapping[str, go.Figure] = field(default_factory=dict)
    variant: str = ""
