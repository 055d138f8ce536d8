"""An endpoint for images over Ray Serve that speaks OpenAI's protocol.

    BRAID_OPTIONS='{"model": "sdxl.safetensors", "ip_adapter": "ip-adapter.bin", "clip_vision": "image_encoder"}' serve run ray_serve:build

`POST /v1/images/generations` draws from a prompt, `POST /v1/images/edits` takes images, which are image prompts. Each replica has a
pipeline and a queue before it: requests of one size are drawn together. Replicas take a GPU each where the cluster has any.

Beyond OpenAI's fields: `seed`, `negative_prompt`, `num_inference_steps`, `guidance_scale`, `scheduler`, `ip_adapter_scale`.
"""

import asyncio
import base64
import io
import json
import os
import re
import secrets
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import PIL.Image
import PIL.ImageOps
import ray
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from ray import serve
from starlette.datastructures import UploadFile

import braid

api = FastAPI(title="Braid")

LIMITS = {"max_waiting": 64, "max_running": 8}
FORMATS = ("png", "jpeg", "webp")
OWN = ("negative_prompt", "scheduler")
NUMBERS = {"num_inference_steps": int, "guidance_scale": float, "ip_adapter_scale": float, "seed": int}
KNOWN = {"prompt", "n", "size", "response_format", "output_format", "model", "user", "quality", "background", "moderation",
         "output_compression", "style", *OWN, *NUMBERS}
MAX_IMAGES = 10
MAX_UPLOAD = 50 << 20


class Refused(Exception):
    """A request that cannot be; `param` names the field."""

    def __init__(self, message: str, param: str | None = None, status: int = 400):
        super().__init__(message)
        self.param, self.status = param, status


def failure(message: str, status: int, param: str | None = None) -> JSONResponse:
    kind = "invalid_request_error" if status < 429 else "rate_limit_error" if status == 429 else "server_error"
    headers = {"Retry-After": "1"} if status in (429, 503) else None
    return JSONResponse({"error": {"message": message, "type": kind, "param": param, "code": None}}, status, headers)


