"""Stable Diffusion XL with IP-Adapter image prompts: exact, fast, from published files.

    import braid

    pipe = braid.Pipeline.from_files("sd_xl_base_1.0.safetensors", ip_adapter="ip-adapter_sdxl.bin",
                                     clip_vision="image_encoder")
    image = pipe("a garden at dawn", ip_adapter_image="reference.png", seed=7).images[0]

Arguments have diffusers' names where diffusers has them.
"""

from ._braid import EncodedImage, PreparedPrompts, __version__
from .arguments import Reference
from .errors import (Busy, Cancelled, ChangedFileError, ConfigError, DeviceError, Error, FileError, InCallback, Late,
                     MalformedFileError, MismatchError, NotFiniteError, OutOfMemoryError, ParameterError, Stopped)
from .live import Live
from .pipeline import Engine, Output, Pipeline, Ticket
from .session import Session

__all__ = [
    "Busy", "Cancelled", "ChangedFileError", "ConfigError", "DeviceError", "EncodedImage", "Engine", "Error",
    "FileError", "InCallback", "Late", "Live", "MalformedFileError", "MismatchError", "NotFiniteError", "Output", "OutOfMemoryError",
    "ParameterError", "Pipeline", "PreparedPrompts", "Reference", "Session", "Stopped", "Ticket", "__version__",
]
