"""``Circuit``: a named set of components of a model, how it was found, and the intervention that ablates it."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

from mechrep.disk import read_record, write_record
from mechrep.errors import InputError, StoreError
from mechrep.guards import check_count, guarded, one_of, whole
from mechrep.interventions.ops import Combined, Heads, Intervention, Neurons, When
from mechrep.interventions.whole_layers import Cut, WholeLayers, as_ops
from mechrep.models.anatomy import Anatomy
from mechrep.models.model import Model
from mechrep.models.units import units_per_layer
from mechrep.notation import as_pairs, listed_units
from mechrep.provenance import Provenance
from mechrep.tables import LONGEST, facts_html, short

KINDS = ("neurons", "heads", "layers")
_LAYER_PARTS = ("attention", "mlp")
_FORMAT, _VERSION = "mechrep circuit", 2


def as_components(kind: str, given: Iterable[Any] | str) -> tuple[Any, ...]:
    """Sorted pairs: ``(layer, number)``, or ``(part, layer)`` where ``kind`` is ``"layers"``.

    Raises:
        InputError: something else than pairs, a negative number, an unknown part of a layer, one given twice.
    """
    layers = kind == "layers"
    expected = "('attention' or 'mlp', layer)" if layers else f"(layer, {kind.removesuffix('s')})"
    try:
        pairs_given: list[Any] = list(given) if layers else as_pairs(given, kind.removesuffix("s"))
        named = str if layers else whole
        pairs: list[Any] = sorted((named(first), whole(number)) for first, number in pairs_given)
    except InputError:
        raise
    except (TypeError, ValueError) as error:
        raise InputError(f"{kind} that are no pairs ({error})", f"pairs {expected}", "correct them") from None
    bad = [p for p in pairs if p[1] < 0 or (p[0] not in _LAYER_PARTS if layers else p[0] < 0)]
    bad += [pair for pair, following in itertools.pairwise(pairs) if pair == following]
    if bad:
        raise InputError(f"{kind} with {bad[0]}", f"pairs {expected}, numbers from 0 on, each once", "correct them")
    return tuple(pairs)


def without(units: Sequence[tuple[int, int]], parts: Sequence[tuple[str, int]], part: str) -> tuple[Any, ...]:
    """The units whose layer is not listed as a whole."""
    whole = {layer for listed, layer in parts if listed == part}
    return tuple(unit for unit in units if unit[0] not in whole)


def as_sizes(given: Mapping[str, int]) -> dict[str, int]:
    """Sizes by the names of an :class:`~mechrep.models.anatomy.Anatomy`.

    Raises:
        InputError: another name.
    """
    for name in given:
        one_of("sizes", name, [field.name for field in dataclasses.fields(Anatomy)])
    return dict(given)


def check_components(name: str, components: Mapping[str, Sequence[Any]], anatomy: Anatomy) -> None:
    """Refuse components that the model does not have.

    Raises:
        InputError: naming the first of them.
    """
    for kind in ("neurons", "heads"):
        there = units_per_layer(anatomy, kind)
        for layer, number in components[kind]:
            if layer >= anatomy.n_layers or number >= there[layer]:
                limit = there[layer] if layer < anatomy.n_layers else max(there)
                raise InputError(
                    f"{kind.removesuffix('s')} {number} of layer {layer} in circuit {name!r}",
                    f"layers 0 to {anatomy.n_layers - 1} and {kind} 0 to {limit - 1}"
                    if limit
                    else f"a layer that has {kind}",
                    "use the model it was found in",
                )
    for part, layer in components["layers"]:
        if layer >= anatomy.n_layers:
            raise InputError(
                f"{part} of layer {layer} in circuit {name!r}", f"layers 0 to {anatomy.n_layers - 1}", "count from 0"
            )


def texts_of(provenance: Mapping[str, Any]) -> set[str]:
    """Ids of the texts that components were found on, through all unions."""
    texts = set(provenance.get("texts", []))
    return texts.union(*(texts_of(source["provenance"]) for source in provenance.get("union", [])))


def write_circuit(path: Path, record: Mapping[str, Any]) -> None:
    """Write one JSON file, complete or not at all.

    Raises:
        StoreError: it cannot be written.
    """
    write_record(path, {"format": _FORMAT, "version": _VERSION, **record}, indent=1)


def read_circuit(path: Path) -> dict[str, Any]:
    """Read what :func:`write_circuit` wrote.

    Raises:
        StoreError: nothing there, a file that is damaged or no circuit, or one of a newer mechrep.
    """
    try:
        record = read_record(path)
        if record.pop("format", None) != _FORMAT:
            raise ValueError("no circuit")
        del record["version"]
        kinds = {"name": str, "found": str, "provenance": dict, "sizes": dict}
        if any(not isinstance(record[name], kind) for name, kind in kinds.items()):
            raise ValueError(f"{', '.join(kinds)} of other types")
        return record | {kind: [tuple(pair) for pair in record[kind]] for kind in KINDS}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{path} ({error})", "a file written by Circuit.save", "save the circuit again") from error


def models_of(provenance: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The models of the results that components come from, through all unions."""
    own = [provenance["result"]["model"]] if "result" in provenance else []
    return own + [one for source in provenance.get("union", []) for one in models_of(source["provenance"])]


