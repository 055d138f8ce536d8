"""Pipelines as diffusers has them."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import PIL.Image

from . import arguments
from ._braid import EncodedImage, NativeEngine, NativeOutput, NativePipeline, NativeTicket, PreparedPrompts
from .arguments import PathLike
from .errors import Cancelled
from .live import Live


@dataclasses.dataclass
class Output:
    """Images, the seed of each, whether its VAE ran in f32 as values of its own type were not finite, and seconds by stage, of a request's
    images together."""

    images: list[Any]
    seeds: list[int]
    upcast_vae: list[bool]
    seconds: dict[str, float]
    step_seconds: list[float]
    truncated_tokens: int


def _images(output: NativeOutput, output_type: str) -> list[Any]:
    if output_type == "pil":
        return [PIL.Image.frombytes("RGB", (width, height), rgb) for width, height, rgb in output.images]
    arrays = [np.frombuffer(rgb, np.uint8).reshape(height, width, 3) for width, height, rgb in output.images]
    if output_type == "np":
        return [array.astype(np.float32) / 255 for array in arrays]
    return arrays


def _output(outputs: list[NativeOutput], output_type: str) -> Output:
    seconds: dict[str, float] = {}
    for output in outputs:
        for stage, value in output.seconds.items():
            seconds[stage] = seconds.get(stage, 0.0) + value
    return Output(
        images=[image for output in outputs for image in _images(output, output_type)],
        seeds=[seed for output in outputs for seed in output.seeds],
        upcast_vae=[upcast for output in outputs for upcast in output.upcast_vae],
        seconds=seconds,
        step_seconds=[value for output in outputs for value in output.step_seconds],
        truncated_tokens=max((output.truncated_tokens for output in outputs), default=0),
    )


def _list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


class _Call:
    """A call under way, as its callbacks see it."""

    def __init__(self, live: Live, requests: list[dict[str, Any]]):
        self.live = live
        # The adapters that have references: the same in all requests of a call.
        self.adapters = [i for i, prompt in enumerate(requests[0].get("image_prompts", ())) if prompt["references"]] if requests else []
        self.firsts = list(itertools.accumulate((request["num_images"] for request in requests), initial=0))
        self.interrupted = False
        self.callback_thread: int | None = None


class Pipeline:
    """SDXL with IP-Adapters. Make one with `Pipeline.from_files`; it may be shared by threads, whose calls run one at a time."""

    def __init__(self, native: NativePipeline):
        self._native = native
        self._scale: Any = 1.0
        self._call: _Call | None = None

    @classmethod
    def from_files(
        cls,
        model: PathLike,
        *,
        ip_adapter: PathLike | Sequence[PathLike] | None = None,
        clip_vision: PathLike | None = None,
        loras: PathLike | Sequence[PathLike] | None = None,
        embeddings: PathLike | Sequence[PathLike] | None = None,
        vae: PathLike | None = None,
        taesd: PathLike | None = None,
        config: PathLike | None = None,
        device: str = "auto",
        dtype: str | None = None,
        vae_dtype: str | None = None,
        quantize: str | None = None,
        vae_tiling: int | None = None,
        compat: str | None = None,
        encoders: str | None = None,
        max_batch: int | None = None,
        max_cache_bytes: int | None = None,
        threads: int | None = None,
        mmap: bool = True,
    ) -> Pipeline:
        """Maps the files and checks that they belong together.

        `model` is a single-file SDXL checkpoint or a diffusers folder, `ip_adapter` one file or several, `clip_vision` the image
        encoder (default: `image_encoder/` of the folder). `device` is auto, cpu, cuda or cuda:N. The others are the command's flags.

        Raises `braid.Error` of the kind that says which file or device cannot be used.
        """
        options = {
            "adapters": _list(ip_adapter), "clip_vision": clip_vision, "loras": _list(loras), "embeddings": _list(embeddings),
            "vae": vae, "taesd": taesd, "config": config, "device": device, "dtype": dtype, "vae_dtype": vae_dtype,
            "quantize": quantize, "vae_tiling": vae_tiling, "compat": compat, "encoders": encoders, "max_batch": max_batch,
            "max_cache_bytes": max_cache_bytes, "threads": threads, "mmap": mmap,
        }
        return cls(NativePipeline(model, options))

    @property
    def device(self) -> str:
        """The device that computes, as `cpu` or `cuda:0`."""
        return self._native.device

    @property
    def dtype(self) -> str:
        """The type in which noise is drawn, and a GPU computes: f32, f16 or bf16."""
        return self._native.dtype

    @property
    def num_ip_adapters(self) -> int:
        """The number of adapters that are loaded."""
        return self._native.num_adapters

    @property
    def notes(self) -> list[str]:
        """What was decided about device and types, and why, for the user."""
        return self._native.notes

    def set_ip_adapter_scale(self, scale: Any) -> None:
        """Sets the scale of later calls, and in a callback that of the call under way from its next step on, as diffusers: a number, a
        dictionary of blocks, or a list with one for each adapter; also a preset's name ("style", "layout", ...) or `(preset, strength)`."""
        each = arguments.of_each_adapter(scale, max(self.num_ip_adapters, 1), "scale")
        for value in each:
            arguments.scales(value, "scale")
        call = self._call
        if call is not None and call.callback_thread == threading.get_ident():
            for adapter in call.adapters:
                call.live.set_ip_adapter_scale(each[adapter], adapter)
        self._scale = scale

    def interrupt(self) -> None:
        """Ends the call that runs at its next step, with `braid.Cancelled`; for callbacks."""
        if (call := self._call) is not None:
            call.interrupted = True

    def encode_image(self, image: Any, *, adapter: int = 0, fit: str | None = None) -> list[EncodedImage]:
        """Encodes one image or several for an adapter. Requests take the result in the place of images, without the image encoder;
        `EncodedImage.save(list, path)` writes an image-prompt file."""
        entries = [reference.fields() for reference in arguments.references([_list(image)], 1)[0]]
        return self._native.encode(adapter, {"references": entries, "fit": fit})

    def __call__(
        self,
        prompt: str | list[str] = "",
        *,
        output_type: str = "pil",
        callback_on_step_end: Callable[[Pipeline, int, float | None, dict[str, Any]], Any] | None = None,
        callback_on_preview: Callable[[Pipeline, int, PIL.Image.Image, dict[str, Any]], Any] | None = None,
        preview_every: int = 1,
        live: Live | None = None,
        **request: Any,
    ) -> Output:
        """Generates images.

        Arguments, as in diffusers unless they say otherwise: `negative_prompt`, `prompt_2`, `negative_prompt_2`, `height`, `width`,
        `num_inference_steps` (50), `guidance_scale` (5.0), `guidance_rescale`, `num_images_per_prompt`, `eta`, `clip_skip`,
        `generator` (a fresh `torch.Generator`, or one for each image), `latents` (`[N, 4, h, w]`, the noise), `ip_adapter_image` (an
        image, a list of images that share a softmax, entries may be `Reference` or `EncodedImage`; with several adapters a list with
        an entry for each), `ip_adapter_image_embeds` (embeddings of one adapter), `ip_adapter_scale`, `original_size`,
        `crops_coords_top_left`, `target_size` and their `negative_` ones (height before width), `image` (to begin with), `strength`,
        `mask_image`. braid's own: `seed` (image i has seed + i; default: a random one, told in the result), `scheduler`, `schedule`,
        `prediction_type`, `timestep_spacing`, `guidance_interval`, `ip_adapter_combine`, `ip_adapter_start`, `ip_adapter_end`,
        `ip_adapter_negative_image`, `ip_adapter_fit`, `lora_scales`, `prompt_weights`, `long_prompts`.

        A list of prompts is drawn together. `output_type` is pil, np (floats of 0 to 1) or uint8.
        `callback_on_step_end(pipe, step, timestep, kwargs)` is called after each step of an image; `timestep` is a float and `kwargs`
        has `image`, the image's number, and `num_steps`; what is returned has no effect. `callback_on_preview(pipe, step, preview,
        kwargs)` gets a small image of what is drawn after each `preview_every` steps. A `Live` as `live` changes scales and prompts
        while the call runs. Ctrl-C ends the call at its next step.
        """
        if output_type not in ("pil", "np", "uint8"):
            raise ValueError(f"output_type: {output_type!r} given; pil, np or uint8 is expected")
        if preview_every < 1:
            raise ValueError(f"preview_every: {preview_every} given; at least 1 is needed")
        requests = _requests(self, prompt, **request)
        call = _Call(Live() if live is None else live, requests)

        def on_step(number: int, image: int, done: int, steps: int, timestep: float | None) -> None:
            with self._callback(call):
                if callback_on_step_end is not None:
                    callback_on_step_end(self, done - 1, timestep, {"image": call.firsts[number] + image, "num_steps": steps})

        def on_preview(number: int, image: int, done: int, pixels: tuple[int, int, bytes]) -> None:
            with self._callback(call):
                if callback_on_preview is not None:
                    width, height, rgb = pixels
                    preview = PIL.Image.frombytes("RGB", (width, height), rgb)
                    callback_on_preview(self, done - 1, preview, {"image": call.firsts[number] + image})

        previews = None if callback_on_preview is None else (preview_every, on_preview)
        if self._call is None:
            self._call = call
        try:
            return _output(self._native.generate(requests, on_step, previews, call.live._native, True), output_type)
        finally:
            if self._call is call:
                self._call = None

    @contextlib.contextmanager
    def _callback(self, call: _Call) -> Iterator[None]:
        """Marks a callback of a call; one that was interrupted is ended after it."""
        self._call, call.callback_thread = call, threading.get_ident()
        try:
            yield
        finally:
            call.callback_thread = None
        if call.interrupted:
            raise Cancelled("cancelled")

    def generate_batch(
        self, requests: Sequence[dict[str, Any]], *, output_type: str = "pil", return_exceptions: bool = False
    ) -> list[Any]:
        """Generates the images of several requests together: a result for each, in their order.

        Each is a dictionary with the arguments of a call for one prompt, `prompt` among them. With `return_exceptions` a request that
        fails has its exception in the place of its result and concerns no other; else the first failure is raised.
        """
        results: list[Any] = [None] * len(requests)
        native, places = [], []
        for i, request in enumerate(requests):
            try:
                made = _requests(self, **{"prompt": "", **request}) if isinstance(request.get("prompt", ""), str) else []
                if len(made) != 1:
                    raise TypeError("prompt: a request of a batch has one prompt, and one generator at most")
            except (TypeError, ValueError) as error:
                if not return_exceptions:
                    raise
                results[i] = error
                continue
            native.append(made[0])
            places.append(i)
        for i, result in zip(places, self._native.generate(native, None, None, None, not return_exceptions)):
            results[i] = result if isinstance(result, Exception) else _output([result], output_type)
        return results


