"""A section of the report as data: numbers, tables, figures and claims; its words stand in a Markdown file.

A study gives a :class:`Section`; :mod:`mechrep.report` lays it on the page.  Neither composes a sentence: what is said
stands in ``report/text/NAME.md``, with fields in braces.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from mechrep.disk import is_plain_name, plain_name, read_folder, write_folder
from mechrep.errors import StoreError
from mechrep.provenance import Provenance

if TYPE_CHECKING:
    import plotly.graph_objects as go

MISSING = "missing"
LEFT_OUT = "left-out"
_FILE = "section.json"
_LONGEST_NAME = 80
_VERSION = 2  # of the layout of a folder; 1, of mechrep 0.1, has no sums


@dataclass(frozen=True, eq=False, repr=False)
class Section:
    """One question and what was measured for it.

    Attributes:
        name: of the section, and of its text ``report/text/NAME.md``.
        provenance: how the numbers were made.
        fields: numbers and short names that the text mentions.
        claims: rows of :func:`mechrep.ablation.effects.judge` with one column more, ``claim``: the key of the claim's
            wording in the text.
        tables: frames by the key of their caption.
        figures: figures by the key of their caption; ``# figure title: KEY`` gives one another title.
        views: texts to look at, ``mechrep.view(...).payload()``, by the key of their caption ``# view: KEY``.
        files: names of the tables' files, by key, in the folder that the section was read from or last written to.
        variant: a case with words of its own, ``# lead: VARIANT``; ``"missing"``: this model has nothing to study;
            ``"left-out"``: it does not have what the part needs.
    """

    name: str
    provenance: Provenance
    fields: Mapping[str, Any]
    claims: pd.DataFrame = field(default_factory=pd.DataFrame)
    tables: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    figures: Mapping[str, go.Figure] = field(default_factory=dict)
    variant: str = ""
    views: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        held = f"{len(self.claims)} claims, {len(self.tables)} tables, {len(self.figures)} figures"
        variant = f", {self.variant}" if self.variant else ""
        return f"Section({self.name!r} of {str(self.provenance.model.get('name'))[:80]}{variant}: {held})"

    def save(self, folder: str | Path) -> None:
        """Write the section to a folder of its own, complete or not at all: JSON, tables as Parquet, figures as JSON.

        A column that holds numbers and texts is written as texts: Parquet knows one type per column.

        Raises:
            StoreError: the folder cannot be written, or holds something else.
        """
        write_folder(folder, self._write, record=_FILE)
        object.__setattr__(self, "files", slugs(self.tables))

    def _write(self, folder: Path) -> None:
        for name in ("tables", "figures"):
            (folder / name).mkdir()
        tables, figures = slugs(self.tables), slugs(self.figures)
        record = {
            "version": _VERSION,
            "name": self.name,
            "variant": self.variant,
            "fields": plain_value(self.fields),
            "provenance": plain_value(self.provenance.to_dict()),
            "tables": tables,
            "figures": figures,
            "views": plain_value(self.views),
        }
        (folder / _FILE).write_text(json.dumps(record, indent=1, ensure_ascii=False), encoding="utf-8")
        _write_frame(self.claims, folder / "claims.parquet")
        for key, frame in self.tables.items():
            _write_frame(frame, folder / "tables" / f"{tables[key]}.parquet")
        for key, figure in self.figures.items():
            (folder / "figures" / f"{figures[key]}.json").write_text(str(figure.to_json()), encoding="utf-8")

    def table_file(self, key: str) -> str:
        """The name of a table's file in the section's folder, without its ending."""
        return self.files.get(key) or slugs(self.tables)[key]

    @classmethod
    def load(cls, folder: str | Path) -> Section:
        """Read a section that :meth:`save` wrote, in this version of mechrep or an earlier one.

        Raises:
            StoreError: nothing there, damaged, or written by a newer mechrep.
        """
        path = Path(folder)
        return read_folder(path, _FILE, lambda record: cls._from_record(path, record))

    @classmethod
    def _from_record(cls, path: Path, record: Mapping[str, Any]) -> Section:
        from plotly.io import from_json

        try:
            for kind in ("tables", "figures"):
                if len(set(record[kind].values())) < len(record[kind]):  # mechrep 0.1 wrote both, one over the other
                    raise ValueError(f"{kind} that share a file: {', '.join(record[kind])}")
            figures: dict[str, Any] = {
                key: from_json((path / "figures" / f"{plain_name(file)}.json").read_text(encoding="utf-8"))
                for key, file in record["figures"].items()
            }
            return cls(
                plain_name(record["name"]),
                Provenance(**record["provenance"]),
                record["fields"],
                pd.read_parquet(path / "claims.parquet"),
                {
                    key: pd.read_parquet(path / "tables" / f"{plain_name(file)}.parquet")
                    for key, file in record["tables"].items()
                },
                figures,
                record["variant"],
                record.get("views", {}),
                record["tables"],
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise StoreError(f"{path} ({error})", "a folder that save() wrote", "make this part again") from error


def _write_frame(frame: pd.DataFrame, path: Path) -> None:
    frame = frame.rename(columns=str).reset_index(drop=True)
    for name in [name for name in frame if frame[name].dtype.kind == "O"]:
        values = [plain_value(value) for value in frame[name]]
        kinds = {float if type(value) is int else type(value) for value in values if value is not None}
        mixed = len(kinds) > 1 or kinds & {list, dict}
        frame[name] = [None if value is None else str(value) if mixed else value for value in values]
    frame.to_parquet(path, index=False)


def plain_value(value: Any) -> Any:
    """A cell as JSON has it: ``None`` for what is unknown, Python's own numbers, text for anything else.

    Example:
        >>> plain_value(float("nan")), plain_value(pd.NA), plain_value((1, 2))
        (None, None, [1, 2])
    """
    if isinstance(value, Mapping):
        return {str(key): plain_value(one) for key, one in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain_value(one) for one in value]
    if hasattr(value, "tolist"):  # of NumPy, of PyTorch
        return plain_value(value.tolist())
    if value is None or value is pd.NaT or value is pd.NA:
        return None
    if isinstance(value, (bool, str)):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return None if math.isnan(value) else float(value)
    return str(value)


def slug(name: str) -> str:
    """A name as an anchor or as the name of a file, on any system; a long one ends in a part of its sum.

    Example:
        >>> slug("Loop family (cluster)"), slug("../../etc"), slug("CON")
        ('loop-family-cluster', 'etc', 'con-x')
    """
    made = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "x"
    if len(made) > _LONGEST_NAME:
        made = f"{made[:_LONGEST_NAME]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return made if is_plain_name(made) else f"{made}-x"


def slugs(names: Iterable[str]) -> dict[str, str]:
    """Names, each with a slug that no other has.

    Example:
        >>> slugs(["A b", "a-b", "c"])
        {'A b': 'a-b', 'a-b': 'a-b-2', 'c': 'c'}
    """
    made: dict[str, str] = {}
    for name in names:
        first, number = slug(name), 2
        made[name] = first
        while made[name] in [slug for one, slug in made.items() if one != name]:
            made[name], number = f"{first}-{number}", number + 1
    return made
