"""What every part of the report needs of a model, and so what can be measured on this one, and why not the rest.

One table for the report, for ``mechrep models NAME --explain`` and for the documentation.  Whether a model has what is
needed is tried on a few tokens and not concluded from its name: a site is there if it can be read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from mechrep.errors import MechrepError, MissingPartError
from mechrep.generation.decode import Decoding, Request, run_requests
from mechrep.generation.patched_model import PatchedModel
from mechrep.guards import some_of
from mechrep.interventions.ops import SinkPatch
from mechrep.measures.first_token import detector_layer
from mechrep.measures.head_circuits import HeadCircuits
from mechrep.measures.natural_vs_induced import LogitAttribution
from mechrep.models import tiny
from mechrep.models.anatomy import Site
from mechrep.models.model import Model
from mechrep.models.reading import read_activations
from mechrep.models.stream import Stream

_FEWEST_POSITIONS = 64  # a prompt of ten tokens, a loop, and its onset behind position 50


@dataclass(frozen=True)
class Requirement:
    """Something that a model may have or lack.

    Attributes:
        words: what it is called.
        attempt: tries to use it.  Returns the layers that have it, or ``None`` where that is no matter of layers;
            raises an error of mechrep's own where the model lacks it.
    """

    words: str
    attempt: Callable[[Model], Sequence[int] | None]

    def reason(self, model: Model) -> tuple[str, str]:
        """Why the model lacks it, or ``""``; and where it has it, if not everywhere."""
        try:
            layers = self.attempt(model)
        except MechrepError as error:
            return f"lacks {self.words}: {error.given}; needed: {error.expected}", ""
        if layers is None or len(layers) == model.anatomy.n_layers:
            return "", ""
        return "", f"{self.words} in {_named(layers)} of {model.anatomy.n_layers} only"


def _named(layers: Sequence[int]) -> str:
    return ("layer " if len(layers) == 1 else "layers ") + ", ".join(map(str, layers))


def _readable(words: str, site: Site) -> Requirement:
    """A site, in the layers that have it."""

    def attempt(model: Model) -> Sequence[int]:
        anatomy = model.anatomy
        layers = anatomy.layers_with(site)
        if not layers:
            raise _lacking(model, site)
        with torch.no_grad():
            read_activations(model, model.probe_tokens(8), {site: [layers[0], layers[-1]]}, lambda *_: None)
        return layers

    return Requirement(words, attempt)


def _lacking(model: Model, site: Site) -> MissingPartError:
    anatomy = model.anatomy
    return MissingPartError(
        f"in {anatomy.architecture} {anatomy.why_not(site)}", f"site {site.value!r}", "leave it out"
    )


def _writes(model: Model) -> None:
    """Greedy decoding from BOS."""
    if model.bos_id is None:
        raise MissingPartError("a model without BOS and EOS", "an id that starts a text", "write prompts yourself")
    if model.anatomy.n_ctx < _FEWEST_POSITIONS:
        raise MissingPartError(
            f"a context of {model.anatomy.n_ctx} positions", f"at least {_FEWEST_POSITIONS}", "use another model"
        )
    run_requests(model, [Request((model.bos_id,), 2)], Decoding(None), progress=False)


def _reads_text(model: Model) -> None:
    model.encode("a")


def _heads_write(model: Model) -> Sequence[int]:
    HeadCircuits(model, readers=("V",))
    return model.anatomy.attention_layers


def _attributes(model: Model) -> None:
    LogitAttribution(model)


def _lens(model: Model) -> None:
    stream = Stream(model)
    with torch.no_grad():
        stream.logits(torch.ones(1, model.anatomy.d_model, dtype=model.dtype, device=model.device))


def _holds(model: Model) -> None:
    """A neuron held at the level of another token."""
    layer = next(iter(model.anatomy.layers_with(Site.MLP_POST)), 0)
    last = model.anatomy.neurons[layer] - 1
    with PatchedModel(model, SinkPatch(layer, [last])) as patched, torch.no_grad():
        patched(input_ids=model.probe_tokens(8))


def _detectors(model: Model) -> None:
    layer, anatomy = detector_layer(model.anatomy), model.anatomy
    places = [(site, 0) for site in (Site.PATTERN, Site.V, Site.Z, Site.ATTN_OUT)]
    for site, where in [*places, (Site.GATE_PRE, layer), (Site.MLP_INPUT_NORMALIZED, layer)]:
        if not anatomy.has(site):
            raise _lacking(model, site)
        anatomy.check_site(site, where)


def _checkpoints(model: Model) -> None:
    if model.name not in tiny.NAMES:
        raise MissingPartError(
            f"{model.name}, whose checkpoints are not embedded", "checkpoints at hand", "name them (checkpoints)"
        )


LOOPS = Requirement("texts that it writes itself", _writes)
TEXT = Requirement("text that it can read", _reads_text)
PATTERNS = _readable("attention patterns", Site.PATTERN)
VALUES = _readable("values of the heads", Site.V)
OUTPUTS = _readable("outputs of the heads", Site.Z)
NEURONS = _readable("neuron activations", Site.GATE_ACT)
PRODUCTS = _readable("products of the neurons", Site.MLP_POST)
STREAM = _readable("a residual stream", Site.RESID_POST)
MLP_WRITES = _readable("MLP outputs", Site.MLP_OUT)
ROUTER = _readable("a router", Site.ROUTER)
CIRCUITS = Requirement("what every single head writes", _heads_write)
ATTRIBUTION = Requirement("logits that are a sum of what its parts write", _attributes)
LENS = Requirement("logit lens", _lens)
HOLDING = Requirement("neurons that can be held", _holds)
DETECTORS = Requirement("a first layer whose attention a later MLP reads", _detectors)
CHECKPOINTS = Requirement("checkpoints", _checkpoints)

# By part of the report (as the command line names it) and, behind a slash, by what is a piece of one.
REQUIREMENTS: Mapping[str, Sequence[Requirement]] = {
    "neurons": (LOOPS, TEXT, NEURONS),
    "heads": (LOOPS, TEXT, PATTERNS, OUTPUTS, NEURONS),
    "heads/what they write": (CIRCUITS, LENS),
    "sinks": (TEXT, STREAM, PATTERNS),
    "sinks/neurons": (PRODUCTS, MLP_WRITES),
    "first-layer": (TEXT, PATTERNS, VALUES, OUTPUTS, DETECTORS),
    "patch": (TEXT, STREAM, PRODUCTS, HOLDING),
    "text-kinds": (LOOPS, TEXT, OUTPUTS, STREAM, LENS, ATTRIBUTION),
    "information": (LOOPS, TEXT, PATTERNS),
    "training": (CHECKPOINTS,),
    "ablate/neurons": (NEURONS,),
    "ablate/heads": (OUTPUTS,),
    "router-shift": (LOOPS, ROUTER),
}


@dataclass(frozen=True)
class Measurable:
    """Whether a part can be measured on a model.

    Attributes:
        part: of the report, or a command; with a slash, a piece of it.
        measured: whether the model has what it needs.
        reason: what it lacks; of a part that is measured, where it is measured if not everywhere.
    """

    part: str
    measured: bool
    reason: str


def what_can_be_measured(model: Model, parts: Sequence[str] | None = None) -> list[Measurable]:
    """What can be measured on this model, and why not the rest.

    Args:
        model: the model.
        parts: some of :data:`REQUIREMENTS`; all by default.

    Raises:
        InputError: an unknown part.

    Example:
        >>> import mechrep
        >>> rows = what_can_be_measured(mechrep.load_model("mechrep-tiny"))
        >>> [(row.part, row.reason) for row in rows if not row.measured]
        [('router-shift', "lacks a router: in LlamaForCausalLM it is no mixture of experts; needed: site 'router'")]
    """
    chosen = list(REQUIREMENTS) if parts is None else list(parts)
    if chosen:
        some_of("parts", chosen, REQUIREMENTS)
    needed = dict.fromkeys(one for part in chosen for one in REQUIREMENTS[part])
    found = {one: one.reason(model) for one in needed}
    rows = []
    for part in chosen:
        lacking, limits = zip(*(found[one] for one in REQUIREMENTS[part]), strict=True)
        reasons = [one for one in lacking if one]
        rows.append(Measurable(part, not reasons, "; ".join(reasons or [one for one in limits if one])))
    return rows
