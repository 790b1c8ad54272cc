"""What all interventions have in common: they compile to affine edits of sites and know where they begin."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from jaxtyping import Float, Int
from torch import Tensor

from mechrep.errors import InputError
from mechrep.models.anatomy import Anatomy, Site

if TYPE_CHECKING:
    from mechrep.models.model import Model

When = Literal["all", "last", "from_onset"]
WHENS: tuple[When, ...] = ("all", "last", "from_onset")
Place = tuple[Site, int]
Holds = dict[int, tuple[int, ...]]  # neurons by layer


@dataclass(frozen=True)
class Edit:
    """``activation * factor + offset`` along the last axis of one site of one layer.

    At ``Z`` the heads lie side by side, ``head * d_head`` units.  At ``PATTERN`` a unit is a head: its rows become
    ``row * factor``, and ``offset`` is added to what they give to the first key.
    """

    factor: Float[Tensor, " unit"]
    offset: Float[Tensor, " unit"]

    def then(self, other: Edit) -> Edit:
        """This edit followed by ``other``."""
        return Edit(self.factor * other.factor, self.offset * other.factor + other.offset)


Edits = dict[Place, Edit]


def in_order(places: Iterable[Place]) -> list[Place]:
    """Places in the order of the model: the activation function before its product, the pattern before ``z``."""
    return sorted(places, key=lambda place: place[0] not in (Site.GATE_ACT, Site.PATTERN))


class Intervention(ABC):
    """A frozen description of what to change in a model; add two to apply both.

    Attributes:
        when: ``"all"`` positions; ``"last"``: from the prompt's last position on, that is at the newest position of
            every decoding step; ``"from_onset"``: from the position that predicts the onset token on.
    """

    when: When

    @abstractmethod
    def edits(self, anatomy: Anatomy, text: int = 0) -> Edits:
        """The affine edits for the text with this number (only resampling depends on it)."""

    @property
    @abstractmethod
    def differs_by_text(self) -> bool:
        """Whether two texts get different edits."""

    def holds(self, anatomy: Anatomy) -> Holds:
        """Neurons whose up-projection is held at the level of the text's first token after BOS; most hold none."""
        return {}

    def __add__(self, other: Intervention) -> Intervention:
        """Both interventions, this one first."""
        return Combined((self, other))

    def hooks(
        self,
        model: Model,
        starts: Int[Tensor, " batch"] | None = None,
        anchors: Int[Tensor, " batch"] | None = None,
    ) -> list[tuple[str, Callable[..., Any]]]:
        """TransformerLens hooks for ``run_with_hooks``, for full forward passes (no cache).

        Args:
            model: the model that will run.
            starts: first edited position of each row; not needed for ``when="all"``.  Without it, ``"last"`` edits
                the last position of every call, which is right only where each call brings one new token.
            anchors: for neurons held at the level of the first token after BOS: its position in each row.  By
                default 1 in rows whose first token is BOS and 0 in others; give them where rows are padded on the left.

        Raises:
            InputError: ``when="from_onset"`` without ``starts``, or units that the model does not have.
        """
        from mechrep.interventions.edits import transformer_lens_hooks

        return transformer_lens_hooks(self, model, starts, anchors=anchors)


@dataclass(frozen=True, eq=False)
class Combined(Intervention):
    """Several interventions applied one after the other; all must begin at the same place.

    Parts that meet at one site take effect in the order given.  At different sites each takes effect where the model
    computes it, whichever was named first: attention is moved before ``z`` is edited, up-projections are held before
    ``GATE_ACT`` is edited, and that before ``MLP_POST``.

    Raises:
        InputError: parts that differ in ``when``.
    """

    parts: tuple[Intervention, ...]

    def __post_init__(self) -> None:
        begins = {part.when for part in self.parts}
        if len(begins) != 1:
            raise InputError(
                f"interventions with when = {sorted(begins)}", "one and the same", "give all parts the same when"
            )

    @property
    def when(self) -> When:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Where all parts begin."""
        return self.parts[0].when

    @property
    def differs_by_text(self) -> bool:
        """Whether any part does."""
        return any(part.differs_by_text for part in self.parts)

    def edits(self, anatomy: Anatomy, text: int = 0) -> Edits:
        """The parts' edits, composed in order where they meet."""
        composed: Edits = {}
        for part in self.parts:
            for place, edit in part.edits(anatomy, text).items():
                composed[place] = composed[place].then(edit) if place in composed else edit
        return composed

    def holds(self, anatomy: Anatomy) -> Holds:
        """The parts' held neurons together."""
        together: dict[int, set[int]] = {}
        for part in self.parts:
            for layer, neurons in part.holds(anatomy).items():
                together.setdefault(layer, set()).update(neurons)
        return {layer: tuple(sorted(neurons)) for layer, neurons in together.items()}