_NAMES = {
    "num_inference_steps": "steps", "num_images_per_prompt": "num_images", "schedule": "sigma_schedule", "image": "init_image",
    "mask_image": "mask",
}
_SAME = {
    "negative_prompt", "prompt_2", "negative_prompt_2", "height", "width", "guidance_scale", "guidance_rescale", "eta", "clip_skip",
    "strength", "scheduler", "prediction_type", "timestep_spacing", "guidance_interval", "lora_scales", "prompt_weights",
    "long_prompts",
}
_SIZES = ("original_size", "crops_coords_top_left", "target_size")


def _requests(pipe: Pipeline, prompt: str | list[str], **given: Any) -> list[dict[str, Any]]:
    """The library's requests, one for each prompt."""
    given = {name: value for name, value in given.items() if value is not None}
    fields: dict[str, Any] = {"num_images": given.pop("num_images_per_prompt", 1)}
    for name in list(given):
        if name in _SAME:
            fields[name] = given.pop(name)
        elif name in _NAMES:
            fields[_NAMES[name]] = given.pop(name)
    for name in ("init_image", "mask"):
        if name in fields:
            fields[name] = arguments.pixels(fields[name])
    for prefix, field in (("", "size_conditioning"), ("negative_", "negative_size_conditioning")):
        # diffusers has heights before widths, and tops before lefts.
        sizes = [given.pop(prefix + name, None) for name in _SIZES]
        if any(size is not None for size in sizes):
            fields[field] = tuple(None if size is None else (size[1], size[0]) for size in sizes)
    prompts = _image_prompts(pipe, given)
    if prompts:
        fields["image_prompts"] = prompts
    texts = prompt if isinstance(prompt, list) else [prompt]
    requests = _seeded(texts, fields, given)
    if given:
        raise TypeError(f"there is no argument {next(iter(given))!r}")
    return requests


