"""Which neurons of the sink layer make the first position large: four published ways to tell, which should agree.

Three are scores of the neurons of a given layer (:func:`sink_neurons`); the fourth (:func:`spike_weights`) looks for
a layer whose output matrix has both a huge input and a huge output, and names the weight between them.

The published rule for the layer (:func:`outlier_layer`): the first whose MLP writes more at BOS than the mean plus two
standard deviations over the layers.  One outlier among K numbers can lie at most (K - 1) / sqrt(K) standard deviations
from the mean, so the rule cannot fire below six layers; two writing layers hide each other, and so do late layers that
write the sink back down.  mechrep's is the largest jump of the norm (:class:`~mechrep.measures.sink_norms.SinkNorms`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from mechrep.errors import InputError, NothingFoundError
from mechrep.guards import check_count, guarded
from mechrep.models.anatomy import Site
from mechrep.models.model import Model
from mechrep.models.reading import read_activations
from mechrep.models.stream import Stream
from mechrep.provenance import provenance_of
from mechrep.results import Result
from mechrep.text.corpus import Corpus, CorpusLike
from mechrep.text.stimuli import repeated_tokens

Score = Literal["contribution", "authors", "bos_only"]
Place = Literal["first", "repeat"]
SCORES = ("contribution", "authors", "bos_only")
PLACES = ("first", "repeat")


@dataclass(frozen=True, eq=False)
class SinkNeuronResult(Result):
    """Scores of the neurons of one layer, at the first position and at the last repeat.

    Attributes:
        layer: the layer.
        contribution: ``|hook_post| * |W_out row|``, the length of what the neuron adds to the residual stream.
        authors: ``|gate pre-activation| * |W_out row|``, the published score; it ignores activation function and
            up-projection.  In a model without a gate: of what goes into the activation function.
        bos_only: ``|hook_post|``, without the row.
        repeats: of the token in the second place; 0 where nothing was repeated, whose scores are then NaN.
    """

    layer: int
    contribution: Float[Tensor, "place neuron"]
    authors: Float[Tensor, "place neuron"]
    bos_only: Float[Tensor, "place neuron"]
    repeats: int

    @guarded
    def scores(self, score: Score = "contribution", place: Place = "first") -> Float[Tensor, " neuron"]:
        """One score at one place.

        Args:
            score: ``"contribution"`` (default), ``"authors"`` or ``"bos_only"``.
            place: ``"first"``: the first position of the texts; ``"repeat"``: the last repeat of a repeated token.

        Raises:
            InputError: a score or place of another name, or one that was not measured.
        """
        values = getattr(self, score)[PLACES.index(place)]
        if bool(values.isnan().all()):
            raise InputError(
                f"score {score!r} at {place!r}, which was not measured",
                "'repeat' on a corpus of repeated tokens",
                "choose another score or place, or measure again with such a corpus",
            )
        return values

    @guarded
    def ranking(self, score: Score = "contribution", place: Place = "first") -> list[int]:  # pyright: ignore
        """All neurons of the layer, the highest score first; ties keep their order."""
        return torch.argsort(self.scores(score, place), descending=True, stable=True).tolist()

    @guarded
    def top(self, k: int, score: Score = "contribution", place: Place = "first") -> list[tuple[int, int]]:
        """The ``k`` neurons with the highest score, as ``(layer, neuron)``.

        Raises:
            InputError: ``k`` larger than the layer, or a score that was not measured.
        """
        check_count(k, self.contribution.shape[1], "neurons of the layer")
        return [(self.layer, neuron) for neuron in self.ranking(score, place)[:k]]

    @guarded
    def agreement(self, k: int = 5) -> dict[str, float]:
        """Share of the top ``k`` by contribution at the first position that each other score has in its top ``k``.

        Args:
            k: size of the sets; by chance they share ``k / d_mlp``.

        Returns:
            Shares by ``"score at place"``, of every score that was measured.
        """
        check_count(k, self.contribution.shape[1], "neurons of the layer")
        own = set(self.ranking()[:k])
        shares = {}
        for place in PLACES:
            for score in SCORES:
                measured = not bool(getattr(self, score)[PLACES.index(place)].isnan().all())
                if measured and (score, place) != ("contribution", "first") and k:
                    shares[f"{score} at {place}"] = len(own & set(self.ranking(score, place)[:k])) / k
        return shares

    def to_frame(self) -> pd.DataFrame:
        """One row per neuron, the largest contribution at the first position first."""
        order = self.ranking()
        columns = {
            f"{score}_{place}": getattr(self, score)[index, order].numpy()
            for index, place in enumerate(PLACES)
            for score in SCORES
        }
        return pd.DataFrame({"rank": range(len(order)), "layer": self.layer, "neuron": order, **columns})


def begins_with_bos(model: Model, corpus: Corpus) -> bool:
    """Whether position 0 of every text is BOS; where the corpus does not say, its ids do."""
    if corpus.bos_policy == "as given":
        return model.bos_id is not None and bool((corpus.tokens[:, 0] == model.bos_id).all())
    return corpus.bos_policy == "prepended"


_ROWS_PER_BATCH = 16
SPIKE_PROMPT = "Apple Inc. is a worldwide tech company."
_SPIKE = 50.0


def row_norms(model: Model, layer: int) -> Float[Tensor, " neuron"]:
    """Norm of each neuron's row of ``W_out``; what stands behind the MLP (norms, multipliers) is left out."""
    model.anatomy.check_layer(layer)
    return torch.linalg.vector_norm(Stream(model).neuron_outputs(layer), dim=1).cpu().double()


