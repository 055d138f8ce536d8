"""Requests that are encoded once and drawn again."""

from __future__ import annotations

from typing import Any

from . import arguments
from ._braid import PreparedPrompts
from .pipeline import Output, Pipeline, _requests

_IMAGES = ("ip_adapter_image", "ip_adapter_negative_image", "image", "mask_image")
# One that is given to a call takes the place of the other, too.
_ONE_OF = ({"seed", "generator"}, {"ip_adapter_image", "ip_adapter_image_embeds"})


class Session:
    """A request that is encoded once, to be drawn again: with another seed, scale or number of images it costs its steps and its decoding.

    Arguments are those of `Pipeline.__call__` for one prompt and one generator; images are read once. A call draws the request with
    arguments of its own in the place of the session's. The images are those that the pipeline gives for them; other prompts or references
    are encoded as for a request of its own. Without a seed each call has a random one, without a scale it has the pipeline's.
    """

    def __init__(self, pipe: Pipeline, prompt: str = "", **request: Any):
        self._pipe = pipe
        self._request = {name: arguments.held(value) if name in _IMAGES else value for name, value in request.items()}
        self._request["prompt"] = prompt
        self._native = pipe._native.session(self._fields({}))

    def __call__(self, **request: Any) -> Output:
        """Generates images; arguments are those of `Pipeline.__call__`."""
        return self._pipe(**self._with(request))

    def prepare_prompts(
        self,
        prompt: str | None = None,
        *,
        negative_prompt: str | None = None,
        prompt_2: str | None = None,
        negative_prompt_2: str | None = None,
        ip_adapter_image: Any = None,
    ) -> PreparedPrompts:
        """Encodes prompts and references for `Live.set_prompts` and `Ticket.set_prompts`; those that are None are the session's.

        Raises `braid.ParameterError` where the session's request has no room for them: more tokens or references.
        """
        given = {
            "prompt": prompt, "negative_prompt": negative_prompt, "prompt_2": prompt_2, "negative_prompt_2": negative_prompt_2,
            "ip_adapter_image": ip_adapter_image,
        }
        return self._native.prepare_prompts(self._fields({name: value for name, value in given.items() if value is not None}))

    def _with(self, given: dict[str, Any]) -> dict[str, Any]:
        """The session's arguments with those in their place."""
        replaced = set().union(*(names for names in _ONE_OF if names & given.keys()))
        return {**{name: value for name, value in self._request.items() if name not in replaced}, **given}

    def _fields(self, given: dict[str, Any]) -> dict[str, Any]:
        request = self._with(given)
        if not isinstance(request["prompt"], str):
            raise TypeError("prompt: a session has one prompt; make one for each")
        requests = _requests(self._pipe, **request)
        if len(requests) > 1:
            raise ValueError("generator: several generators are several requests; make a session for one of them")
        return requests[0]

    def __repr__(self) -> str:
        return repr(self._native)
