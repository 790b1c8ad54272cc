"""The corpus: texts as right-padded ids, one table row of facts per text, and whose ids they are.

Ids mean nothing without their tokenizer, and an analysis means little without knowing whether texts begin with BOS:
both travel with the corpus, through selection, joining and the disk, and are checked when a model meets it.
"""

from __future__ import annotations

import hashlib
import json
import operator
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from typing import Any, TypeAlias, overload

import numpy as np
import pandas as pd
import torch
from jaxtyping import Int64, Shaped
from torch import Tensor

from mechrep.errors import InputError, StoreError
from mechrep.guards import Seed, Share, check_fields, guarded, in_step, one_of, within
from mechrep.tables import LONGEST, frame_html, short
from mechrep.text import corpus_io
from mechrep.text.batches import Batch, Fillers, check_no_filling, read_batch, warn_of_bos_twice, without_filling
from mechrep.text.corpus_checks import (
    check_begins_with_bos,
    check_joinable,
    check_positions,
    check_rows,
    check_same_vocabulary,
    kind_of_texts,
    matching_texts,
    text_list,
    text_numbers,
)
from mechrep.text.corpus_io import TokenizingModel, complete_frame, pad_rows
from mechrep.text.cycles import detect_cycle
from mechrep.text.shown import marked_parts, token_texts
from mechrep.text.watch import TokenSequence, eos_set

_ROWS = 5  # texts that a notebook shows
_PROMPT, _WRITTEN = 40, 120  # characters of each before the rest is left out


def summary(lengths: Int64[Tensor, " text"], facts: Mapping[str, object]) -> str:
    """Return one line about a corpus.

    Args:
        lengths: number of ids of each text.
        facts: ``model_name``, ``tokenizer`` and ``bos_policy`` of the corpus.
    """
    shortest, longest = int(lengths.min()), int(lengths.max())
    tokens = f"{longest}" if shortest == longest else f"{shortest} to {longest}"
    return (
        f"{len(lengths)} texts of {tokens} tokens, model {short(facts['model_name'])}, "
        f"tokenizer {short(facts['tokenizer'])}, BOS {facts['bos_policy']}"
    )


CorpusLike: TypeAlias = "Corpus | str | Iterable[Any]"  # what Corpus.of takes where a corpus belongs
_LOOPING = ("looping", "loop_free")
BOS_POLICIES = ("prepended", "absent", "as given")


@dataclass(frozen=True, eq=False, repr=False)
class Text:
    """One text of a corpus.

    Attributes:
        ids: its tokens.
        text: its words; None where no tokenizer is known.
        facts: its row of the corpus' frame.
        words: the tokenizer, or None.
    """

    ids: tuple[int, ...]
    text: str | None
    facts: pd.Series
    words: Any = field(default=None, repr=False)

    @property
    def tokens(self) -> list[str]:
        """Its tokens as text, one by one; ids where no tokenizer is known."""
        if self.words is None:
            return [str(token) for token in self.ids]
        return token_texts(self.ids, self._decode, set(self.words.all_special_ids))

    @property
    def marked(self) -> str:
        """The text with a bar after its prompt, the first copy of its loop in single and the rest in double brackets.

        Example:
            >>> import mechrep
            >>> model = mechrep.load_model("mechrep-tiny")
            >>> corpus = mechrep.Corpus.from_texts([" the sea, the sea, the sea, the sea"], model=model)
            >>> print(corpus.with_cycles()[0].marked)
            │<|bos|>⟨ the sea,⟩⟪ the sea, the sea, the sea⟫
        """
        return "".join(self.marked_parts)

    @property
    def marked_parts(self) -> tuple[str, str]:
        """The same in two: the prompt with its bar, and what follows."""
        start, onset = (None if pd.isna(self.facts[name]) else int(self.facts[name]) for name in ("start", "onset"))
        length = int(self.facts["prompt_length"])
        return marked_parts(self.ids, self._decode, prompt_length=length, start=start, onset=onset)

    def _decode(self, ids: list[int]) -> str:
        if self.words is None:
            return " ".join(map(str, ids))
        return self.words.decode(ids, clean_up_tokenization_spaces=False)

    def __len__(self) -> int:
        return len(self.ids)

    def __str__(self) -> str:
        return self.text if self.text is not None else " ".join(map(str, self.ids))

    def __repr__(self) -> str:
        return short(f"Text({list(self.ids) if self.text is None else self.text!r})", LONGEST)