def _image_prompts(pipe: Pipeline, given: dict[str, Any]) -> list[dict[str, Any]]:
    adapters = pipe.num_ip_adapters
    images, embeds = given.pop("ip_adapter_image", None), given.pop("ip_adapter_image_embeds", None)
    if images is not None and embeds is not None:
        raise ValueError("ip_adapter_image_embeds: given beside ip_adapter_image; give one of them")
    own = {name: given.pop(f"ip_adapter_{name}") for name in ("combine", "start", "end", "fit") if f"ip_adapter_{name}" in given}
    negative = given.pop("ip_adapter_negative_image", None)
    scale = given.pop("ip_adapter_scale", pipe._scale)
    content = images if images is not None else embeds
    if content is None:
        if own or negative is not None:
            raise ValueError("ip_adapter_image: missing, and other arguments say how it acts")
        return []
    if adapters == 0:
        raise ValueError("ip_adapter_image: no adapter is loaded; give ip_adapter= to Pipeline.from_files")
    entries = arguments.references(content, adapters)
    every = arguments.of_each_adapter(scale, adapters, "ip_adapter_scale")
    return [
        {
            "references": [reference.fields() for reference in references],
            "scales": arguments.scales(scale),
            "negative_image": None if negative is None or not references else arguments.reference_image(negative),
            **own,
        }
        for references, scale in zip(entries, every)
    ]