Unit = tuple[int, int]
LayerPart = tuple[str, int]


@runtime_checkable
class Ranking(Protocol):
    """A result that ranks components; whatever measured them.

    Attributes:
        ranked_by: the score that ranks unless another is named.
    """

    ranked_by: ClassVar[str]

    @property
    def provenance(self) -> Provenance:
        """How it was made."""
        ...

    @property
    def ranking(self) -> Callable[..., list[Unit]]:
        """All ``(layer, number)``, the highest first, by the score that is given or by its own."""
        ...


@dataclass(frozen=True, repr=False)
class Circuit:
    """A set of neurons, heads and whole attentions or MLPs under one name; frozen, and without a model inside.

    Args:
        name: what it is called in tables.
        neurons: ``(layer, neuron)`` pairs, or names, ``"L18N264"``.
        heads: ``(layer, head)`` pairs, or names, ``"L2H0"``.
        layers: ``("attention", layer)`` or ``("mlp", layer)``: all heads, all neurons of that layer.  Heads and neurons
            in one of these are part of it already and not listed again.
        found: in words, how the components were found.
        provenance: the same as values that JSON can hold.
        sizes: sizes of the model, by the names of :class:`~mechrep.models.anatomy.Anatomy`, where they are known.

    Raises:
        InputError: no component, one given twice or malformed, no name, or a provenance that JSON cannot hold.

    Example:
        >>> import mechrep
        >>> from mechrep.measures.head_scores import score_heads
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> heads = Circuit.from_heads(score_heads(model, n=10, sequences=4), 2)
        >>> both = heads + Circuit("amplifiers", neurons=[(3, 7), (3, 9)], found="by hand")
        >>> both.label
        'induction heads + amplifiers (2 neurons, 2 heads)'
        >>> tokens = model.to_tokens("again and again")
        >>> changed = model.run_with_hooks(tokens, fwd_hooks=both.intervention(when="all").hooks(model))
        >>> bool((changed != model(tokens)).any())
        True
    """

    name: str
    neurons: tuple[Unit, ...]
    heads: tuple[Unit, ...]
    layers: tuple[LayerPart, ...]
    found: str
    provenance: Mapping[str, Any] = field(hash=False)
    sizes: Mapping[str, int] = field(hash=False)

    @guarded
    def __init__(
        self,
        name: str,
        *,
        neurons: Iterable[Unit | str] | str = (),
        heads: Iterable[Unit | str] | str = (),
        layers: Iterable[LayerPart] = (),
        found: str = "",
        provenance: Mapping[str, Any] | None = None,
        sizes: Mapping[str, int] | None = None,
    ) -> None:
        parts = as_components("layers", layers)
        values = {
            "name": name,
            "neurons": without(as_components("neurons", neurons), parts, "mlp"),
            "heads": without(as_components("heads", heads), parts, "attention"),
            "layers": parts,
            "found": found,
            "sizes": as_sizes(sizes or {}),
        }
        if not name or not (values["neurons"] or values["heads"] or parts):
            raise InputError(f"an empty circuit {name!r}", "a name and at least one component", "add what is missing")
        try:
            values["provenance"] = json.loads(json.dumps(dict(provenance or {})))
        except (TypeError, ValueError) as error:
            raise InputError(f"provenance ({error})", "values that JSON can hold", "use text and numbers") from None
        for attribute, value in values.items():
            object.__setattr__(self, attribute, value)

    @classmethod
    @guarded
    def from_neurons(cls, result: Ranking, k: int, *, score: str = "delta", name: str | None = None) -> Circuit:
        """The first ``k`` neurons of a ranking; remembers the texts that they were found on.

        Args:
            result: a ranking of neurons, as of :class:`~mechrep.measures.neurons.RepetitionNeurons`.
            k: how many.
            score: which ranking of the result.
            name: by default after the score.

        Raises:
            InputError: ``k`` of none or of more than there are, or an unknown score.
        """
        name = name or ("repetition neurons" if score == "delta" else f"repetition neurons by {score}")
        return cls._ranked("neurons", result, result.ranking(score), k, score, name)

    @classmethod
    @guarded
    def from_heads(cls, result: Ranking, k: int, *, score: str | None = None, name: str | None = None) -> Circuit:
        """The ``k`` heads that score highest, by default on induction or on attention to the first position.

        Args:
            result: a ranking of heads, as of :class:`~mechrep.measures.head_scores.HeadScores` or
                :class:`~mechrep.measures.attention_sinks.AttentionSinks`.
            k: how many.
            score: which ranking of the result; by default its own.
            name: by default after the score.

        Raises:
            InputError: ``k`` of none or of more than there are, or an unknown score.
        """
        label = score or {"": "sink", "alpha": "sink"}.get(result.ranked_by, result.ranked_by)
        ranking = result.ranking(score) if score else result.ranking()
        return cls._ranked("heads", result, ranking, k, label, name or f"{label} heads")

    @classmethod
    def _ranked(cls, kind: str, result: Ranking, ranking: Sequence[Unit], k: int, score: str, name: str) -> Circuit:
        check_count(k, len(ranking), kind)
        layers, width = (1 + max(numbers) for numbers in zip(*ranking, strict=True))
        facts: dict[str, Any] = {"score": score, "k": k, "result": result.provenance.to_dict()}
        if kind == "neurons":
            facts["texts"] = list(getattr(result, "texts", ()))
        return cls(
            name,
            found=f"the first {k} of the ranking by {score}",
            provenance=facts,
            sizes={"n_layers": layers, "d_mlp" if kind == "neurons" else "n_heads": width},
            neurons=ranking[:k] if kind == "neurons" else (),
            heads=ranking[:k] if kind == "heads" else (),
        )

    def __repr__(self) -> str:
        parts = [listed_units(kind.removesuffix("s"), getattr(self, kind)) for kind in ("heads", "neurons")]
        parts.append(", ".join(f"{part} {layer}" for part, layer in self.layers[:6]) + " ..." * (len(self.layers) > 6))
        found = f"; {self.found}" if self.found else ""
        return short(f"Circuit({self.name!r}: {', '.join(filter(None, parts))}{found})", LONGEST)

    def _repr_html_(self) -> str:
        results = ", ".join(dict.fromkeys(str(one.get("name")) for one in models_of(self.provenance)))
        facts = {
            "heads": listed_units("head", self.heads, 40),
            "neurons": listed_units("neuron", self.neurons, 40),
            "layers": ", ".join(f"{part} {layer}" for part, layer in self.layers),
            "found": self.found,
            "in": results,
        }
        return facts_html({name: value for name, value in facts.items() if value}, f"Circuit: {self.label}")

    def __len__(self) -> int:
        return len(self.neurons) + len(self.heads) + len(self.layers)

    def __add__(self, other: Circuit) -> Circuit:
        """The union, which remembers both ways of finding.

        Raises:
            InputError: circuits of models of different sizes.
        """
        differing = {size for size in self.sizes.keys() & other.sizes if self.sizes[size] != other.sizes[size]}
        if differing:
            raise InputError(
                f"circuits of models with {dict(self.sizes)} and {dict(other.sizes)}",
                f"one model: the same {', '.join(sorted(differing))}",
                "unite circuits of one model",
            )
        sources = [{"name": c.name, "found": c.found, "provenance": c.provenance} for c in (self, other)]
        return Circuit(
            f"{self.name} + {other.name}",
            neurons=dict.fromkeys(self.neurons + other.neurons),
            heads=dict.fromkeys(self.heads + other.heads),
            layers=dict.fromkeys(self.layers + other.layers),
            found="; ".join(dict.fromkeys(c.found for c in (self, other) if c.found)),
            provenance={"union": sources},
            sizes={**self.sizes, **other.sizes},
        )

    @property
    def label(self) -> str:
        """Name and contents, for a legend."""
        named = zip((len(getattr(self, kind)) for kind in KINDS), ("neuron", "head", "layer part"), strict=True)
        return f"{self.name} ({', '.join(f'{n} {what}' + 's' * (n > 1) for n, what in named if n)})"

    @property
    def components(self) -> dict[str, list[list[Any]]]:
        """The components as lists by kind, for the record."""
        return {kind: [list(pair) for pair in getattr(self, kind)] for kind in self.kinds}

    @property
    def kinds(self) -> tuple[str, ...]:
        """Which of ``"neurons"``, ``"heads"`` and ``"layers"`` it has."""
        return tuple(kind for kind in KINDS if getattr(self, kind))

    @property
    def seen_texts(self) -> frozenset[str]:
        """Ids of the texts that components were found on, as far as the provenance tells: test on others."""
        return frozenset(texts_of(self.provenance))

    @guarded
    def only(self, kind: str) -> Circuit:
        """The components of one kind, under the same name."""
        if kind not in self.kinds:
            raise InputError(f"{kind!r} of {self.label}", f"one of {list(self.kinds)}", "choose one of these")
        return Circuit(
            self.name, found=self.found, provenance=self.provenance, sizes=self.sizes, **{kind: getattr(self, kind)}
        )

    @guarded
    def check(self, anatomy: Anatomy) -> None:
        """Refuse a model that this circuit cannot belong to.

        Raises:
            InputError: other sizes than those of the model it was found in, or components that do not exist.
        """
        own = {size: getattr(anatomy, size) for size in self.sizes}
        if own != self.sizes:
            found = f"{self.label}, found in a model with {dict(self.sizes)}"
            raise InputError(found, f"a circuit of this model, with {own}", "use the model it was found in")
        check_components(self.name, {kind: getattr(self, kind) for kind in KINDS}, anatomy)

    @guarded
    def check_model(self, model: Model, *, force: bool = False) -> None:
        """Refuse a model with other weights than the one the components were found in.

        Args:
            model: where they are to be ablated.
            force: "yes, I mean it": for a checkpoint or an edited copy of the same model.

        Raises:
            InputError: see :meth:`check`; or weights with another fingerprint.
        """
        self.check(model.anatomy)
        own = model.fingerprint()
        others = [one for one in models_of(self.provenance) if one.get("fingerprint") not in (None, own)]
        if others and not force:
            raise InputError(
                f"{self.label}, found in {others[0].get('name')} (weights {others[0]['fingerprint']})",
                f"a circuit of {model.name} (weights {own})",
                "find it in this model; where another checkpoint is meant, make a Circuit of its components",
            )

    @guarded
    def intervention(self, op: Cut = "zero", when: When = "auto") -> Intervention:
        """One operation on all components.

        Args:
            op: an operation of :mod:`mechrep.interventions`; or a pair, one for neurons and one for heads, where the
                two need tables of their own (``mean``) or different operations (``"to_bos"`` is for heads).
            when: see :class:`~mechrep.interventions.ops.Intervention`.

        Raises:
            InputError: an operation that a component cannot take.
        """
        for_neurons, for_heads = as_ops(op)
        parts: list[Intervention] = []
        if self.neurons:
            parts.append(Neurons(self.neurons, for_neurons, when=when))
        if self.heads:
            parts.append(Heads(self.heads, for_heads, when))
        if self.layers:
            parts.append(WholeLayers(self.layers, for_neurons, for_heads, when))
        return parts[0] if len(parts) == 1 else Combined(tuple(parts))

    @guarded
    def save(self, path: str | Path) -> None:
        """Write one JSON file, complete or not at all.

        Raises:
            StoreError: it cannot be written.
        """
        names = ("name", *KINDS, "found", "provenance", "sizes")
        write_circuit(Path(path), {name: getattr(self, name) for name in names})

    @classmethod
    @guarded
    def load(cls, path: str | Path) -> Circuit:
        """Read what :meth:`save` wrote.

        Raises:
            StoreError: nothing there, a file that is damaged or no circuit, or one of a newer mechrep.
        """
        record = read_circuit(Path(path))
        try:
            return cls(**record)
        except (TypeError, ValueError) as error:
            raise StoreError(f"{path} ({error})", "a file written by Circuit.save", "save the circuit again") from error
