"""The corpus: texts as right-padded ids, one table row of facts per text, and whose ids they are.

Ids mean nothing without their tokenizer, and an analysis means little without knowing whether texts begin with BOS:
both travel with the corpus, through selection, joining and the disk, and are checked when a model meets it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Int64, Shaped
from torch import Tensor

from mechrep.errors import InputError, StoreError
from mechrep.text import corpus_io, corpus_view
from mechrep.text._tokens import TokenSequence, eos_set, token_array
from mechrep.text.corpus_checks import check_begins_with_bos, check_joinable, check_rows, check_same_vocabulary
from mechrep.text.corpus_frame import complete_frame, pad_rows
from mechrep.text.corpus_select import matching_texts, text_numbers
from mechrep.text.cycles import detect_cycle
from mechrep.text.tokenizing_model import TokenizingModel as TokenizingModel

BOS_POLICIES = ("prepended", "absent", "as given")


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

    def __post_init__(self) -> None:
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
        if self.bos_policy not in BOS_POLICIES:
            raise InputError(f"bos_policy {self.bos_policy!r}", f"one of {BOS_POLICIES}", "choose one of them")
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
    def from_texts(
        cls,
        texts: Sequence[str],
        *,
        model: TokenizingModel,
        source: str = "texts",
        prepend_bos: bool | None = None,
    ) -> Corpus:
        """Tokenize texts with a model's tokenizer.

        Args:
            texts: the texts, none empty.
            model: the model whose tokenizer is used.
            source: where they come from, for the record and the ids.
            prepend_bos: whether to put BOS in front; None for what the model was trained with.

        Raises:
            InputError: if there is no text, an empty one, one longer than the model reads, no tokenizer, or no BOS
                although it is asked for.
        """
        if isinstance(texts, str):
            raise InputError("one string", "a list of texts", "pass [text]")
        if model.tokenizer_fingerprint is None:
            raise InputError(
                f"texts as strings for {model.name}, which has no tokenizer", "ids", "use Corpus.from_tokens"
            )
        prepend = model.default_prepend_bos if prepend_bos is None else prepend_bos
        if prepend and model.bos_id is None:
            raise InputError(f"prepend_bos for {model.name}", "a model that has a BOS", "pass prepend_bos=False")
        for i, text in enumerate(texts):
            if not text:
                raise InputError(f"text {i} is empty", "texts of at least one token", "leave it out")
        rows = [model.encode(text, prepend_bos=prepend) for text in texts]
        policy = "prepended" if prepend else "absent"
        return cls.from_tokens(rows, model=model, source=source, bos_policy=policy)

    @classmethod
    def from_tokens(
        cls,
        tokens: Sequence[TokenSequence] | Shaped[np.ndarray, "text pos"] | Shaped[Tensor, "text pos"],
        *,
        model: TokenizingModel | None = None,
        source: str = "tokens",
        frame: pd.DataFrame | None = None,
        bos_policy: str = "as given",
        pad_id: int = 0,
    ) -> Corpus:
        """Take ids as they are.

        Args:
            tokens: one sequence of ids per text, without padding.
            model: whose ids they are; without it neither vocabulary nor length is checked.
            source: where they come from, for the record and the ids.
            frame: facts about the texts, one row each, in the same order; see the attributes of `Corpus`.
            bos_policy: what is known about BOS in these ids; ``"prepended"`` is checked if the model has a BOS.
            pad_id: the id that fills up short rows.

        Raises:
            InputError: for no texts, empty texts, ids that are no whole numbers or outside the vocabulary, texts
                longer than the model reads, or a frame that does not fit.
        """
        rows = [token_array(row, f"text {i}") for i, row in enumerate(tokens)]
        facts = {} if model is None else _facts_of(model)
        check_rows(rows, facts.get("d_vocab"), None if model is None else model.anatomy.n_ctx)
        if bos_policy == "prepended" and facts.get("bos_id") is not None:
            check_begins_with_bos(rows, facts["bos_id"])
        padded, lengths = pad_rows(rows, pad_id)
        frame = complete_frame(frame, len(rows), source)
        return cls(padded, lengths, frame, bos_policy=bos_policy, pad_id=pad_id, **facts)

    def __len__(self) -> int:
        return len(self.lengths)

    def row(self, i: int) -> list[int]:
        """Return the ids of text i, without padding.

        Args:
            i: number of the text.
        """
        return self.tokens[i, : int(self.lengths[i])].tolist()

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

    def split(self, share: float = 0.8, seed: int = 0) -> tuple[Corpus, Corpus]:
        """Split the texts at random into two corpora, each in the order of this one.

        Args:
            share: share of the texts in the first.
            seed: seed of the draw; the same seed gives the same split.

        Raises:
            InputError: if one side would be empty.
        """
        n_first = round(share * len(self))
        if not 0 < n_first < len(self):
            raise InputError(f"share = {share} of {len(self)} texts", "texts on both sides", "change it, or add texts")
        order = np.random.default_rng(seed).permutation(len(self))
        return self.select(np.sort(order[:n_first])), self.select(np.sort(order[n_first:]))

    @staticmethod
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

    def with_cycles(self, preset: str = "mechrep", eos_id: int | Collection[int] | None = None) -> Corpus:
        """Return the same texts with ``start``, ``onset``, ``period``, ``copies`` and ``detector`` filled in.

        Positions count from the first id of the text, BOS included.  BOS and EOS are no cycle on their own.

        Args:
            preset: a preset of `mechrep.text.detect_cycle`, which says what it looks at.
            eos_id: end-of-sequence id or ids, if texts may end with it.

        Raises:
            InputError: for an unknown preset.
        """
        special = eos_set(eos_id) | eos_set(self.bos_id)
        prompts = self.frame["prompt_length"].tolist()
        found = [
            detect_cycle(self.row(i), preset, prompt_length=prompts[i], eos_id=eos_id, special_ids=special)
            for i in range(len(self))
        ]
        return self.with_columns(
            **{
                name: [getattr(cycle, name, None) for cycle in found] for name in ("start", "onset", "period", "copies")
            },
            detector=preset,
        )

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

    def decode(self, i: int, model: TokenizingModel) -> str:
        """Return text i as a string.

        Args:
            i: number of the text.
            model: the model whose tokenizer made the ids.

        Raises:
            InputError: if the model has no tokenizer, or another one.
        """
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
    def load(path: str | PathLike[str]) -> Corpus:
        """Read a corpus that `save` wrote.

        Args:
            path: the file.

        Raises:
            StoreError: if the file is missing, damaged or no corpus.
        """
        rows, frame, facts = corpus_io.read(path)
        fingerprint = facts.pop("fingerprint")
        try:
            check_rows(rows, facts["d_vocab"], None)
            corpus = Corpus(*pad_rows(rows, facts["pad_id"]), frame, **facts)
        except InputError as error:
            raise StoreError(f"{path} ({error.given})", "a corpus as it was saved", "save it again") from error
        if corpus.fingerprint() != fingerprint:
            raise StoreError(f"{path}, whose texts have changed", "a corpus as it was saved", "save it again")
        return corpus

    def _facts(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in corpus_io.FACTS if name != "fingerprint"}

    def __repr__(self) -> str:
        return f"Corpus({corpus_view.summary(self.lengths, self._facts())})"

    def _repr_html_(self) -> str:
        return corpus_view.to_html(self.frame, corpus_view.summary(self.lengths, self._facts()))


def _facts_of(model: TokenizingModel) -> dict[str, Any]:
    return {
        "tokenizer": model.tokenizer_fingerprint,
        "bos_id": model.bos_id,
        "d_vocab": model.anatomy.d_vocab,
        "model_name": model.name,
    }