@torch.no_grad()
def sink_neurons(model: Model, corpus: CorpusLike, layer: int) -> SinkNeuronResult:
    """Scores the neurons of a layer at the first position of every text, and at the last repeat of repeated tokens.

    Averages over texts of the absolute activation, times the norm of the neuron's row of ``W_out``::

        contribution_n = |hook_post_n| |B(W_out[n])|
        authors_n      = |hook_pre_n| |W_out[n]|
        bos_only_n     = |hook_post_n|

    ``B`` is what stands behind the MLP, with its scale frozen at what it is on this text: nothing in most models, a
    norm (Gemma 2 and 3, OLMo 2), a multiplier (Granite), the weight of the neuron's expert for this token.

    Args:
        model: the model.
        corpus: texts whose first position is of interest (BOS, by habit).  Of a corpus of
            :func:`~mechrep.text.stimuli.repeated_tokens` the last position is scored too.
        layer: the sink layer.

    Returns:
        Scores per place and neuron.

    Raises:
        InputError: a layer that the model does not have, or a corpus of another model.

    Source: ``authors`` at the last of 1500 repeats is Yona et al. 2025 (arXiv 2503.08908); ``bos_only`` at BOS alone
    is Oh et al. 2024 (arXiv 2410.01866), and a causal model's first position does not know what follows.  ``hook_pre``
    is the gate before the activation function; in an MLP without a gate the pre-activation, mechrep's extension.
    ``contribution`` is mechrep's default, and at the first position: where repeats do not become a sink, their last
    repeat is in no special state, and its scores say nothing about the sink.

    Limits: large activations are a correlate; what the neurons carry is shown by
    :func:`mechrep.studies.sink_ablation.sink_ablation`.  ``authors`` ranks a neuron with a huge negative gate high
    although it adds nothing.

    Example:
        >>> import mechrep
        >>> from mechrep.text.stimuli import repeated_tokens
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> result = sink_neurons(model, repeated_tokens(model, [300], 50), 0)
        >>> len(result.top(5)), sorted(result.agreement())[0]
        (5, 'authors at first')
    """
    corpus = Corpus.of(corpus, model)
    corpus.check_model(model)
    model.anatomy.check_site(Site.MLP_POST, layer)
    repeated, stream = "repeats" in corpus.frame, Stream(model)
    sums = torch.zeros(len(SCORES), len(PLACES), model.anatomy.neurons[layer], dtype=torch.float64)
    for rows in torch.arange(len(corpus)).split(_ROWS_PER_BATCH):
        lengths = corpus.lengths[rows]
        last = (lengths - 1) if repeated else torch.zeros_like(lengths)
        width = int(last.max()) + 1  # without repeats only the first position is needed, and nothing before it exists
        with model.each_alone(lengths):
            seen = _read_neurons(model, stream, corpus.tokens[rows, :width].to(model.device), layer)
        for place, positions in enumerate((torch.zeros_like(last), last)):
            here = {name: values[torch.arange(len(values)), positions] for name, values in seen.items()}
            post = here["post"]
            factors = stream.neuron_factors(layer, post, here.get("router"), here["output"])
            sums[SCORES.index("contribution"), place] += (post.double() * factors.cpu()).abs().sum(0)
            if "pre" in here:
                sums[SCORES.index("authors"), place] += here["pre"].double().abs().sum(0)
            sums[SCORES.index("bos_only"), place] += post.double().abs().sum(0)
    sums /= len(corpus)
    if not repeated:
        sums[:, 1] = torch.nan
    if not model.anatomy.has(Site.GATE_PRE):
        sums[SCORES.index("authors")] = torch.nan
    return SinkNeuronResult(
        provenance_of(model, corpus, {"layer": layer}),
        layer=layer,
        contribution=(sums[0] * stream.neuron_lengths(layer).cpu()).float(),
        authors=(sums[1] * row_norms(model, layer)).float(),
        bos_only=sums[2].float(),
        repeats=int(corpus.frame["repeats"].max()) if repeated else 0,
    )


