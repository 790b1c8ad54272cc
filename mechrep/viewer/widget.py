"""The viewer beside a running kernel: maps of further layers are read when somebody moves the slider.

Needs ``mechrep[widget]``; everything that a view shows without a kernel it shows without this module.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

import anywidget
import traitlets

from mechrep.errors import MechrepError
from mechrep.viewer.assets import viewer_script, viewer_style

Maps = list[dict[str, Any]]


class ViewWidget(anywidget.AnyWidget):
    """A view as an ipywidget; :meth:`mechrep.viewer.show.View.widget` makes one.

    The script asks for a layer with a message ``{"layer": 3}`` and is answered with its maps, or with the error.

    Args:
        payload: what the script is given.
        maps_of: reads the maps of a layer.
        fragment: what stands in the notebook beside it, for where no widget can be shown.
    """

    _esm = viewer_script()
    _css = viewer_style()
    payload = traitlets.Dict().tag(sync=True)

    def __init__(self, payload: Mapping[str, Any], maps_of: Callable[[int], Maps], fragment: str) -> None:
        self.maps_of, self.fragment = maps_of, fragment
        super().__init__(payload=dict(payload))
        self.on_msg(self._asked)

    def _asked(self, _widget: Any, content: Any, _buffers: Any) -> None:
        layer = content.get("layer") if isinstance(content, dict) else None
        if isinstance(layer, int):
            answer = None
            try:
                answer = self.answer(layer)
            finally:  # whatever went wrong, in the log of the kernel: nobody is left waiting
                error = sys.exception()
                self.send(answer or {"layer": layer, "error": f"{type(error).__name__}: {error}"})

    def answer(self, layer: int) -> dict[str, Any]:
        """What is sent for a layer: its ``maps``, or an ``error``."""
        try:
            return {"layer": layer, "maps": self.maps_of(layer)}
        except MechrepError as error:
            return {"layer": layer, "error": str(error)}

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        data, metadata = super()._repr_mimebundle_(**kwargs) or ({}, {})
        return data | {"text/html": self.fragment}, metadata
