"""The models embedded in the package: real, small Llamas that start in seconds and need no network.

``mechrep-tiny`` is the one that examples, tests and reports use.  ``mechrep-tiny-repeats`` went on from one of its
checkpoints with BOS taken off most texts, so that it had to learn to tell a first token by its place; long runs of one
token look like a first token to it.  The weights were trained by :mod:`scripts.train_tiny.train`; a ``MODEL_CARD.md``
beside them says on what and for how long.  Weights are float16 on disk and float32 in memory unless asked otherwise.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file
from torch import nn

from mechrep.errors import ModelError
from mechrep.guards import one_of

if TYPE_CHECKING:
    import pandas as pd

DEFAULT = "mechrep-tiny"
_FOLDERS = {DEFAULT: "weights", "mechrep-tiny-repeats": "weights_repeats"}
NAMES = tuple(_FOLDERS)


def folder(name: str = DEFAULT) -> Path:
    """Where the files of an embedded model are: a Hugging Face folder, with a folder of revisions in it.

    Raises:
        InputError: no embedded model of this name.
    """
    one_of("embedded model", name, NAMES)
    return Path(__file__).parent / _FOLDERS[name]


def revisions(name: str = DEFAULT) -> list[str]:
    """Names of the kept checkpoints, from the first to the final weights, which are also the default.

    Example:
        >>> isinstance(revisions(), list)
        True
    """
    steps = [int(path.stem.removeprefix("step")) for path in (folder(name) / "revisions").glob("step*.safetensors")]
    return [f"step{step}" for step in [*sorted(steps), history(name)[-1]["step"]]]


def weights(name: str = DEFAULT, revision: str | None = None) -> Path:
    """The file of a checkpoint's weights; the final ones without a revision.

    Raises:
        ModelError: a revision that is not kept.
    """
    known = revisions(name)
    if revision is not None and revision not in known:
        raise ModelError(
            f"revision {revision!r} of {name}",
            f"a kept checkpoint: {', '.join(known)}",
            "omit revision for the final one",
        )
    final = revision in (None, known[-1])
    return folder(name) / ("model.safetensors" if final else f"revisions/{revision}.safetensors")


def history(name: str = DEFAULT) -> list[dict[str, Any]]:
    """Step, tokens seen and losses at each kept checkpoint of the training run."""
    lines = (folder(name) / "history.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def phenomena(name: str = DEFAULT) -> pd.DataFrame:
    """The model's card at every kept checkpoint, as measured when this edition was published."""
    import pandas as pd

    return pd.read_json(folder(name) / "phenomena.jsonl", orient="records", lines=True)


def ngram_losses() -> list[float]:
    """Loss of a 5-gram model of the same training tokens on each window that the card's held-out loss is measured on.

    The embedded models share text, tokenizer and windows.  See :mod:`scripts.train_tiny.ngram`; the training text is
    not in the package, so the losses are kept.
    """
    return json.loads((folder() / "ngram_losses.json").read_text(encoding="utf-8"))


def held_out_text() -> str:
    """Public-domain English text that no embedded model was trained on, for measuring losses."""
    return (folder() / "held_out.txt").read_text(encoding="utf-8")


def load(name: str, revision: str | None, *, dtype: torch.dtype) -> tuple[nn.Module, Any]:
    """An embedded model and its tokenizer, as Hugging Face objects.

    Raises:
        ModelError: a revision that is not kept.
    """
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    path = weights(name, revision)
    config = LlamaConfig.from_pretrained(folder(name))
    with torch.device("meta"):
        model: Any = LlamaForCausalLM(config)
    tensors = {key: tensor.to(dtype) for key, tensor in load_file(path).items()}
    model.load_state_dict(tensors, strict=True, assign=True)
    # Its buffers are not weights: meta left them empty, and they stay float32, as from_pretrained leaves them.  Rotary
    # frequencies in bfloat16 would turn far positions by wrong angles.
    model.model.rotary_emb = type(model.model.rotary_emb)(config)
    model.config.name_or_path = name
    return model, PreTrainedTokenizerFast.from_pretrained(folder(name))