def _read_neurons(model: Model, stream: Stream, tokens: Tensor, layer: int) -> dict[str, Tensor]:
    """The layer's neurons, what goes into their activation function, its router, and what the MLP gives, on the CPU."""
    names = {Site.MLP_POST: "post", Site.GATE_PRE: "pre", Site.ROUTER: "router"}
    count, seen = model.anatomy.neurons[layer], {}

    def keep(activation: Tensor, site: Site, _layer: int) -> None:
        if site is Site.MLP_OUT:  # asked for so that the pass goes on until it is there
            return
        width = model.anatomy.experts[layer] if site is Site.ROUTER else count
        seen[names[site]] = activation[..., :width].float().cpu()

    def output(values: Tensor) -> None:
        seen["output"] = values.view(*tokens.shape, -1).float().cpu()

    wanted = {site: [layer] for site in names if layer in model.anatomy.layers_with(site)}
    with stream.raw_outputs(layer, output):
        read_activations(model, tokens, wanted | {Site.MLP_OUT: [layer]}, keep)
    return seen


FEWEST_LAYERS = 6  # (K - 1) / sqrt(K) is 1.79 for K = 5 and 2.04 for K = 6
_DEVIATIONS = 2.0


def outlier_layer(mlp_norms: Float[Tensor, " layer"]) -> int:
    """The first layer whose value exceeds mean + 2 standard deviations (ddof 1) of all of them.

    Args:
        mlp_norms: one norm per layer, for instance from :func:`bos_mlp_norms`.

    Raises:
        InputError: fewer than six layers, where no values whatever could pass.
        NothingFoundError: no layer passes.

    Source: Yona et al. 2025 (arXiv 2503.08908), ``find_sink_layer`` of the released code.

    Example:
        >>> outlier_layer(torch.tensor([1.0, 90.0, 1.0, 1.0, 1.0, 1.0]))
        1
    """
    if len(mlp_norms) < FEWEST_LAYERS:
        raise InputError(
            f"{len(mlp_norms)} layers",
            f"at least {FEWEST_LAYERS}: among fewer no value lies two standard deviations above the mean",
            "use the largest jump of the norm (SinkNorms, find_sink)",
        )
    values = mlp_norms.double()
    threshold = values.mean() + _DEVIATIONS * values.std(correction=1)
    above = (values > threshold).nonzero().flatten()
    if not len(above):
        raise NothingFoundError(
            f"{len(values)} layers, the largest at {float(values.max()):.3g}",
            f"one above mean + 2 sd = {float(threshold):.3g}",
            "two large layers hide each other: look at the whole profile (SinkNorms), or ask for fewer layers",
        )
    return int(above[0])


def bos_mlp_norms(model: Model, layers: int | None = None) -> Float[Tensor, " layer"]:
    """Norm of what each layer's MLP adds to the residual stream when the text is BOS alone.

    Args:
        model: the model.
        layers: only the first so many; all by default.  The released code asks for 15 of Llama-2-7b's 32.

    Raises:
        InputError: a model without BOS, or another number of layers than it has.
    """
    count = model.anatomy.n_layers if layers is None else layers
    if model.bos_id is None or not 1 <= count <= model.anatomy.n_layers:
        raise InputError(
            f"the first {count} layers of {model.name} on BOS (id {model.bos_id})",
            f"a model with BOS, and 1 to {model.anatomy.n_layers} layers",
            "use SinkNorms on texts, or leave layers out",
        )
    norms = torch.zeros(count, dtype=torch.float64)

    def receive(activation: Tensor, _site: Site, layer: int) -> None:
        norms[layer] = activation[0, 0].detach().cpu().double().norm()

    tokens = torch.tensor([[model.bos_id]], device=model.device)
    read_activations(model, tokens, {Site.MLP_OUT: range(count)}, receive)
    return norms


