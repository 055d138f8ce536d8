"""diffusers' arguments as the library's fields."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from typing import Any, Union

import numpy as np
import PIL.Image

from ._braid import EncodedImage, read_image

PathLike = Union[str, "os.PathLike[str]"]
ImageLike = Union[PathLike, PIL.Image.Image, np.ndarray]
"""A path, a PIL image, or an array `[H, W, 3]` (uint8, or floats of 0 to 1)."""


@dataclasses.dataclass
class Reference:
    """A reference of an image prompt.

    `image` is an image, an `EncodedImage`, or an embedding as an array of floats (`image_embeds`, `[E]`; of an IP-Adapter Plus
    `[T, E]`). `weight` and `mask` (white where the reference acts) are as in the command; each of `texts` is a text whose embedding
    is added to the image's, with its factor.
    """

    image: Any
    weight: float = 1.0
    mask: ImageLike | None = None
    texts: Sequence[tuple[str, float]] = ()

    def fields(self) -> dict[str, Any]:
        return {
            "image": reference_image(self.image),
            "weight": float(self.weight),
            "mask": None if self.mask is None else pixels(self.mask),
            "texts": list(self.texts),
        }


def is_image(value: Any) -> bool:
    if isinstance(value, np.ndarray):
        return value.ndim == 3
    return isinstance(value, (str, os.PathLike, PIL.Image.Image))


def pixels(image: ImageLike) -> Any:
    """An image as the native half takes it: a path, or width, height and RGB bytes."""
    if isinstance(image, (str, os.PathLike)):
        return os.fspath(image)
    if isinstance(image, PIL.Image.Image):
        if image.mode != "RGB":
            # What is transparent lies on white, as in transformers 5 and in the command.
            if "A" in image.getbands() or "transparency" in image.info:
                image = image.convert("RGBA")
                image = PIL.Image.alpha_composite(PIL.Image.new("RGBA", image.size, "white"), image)
            image = image.convert("RGB")
        return image.width, image.height, image.tobytes()
    array = np.asarray(image)
    if array.ndim != 3 or array.shape[2] != 3:
        raise TypeError(f"an image as an array is [H, W, 3], got {list(array.shape)}")
    if np.issubdtype(array.dtype, np.floating):
        if not (array.min(initial=0) >= 0 and array.max(initial=0) <= 1):
            raise ValueError("an image of floats lies within 0 to 1")
        array = (array * 255).round()
    elif array.dtype != np.uint8:
        raise TypeError(f"an image as an array is of uint8, or of floats of 0 to 1, got {array.dtype}")
    return array.shape[1], array.shape[0], np.ascontiguousarray(array, dtype=np.uint8).tobytes()


def reference_image(value: Any) -> Any:
    """An image, an encoded image, or an embedding, as the native half takes it."""
    if isinstance(value, EncodedImage) or is_image(value):
        return value if isinstance(value, EncodedImage) else pixels(value)
    return floats(value)


def held(value: Any) -> Any:
    """An argument of images as it is now: pixels in the place of files, PIL images and arrays, which may be written to later."""
    if isinstance(value, (list, tuple)):
        return [held(entry) for entry in value]
    if isinstance(value, Reference):
        return dataclasses.replace(value, image=held(value.image), mask=held(value.mask))
    if not is_image(value):
        return value
    given = pixels(value)
    width, height, rgb = given if isinstance(given, tuple) else read_image(given)
    return np.frombuffer(rgb, np.uint8).reshape(height, width, 3)


def floats(value: Any) -> memoryview:
    """Numbers, of a tensor of torch too, as a flat buffer of f32."""
    if hasattr(value, "detach"):
        value = value.detach().cpu().float().numpy()
    return np.ascontiguousarray(value, dtype=np.float32).reshape(-1).data


def scales(value: Any, what: str = "ip_adapter_scale") -> tuple[str, float]:
    """`set_ip_adapter_scale`'s argument of one adapter: a number, a dictionary of blocks, or a preset's name."""
    if isinstance(value, str):
        return value, 1.0
    if isinstance(value, dict):
        return json.dumps(value), 1.0
    if isinstance(value, tuple):
        preset, strength = value
        return scales(preset)[0], float(strength)
    if isinstance(value, (int, float, np.number)):
        return "full", float(value)
    raise TypeError(f"{what}: a number, a dictionary of blocks, a preset's name, or (preset, strength) is expected, got {value!r}")


def of_each_adapter(value: Any, adapters: int, what: str) -> list[Any]:
    """A value for each adapter: one for all, or a list of as many."""
    if not isinstance(value, list):
        return [value] * adapters
    if len(value) != adapters:
        raise ValueError(f"{what}: {len(value)} given for {adapters} adapters; give one for all, or a list of {adapters}")
    return value


def references(image: Any, adapters: int) -> list[list[Reference]]:
    """`ip_adapter_image`: for one adapter an image or a list of them, for several a list with an entry for each."""
    if image is None:
        return []
    if adapters > 1:
        if not isinstance(image, (list, tuple)):
            raise ValueError(f"ip_adapter_image: {adapters} adapters are loaded; give a list with an image, a list of images or None for each")
        if len(image) != adapters:
            raise ValueError(f"ip_adapter_image: {len(image)} given for {adapters} adapters; give an image, a list of images or None for each")
        entries = list(image)
    else:
        entries = [image]
        # diffusers' own form for one adapter: a list with a list of images.
        if isinstance(image, (list, tuple)) and len(image) == 1 and isinstance(image[0], (list, tuple)):
            entries = [image[0]]
    result = []
    for entry in entries:
        if entry is None:
            entry = []
        several = isinstance(entry, (list, tuple)) and not (entry and isinstance(entry[0], (int, float)))
        images = list(entry) if several else [entry]
        result.append([image if isinstance(image, Reference) else Reference(image) for image in images])
    return result


def seed_of(generator: Any) -> tuple[int, str]:
    """Seed and kind of a `torch.Generator` from which nothing was drawn yet."""
    kind = generator.device.type
    fresh = type(generator)(device=generator.device).manual_seed(generator.initial_seed())
    if not fresh.get_state().equal(generator.get_state()):
        raise ValueError("generator: numbers were drawn from it, and braid begins at its seed; seed it again, or give seed=")
    return generator.initial_seed(), kind