def _seeded(prompts: list[str], fields: dict[str, Any], given: dict[str, Any]) -> list[dict[str, Any]]:
    """The requests with their seeds, or their noise."""
    seed, generator, latents = (given.pop(name, None) for name in ("seed", "generator", "latents"))
    if sum(value is not None for value in (seed, generator)) > 1:
        raise ValueError("generator: given beside seed; give one of them")
    count = fields["num_images"]
    requests = []
    if isinstance(generator, (list, tuple)) or (generator is not None and len(prompts) * count == 1):
        seeds = [arguments.seed_of(g) for g in _list(generator)]
        if len(seeds) != len(prompts) * count:
            raise ValueError(f"generator: {len(seeds)} given for {len(prompts) * count} images; give one for each")
        # Each image is a request of its own, as each has a generator of its own.
        for i, (own, rng) in enumerate(seeds):
            requests.append({"prompt": prompts[i // count], **fields, "num_images": 1, "seed": own, "rng": rng})
    elif generator is not None:
        raise ValueError("generator: one generator for several images; give a list with one for each image, or seed=")
    else:
        first = secrets.randbits(32) if seed is None else seed
        for i, prompt in enumerate(prompts):
            requests.append({"prompt": prompt, **fields, "seed": first + i * count})
    if latents is not None:
        values = arguments.floats(latents)
        images = len(prompts) * count
        if len(values) % images:
            raise ValueError(f"latents: {len(values)} values for {images} images")
        each, at = len(values) // images, 0
        for request in requests:
            request["noise"] = values[at : at + each * request["num_images"]]
            at += each * request["num_images"]
    return requests


class Engine:
    """A queue before a pipeline: requests from any thread are drawn together where they share a size.

    At most `max_waiting` requests wait (64) and `max_running` are drawn at once (8); the first waits `gather` seconds for others (0).
    Use it in a `with` statement, or call `close`.
    """

    def __init__(self, pipe: Pipeline, *, max_waiting: int | None = None, max_running: int | None = None,
                 gather: float | None = None):
        self._pipe = pipe
        self._native = NativeEngine(pipe._native, max_waiting, max_running, gather)

    def submit(self, prompt: str = "", *, priority: int = 0, deadline: float | None = None, **request: Any) -> Ticket:
        """Puts a request into the queue; arguments are those of `Pipeline.__call__` for one prompt and one seed. `deadline` is the
        number of seconds within which it must have begun.

        Raises `braid.Busy` where the queue is full, `braid.Late`, `braid.Stopped`.
        """
        if not isinstance(prompt, str):
            raise TypeError("prompt: an engine takes one prompt a request; submit each")
        requests = _requests(self._pipe, prompt, **request)
        if len(requests) > 1:
            raise ValueError("generator: several generators are several requests; submit each")
        return Ticket(self._native.submit(requests[0], priority, deadline))

    @property
    def waiting(self) -> int:
        """The number of requests that wait."""
        return self._native.waiting

    @property
    def running(self) -> int:
        """The number of requests that are drawn."""
        return self._native.running

    def close(self, *, drain: bool = True) -> None:
        """Takes no more requests, and returns when those that were submitted are done, or, without `drain`, cancelled."""
        self._native.close(drain)

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        self.close(drain=kind is None)


class Ticket:
    """A submitted request. One that nobody holds any more is cancelled."""

    def __init__(self, native: NativeTicket):
        self._native = native

    def result(self, timeout: float | None = None, *, output_type: str = "pil") -> Output:
        """Waits for the result and takes it. Raises `TimeoutError` where it is not there within `timeout` seconds: ask again."""
        output = self._native.wait(timeout)
        if output is None:
            raise TimeoutError(f"the request was not done within {timeout} seconds")
        return _output([output], output_type)

    def cancel(self) -> None:
        """Stops the request: at once where it waits, at its next step where it runs."""
        self._native.cancel()

    def set_ip_adapter_scale(self, scale: Any, adapter: int = 0) -> None:
        """Sets an adapter's scale from the next step on."""
        self._native.set_scales(adapter, *arguments.scales(scale, "scale"))

    def set_prompts(self, prompts: PreparedPrompts) -> None:
        """Exchanges prompts and references from the next step on; see `Live.set_prompts`."""
        self._native.set_prompts(prompts)

    @property
    def status(self) -> tuple[Any, ...]:
        """`("waiting", requests before it)`, `("running", done, steps)` or `("done",)`."""
        return self._native.status()