def sink_layer_yona2025(model: Model, layers: int | None = None) -> int:
    """The published sink layer: :func:`outlier_layer` of :func:`bos_mlp_norms`.

    Args:
        model: the model.
        layers: look at the first so many only.

    Raises:
        InputError: fewer than six layers, or no BOS.
        NothingFoundError: no layer passes.

    Example:
        >>> import mechrep
        >>> sink_layer_yona2025(mechrep.load_model("mechrep-tiny"), layers=4)
        Traceback (most recent call last):
        mechrep.errors.InputError: given: 4 layers; expected: at least 6: among fewer no value lies two standard \
deviations above the mean; to do: use the largest jump of the norm (SinkNorms, find_sink)
    """
    return outlier_layer(bos_mlp_norms(model, layers))


def sink_neurons_yona2025(
    model: Model, token: int | str, *, repeats: int = 1500, layers: int = 15, k: int = 2
) -> list[tuple[int, int]]:
    """The published search to the letter: the layer by its rule, the neurons by their gates at the last repeat.

    1. :func:`~mechrep.measures.sink_norms.sink_layer_yona2025` among the first ``layers`` layers.
    2. BOS and ``repeats`` times the token; the ``k`` neurons of that layer with the largest ``authors`` score at
       the last repeat, see :func:`sink_neurons`.

    Args:
        model: the model.
        token: an id, or a word of one token (the release repeats ``the``).
        repeats: of it.
        layers: fewer where the model has fewer.
        k: how many neurons; the release looks at two.

    Returns:
        ``(layer, neuron)`` pairs, the highest score first.

    Raises:
        InputError: fewer than six layers, no BOS, or a context shorter than the repeats.
        NothingFoundError: no layer passes the rule.

    Source: Yona et al. 2025 (arXiv 2503.08908), released code.  Its text of repeats is joined by blanks; here it is
    built from ids, which is the same under SentencePiece.

    Limits: the rule misses sinks (two writing layers hide each other), and the score is fooled by a huge negative gate;
    :func:`~mechrep.studies.find_sink.find_sink` is the default.  The authors read gated MLPs only.  In an MLP
    without a gate the pre-activation takes its place, as the hook of that name gives it; this is mechrep's extension.

    Example:
        >>> import mechrep
        >>> sink_neurons_yona2025(mechrep.load_model("mechrep-tiny"), 300, repeats=100)
        Traceback (most recent call last):
        mechrep.errors.InputError: given: 4 layers; expected: at least 6: among fewer no value lies two standard \
deviations above the mean; to do: use the largest jump of the norm (SinkNorms, find_sink)
    """
    layer = sink_layer_yona2025(model, min(layers, model.anatomy.n_layers))
    scores = sink_neurons(model, repeated_tokens(model, [token], repeats), layer)
    return scores.top(k, "authors", "repeat")


def spike_weights(model: Model, text: str = SPIKE_PROMPT) -> list[tuple[int, int, int]]:
    """The "super weights": layers whose MLP output matrix has both an input and an output entry above 50.

    Args:
        model: the model.
        text: one prompt; the published one by default.

    Returns:
        ``(layer, row, neuron)`` of each such layer: ``row`` is the residual dimension of the largest output entry,
        ``neuron`` the largest input entry.  Empty where no layer qualifies.

    Raises:
        InputError: a model without a tokenizer, or a text without tokens.

    Source: Yu et al. 2024 (arXiv 2411.07191).

    Limits: 50 is a fixed threshold, made for models of billions of parameters.

    Example:
        >>> import mechrep
        >>> spike_weights(mechrep.load_model("mechrep-tiny"))
        []
    """
    ids = model.encode(text)
    if not ids:
        raise InputError(f"the text {text!r}", "at least one token", "use another")
    largest: dict[tuple[Site, int], tuple[float, int]] = {}

    def receive(activation: Tensor, site: Site, layer: int) -> None:
        sizes = activation[0].abs().amax(0)
        largest[site, layer] = (float(sizes.max()), int(sizes.argmax()))

    layers = range(model.anatomy.n_layers)
    tokens = torch.tensor([ids], device=model.device)
    read_activations(model, tokens, {Site.MLP_POST: layers, Site.MLP_OUT: layers}, receive)
    return [
        (layer, largest[Site.MLP_OUT, layer][1], largest[Site.MLP_POST, layer][1])
        for layer in layers
        if min(largest[Site.MLP_OUT, layer][0], largest[Site.MLP_POST, layer][0]) > _SPIKE
    ]
