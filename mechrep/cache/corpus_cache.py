"""What an analyzer is: it names the sites it wants, observes them, and its state is sums that can be merged.

``CorpusCache``: the one activation-cache abstraction. It reads a model over a corpus once, for all analyzers.
"""

from __future__ import annotations

import copy
import itertools
import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, TypeVar, get_args, overload

import pandas as pd
import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from mechrep.engine import LOCAL, Engine, Pace
from mechrep.errors import InputError
from mechrep.guards import Count, NotNegative, each_once, guarded, one_of, within
from mechrep.interventions.apply import applied, fingerprint_of, first_edited
from mechrep.interventions.ops import Intervention
from mechrep.models.anatomy import Anatomy, Site
from mechrep.models.memory import attempt, bytes_of_reading, fewer, in_batches, rows_that_fit
from mechrep.models.model import Model
from mechrep.models.reading import Receiver, View, choose_view, read_activations
from mechrep.progress import progress_bar
from mechrep.provenance import Provenance, provenance_of
from mechrep.results import Result
from mechrep.run import Run
from mechrep.store import Store
from mechrep.tables import LONGEST, facts_html, short
from mechrep.text.corpus import Corpus, CorpusLike

R = TypeVar("R", bound=Result)
R2 = TypeVar("R2", bound=Result)
R3 = TypeVar("R3", bound=Result)


@dataclass(frozen=True)
class Batch:
    """The texts behind the activations of one forward pass.

    Attributes:
        tokens: right-padded ids ``[text pos]``, on the activations' device.
        lengths: real positions of each row.
        texts: each row's number in the corpus.
        frame: the corpus' rows of facts, in the order of the batch.
    """

    tokens: Int[Tensor, "batch pos"]
    lengths: Int[Tensor, " batch"]
    texts: tuple[int, ...]
    frame: pd.DataFrame


