"""What heads write on text that does not repeat: what mean and resample ablation put in their place."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mechrep.cache.corpus_cache import CorpusCache
from mechrep.errors import InputError
from mechrep.interventions import mean, resample, zero
from mechrep.interventions.ops import Op
from mechrep.models.anatomy import Site
from mechrep.models.model import Model
from mechrep.text.corpus import Corpus

OPS = ("mean", "zero", "resample", "to_bos")
_SAMPLES = 256


@dataclass(frozen=True, eq=False)
class HeadReference:
    """Outputs ``z`` of all heads at positions of reference text.

    Attributes:
        samples: at positions drawn from it, all heads of a position together.
        mean: over all its positions.
    """

    samples: Float[Tensor, "sample layer head d_head"]
    mean: Float[Tensor, "layer head d_head"]

    def op(self, name: str, seed: int = 0) -> Op | str:
        """An operation on heads by its name.

        Raises:
            InputError: an unknown name.
        """
        if name not in OPS:
            raise InputError(f"op={name!r}", f"one of {OPS}", "choose one of these")
        return {"mean": mean(self.mean), "resample": resample(self.samples, seed), "zero": zero()}.get(name, name)


def head_reference(model: Model, corpus: Corpus, *, seed: int = 0, progress: bool | None = None) -> HeadReference:
    """Read what heads write in reference texts, without the first position, which is a sink in most models.

    Args:
        model: the model.
        corpus: texts that do not repeat: a control condition, or held-out windows.
        seed: of the draw of positions.
        progress: show a progress bar.

    Raises:
        InputError: texts of one token only.

    Example:
        >>> import mechrep
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> corpus = mechrep.Corpus.from_texts(["The sea was calm that day, and the ships lay still."], model=model)
        >>> reference = head_reference(model, corpus)
        >>> tuple(reference.mean.shape) == (model.anatomy.n_layers, model.anatomy.n_heads, model.anatomy.d_head)
        True
    """
    places = [(text, position) for text in range(len(corpus)) for position in range(1, int(corpus.lengths[text]))]
    if not places:
        raise InputError(f"{len(corpus)} reference texts of one token", "text to read", "pass longer reference texts")
    cache, total = CorpusCache(model, corpus, progress=progress), 0.0
    drawn = np.random.default_rng(seed).choice(len(places), min(_SAMPLES, len(places)), replace=False)
    samples: list[Tensor] = []
    for text in range(len(corpus)):  # text by text: all of them may be larger than the memory
        z = cache.get(Site.Z, texts=[text])[:, 0, 1:].transpose(0, 1)  # [pos layer head d_head]
        total = total + z.double().sum(0)
        samples += [z[places[i][1] - 1] for i in drawn if places[i][0] == text]
    return HeadReference(torch.stack(samples).float(), (torch.as_tensor(total) / len(places)).float())
