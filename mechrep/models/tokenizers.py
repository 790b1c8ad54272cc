"""From what a user calls a tokenizer to a Hugging Face tokenizer whose ids the model knows."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

from mechrep.errors import ModelError

_WANTED = "tokenizer: a Hugging Face tokenizer, a tokenizers.Tokenizer, a folder, a hub name or a tokenizer.json"
_MARK = re.compile(r"[<\[].+[>\]]")
_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")


def as_tokenizer(given: Any, *, trust_remote_code: bool = False) -> Any:
    """A Hugging Face tokenizer from whatever stands for one; ``None`` stays ``None``.

    Args:
        given: a Hugging Face tokenizer, a processor that holds one, a ``tokenizers.Tokenizer``, or a path or hub name.
        trust_remote_code: run code that comes with a tokenizer read by name.

    Raises:
        ModelError: nothing of these, or a path at which no tokenizer can be read.

    Example:
        >>> from tokenizers import Tokenizer, models
        >>> words = Tokenizer(models.WordLevel({"sea": 0, "the": 1}, unk_token="the"))
        >>> as_tokenizer(words)("sea")["input_ids"]
        [0]
    """
    if given is None:
        return None
    if isinstance(given, (str, Path)):
        return read_tokenizer(str(given), trust_remote_code=trust_remote_code)
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

    if isinstance(given, Tokenizer):
        return PreTrainedTokenizerFast(tokenizer_object=given)
    if isinstance(given, PreTrainedTokenizerBase):
        return given
    inner = getattr(given, "tokenizer", None)  # the processor of a vision-language model
    if isinstance(inner, PreTrainedTokenizerBase):
        return inner
    raise ModelError(
        f"tokenizer of class {type(given).__name__}",
        _WANTED,
        "mechrep also needs its vocabulary and its special ids: build a tokenizers.Tokenizer from the same vocabulary, "
        "or leave it out, encode the texts yourself and use Corpus.from_tokens",
    )


def read_tokenizer(name: str, *, trust_remote_code: bool = False, **options: Any) -> Any:
    """The tokenizer in a folder, in a ``tokenizer.json`` or of a hub model.

    Args:
        name: path or hub name.
        trust_remote_code: run code that comes with it.
        **options: passed on to ``AutoTokenizer.from_pretrained``: ``revision``, ``gguf_file``.

    Raises:
        ModelError: it cannot be read.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    path = Path(name).expanduser()
    looks_like_path = name.startswith((".", "/", "~")) or name.count("/") > 1 or not name.strip()
    if path.exists():
        options["local_files_only"] = True
        for file in [path, path / "tokenizer.json"]:
            if file.is_file() and file.suffix == ".json":
                _check_json(file)
    elif looks_like_path:
        raise ModelError(f"tokenizer {name!r}", "a folder or file that exists", "check the path of the tokenizer")
    try:
        if path.is_file():
            return PreTrainedTokenizerFast(tokenizer_file=str(path))
        source = str(path.resolve()) if path.exists() else name
        return AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code, **options)
    except (OSError, ValueError, RuntimeError, ImportError, KeyError, AttributeError, TypeError) as error:
        raise ModelError(
            f"tokenizer {name!r}", _WANTED, f"check its files, or pass tokenizer=; the loader said: {first_line(error)}"
        ) from error


def _check_json(file: Path) -> None:
    """A ``tokenizer.json`` that is none would end in a bare ``Exception`` of the tokenizers library."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(
            f"tokenizer file {str(file)!r}", "JSON", f"write it again; it could not be read: {error}"
        ) from error
    if not isinstance(found, dict) or (file.name == "tokenizer.json" and "model" not in found):
        raise ModelError(
            f"tokenizer file {str(file)!r} without a vocabulary", "a tokenizer.json", "save it with save_pretrained"
        )


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder holds a tokenizer; it may hold bare weights."""
    return any((folder / file).exists() for file in _FILES)


def fit_tokenizer(tokenizer: Any, d_vocab: int, config: Any) -> tuple[Any, list[str]]:
    """The same tokenizer, after checking that the model knows its ids.

    A bare vocabulary, without any special token, takes those of the model's configuration, in a copy.

    Args:
        tokenizer: a Hugging Face tokenizer, or ``None``.
        d_vocab: rows of the model's embedding.
        config: the model's, for special ids.

    Returns:
        The tokenizer, and what the user should be told.

    Raises:
        ModelError: ordinary tokens have ids that the model does not.
    """
    if tokenizer is None:
        return None, []
    beyond = {token: number for token, number in tokenizer.get_vocab().items() if number >= d_vocab}
    ordinary = [token for token, number in beyond.items() if number not in tokenizer.added_tokens_decoder]
    if ordinary:
        raise ModelError(
            f"a tokenizer with ids up to {max(beyond.values())} for a model of {d_vocab} tokens",
            "the tokenizer that the model was trained with",
            f"pass its own tokenizer; {len(ordinary)} of these tokens have no embedding, {ordinary[0]!r} among them",
        )
    notes = []
    if beyond:
        listed = ", ".join(repr(token) for token in sorted(beyond)[:3])
        notes.append(
            f"the tokenizer has {len(beyond)} added token(s) without an embedding ({listed}): "
            f"the model has {d_vocab} ids, and a text with such a token cannot be read"
        )
    return _with_special_tokens(tokenizer, d_vocab, config), notes


def _with_special_tokens(tokenizer: Any, d_vocab: int, config: Any) -> Any:
    """A bare vocabulary with the special tokens of the configuration, where their ids stand for marks like ``<s>``."""
    kinds = ("bos_token", "eos_token", "pad_token")
    if any(getattr(tokenizer, kind) is not None for kind in kinds):
        return tokenizer
    ids = {kind: getattr(config, f"{kind}_id", None) for kind in kinds}
    tokens = {kind: tokenizer.convert_ids_to_tokens(number) for kind, number in ids.items()
              if isinstance(number, int) and 0 <= number < d_vocab}  # fmt: skip
    marks = {kind: token for kind, token in tokens.items() if token is not None and _MARK.fullmatch(token)}
    if not marks:
        return tokenizer
    own = copy.deepcopy(tokenizer)  # its vocabulary learns that these are whole tokens
    own.add_special_tokens(marks)
    return own


def first_line(error: Exception) -> str:
    """The first line of what an error says, and the next where that one only announces it."""
    lines = [line.strip() for line in (str(error).strip() or repr(error)).splitlines() if line.strip()]
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
