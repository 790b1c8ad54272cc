"""What every result can do: be saved whole, loaded, shown as a table and as a figure; never a pickle.

A result is a frozen dataclass.  Its tensor fields go to one safetensors file, everything else to JSON beside it.
"""

from __future__ import annotations

import dataclasses
import html
import json
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from torch import Tensor

from mechrep.disk import read_folder, write_folder
from mechrep.errors import InputError, StoreError
from mechrep.guards import check_count, fits, guarded, one_of
from mechrep.notation import unit_name
from mechrep.provenance import Provenance
from mechrep.tables import LONGEST, frame_html, short

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

RECORD = "result.json"
_VERSION = 2  # of the layout of a folder; 1, of mechrep 0.1, has no sums

# Not `Self`, which the checker of shapes (beartype, function by function) cannot resolve.
R = TypeVar("R", bound="Result")


def _made(kind: type, record: Mapping[str, Any]) -> Any:
    """A small dataclass from its fields; one that holds others says itself how it is read."""
    read = getattr(kind, "from_record", None)
    return kind(**record) if read is None else read(record)


class Shown:
    """A frozen dataclass that says in one short line what it holds, and in a notebook shows its parts."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "__repr__" not in cls.__dict__:
            cls.__repr__ = cls.__repr__  # which a dataclass would replace by one that prints every tensor

    def __repr__(self) -> str:
        fields = [f for f in dataclasses.fields(self) if f.name != "provenance"]  # pyright: ignore[reportArgumentType]
        parts = [_in_short(field.name, getattr(self, field.name)) for field in fields]
        return short(f"{type(self).__name__}({', '.join(parts)})", LONGEST)

    def _repr_html_(self) -> str:
        rows = []
        for field in dataclasses.fields(self):  # pyright: ignore[reportArgumentType]
            shown = getattr(getattr(self, field.name), "_repr_html_", None)
            if shown is not None:
                rows.append(f"<details><summary>{field.name.replace('_', ' ')}</summary>{shown()}</details>")
        return f"<div><p><strong>{html.escape(repr(self))}</strong></p>{''.join(rows)}</div>"


def _in_short(name: str, value: Any) -> str:
    """One field in a few characters: shapes of tensors, numbers of elements, plain values themselves."""
    if isinstance(value, Tensor):
        return f"{name} [{' x '.join(map(str, value.shape))}]"
    if value is None or isinstance(value, (bool, int, float, str)):
        return f"{name}={f'{value:.4g}' if isinstance(value, float) else short(repr(value), 40)}"
    if isinstance(value, Mapping) or (isinstance(value, Sequence) and not hasattr(value, "shape")):
        return f"{name}: {len(value)}"
    return f"{name}: {type(value).__name__}"


@dataclass(frozen=True, eq=False, repr=False)
class Result(Shown):
    """Base of the results; subclasses add tensors and plain values as fields.

    Attributes:
        provenance: how the numbers were made.
        nested: fields that are sequences of a small dataclass, and which; the others hold what JSON can.
        ranked_by: the field that units are ranked by.
    """

    provenance: Provenance

    nested: ClassVar[Mapping[str, type]] = {}
    ranked_by: ClassVar[str] = ""

    def frames(self) -> dict[str, pd.DataFrame]:
        """All tensors as tidy tables, one per set of axes: the axes' places, then a column per field.

        The axes are those of the types: ``Float[Tensor, "layer head"]`` gives the columns ``layer`` and ``head``.
        """
        import numpy as np
        import pandas as pd

        hints, groups = typing.get_type_hints(type(self)), {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                axes = tuple(hints[field.name].dim_str.split())
                groups.setdefault((axes, tuple(value.shape)), {})[field.name] = value.detach().cpu().flatten().tolist()
        tables = {}
        for (axes, shape), columns in groups.items():
            places = np.indices(shape).reshape(len(shape), -1)
            tables.setdefault(" ".join(axes), pd.DataFrame({**dict(zip(axes, places, strict=True)), **columns}))
        return tables

    def to_frame(self) -> pd.DataFrame:
        """A tidy table, one row per unit, first the unit that ranks highest where the kind of result has a ranking.

        By default the table of the axes that most fields share.
        """
        tables = self.frames()
        if not self.ranked_by:
            return max(tables.values(), key=lambda table: table.shape[1])
        ((_, table),) = [(axes, table) for axes, table in tables.items() if self.ranked_by in table]
        return table.iloc[self._order(self.ranked_by)].reset_index(drop=True)

    @guarded
    def ranking(self, by: str = "") -> list[Any]:
        """Units as tuples of their axes, the largest value first, ties in order; those without a value are left out.

        Where no unit has a value, all are there, in order.

        Args:
            by: a field; by default the one that this kind of result is ranked by.

        Raises:
            InputError: no tensor of this name.
        """
        names = [field.name for field in dataclasses.fields(self) if isinstance(getattr(self, field.name), Tensor)]
        one_of("by", by or self.ranked_by, names)
        value = getattr(self, by or self.ranked_by)
        shape = value.shape
        known = int((~value.isnan()).sum()) or value.numel()
        order = self._order(by or self.ranked_by)[:known]
        units = [tuple(int(part) for part in _places(place, shape)) for place in order]
        return units if len(shape) > 1 else [unit for (unit,) in units]

    def _order(self, by: str) -> list[int]:
        value = getattr(self, by).double().flatten()
        return value.nan_to_num(nan=-float("inf")).argsort(descending=True, stable=True).tolist()

    @guarded
    def save(self, folder: str | Path) -> None:
        """Write the result to a folder of its own, complete or not at all.

        Raises:
            StoreError: the folder cannot be written, or holds something that is no result.
        """
        from safetensors.torch import save_file

        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        # Copies: safetensors refuses tensors that share memory.
        tensors = {name: value.clone().contiguous() for name, value in values.items() if isinstance(value, Tensor)}
        plain = {name: value for name, value in values.items() if not isinstance(value, (Tensor, Provenance))}
        record = {"kind": type(self).__name__, "values": plain, "provenance": self.provenance.to_dict()}
        text = json.dumps(record | {"version": _VERSION}, indent=1, default=dataclasses.asdict)

        def fill(new: Path) -> None:
            save_file(tensors, new / "tensors.safetensors")
            (new / RECORD).write_text(text, encoding="utf-8")

        write_folder(folder, fill, record=RECORD)

    @classmethod
    @guarded
    def load(cls: type[R], folder: str | Path) -> R:
        """Read a result that :meth:`save` wrote, in this version of mechrep or an earlier one.

        Raises:
            StoreError: nothing there, damaged, another kind of result, or one of a newer mechrep.
        """
        path = Path(folder)
        return read_folder(path, RECORD, lambda record: cls._from_record(path, record))

    @classmethod
    def _from_record(cls: type[R], path: Path, record: Mapping[str, Any]) -> R:
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            tensors = load_file(path / "tensors.safetensors")
            if record["kind"] != cls.__name__:
                raise StoreError(
                    f"a {record['kind']} in {path}", f"a {cls.__name__}", f"load it with {record['kind']}.load"
                )
            values = record["values"]
            for name, kind in cls.nested.items():
                values[name] = [_made(kind, one) for one in values[name]]
            made = cls(**(values | tensors), provenance=Provenance(**record["provenance"]))
            hints = typing.get_type_hints(cls)
            for field in dataclasses.fields(cls):
                hint, value = hints[field.name], getattr(made, field.name)
                if (hint in (int, str, bool) or hasattr(hint, "dim_str")) and not fits(value, hint):
                    raise ValueError(f"{field.name} of another kind")
            return made
        except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
            raise StoreError(
                f"{path} ({error})", "a folder written by save()", "delete it and make the result again"
            ) from error

    @guarded
    def top(self, k: int) -> list[Any]:
        """The first ``k`` units of the ranking.

        Raises:
            InputError: ``k`` larger than their number.
        """
        ranking = self.ranking()
        check_count(k, len(ranking), "units")
        return ranking[:k]

    def plot(self) -> go.Figure:
        """The field that ranks, or else the first that has one or two axes, as lines or as a map.

        Raises:
            InputError: a result of words, or of more axes.
        """
        from mechrep.figures import axes_figure

        names = [self.ranked_by, *(field.name for field in dataclasses.fields(self))]
        for name in filter(None, names):
            value, axes = getattr(self, name, None), self._axes_of(name)
            if isinstance(value, Tensor) and value.ndim == len(axes) in (1, 2) and value.numel():
                return axes_figure(value, axes, name=name, subtitle=self._whence())
        raise InputError(f"a figure of {type(self).__name__}", "a result of numbers along axes", "use to_frame()")

    @guarded
    def save_figure(self, path: str | Path, **options: Any) -> Path:
        """Draw :meth:`plot` into a file: ``.svg``, ``.png``, ``.pdf`` (with kaleido), or ``.html``, which stays live.

        Args:
            path: the file; its ending says how it is drawn.
            **options: of :meth:`plot`.

        Raises:
            InputError: an unknown ending, or no kaleido, with what to install.
            StoreError: the file cannot be written.
        """
        from mechrep.figures import save_figure

        return save_figure(self.plot(**options), path)

    def _whence(self) -> str:
        """Model and number of texts."""
        texts = self.provenance.corpus.get("texts")
        name = short(self.provenance.model.get("name"), 60)
        return name if texts is None else f"{name}, {texts:,} text{'s' * (texts != 1)}"

    def _axes_of(self, name: str) -> list[str]:
        """Names of the axes of a tensor, from the type of the field or of the property that gives it."""
        given = getattr(type(self), name, None)
        hint = (
            typing.get_type_hints(given.fget).get("return")
            if isinstance(given, property)
            else typing.get_type_hints(type(self)).get(name)
        )
        return getattr(hint, "dim_str", "").split() or ["unit"]

    def _first(self) -> str:
        """The units that rank highest."""
        value = getattr(self, self.ranked_by, None) if self.ranked_by else None
        if not isinstance(value, Tensor) or value.ndim != 2 or not value.numel():
            return ""
        kind = self._axes_of(self.ranked_by)[-1]
        if kind not in ("head", "neuron"):
            return ""
        best = value.flatten().nan_to_num(nan=-float("inf")).topk(min(3, value.numel())).indices.tolist()
        return "; top " + ", ".join(unit_name(kind, *_places(place, value.shape)) for place in best)

    def __repr__(self) -> str:
        fields = [field.name for field in dataclasses.fields(self) if field.name != "provenance"]
        held = ", ".join(_in_short(name, getattr(self, name)) for name in fields)
        return short(f"{type(self).__name__}({self._whence()}{self._first()}; {held})", LONGEST)

    def _shown_frame(self) -> pd.DataFrame:
        """What a notebook shows."""
        return self.to_frame()

    def _repr_html_(self) -> str:
        return frame_html(self._shown_frame(), f"{type(self).__name__}: {self._whence()}{self._first()}")


def _places(place: int, shape: Sequence[int]) -> list[int]:
    """Of an element of a flattened tensor its place along each axis."""
    places = []
    for size in reversed(shape):
        place, here = divmod(place, size)
        places.append(here)
    return places[::-1]


def check_same_model(result: Result, model: Any, *, force: bool = False) -> None:
    """Refuse a result of another model: its units mean nothing here, even where the sizes agree.

    Args:
        result: of any kind.
        model: a :class:`~mechrep.models.model.Model`.
        force: "yes, I mean it": for a checkpoint or an edited copy of the same model.

    Raises:
        InputError: weights with another fingerprint.
    """
    own, given = model.fingerprint(), result.provenance.model.get("fingerprint")
    if given not in (None, own) and not force:
        raise InputError(
            f"a {type(result).__name__} of {result.provenance.model.get('name')} (weights {given})",
            f"one of {model.name} (weights {own})",
            "measure it on this model; where another checkpoint is meant, pass its units: result.top(k)",
        )
