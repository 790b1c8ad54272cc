"""What a corpus asks of a model: a tokenizer with an identity, and two sizes."""

from __future__ import annotations

from typing import Protocol, runtime_checkable


@runtime_checkable
class _Anatomy(Protocol):
    """The two sizes that a corpus is checked against."""

    @property
    def d_vocab(self) -> int: ...

    @property
    def n_ctx(self) -> int: ...


@runtime_checkable
class TokenizingModel(Protocol):
    """What a corpus asks of a model; `mechrep.models.Model` is one, a small stand-in will do."""

    @property
    def anatomy(self) -> _Anatomy:
        """Sizes of the model, of which ``d_vocab`` and ``n_ctx`` are used."""
        ...

    @property
    def name(self) -> str:
        """Name of the model, for the record."""
        ...

    @property
    def tokenizer_fingerprint(self) -> str | None:
        """Identity of tokenizer and vocabulary; None for a model without tokenizer."""
        ...

    @property
    def bos_id(self) -> int | None:
        """Id of the begin-of-sequence token, if there is one."""
        ...

    @property
    def default_prepend_bos(self) -> bool:
        """Whether the model was trained, and is usually run, with BOS in front."""
        ...

    def encode(self, text: str, prepend_bos: bool) -> list[int]:
        """Return the ids of a text, with or without BOS in front."""
        ...

    def decode(self, ids: list[int]) -> str:
        """Return the text of ids."""
        ...
