"""mechrep-tiny, the model embedded in the package: a real, small Llama that starts in a second and needs no network.

The weights were trained by :mod:`mechrep.models.tiny.train`; ``MODEL_CARD.md`` beside them says on what and for how
long.  Weights are float16 on disk and float32 in memory unless asked otherwise.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file
from torch import nn

from mechrep.errors import ModelError

if TYPE_CHECKING:
    import pandas as pd

NAMES = ("mechrep-tiny",)
FOLDER = Path(__file__).parent / "weights"


def revisions() -> list[str]:
    """Names of the kept checkpoints, from the untrained model to the final weights, which are also the default.

    Example:
        >>> isinstance(revisions(), list)
        True
    """
    steps = [int(path.stem.removeprefix("step")) for path in (FOLDER / "revisions").glob("step*.safetensors")]
    return [f"step{step}" for step in [*sorted(steps), history()[-1]["step"]]]


def history() -> list[dict[str, Any]]:
    """Step, tokens seen and losses at each kept checkpoint of the training run."""
    lines = (FOLDER / "history.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def phenomena() -> pd.DataFrame:
    """The model's card at every kept checkpoint, as measured when this edition was published."""
    import pandas as pd

    return pd.read_json(FOLDER / "phenomena.jsonl", orient="records", lines=True)


def ngram_losses() -> list[float]:
    """Loss of a 5-gram model of the same training tokens on each window that the card's held-out loss is measured on.

    See :mod:`mechrep.models.tiny.ngram`; the training text is not in the package, so the losses are kept.
    """
    return json.loads((FOLDER / "ngram_losses.json").read_text(encoding="utf-8"))


def held_out_text() -> str:
    """Public-domain English text that the model was not trained on, for measuring its loss."""
    return (FOLDER / "held_out.txt").read_text(encoding="utf-8")


def load(revision: str | None, *, dtype: torch.dtype) -> tuple[nn.Module, Any]:
    """The embedded model and its tokenizer, as Hugging Face objects.

    Raises:
        ModelError: a revision that is not kept.
    """
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    known = revisions()
    if revision is not None and revision not in known:
        raise ModelError(
            f"revision {revision!r} of mechrep-tiny",
            f"a kept checkpoint: {', '.join(known)}",
            "omit revision for the final one",
        )
    final = revision in (None, known[-1])
    path = FOLDER / "model.safetensors" if final else FOLDER / "revisions" / f"{revision}.safetensors"
    config = LlamaConfig.from_pretrained(FOLDER)
    with torch.device("meta"):
        model: Any = LlamaForCausalLM(config)
    weights = {name: tensor.to(dtype) for name, tensor in load_file(path).items()}
    model.load_state_dict(weights, strict=True, assign=True)
    model.model.rotary_emb = type(model.model.rotary_emb)(config)  # its buffers are not weights; meta left them empty
    model.config.name_or_path = "mechrep-tiny"
    return model.to(dtype), PreTrainedTokenizerFast.from_pretrained(FOLDER)