class Analyzer(ABC, Generic[R]):
    """Base of the analyzers: state that only ever adds up.  ``class Norms(Analyzer[NormResult])`` gives a NormResult.

    Subclasses put sums and counts into :attr:`state`, float64 or int64 tensors by name; merging two analyzers adds
    them.  So one pass, a resumed pass and many workers give the same numbers.

    Example:
        >>> import mechrep
        >>> @dataclass(frozen=True)
        ... class MlpNorms(Result):
        ...     sums: Tensor
        >>> class WriteMlpNorms(Analyzer[MlpNorms]):
        ...     sites = frozenset({Site.MLP_OUT})
        ...     config = {"version": 1}
        ...     def prepare(self, anatomy, frame):
        ...         self.state = {"sums": torch.zeros(anatomy.n_layers, dtype=torch.float64)}
        ...     def observe(self, activation, site, layer, batch):
        ...         self.state["sums"][layer] += activation.double().norm(dim=-1).sum().cpu()
        ...     def result(self, provenance):
        ...         return MlpNorms(provenance, self.state["sums"])
        >>> mechrep.CorpusCache(mechrep.load_model("mechrep-tiny"), "the sea").run(WriteMlpNorms()).sums.shape
        torch.Size([4])
    """

    sites: ClassVar[frozenset[Site]]
    result_type: ClassVar[type[Result]]
    state: dict[str, Tensor]

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        for base in getattr(cls, "__orig_bases__", ()):
            kinds = get_args(base)
            if kinds and isinstance(kinds[0], type):
                cls.result_type = kinds[0]

    @abstractmethod
    def prepare(self, anatomy: Anatomy, frame: pd.DataFrame) -> None:
        """Make an empty state for this model; refuse a corpus that lacks what the analyzer needs."""

    @abstractmethod
    def observe(self, activation: Tensor, site: Site, layer: int, batch: Batch) -> None:
        """Add one activation to the state; it must not be kept or edited."""

    def finish_batch(self, batch: Batch) -> None:
        """Called once when every site of a batch has been observed."""

    @abstractmethod
    def result(self, provenance: Provenance) -> R:
        """The result of everything observed so far."""

    @property
    @abstractmethod
    def config(self) -> dict[str, Any]:
        """JSON-ready settings: two analyzers with equal settings observe the same."""

    def load_result(self, folder: Path) -> R:
        """Read a result of this analyzer's kind from a store."""
        return self.result_type.load(folder)  # pyright: ignore[reportReturnType] - it is the R of the class

    def layers(self, anatomy: Anatomy, site: Site) -> Sequence[int]:
        """Layers at which ``site`` is observed; all that have it unless overridden."""
        return anatomy.layers_with(site)

    def merge(self, other: Analyzer) -> None:
        """Add the state of another analyzer with the same settings.

        Raises:
            InputError: another kind or other settings, or a state of another model.
        """
        if type(other) is not type(self) or other.config != self.config:
            raise InputError(
                f"{type(other).__name__} {other.config}", f"{type(self).__name__} {self.config}", "merge like with like"
            )
        self._check_shapes(other.state)
        self.state = {name: value + other.state[name] for name, value in self.state.items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over a stored state.

        Raises:
            InputError: tensors of other names or shapes.
        """
        self._check_shapes(state)
        self.state = {name: torch.as_tensor(value).clone() for name, value in state.items()}

    def _check_shapes(self, state: Mapping[str, Tensor]) -> None:
        given, own = ({name: tuple(value.shape) for name, value in s.items()} for s in (state, self.state))
        if given != own:
            raise InputError(f"a state of tensors {given}", f"tensors {own}, of one model and version", "run again")


_SECONDS_PER_SHARD = 5.0  # enough that asking costs nothing, little enough that workers end together
_TOKENS_PER_BATCH = 8192  # enough to keep two cores or one GPU busy, small enough for a laptop


class OnTexts(Analyzer[R]):
    """Another analyzer, on some texts of a corpus alone: two kinds of text can be read in one pass.

    Args:
        analyzer: what observes.
        texts: numbers of texts in the corpus.

    Example:
        >>> import mechrep
        >>> from mechrep.measures.head_scores import HeadScores
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> corpus = mechrep.Corpus.from_tokens([[0, 5, 6, 7, 5, 6, 7, 5], [0, 8, 9, 10, 8, 9, 10]], model=model)
        >>> two = [OnTexts(HeadScores(bos_id=model.bos_id), [text]) for text in range(2)]
        >>> [one.n_texts["induction"] for one in CorpusCache(model, corpus).run(*two)]
        [1, 1]
    """

    sites: ClassVar[frozenset[Site]] = frozenset()

    def __init__(self, analyzer: Analyzer[R], texts: Sequence[int]) -> None:
        self.analyzer, self.texts, self.state = analyzer, sorted(texts), {}
        self.sites = analyzer.sites  # pyright: ignore[reportAttributeAccessIssue] - those of the instance

    @property
    def config(self) -> dict[str, Any]:
        """Of the analyzer, and the texts."""
        return self.analyzer.config | {"analyzer": type(self.analyzer).__name__, "texts": self.texts}

    def prepare(self, anatomy: Anatomy, frame: pd.DataFrame) -> None:
        """As the analyzer does for these texts."""
        self.analyzer.prepare(anatomy, frame.iloc[self.texts])
        self.state = self.analyzer.state
        self._part: tuple[Batch, Int[Tensor, " row"], Batch] | None = None

    def _part_of(self, batch: Batch) -> tuple[Int[Tensor, " row"], Batch]:
        if self._part is None or self._part[0] is not batch:
            places = [place for place, text in enumerate(batch.texts) if text in set(self.texts)]
            rows = torch.tensor(places, dtype=torch.long, device=batch.tokens.device)
            texts, frame = tuple(batch.texts[place] for place in places), batch.frame.iloc[places]
            self._part = batch, rows, Batch(batch.tokens[rows], batch.lengths[rows], texts, frame)
        return self._part[1:]

    def observe(self, activation: Tensor, site: Site, layer: int, batch: Batch) -> None:
        """Hand over the rows of these texts."""
        rows, part = self._part_of(batch)
        self.analyzer.state = self.state  # which a store may have put in its place
        if len(rows):
            self.analyzer.observe(activation[rows.to(activation.device)], site, layer, part)

    def finish_batch(self, batch: Batch) -> None:
        """Tell the analyzer that these rows are done."""
        rows, part = self._part_of(batch)
        if len(rows):
            self.analyzer.finish_batch(part)

    def result(self, provenance: Provenance) -> R:
        """Of the analyzer."""
        self.analyzer.state = self.state
        return self.analyzer.result(provenance)

    def load_result(self, folder: Path) -> R:
        """As the analyzer does."""
        return self.analyzer.load_result(folder)

    def layers(self, anatomy: Anatomy, site: Site) -> Sequence[int]:
        """As the analyzer says."""
        return self.analyzer.layers(anatomy, site)


class CorpusCache:
    """A model, a corpus, and everything that is read from the one over the other.

    :meth:`run` makes one forward pass for all analyzers; each activation is handed over inside the hook and dropped, so
    memory does not grow with the corpus.  :meth:`get` and ``cache[site, layer]`` return tensors, for looking around.

    Args:
        model: the model.
        corpus: the texts, made with the model's tokenizer; or what :meth:`mechrep.Corpus.of` makes a corpus of.
        batch_size: texts per forward pass, or ``"auto"``.
        store: folder for results and for the state of unfinished runs.  A run that was stopped goes on from its last
            shard; asking again for a finished result reads it from disk.  Results are filed under a fingerprint of the
            weights, the texts and the analyzer's settings, so nothing stale is ever returned.
        view: ``"auto"``, ``"plain"`` or ``"transformer_lens"``: which view of the model is read.
        intervention: what the model is under while it is read: at all positions, or (``"from_onset"``) from where the
            onset of each text is predicted.
        progress: show a progress bar; by default to people only.
        run: options of a study: its engine reads; its store, batch size and progress count where none are given here.

    Raises:
        InputError: a corpus made for another model, or what is no corpus.

    Example:
        >>> import mechrep
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> corpus = mechrep.Corpus.from_texts(["one two one two", "three"], model=model)
        >>> cache = CorpusCache(model, corpus)
        >>> cache[mechrep.Site.RESID_POST, 3].shape[0]
        2
    """

    @guarded
    def __init__(
        self,
        model: Model,
        corpus: CorpusLike,
        *,
        batch_size: Count | Literal["auto"] = "auto",
        store: str | Path | None = None,
        view: View = "auto",
        intervention: Intervention | None = None,
        progress: bool | None = None,
        run: Run | None = None,
    ) -> None:
        corpus = Corpus.of(corpus, model)
        corpus.check_model(model)
        if intervention is not None and intervention.when == "last":
            raise InputError("an intervention with when='last'", "when='all' or 'from_onset'", "read under that one")
        options = run or Run()
        self.model, self.corpus, self.run_options = model, corpus, options
        self.progress = options.progress if progress is None else progress
        self.view: View = view
        self.intervention = intervention
        self.starts = first_edited(corpus.frame, [0] * len(corpus), [intervention] * len(corpus))
        self.batch_size = options.batch_size or "auto" if batch_size == "auto" else batch_size
        folder = options.store if store is None else store
        self.store = None if folder is None else Store(Path(folder))

    def order(self, texts: Sequence[int] | None = None) -> list[int]:
        """The order in which texts are read: longest first, so that neighbours need little padding."""
        lengths = self.corpus.lengths.tolist()
        return sorted(range(len(self.corpus)) if texts is None else texts, key=lambda text: -lengths[text])

    def batches(self, order: Sequence[int], *, patterns: bool = False) -> Iterator[list[int]]:
        """Cut an order of texts into forward passes, by the memory that is free.

        Args:
            order: numbers of texts, neighbours of like length.
            patterns: whether rows of attention are made, which need the square of a text's length.
        """
        left, anatomy = list(order), self.model.anatomy
        while left:
            length = int(self.corpus.lengths[left[0]])
            per_row = bytes_of_reading(anatomy, length, self.model.dtype.itemsize, patterns=patterns)
            auto = rows_that_fit(self.model.device, per_row, max(1, _TOKENS_PER_BATCH // length))
            size = self.batch_size if isinstance(self.batch_size, int) else auto
            yield left[:size]
            left = left[size:]

    @overload
    def run(self, one: Analyzer[R], /) -> R: ...

    @overload
    def run(self, one: Analyzer[R], two: Analyzer[R2], /) -> tuple[R, R2]: ...

    @overload
    def run(self, one: Analyzer[R], two: Analyzer[R2], three: Analyzer[R3], /) -> tuple[R, R2, R3]: ...

    @overload
    def run(self, *analyzers: Analyzer[Any]) -> Any: ...

    def run(self, *analyzers: Any) -> Any:
        """The result of one analyzer; of several a tuple of results, from one forward pass over the corpus.

        What is in the store already is not measured again.

        Args:
            *analyzers: what to measure, for instance ``mechrep.RepetitionNeurons()``.

        Raises:
            InputError: no analyzer, a class in place of one, or a corpus that lacks what an analyzer needs.
            StoreError: the store cannot be read or written.

        Example:
            >>> import mechrep
            >>> model = mechrep.load_model("mechrep-tiny")
            >>> cache = CorpusCache(model, ["one two one two", "three"])
            >>> sinks = cache.run(mechrep.AttentionSinks())
            >>> sinks, norms = cache.run(mechrep.AttentionSinks(), mechrep.SinkNorms())
            >>> cache.run(mechrep.AttentionSinks)
            Traceback (most recent call last):
            mechrep.errors.InputError: given: AttentionSinks, a class; ... to do: write AttentionSinks()
        """
        results = self.run_all(analyzers)
        return results[0] if len(results) == 1 else results

    @guarded
    def run_all(self, analyzers: Sequence[Any]) -> tuple[Any, ...]:
        """As :meth:`run`, for a list of analyzers: one result for each, also where it is a single one.

        Args:
            analyzers: what to measure.

        Raises:
            InputError: as :meth:`run`.
            StoreError: as :meth:`run`.
        """
        _check_analyzers(analyzers)
        if not analyzers or len({id(analyzer) for analyzer in analyzers}) < len(analyzers):
            raise InputError(
                f"{len(analyzers)} analyzers, none or one of them twice",
                "at least one, each once",
                "pass for instance mechrep.RepetitionNeurons()",
            )
        results: dict[int, Result] = {}
        keys: dict[int, str] = {}
        for index, analyzer in enumerate(analyzers):
            analyzer.prepare(self.model.anatomy, self.corpus.frame)
            if self.store is not None:
                under = "" if self.intervention is None else fingerprint_of(self.model, [self.intervention])
                keys[index] = self.store.key(self.model, self.corpus, analyzer, under)
                finished = self.store.find_result(keys[index], analyzer)
                if finished is not None:
                    results[index] = finished
        missing = {index: analyzer for index, analyzer in enumerate(analyzers) if index not in results}
        if missing:
            self._observe_all(missing, keys)
        for index, analyzer in missing.items():
            results[index] = analyzer.result(provenance_of(self.model, self.corpus, analyzer.config))
            if self.store is not None:
                self.store.keep_result(keys[index], results[index])
        return tuple(results[index] for index in range(len(analyzers)))

    def _observe_all(self, analyzers: dict[int, Analyzer], keys: dict[int, str]) -> None:
        order, engine = self.order(), self._engine()
        empty = {index: analyzer.state for index, analyzer in analyzers.items()}
        done = self.store.resume(keys, analyzers) if self.store is not None else dict.fromkeys(analyzers, 0)
        cuts = sorted({*done.values(), len(order)})  # analyzers may resume at different places
        with progress_bar(len(order), "reading activations", "text", self.progress) as bar:
            bar.update(cuts[0])
            for begin, end in itertools.pairwise(cuts):
                active = {index: analyzer for index, analyzer in analyzers.items() if done[index] <= begin}
                observers, position = list(active.values()), begin
                sums = [analyzer.state for analyzer in observers]
                patterns = any({Site.PATTERN, Site.SCORES} & analyzer.sites for analyzer in observers)
                job = Pass(self._bare(), observers, [empty[index] for index in active])
                pace = self._pace(engine, len(order))
                for part in engine.work(job, _cut_by(pace, list(self.batches(order[begin:end], patterns=patterns)))):
                    sums = part.answer if position == 0 else [*map(_added, observers, sums, part.answer)]
                    pace.took(len(part.shard), part.seconds)
                    texts = sum(map(len, part.shard))
                    position += texts
                    bar.update(texts)
                    for analyzer, state in zip(observers, sums, strict=True):
                        analyzer.state = state
                    if self.store is not None:
                        self.store.checkpoint(keys, active, position, now=position == end)

    def _engine(self) -> Engine:
        """Who reads; a model that computes as another one for a while does so in this process alone."""
        return LOCAL if self.model.stands_for_another else self.run_options.crew

    def _pace(self, engine: Engine, all_texts: int) -> Pace:
        if self.store is None and not engine.apart:
            return Pace(engine, least=all_texts, most=all_texts, seconds=math.inf)
        seconds = _SECONDS_PER_SHARD if self.store is None else min(_SECONDS_PER_SHARD, self.store.seconds)
        return Pace(engine, least=1, most=all_texts, seconds=float(seconds))

    def _bare(self) -> CorpusCache:
        """The same without a store and options: what reads, wherever that is."""
        bare = copy.copy(self)
        bare.store, bare.run_options = None, Run()
        return bare

    def observe(self, analyzers: Iterable[Analyzer], texts: list[int]) -> None:
        """Hand the activations of one batch to analyzers that are prepared: one forward pass."""
        batch = self._batch(texts)
        anatomy = self.model.anatomy
        listeners: dict[tuple[Site, int], list[Analyzer]] = {}
        for analyzer in analyzers:
            for site in analyzer.sites:
                for layer in analyzer.layers(anatomy, site):
                    listeners.setdefault((site, layer), []).append(analyzer)
        wanted: dict[Site, list[int]] = {}
        for site, layer in listeners:
            wanted.setdefault(site, []).append(layer)

        def receive(activation: Tensor, site: Site, layer: int) -> None:
            for analyzer in listeners[site, layer]:
                analyzer.observe(activation, site, layer, batch)

        self._read(batch, wanted, receive)
        for analyzer in analyzers:
            analyzer.finish_batch(batch)

    def _read(self, batch: Batch, wanted: Mapping[Site, Collection[int]], receive: Receiver) -> None:
        view = choose_view(self.model, wanted, self.view)
        alone = self.model.each_alone(batch.lengths)
        starts = torch.tensor([self.starts[text] for text in batch.texts])
        with alone, applied(self.model, self.intervention, batch.tokens, starts=starts, texts=batch.texts, view=view):
            read_activations(self.model, batch.tokens, wanted, receive, view=view)

    def _batch(self, texts: list[int]) -> Batch:
        lengths = self.corpus.lengths[texts]
        tokens = self.corpus.tokens[texts][:, : int(lengths.max())]
        device = self.model.device
        return Batch(tokens.to(device), lengths.to(device), tuple(texts), self.corpus.frame.iloc[texts])

    def __repr__(self) -> str:
        under = "" if self.intervention is None else f", under {short(self.intervention, 120)}"
        lengths = f"{len(self.corpus)} texts, {int(self.corpus.lengths.sum()):,} tokens"
        return f"CorpusCache({short(self.model.name)}, {lengths}{under}): .run(analyzer), or cache[Site.RESID_POST, 0]"

    def _repr_html_(self) -> str:
        sites = ", ".join(site.value for site in Site if self.model.anatomy.has(site))
        facts = {"model": self.model, "corpus": self.corpus, "sites": sites, "under": self.intervention or "nothing"}
        return facts_html({name: short(value, LONGEST) for name, value in facts.items()}, repr(self))

    def __getitem__(self, place: Any) -> Shaped[Tensor, "text pos ..."]:
        """One site of one layer for all texts; see :meth:`get`."""
        if not isinstance(place, tuple) or len(place) != 2:
            raise InputError(f"cache[{place!r}]", "a site and a layer", "write for instance cache[Site.RESID_POST, 0]")
        return self.get(place[0], layers=[place[1]])[0]

    @guarded
    def get(
        self,
        site: Site | str,
        *,
        layers: Sequence[int] | None = None,
        texts: Sequence[int] | None = None,
        positions: slice | None = None,
        max_gib: NotNegative = 2.0,
    ) -> Shaped[Tensor, "layer text pos ..."]:
        """Activations as one CPU tensor ``[layer text pos ...]``; positions past a text's end are zero.

        Args:
            site: where; a :class:`~mechrep.Site` or its name.
            layers: all that have the site by default.
            texts: all by default.
            positions: all by default (``query_pos`` for ``SCORES`` and ``PATTERN``).
            max_gib: how much may be returned at most.

        Raises:
            InputError: more than ``max_gib``, with the size; a site, layer or text that does not exist, none or twice.
        """
        site = _as_site(site)
        if not self.model.anatomy.has(site):
            self.model.anatomy.check_site(site, 0)  # says why not
        every_layer = self.model.anatomy.layers_with(site)
        chosen_layers = _numbers("layers", every_layer if layers is None else layers, self.model.anatomy.n_layers)
        chosen_texts = _numbers("texts", range(len(self.corpus)) if texts is None else texts, len(self.corpus))
        full = int(self.corpus.lengths[chosen_texts].max())
        span = range(*(positions or slice(None)).indices(full))
        self._check_size(site, len(chosen_layers) * len(chosen_texts) * len(span), full, max_gib)
        place = {text: row for row, text in enumerate(chosen_texts)}
        collected: dict[str, Any] = {}

        def read(texts_now: list[int]) -> None:
            batch = self._batch(texts_now)

            def receive(activation: Tensor, site: Site, layer: int) -> None:
                part = _zero_padding(activation, batch, full, site).detach().cpu()
                if "all" not in collected:
                    shape = (len(chosen_layers), len(chosen_texts), *part.shape[1:])
                    collected["all"] = torch.zeros(
                        _cut(torch.empty(shape, device="meta"), site, span).shape, dtype=part.dtype
                    )
                rows = [place[text] for text in batch.texts]
                collected["all"][chosen_layers.index(layer), rows] = _cut(part, site, span)

            self._read(batch, {site: chosen_layers}, receive)

        for texts_now in self.batches(self.order(chosen_texts), patterns=site in (Site.SCORES, Site.PATTERN)):
            for _ in in_batches(texts_now, len(texts_now), read, "reading activations"):
                pass
        return collected["all"]

    def _check_size(self, site: Site, places: int, key_positions: int, max_gib: float) -> None:
        anatomy = self.model.anatomy
        if site in (Site.SCORES, Site.PATTERN):
            per_position = anatomy.n_heads * key_positions
        else:
            heads = {
                Site.Q: anatomy.n_heads,
                Site.Z: anatomy.n_heads,
                Site.K: anatomy.n_kv_heads,
                Site.V: anatomy.n_kv_heads,
            }
            per_position = heads.get(site, 1) * anatomy.width(site)
        gib = places * per_position * self.model.dtype.itemsize / 2**30
        if gib > max_gib:
            raise InputError(
                f"{gib:.2f} GiB of {site.value}",
                f"at most {max_gib:g} GiB",
                "name fewer layers, texts or positions, raise max_gib, or write an Analyzer and use run()",
            )


@dataclass
class Pass:
    """The job of reading: analyzers over batches of texts.

    Attributes:
        cache: of the model and the corpus, without a store.
        analyzers: prepared for them.
        empty: their states before any text.
        most: texts in a batch, by what has been found out about memory.
    """

    cache: CorpusCache
    analyzers: list[Analyzer]
    empty: list[dict[str, Tensor]]
    most: int = sys.maxsize

    @property
    def model(self) -> Model:
        """The model that is read."""
        return self.cache.model

    def do(self, shard: Sequence[list[int]]) -> list[dict[str, Tensor]]:
        """Read the batches of a shard; the state of every analyzer after these alone.

        Where memory runs out all are read again in smaller batches, and so is what comes later.

        Raises:
            ModelError: one text does not fit.
        """
        while True:
            smaller = [texts[at : at + self.most] for texts in shard for at in range(0, len(texts), self.most)]
            states = attempt(partial(self._read, smaller))
            if states is not None:
                return states[0]
            self.most = fewer(max(map(len, smaller)), "reading activations")
            for analyzer in self.analyzers:  # what a batch that broke off has left in it
                analyzer.prepare(self.model.anatomy, self.cache.corpus.frame)

    def _read(self, batches: Sequence[list[int]]) -> list[dict[str, Tensor]]:
        for analyzer, empty in zip(self.analyzers, self.empty, strict=True):
            analyzer.load_state(empty)
        for texts in batches:
            self.cache.observe(self.analyzers, texts)
        return [analyzer.state for analyzer in self.analyzers]


def _cut_by(pace: Pace, batches: Sequence[list[int]]) -> Iterator[Sequence[list[int]]]:
    """Batches in shards."""
    first = 0
    while first < len(batches):
        size = pace.next(len(batches) - first)
        yield batches[first : first + size]
        first += size


def _added(analyzer: Analyzer, before: dict[str, Tensor], more: dict[str, Tensor]) -> dict[str, Tensor]:
    """Two states as one, which the analyzer then has."""
    part = copy.copy(analyzer)
    analyzer.state, part.state = before, more
    analyzer.merge(part)
    return analyzer.state


def _as_site(site: Site | str) -> Site:
    """A site, or its name.

    Raises:
        InputError: no such name.
    """
    one_of("site", str(site), [one.value for one in Site])
    return Site(site)


def _check_analyzers(analyzers: Iterable[object]) -> None:
    """Refuse what is no analyzer.

    Raises:
        InputError: it is a class, a list or anything else.
    """
    for one in analyzers:
        if isinstance(one, type):
            raise InputError(f"{one.__name__}, a class", "an analyzer", f"write {one.__name__}()")
        if not isinstance(one, Analyzer):
            remedy = "pass several one by one: run(a, b), or run_all([a, b])"
            raise InputError(
                f"{type(one).__name__} in place of an analyzer", "for instance RepetitionNeurons()", remedy
            )


def _numbers(what: str, given: Iterable[int], available: int) -> list[int]:
    """The layers or texts that are asked for.

    Raises:
        InputError: none, one twice, or what is no number of one.
    """
    if not isinstance(given, Iterable):
        raise InputError(f"{what}={given!r}", "a list of numbers", f"pass a list: [{given!r}]")
    return each_once(what, [within(what, number, 0, available - 1) for number in given])


def _zero_padding(activation: Tensor, batch: Batch, full: int, site: Site) -> Tensor:
    """Zeros where there is no text, and every row as long as the longest of all texts asked for."""
    length = batch.tokens.shape[1]
    mask = torch.arange(length, device=activation.device)[None] < batch.lengths[:, None].to(activation.device)
    if site in (Site.SCORES, Site.PATTERN):
        real = mask[:, None, :, None] & mask[:, None, None, :]
        return torch.nn.functional.pad(activation.masked_fill(~real, 0), (0, full - length, 0, full - length))
    wide = mask.reshape(*mask.shape, *[1] * (activation.ndim - 2))
    return torch.nn.functional.pad(
        activation.masked_fill(~wide, 0), (*[0, 0] * (activation.ndim - 2), 0, full - length)
    )


def _cut(tensor: Tensor, site: Site, span: range) -> Tensor:
    """Only the (query) positions in ``span``."""
    axis = -3 if site in (Site.Q, Site.K, Site.V, Site.Z) else -2
    return tensor.index_select(axis, torch.tensor(list(span), dtype=torch.long, device=tensor.device))