@dataclass(frozen=True, eq=False)
class Corpus:
    """Texts as token ids, with one row of facts per text.  Make one with `from_texts` or `from_tokens`.

    Attributes:
        tokens: ids, padded on the right, ``[text pos]``.
        lengths: number of ids of each text, ``[text]``, at least 1.
        frame: one row per text, index 0 to n - 1, to be read and not written to (see `with_columns`): ``id``
            (unique), ``source``, ``condition``, ``prompt_length`` (ids before the continuation), and, where a cycle
            is known, ``start``, ``onset``, ``period`` (missing if none) and ``copies`` (NaN if none); any others.
        tokenizer: fingerprint of the tokenizer, None if unknown.
        bos_id: begin-of-sequence id, None if unknown.
        bos_policy: ``"prepended"``, ``"absent"``, or ``"as given"`` (nobody checked).
        d_vocab: size of the vocabulary that the ids were checked against, None if they were not.
        model_name: the model that tokenized or wrote the texts, None if unknown or several.
        pad_id: the id that fills up short rows; no function reads it.
        words: the tokenizer of the model that the texts were made with, for showing them; None if unknown.

    Example:
        >>> corpus = Corpus.from_tokens([[0, 5, 6], [0, 7]], source="demo")
        >>> len(corpus), corpus.row(1), corpus.frame["id"].tolist()
        (2, [0, 7], ['demo-0', 'demo-1'])
        >>> corpus.with_columns(condition=["icl", "natural"]).where(condition="icl").row(0)
        [0, 5, 6]
    """

    tokens: Int64[Tensor, "text pos"]
    lengths: Int64[Tensor, " text"]
    frame: pd.DataFrame
    tokenizer: str | None = None
    bos_id: int | None = None
    bos_policy: str = "as given"
    d_vocab: int | None = None
    model_name: str | None = None
    pad_id: int = 0
    words: Any = field(default=None, repr=False)

    def __post_init__(self) -> None:
        check_fields(self)
        n_texts, width = self.tokens.shape
        if (
            self.lengths.shape != (n_texts,)
            or not n_texts
            or not bool(((self.lengths > 0) & (self.lengths <= width)).all())
        ):
            raise InputError(
                f"tokens {tuple(self.tokens.shape)} with lengths {self.lengths.tolist()[:5]}",
                "at least one text, and a length from 1 to the width for each",
                "build the corpus with Corpus.from_tokens",
            )
        one_of("bos_policy", self.bos_policy, BOS_POLICIES)
        frame = complete_frame(self.frame, n_texts, "text")
        beyond = np.flatnonzero((frame["prompt_length"] < 0) | (frame["prompt_length"] > self.lengths.numpy()))
        if len(beyond):
            raise InputError(
                f"prompt_length {frame['prompt_length'][beyond[0]]} for the {self.lengths[beyond[0]]} tokens of "
                f"text {beyond[0]}",
                "0 <= prompt_length <= length",
                "count the BOS too",
            )
        object.__setattr__(self, "frame", frame)

    @classmethod
    @guarded
    def of(cls, given: CorpusLike, model: TokenizingModel) -> Corpus:
        """Take a corpus as it is, and make one of texts or ids.

        Args:
            given: a corpus; a text or several, in a list, a Series, an array or a generator; or ids, as
                :meth:`from_tokens` takes them (one text, or several, or the batch of a tokenizer).
            model: the model that is about to read it.

        Raises:
            InputError: anything else, or what :meth:`from_texts` and :meth:`from_tokens` refuse.

        Example:
            >>> import mechrep
            >>> model = mechrep.load_model("mechrep-tiny")
            >>> [len(Corpus.of(given, model)) for given in ("the sea", ["the sea", "the king"], [0, 86, 260])]
            [1, 2, 1]
        """
        if isinstance(given, Corpus):
            return given
        kind, listed = kind_of_texts(given)
        if kind == "texts":
            return cls.from_texts(listed, model=model)
        return cls.from_tokens(listed, model=model)

    @classmethod
    @guarded
    def from_texts(
        cls,
        texts: Iterable[str],
        *,
        model: TokenizingModel,
        source: str = "texts",
        prepend_bos: bool | None = None,
    ) -> Corpus:
        """Tokenize texts with a model's tokenizer.

        A text that brings its BOS (a chat template written out, ids that were decoded) keeps that one and gets no
        other; the column ``own_bos`` then says which texts did.  Padding tokens at the ends of texts are left out.

        Args:
            texts: the texts, none empty or missing: a list, a Series, an array, a generator.
            model: the model whose tokenizer is used.
            source: where they come from, for the record and the ids.
            prepend_bos: whether to put BOS in front; None for what the model was trained with.

        Raises:
            InputError: if there is no text, an empty or missing one, one longer than the model reads, no tokenizer, or
                no BOS although it is asked for.
        """
        listed = text_list(texts)
        if model.tokenizer_fingerprint is None:
            raise InputError(
                f"texts as strings for {model.name}, which has no tokenizer", "ids", "use Corpus.from_tokens"
            )
        prepend = model.default_prepend_bos if prepend_bos is None else prepend_bos
        if prepend and model.bos_id is None:
            raise InputError(f"prepend_bos for {model.name}", "a model that has a BOS", "pass prepend_bos=False")
        rows = [np.array(model.encode(text, prepend_bos=False), dtype=np.int64) for text in listed]
        batch = without_filling(rows, replace(Fillers.of(model), of_one_length=False))
        own = [model.bos_id is not None and row[:1].tolist() == [model.bos_id] for row in batch.rows]
        front = np.array([model.bos_id] if prepend else [], dtype=np.int64)
        batch.rows[:] = [row if has else np.concatenate([front, row]) for row, has in zip(batch.rows, own, strict=True)]
        warn_of_bos_twice(batch.rows, model.bos_id)
        policy = "prepended" if prepend or all(own) else "as given" if any(own) else "absent"
        frame = pd.DataFrame({"own_bos": own}) if any(own) else None
        return cls._of_batch(batch, model, source, frame, bos_policy=policy)

    @classmethod
    @guarded
    def from_tokens(
        cls,
        tokens: Iterable[TokenSequence]
        | Mapping[str, Any]
        | Shaped[np.ndarray, "text pos"]
        | Shaped[Tensor, "text pos"],
        *,
        model: TokenizingModel | None = None,
        attention_mask: object = None,
        source: str = "tokens",
        frame: pd.DataFrame | None = None,
        bos_policy: str = "as given",
        pad_id: int | None = None,
    ) -> Corpus:
        """Take ids as they are, without what only fills up the rows of a batch.

        Where no mask is given, padding is looked for at both ends of each row, with what the model says of padding,
        EOS and BOS (:mod:`mechrep.text.batches`): it is left out with a warning, or refused where nobody can know.
        What was left out stands in the columns ``padding_left`` and ``padding_right``.  Two BOS in front are kept,
        with a warning, because they may be meant.  ``attention_mask=True`` says that every id is text, and meant.

        Args:
            tokens: one sequence of ids per text; a tensor or an array, padded on either side; or the ``BatchEncoding``
                of a tokenizer, with its mask in it.
            model: whose ids they are; without it neither vocabulary nor length is checked, nor padding looked for.
            attention_mask: 1 where there is text, 0 where there is padding, for each id; True for "everywhere".
            source: where they come from, for the record and the ids.
            frame: facts about the texts, one row each, in the same order; see the attributes of `Corpus`.  Positions
                count from the first id of the text, without padding.
            bos_policy: what is known about BOS in these ids; ``"prepended"`` is checked if the model has a BOS.
            pad_id: the id that fills up short rows, in ``tokens`` too; 0 where nothing is said.

        Raises:
            InputError: for no texts, empty texts, ids that are no whole numbers or outside the vocabulary, texts
                longer than the model reads, a frame or a mask that does not fit, or rows that may begin with padding.

        Example:
            >>> padded = Corpus.from_tokens([[2, 2, 5, 6], [7, 8, 9, 5]], attention_mask=[[0, 0, 1, 1], [1, 1, 1, 1]])
            >>> padded.row(0), padded.frame["padding_left"].tolist()
            ([5, 6], [2, 0])
        """
        batch = read_batch(tokens, attention_mask, Fillers(pad_id) if model is None else Fillers.of(model, pad_id))
        if model is not None and attention_mask is not True:
            warn_of_bos_twice(batch.rows, model.bos_id)
        return cls._of_batch(batch, model, source, frame, bos_policy=bos_policy, pad_id=pad_id or 0)

    @classmethod
    def _of_batch(
        cls, batch: Batch, model: TokenizingModel | None, source: str, frame: pd.DataFrame | None, **facts: Any
    ) -> Corpus:
        facts |= {} if model is None else _facts_of(model)
        check_rows(batch.rows, facts.get("d_vocab"), None if model is None else model.anatomy.n_ctx)
        if facts["bos_policy"] == "prepended" and facts.get("bos_id") is not None:
            check_begins_with_bos(batch.rows, facts["bos_id"])
        if frame is not None and any(batch.left):
            check_positions(frame)
        table = complete_frame(frame, len(batch.rows), source)
        if batch.filled:
            table = table.assign(padding_left=batch.left, padding_right=batch.right)
        padded, lengths = pad_rows(batch.rows, facts.get("pad_id", 0))
        return cls(padded, lengths, table, **facts)

    def __len__(self) -> int:
        return len(self.lengths)

    @guarded
    def row(self, i: int) -> list[int]:
        """Return the ids of text i, without padding.

        Args:
            i: number of the text.
        """
        within("text", i, 0, len(self) - 1, "a text")
        return self.tokens[i, : int(self.lengths[i])].tolist()

    @overload
    def __getitem__(self, i: int) -> Text: ...

    @overload
    def __getitem__(self, i: slice) -> Corpus: ...

    def __getitem__(self, i: int | slice) -> Text | Corpus:
        """One text, or some as a corpus: ``corpus[0]``, ``corpus[:5]``.

        Raises:
            IndexError: a number outside the corpus.

        Example:
            >>> corpus = Corpus.from_tokens([[0, 5, 6], [0, 7]])
            >>> corpus[1], len(corpus[:1]), [len(text) for text in corpus]
            (Text([0, 7]), 1, [3, 2])
        """
        if isinstance(i, slice):
            return self.select(range(len(self))[i])
        place = operator.index(i)
        if not -len(self) <= place < len(self):
            raise IndexError(f"text {place} of a corpus of {len(self)}")
        place %= len(self)
        return Text(tuple(self.row(place)), self._words_of(place), self.frame.iloc[place], self.words)

    def __iter__(self) -> Iterator[Text]:
        """The texts, one after the other."""
        for i in range(len(self)):
            yield Text(tuple(self.row(i)), self._words_of(i), self.frame.iloc[i], self.words)

    def _words_of(self, i: int) -> str | None:
        return None if self.words is None else self.text_of(self.row(i))

    @guarded
    def text_of(self, ids: Sequence[int]) -> str:
        """Ids as text, by the tokenizer that came with them.

        Raises:
            InputError: no tokenizer is known.
        """
        if self.words is None:
            raise InputError("ids whose tokenizer is not known", "a corpus made with model=", "use decode(i, model)")
        for one in {min(ids), max(ids)} if len(ids) else ():
            within("id", one, 0, max(self.d_vocab or 0, len(self.words)) - 1, "an id")
        return self.words.decode(list(ids), clean_up_tokenization_spaces=False)

    def select(
        self, texts: Sequence[int] | Sequence[bool] | Shaped[np.ndarray, " _"] | Shaped[Tensor, " _"] | pd.Series
    ) -> Corpus:
        """Return some of the texts, in the order asked for, with their ids and facts.

        Args:
            texts: numbers of the texts, or one True or False per text; a missing value counts as False, so that
                ``corpus.select(corpus.frame["period"] > 45)`` leaves out the texts without a cycle.

        Raises:
            InputError: for numbers outside the corpus or given twice, or a mask of another length.
            NothingFoundError: if no text is selected.
        """
        chosen = text_numbers(texts, len(self))
        lengths = self.lengths[chosen]
        tokens = self.tokens[chosen][:, : int(lengths.max())].contiguous()
        return replace(self, tokens=tokens, lengths=lengths, frame=self.frame.iloc[chosen].reset_index(drop=True))

    def where(self, **conditions: Hashable | Collection[Hashable]) -> Corpus:
        """Return the texts whose facts are as asked, for example ``where(condition="icl", period=[3, 4])``.

        Args:
            **conditions: column = value, or column = list of values; None asks for missing values.

        Raises:
            InputError: for a column that the frame does not have.
            NothingFoundError: if no text is left.
        """
        return self.select(matching_texts(self.frame, conditions))

    @guarded
    def split(
        self, share: Share = 0.8, seed: Seed = 0, *, clusters: Sequence[str] | None = None
    ) -> tuple[Corpus, Corpus]:
        """Split the texts at random into two corpora, each in the order of this one.

        Args:
            share: share of the texts in the first; with clusters as near to it as whole clusters allow.
            seed: seed of the draw; the same seed gives the same split.
            clusters: the cluster of each text, as of :func:`mechrep.text.families.loop_families`: texts of one cluster
                stay on one side, so that what is found on the first is tested on others.

        Raises:
            InputError: if one side would be empty.
        """
        n_first = round(share * len(self))
        if not 0 < n_first < len(self):
            raise InputError(f"share = {share} of {len(self)} texts", "texts on both sides", "change it, or add texts")
        if clusters is None:
            order = np.random.default_rng(seed).permutation(len(self))
            return self.select(np.sort(order[:n_first])), self.select(np.sort(order[n_first:]))
        names = np.asarray(clusters, dtype=object)
        in_step("clusters", len(names), len(self))
        chosen, n = np.zeros(len(self), dtype=bool), 0
        for name in np.random.default_rng(seed).permutation(list(dict.fromkeys(clusters))):
            size = int((names == name).sum())
            if abs(n + size - n_first) <= abs(n - n_first):
                chosen |= names == name
                n += size
        if not 0 < n < len(self):
            raise InputError(
                f"{len(self)} texts in {len(set(clusters))} clusters", "clusters on both sides", "collect more texts"
            )
        return self.select(np.flatnonzero(chosen)), self.select(np.flatnonzero(~chosen))

    @staticmethod
    @guarded
    def concatenate(*corpora: Corpus) -> Corpus:
        """Join corpora of one tokenizer.

        Facts that differ become unknown: ``model_name`` None, ``bos_policy`` ``"as given"``.

        Args:
            *corpora: at least one; no id may stand in two of them.

        Raises:
            InputError: for different tokenizers, vocabularies or BOS ids, contradicting BOS policies, or an id twice.
        """
        check_joinable([corpus._facts() for corpus in corpora])
        first, policies = corpora[0], {corpus.bos_policy for corpus in corpora}
        names = {corpus.model_name for corpus in corpora}
        padded, lengths = pad_rows([np.array(c.row(i)) for c in corpora for i in range(len(c))], first.pad_id)
        return replace(
            first,
            tokens=padded,
            lengths=lengths,
            frame=pd.concat([corpus.frame for corpus in corpora], ignore_index=True),
            bos_policy=policies.pop() if len(policies) == 1 else "as given",
            d_vocab=max((c.d_vocab for c in corpora if c.d_vocab is not None), default=None),
            model_name=names.pop() if len(names) == 1 else None,
            words=next((corpus.words for corpus in corpora if corpus.words is not None), None),
        )

    def with_columns(self, **columns: Any) -> Corpus:
        """Return the same texts with columns added or replaced.

        Args:
            **columns: name = one value per text, or one for all.

        Raises:
            InputError: for a wrong number of values, or values that the column cannot have.
        """
        frame = self.frame.copy()
        for name, values in columns.items():
            plain = values.tolist() if isinstance(values, Tensor) else values
            try:
                frame[name] = plain
            except ValueError as error:
                raise InputError(f"column {name!r} ({error})", f"{len(self)} values", "one per text") from error
        return replace(self, frame=frame)

    @guarded
    def with_cycles(
        self,
        preset: str = "mechrep",
        eos_id: int | Collection[int] | None = None,
        decode: Callable[[list[int]], str] | None = None,
    ) -> Corpus:
        """Return the same texts with ``start``, ``onset``, ``period``, ``copies`` and ``detector`` filled in.

        Positions count from the first id of the text, BOS included.  BOS and EOS are no cycle on their own.  Where
        ``condition`` says nothing yet it becomes ``"looping"`` or ``"loop_free"``.

        Args:
            preset: a preset of `mechrep.text.detect_cycle`, which says what it looks at.
            eos_id: end-of-sequence id or ids, if texts may end with it.
            decode: from ids to text, for ``preset="counting"``: ``model.decode``.

        Raises:
            InputError: for an unknown preset, or ``"counting"`` without ``decode``.
        """
        special = eos_set(eos_id) | eos_set(self.bos_id)
        prompts = self.frame["prompt_length"].tolist()
        found = [
            detect_cycle(
                self.row(i), preset, prompt_length=prompts[i], eos_id=eos_id, special_ids=special, decode=decode
            )
            for i in range(len(self))
        ]
        own = self.frame["condition"].isin(("", *_LOOPING))
        said = pd.Series([_LOOPING[cycle is None] for cycle in found])
        return self.with_columns(
            **{
                name: [getattr(cycle, name, None) for cycle in found] for name in ("start", "onset", "period", "copies")
            },
            condition=said.where(own, self.frame["condition"]),
            detector=preset,
        )

    @guarded
    def check_model(self, model: TokenizingModel) -> None:
        """Refuse a model that these ids were not made for.

        With a known tokenizer on both sides the fingerprints decide; d_vocab may then differ (models of one family
        pad their embeddings differently) as long as all ids exist.  Otherwise d_vocab must agree.

        Args:
            model: the model about to read the corpus.

        Raises:
            InputError: if the tokenizers or vocabularies differ, or a text is longer than the model reads.
        """
        check_same_vocabulary(self._facts(), model)
        rows = [np.array(self.row(i)) for i in range(len(self))]
        check_rows(rows, model.anatomy.d_vocab, model.anatomy.n_ctx)
        if self.tokenizer is None and self.d_vocab is None:  # nobody has looked for padding yet
            check_no_filling(rows, replace(Fillers.of(model), of_one_length=False))

    @guarded
    def decode(self, i: int, model: TokenizingModel | None = None) -> str:
        """Return text i as a string.

        Args:
            i: number of the text.
            model: the model whose tokenizer made the ids; not needed where the corpus was made with it.

        Raises:
            InputError: if the model has no tokenizer, or another one; or if no tokenizer is known.
        """
        if model is None:
            return self.text_of(self.row(i))
        if model.tokenizer_fingerprint is None or self.tokenizer not in (None, model.tokenizer_fingerprint):
            raise InputError(
                f"ids of tokenizer {self.tokenizer} for {model.name}",
                f"a model with that tokenizer, not {model.tokenizer_fingerprint}",
                "decode with the model that made the corpus",
            )
        return model.decode(self.row(i))

    def fingerprint(self) -> str:
        """Return the SHA-256 of ids, lengths and text names; padding and the other facts do not change it."""
        digest = hashlib.sha256()
        mask = torch.arange(self.tokens.shape[1]) < self.lengths[:, None]
        digest.update(self.lengths.numpy().astype("<i8").tobytes())
        digest.update(self.tokens[mask].numpy().astype("<i8").tobytes())
        digest.update(json.dumps(self.frame["id"].tolist()).encode())
        return digest.hexdigest()

    @guarded
    def save(self, path: str | PathLike[str]) -> None:
        """Write the corpus to one Parquet file; an earlier file is replaced whole or not at all.

        Args:
            path: the file.

        Raises:
            InputError: for a column whose values Parquet cannot hold.
            StoreError: if the file cannot be written.
        """
        rows = [self.row(i) for i in range(len(self))]
        corpus_io.write(path, rows, self.frame, self._facts() | {"fingerprint": self.fingerprint()})

    @staticmethod
    @guarded
    def load(path: str | PathLike[str], model: TokenizingModel | None = None) -> Corpus:
        """Read a corpus that `save` wrote.

        Args:
            path: the file.
            model: whose ids they are.  Needed for a table that was filtered or edited by pandas, Polars or another
                tool: it has lost, or no longer fits, what holds for the corpus as a whole.

        Raises:
            StoreError: if the file is missing, damaged or no corpus, or if a model is needed.
            InputError: if the model is another one than the corpus was made for.
        """
        rows, frame, kept = corpus_io.read(path)
        remedy = "filter a loaded corpus (where, select) and save that, or pass model= to Corpus.load"
        facts = kept
        if facts is None:
            if model is None:
                raise StoreError(
                    f"{path}, a table without {', '.join(corpus_io.FACTS)}: another tool has written it",
                    "a corpus as Corpus.save wrote it",
                    remedy,
                )
            facts = _facts_of(model) | {"bos_policy": "as given", "pad_id": 0, "fingerprint": None}
        fingerprint = facts.pop("fingerprint")
        try:
            check_rows(rows, facts["d_vocab"], None)
            corpus = Corpus(*pad_rows(rows, facts["pad_id"]), complete_frame(frame, len(rows), "table"), **facts)
        except InputError as error:
            raise StoreError(f"{path} ({error.given})", "a corpus as it was saved", "save it again") from error
        if model is not None:
            corpus.check_model(model)
            corpus = replace(corpus, words=getattr(model, "tokenizer", None))
        elif corpus.fingerprint() != fingerprint:
            raise StoreError(f"{path}, whose texts have changed", "a corpus as it was saved", remedy)
        return corpus

    def _facts(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in corpus_io.FACTS if name != "fingerprint"}

    def __repr__(self) -> str:
        return f"Corpus({summary(self.lengths, self._facts())})"

    def _repr_html_(self) -> str:
        frame = self.frame.head(_ROWS)
        if self.words is not None:
            texts = [self._shown(i) for i in range(len(frame))]
            frame = pd.concat([pd.DataFrame({"text": texts}, index=frame.index), frame], axis="columns")
        caption = summary(self.lengths, self._facts())
        shown = frame_html(frame, caption, wide=_PROMPT + _WRITTEN + 8, total=len(self))
        return (
            shown
            + "<p><small>One of them, its tokens in colours: <code>mechrep.view(model, texts, row=0)</code></small></p>"
        )

    def _shown(self, i: int) -> str:
        """The end of a text's prompt and the beginning of what follows, with the loop marked."""
        prompt, written = self[i].marked_parts
        if not int(self.frame["prompt_length"].iloc[i]):
            prompt = prompt.removeprefix("│")
        cut = prompt if len(prompt) <= _PROMPT + 1 else "…" + prompt[-_PROMPT - 1 :]
        return cut + written[:_WRITTEN] + "…" * (len(written) > _WRITTEN)


def _facts_of(model: TokenizingModel) -> dict[str, Any]:
    return {
        "tokenizer": model.tokenizer_fingerprint,
        "bos_id": model.bos_id,
        "d_vocab": model.anatomy.d_vocab,
        "model_name": model.name,
        "words": getattr(model, "tokenizer", None),
    }
