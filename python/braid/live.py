"""Scales and prompts that change while images are drawn."""

from __future__ import annotations

from typing import Any

from . import arguments
from ._braid import NativeLive, PreparedPrompts


class Live:
    """A handle by which any thread, or a callback, sets scales and prompts of calls that have it as `live`.

    What is set last counts from the next step of each image on, and for images that begin later from their first one. A call without an
    image prompt for an adapter whose scale is set raises `braid.ParameterError` at its next step.
    """

    def __init__(self) -> None:
        self._native = NativeLive()

    def set_ip_adapter_scale(self, scale: Any, adapter: int = 0) -> None:
        """Sets an adapter's scale, as `Pipeline.set_ip_adapter_scale`."""
        self._native.set_scales(adapter, *arguments.scales(scale, "scale"))

    def set_prompts(self, prompts: PreparedPrompts) -> None:
        """Exchanges prompts and references for those that `Session.prepare_prompts` has encoded, for a request like the session's."""
        self._native.set_prompts(prompts)