def arguments(fields: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Arguments of `Engine.submit`, and the format of the files."""
    unknown = sorted(set(fields) - KNOWN)
    if unknown:
        raise Refused(f"there is no field {unknown[0]!r}", unknown[0])
    prompt = fields.get("prompt")
    if not isinstance(prompt, str) or not prompt:
        raise Refused("prompt: a text is expected", "prompt")
    if fields.get("response_format", "b64_json") != "b64_json":
        raise Refused("response_format: only b64_json is served; nothing is stored under a URL", "response_format")
    file_format = fields.get("output_format", "png")
    if file_format not in FORMATS:
        raise Refused(f"output_format: one of {', '.join(FORMATS)} is expected", "output_format")
    result: dict[str, Any] = {"prompt": prompt, "num_images_per_prompt": number(fields, "n", int, 1)}
    if not 1 <= result["num_images_per_prompt"] <= MAX_IMAGES:
        raise Refused(f"n: 1 to {MAX_IMAGES} is allowed", "n")
    size = fields.get("size", "auto")
    if size != "auto":
        match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", str(size))
        if not match:
            raise Refused("size: auto, or WIDTHxHEIGHT such as 1024x1024 is expected", "size")
        result["width"], result["height"] = int(match[1]), int(match[2])
    for name, kind in NUMBERS.items():
        if name in fields:
            result[name] = number(fields, name, kind, None)
    result |= {name: str(fields[name]) for name in OWN if name in fields}
    result.setdefault("seed", secrets.randbits(32))
    return result, file_format


def number(fields: dict[str, Any], name: str, kind: type, default: Any) -> Any:
    """A number of a JSON body or of a form, where it is text."""
    try:
        return kind(fields.get(name, default))
    except (TypeError, ValueError):
        raise Refused(f"{name}: {'a whole number' if kind is int else 'a number'} is expected", name) from None


def encoded(image: PIL.Image.Image, file_format: str) -> str:
    file = io.BytesIO()
    image.save(file, file_format, **({"quality": 95} if file_format == "jpeg" else {"lossless": True} if file_format == "webp" else {}))
    return base64.b64encode(file.getvalue()).decode()


# Everything that the class uses stands before it: Ray Serve takes its globals as they are when it is decorated.
def opened(file: bytes) -> PIL.Image.Image:
    try:
        image = PIL.Image.open(io.BytesIO(file), formats=("PNG", "JPEG", "WEBP"))
        image.load()
        return PIL.ImageOps.exif_transpose(image)
    except Exception:
        raise Refused("image: a PNG, JPEG or WebP file is expected", "image") from None


@serve.deployment(max_ongoing_requests=LIMITS["max_waiting"] + LIMITS["max_running"])
@serve.ingress(api)
class Images:
    """A pipeline and its queue."""

    def __init__(self, options: dict[str, Any]):
        self.pipe = braid.Pipeline.from_files(**options)
        self.engine = braid.Engine(self.pipe, **LIMITS)
        self.waiting = ThreadPoolExecutor(sum(LIMITS.values()), thread_name_prefix="ticket")

    @api.get("/health")
    def health(self) -> dict[str, Any]:
        return {"pid": os.getpid(), "device": self.pipe.device, "waiting": self.engine.waiting, "running": self.engine.running}

    @api.post("/v1/images/generations")
    async def generations(self, request: Request) -> JSONResponse:
        try:
            fields = await request.json()
        except ValueError:
            return failure("the body is not JSON", 400)
        if not isinstance(fields, dict):
            return failure("the body is not a JSON object", 400)
        return await self.answer(request, fields, [])

    @api.post("/v1/images/edits")
    async def edits(self, request: Request) -> JSONResponse:
        fields, images = {}, []
        async with request.form(max_files=16, max_part_size=MAX_UPLOAD) as form:
            for name, value in form.multi_items():
                if not isinstance(value, UploadFile):
                    fields[name] = value
                elif name in ("image", "image[]"):
                    images.append(await value.read())
                else:
                    return failure(f"{name}: the images of an edit are image prompts, and nothing else is taken", 400, name)
        if not images:
            return failure("image: at least one is expected", 400, "image")
        return await self.answer(request, fields, images)

    async def answer(self, request: Request, fields: dict[str, Any], files: list[bytes]) -> JSONResponse:
        try:
            submitted, file_format = arguments(fields)
            if files:
                submitted["ip_adapter_image"] = [opened(file) for file in files]
            output = await self.draw(request, submitted)
        except Refused as error:
            return failure(str(error), error.status, error.param)
        except braid.Busy as error:
            return failure(str(error), 429)
        except braid.OutOfMemoryError as error:
            return failure(str(error), 503)
        except (braid.ParameterError, ValueError, OverflowError) as error:
            return failure(str(error), 400, getattr(error, "field", None))
        except braid.Error as error:
            return failure(str(error), 500)
        data = [{"b64_json": encoded(image, file_format), "seed": seed} for image, seed in zip(output.images, output.seeds)]
        return JSONResponse({"created": int(time.time()), "output_format": file_format, "data": data})

    async def draw(self, request: Request, submitted: dict[str, Any]) -> braid.Output:
        """Waits for the result; a client that has gone cancels its request."""
        ticket = self.engine.submit(**submitted)
        result = asyncio.get_running_loop().run_in_executor(self.waiting, ticket.result)
        while not (await asyncio.wait([result], timeout=0.5))[0]:
            if await request.is_disconnected():
                ticket.cancel()
        return await result


def build(args: dict[str, Any]) -> serve.Application:
    """The application for these options: `serve run ray_serve:build options=JSON replicas=N`, or in Python."""
    options = args.get("options") or os.environ.get("BRAID_OPTIONS")
    if not options:
        raise ValueError("options: the arguments of braid.Pipeline.from_files are missing; give options= or set BRAID_OPTIONS, as JSON")
    options = options if isinstance(options, dict) else json.loads(options)
    gpus = ray.cluster_resources().get("GPU", 0) if ray.is_initialized() else 0
    actor = {"num_gpus": 1} if gpus else {"num_cpus": 1}
    device = {} if gpus or "device" in options else {"device": "cpu"}
    replicas = int(args.get("replicas", 1))
    return Images.options(num_replicas=replicas, ray_actor_options=actor).bind({**options, **device})
