"""The wheel beside the command: the same bytes for the same request, whatever form its arguments have."""

import signal
import threading
import time

import numpy as np
import PIL.Image
import pytest
from conftest import ASSETS, REFERENCES, load

import braid

SMALL = {"height": 64, "width": 64, "num_inference_steps": 4, "guidance_scale": 3.0}
FLAGS = ["-H", "64", "-W", "64", "--steps", "4", "--cfg-scale", "3", "-s", "5"]


def rgb(output):
    return [image.tobytes() for image in output.images]


def test_command_bytes(pipe, command):
    expected = command("-p", "a red circle", "--ip-adapter-image", REFERENCES[0], "--ip-adapter-strength", "0.5", *FLAGS)
    request = {**SMALL, "ip_adapter_scale": 0.5, "seed": 5}
    reference = PIL.Image.open(REFERENCES[0])
    for image in (REFERENCES[0], str(REFERENCES[0]), reference, np.asarray(reference.convert("RGB")), [reference], [[reference]],
                  braid.Reference(reference), np.asarray(reference.convert("RGB"), dtype=np.float32) / 255):
        assert rgb(pipe("a red circle", ip_adapter_image=image, **request)) == [expected]
    assert rgb(pipe("a red circle", ip_adapter_image=reference, **{**request, "ip_adapter_scale": 0.6})) != [expected]


def test_text_alone(pipe, command):
    expected = command("-p", "two stars", "-n", "blurry", *FLAGS)
    assert rgb(pipe("two stars", negative_prompt="blurry", seed=5, **SMALL)) == [expected]
    assert rgb(pipe("two stars", seed=5, **SMALL)) != [expected]


def test_batches(pipe):
    alone = [rgb(pipe(prompt, seed=seed, **SMALL))[0] for prompt, seed in [("a star", 3), ("a star", 4), ("a ring", 5), ("a ring", 6)]]
    together = pipe(["a star", "a ring"], num_images_per_prompt=2, seed=3, **SMALL)
    assert rgb(together) == alone
    assert together.seeds == [3, 4, 5, 6]
    assert len(set(alone)) == 4


def test_requests_of_their_own(pipe):
    requests = [
        {"prompt": "a star", "seed": 3, **SMALL},
        {"prompt": "a ring", "seed": 4, "ip_adapter_image": REFERENCES[0], **{**SMALL, "num_inference_steps": 2}},
    ]
    alone = [rgb(pipe(**request)) for request in requests]
    assert [rgb(output) for output in pipe.generate_batch(requests)] == alone
    wrong = [{"prompt": "a star", "steps": 1}, {"prompt": "a star", **SMALL, "num_inference_steps": 0}]
    results = pipe.generate_batch([requests[0], *wrong, requests[1]], return_exceptions=True)
    assert [rgb(results[0]), rgb(results[3])] == alone
    assert isinstance(results[1], TypeError) and results[2].field == "steps"
    with pytest.raises(braid.ParameterError):
        pipe.generate_batch([requests[0], wrong[1]])


def test_scales_and_references(pipe, command):
    blocks = {"down": {"block_2": [0.0, 1.0]}, "up": {"block_0": [0.0, 1.0, 0.0]}}
    expected = command("-p", "a star", "--ip-adapter-image", REFERENCES[0], "--ip-adapter-weight", "0.5", "--ip-adapter-image",
                       REFERENCES[1], "--ip-adapter-blocks", '{"down":{"block_2":[0,1]},"up":{"block_0":[0,1,0]}}', *FLAGS)
    images = [braid.Reference(REFERENCES[0], weight=0.5), REFERENCES[1]]
    try:
        pipe.set_ip_adapter_scale(blocks)
        assert rgb(pipe("a star", ip_adapter_image=images, seed=5, **SMALL)) == [expected]
    finally:
        pipe.set_ip_adapter_scale(1.0)
    assert rgb(pipe("a star", ip_adapter_image=images, seed=5, **SMALL)) != [expected]


def test_init_image(pipe, command, tmp_path):
    start = tmp_path / "start.png"
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[:, 32:] = 200
    PIL.Image.fromarray(pixels).save(start)
    expected = command("-p", "a star", "-i", start, "--strength", "0.5", "--steps", "4", "--cfg-scale", "3", "-s", "5")
    del (request := dict(SMALL))["height"], request["width"]
    assert rgb(pipe("a star", image=pixels, strength=0.5, seed=5, **request)) == [expected]


def test_encoded_images(pipe, tmp_path):
    image = pipe("a star", ip_adapter_image=REFERENCES[0], seed=5, **SMALL)
    encoded = pipe.encode_image(REFERENCES[0])
    path = tmp_path / "star.ipprompt.safetensors"
    braid.EncodedImage.save(encoded, path)
    read = braid.EncodedImage.load(path)
    assert encoded[0].source_size == PIL.Image.open(REFERENCES[0]).size
    for given in (encoded, read, read[0]):
        assert rgb(pipe("a star", ip_adapter_image=given, seed=5, **SMALL)) == rgb(image)
    embeds = np.asarray(encoded[0].embedding, np.float32)
    assert rgb(pipe("a star", ip_adapter_image_embeds=embeds, seed=5, **SMALL)) == rgb(image)


def test_transparency(pipe):
    reference = PIL.Image.open(REFERENCES[0]).convert("RGBA")
    reference.putalpha(128)
    opaque = PIL.Image.alpha_composite(PIL.Image.new("RGBA", reference.size, "white"), reference).convert("RGB")
    images = [rgb(pipe("", ip_adapter_image=image, seed=1, **SMALL)) for image in (reference, opaque)]
    assert images[0] == images[1]


def test_output_types(pipe):
    pil, floats, integers = (pipe("a star", seed=1, output_type=t, **SMALL).images[0] for t in ("pil", "np", "uint8"))
    assert pil.size == (64, 64)
    assert floats.dtype == np.float32 and floats.shape == (64, 64, 3)
    assert np.array_equal(np.asarray(pil), integers)
    assert np.array_equal((floats * 255).round().astype(np.uint8), integers)


def test_latents(pipe):
    latents = np.random.default_rng(1).standard_normal((2, 4, 8, 8), dtype=np.float32)
    images = rgb(pipe("a star", num_images_per_prompt=2, latents=latents, seed=0, **SMALL))
    assert images == [rgb(pipe("a star", latents=latents[i : i + 1], seed=9, **SMALL))[0] for i in range(2)]
    with pytest.raises(braid.ParameterError) as raised:
        pipe("a star", latents=latents, **SMALL)
    assert raised.value.field == "noise"


class FakeGenerator:
    """What a `torch.Generator` shows of itself."""

    class device:
        type = "cpu"

    def __init__(self, device=None):
        self.seed, self.drawn = 0, 0

    def manual_seed(self, seed):
        self.seed = seed
        return self

    def initial_seed(self):
        return self.seed

    def get_state(self):
        return np.array([self.seed, self.drawn]).view(State)


class State(np.ndarray):
    def equal(self, other):
        return bool((np.asarray(self) == np.asarray(other)).all())


def test_generators(pipe):
    expected = rgb(pipe(["a star", "a ring"], seed=7, **SMALL))
    generators = [FakeGenerator().manual_seed(seed) for seed in (7, 8)]
    assert rgb(pipe(["a star", "a ring"], generator=generators, **SMALL)) == expected
    assert rgb(pipe("a star", generator=generators[0], **SMALL)) == expected[:1]
    generators[0].drawn = 1
    with pytest.raises(ValueError, match="drawn from it"):
        pipe("a star", generator=generators[0], **SMALL)
    with pytest.raises(ValueError, match="one for each image"):
        pipe(["a star", "a ring"], generator=generators[1], **SMALL)


def test_callback_and_interrupt(pipe):
    seen = []
    pipe("a star", seed=1, callback_on_step_end=lambda p, i, t, k: seen.append((p is pipe, i, t, k["num_steps"])), **SMALL)
    # diffusers' EulerDiscreteScheduler with this configuration.
    assert seen == [(True, i, t, 4) for i, t in enumerate([999.0, 749.0, 499.0, 249.0])]

    def stop(pipe, step, timestep, kwargs):
        if step == 1:
            pipe.interrupt()

    with pytest.raises(braid.Cancelled):
        pipe("a star", seed=1, callback_on_step_end=stop, **SMALL)

    def fail(*_):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        pipe("a star", seed=1, callback_on_step_end=fail, **SMALL)
    assert len(pipe("a star", seed=1, **SMALL).images) == 1


def test_an_interrupt_ends_one_call(pipe):
    """Another thread's call, which has begun to wait before the interrupt, is drawn."""
    waiting = []

    def stop(pipe, step, timestep, kwargs):
        if not waiting:
            begins = threading.Event()
            waiting.append(threading.Thread(target=lambda: (begins.set(), images.append(rgb(pipe("a ring", seed=2, **SMALL))))))
            waiting[0].start()
            begins.wait()
            time.sleep(0.05)
        pipe.interrupt()

    images = []
    with pytest.raises(braid.Cancelled):
        pipe("a star", seed=1, callback_on_step_end=stop, **SMALL)
    waiting[0].join()
    assert images == [rgb(pipe("a ring", seed=2, **SMALL))]


def test_previews(pipe, command, tmp_path):
    path, seen = tmp_path / "preview.png", []
    expected = command("-p", "a star", "--preview", path, "--preview-every", "2", *FLAGS)
    show = lambda p, i, image, k: seen.append((p is pipe, i, image, k))
    output = pipe("a star", seed=5, callback_on_preview=show, preview_every=2, **SMALL)
    assert rgb(output) == [expected]
    assert [(same, i, kwargs) for same, i, _, kwargs in seen] == [(True, 1, {"image": 0}), (True, 3, {"image": 0})]
    assert seen[1][2].tobytes() == PIL.Image.open(path).convert("RGB").tobytes() != seen[0][2].tobytes()
    with pytest.raises(ValueError, match="preview_every"):
        pipe("a star", preview_every=0, **SMALL)


def test_scales_in_callbacks(pipe):
    """As in diffusers: the call under way from its next step on, and later ones."""
    request = {"ip_adapter_image": REFERENCES[0], "seed": 5, **SMALL}

    def silence(pipe, step, timestep, kwargs):
        if step == 1:
            pipe.set_ip_adapter_scale(0.0)

    try:
        halves = rgb(pipe("a star", callback_on_step_end=silence, **request))
        later = rgb(pipe("a star", **request))
        assert len(pipe("a star", callback_on_step_end=silence, seed=5, **SMALL).images) == 1
    finally:
        pipe.set_ip_adapter_scale(1.0)
    assert halves == rgb(pipe("a star", ip_adapter_end=0.5, **request))
    assert later == rgb(pipe("a star", ip_adapter_scale=0.0, **request))
    live = braid.Live()
    live.set_ip_adapter_scale(0.0)
    assert later == rgb(pipe("a star", live=live, **request))
    assert len({*halves, *later, *rgb(pipe("a star", **request))}) == 3


def test_sessions(pipe, tmp_path):
    image = tmp_path / "image.png"
    image.write_bytes(REFERENCES[0].read_bytes())
    request = {"ip_adapter_image": [braid.Reference(image, weight=0.5), PIL.Image.open(REFERENCES[1])], **SMALL}
    session = braid.Session(pipe, "a star", seed=5, **request)
    assert "a star" in repr(session) and ", 0 values" not in repr(session)
    first = rgb(pipe("a star", seed=5, **request))
    changed = {"seed": 6, "ip_adapter_scale": 0.5, "num_images_per_prompt": 2}
    second = rgb(pipe("a star", **{**request, **changed}))
    # What was read is held.
    image.write_bytes(REFERENCES[1].read_bytes())
    seen = []
    assert rgb(session(callback_on_step_end=lambda p, i, t, k: seen.append(i))) == first
    assert seen == [0, 1, 2, 3]
    assert rgb(session(**changed)) == second
    assert rgb(session(generator=FakeGenerator().manual_seed(5))) == first
    assert session(seed=None, output_type="uint8").images[0].shape == (64, 64, 3)
    with pytest.raises(braid.ParameterError):
        braid.Session(pipe, "a star", **{**SMALL, "num_inference_steps": 0})
    with pytest.raises(TypeError, match="one prompt"):
        braid.Session(pipe, ["a star", "a ring"], **SMALL)
    with pytest.raises(braid.FileError):
        braid.Session(pipe, "a star", ip_adapter_image=tmp_path / "absent.png", **SMALL)


def test_prompts_that_change(pipe):
    session = braid.Session(pipe, "a star", ip_adapter_image=REFERENCES[0], seed=5, **SMALL)
    prepared, live = session.prepare_prompts("a ring", ip_adapter_image=REFERENCES[1]), braid.Live()
    assert "a ring" in repr(prepared)
    before, after = rgb(session(live=live)), rgb(pipe("a ring", ip_adapter_image=REFERENCES[1], seed=5, **SMALL))
    exchanged = rgb(session(live=live, callback_on_step_end=lambda p, i, t, k: live.set_prompts(prepared) if i == 1 else None))
    assert len({*before, *exchanged, *after}) == 3
    # It has them from the first step on now.
    assert rgb(session(live=live)) == after
    refused = []

    def prepare(*_):
        with pytest.raises(braid.InCallback) as error:
            session.prepare_prompts("a ring")
        refused.append(error)

    session(callback_on_step_end=prepare)
    assert len(refused) == 4
    with pytest.raises(braid.ParameterError):
        braid.Session(pipe, "a star", **SMALL).prepare_prompts("a ring", ip_adapter_image=REFERENCES[1])
    with braid.Engine(pipe, max_running=1) as engine:
        ahead = engine.submit("a star", seed=1, **{**SMALL, "num_inference_steps": 1000})
        ticket = engine.submit("a star", ip_adapter_image=REFERENCES[0], seed=5, **SMALL)
        ticket.set_prompts(prepared)
        ahead.cancel()
        assert rgb(ticket.result()) == after


def test_calls_in_callbacks(pipe):
    refused = []

    def call(*_):
        with pytest.raises(braid.InCallback) as error:
            pipe("a ring", seed=2, **SMALL)
        refused.append(str(error.value))

    assert len(pipe("a star", seed=1, callback_on_step_end=call, **SMALL).images) == 1
    assert len(refused) == 4 and "would wait for its own end" in refused[0]


def test_keyboard_interrupt(pipe):
    began = threading.Event()
    main = threading.main_thread().ident

    def press():
        began.wait()
        signal.pthread_kill(main, signal.SIGINT)

    # A shell's background jobs are started with the signal ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=press).start()
    try:
        with pytest.raises(KeyboardInterrupt):
            # So many steps that only the signal ends them.
            pipe("a star", seed=1, callback_on_step_end=lambda *_: began.set(), **{**SMALL, "num_inference_steps": 1000})
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(pipe("a star", seed=1, **SMALL).images) == 1


def test_lock_is_released(pipe):
    """Another Python thread goes on while images are drawn."""
    count, stop = [0], threading.Event()

    def turn():
        while not stop.is_set():
            count[0] += 1
            time.sleep(0.001)

    thread = threading.Thread(target=turn)
    thread.start()
    before = count[0]
    pipe("a star", seed=1, **{**SMALL, "num_inference_steps": 30})
    after = count[0]
    stop.set()
    thread.join()
    assert after > before


def test_engine(pipe):
    prompts = ["a star", "a ring", "two circles"]
    alone = [rgb(pipe(prompt, seed=i, ip_adapter_image=REFERENCES[0], **SMALL)) for i, prompt in enumerate(prompts)]
    with braid.Engine(pipe, gather=0.05) as engine:
        tickets = [engine.submit(prompt, seed=i, ip_adapter_image=REFERENCES[0], **SMALL) for i, prompt in enumerate(prompts)]
        assert [rgb(ticket.result()) for ticket in tickets] == alone
        assert tickets[0].status == ("done",)
        cancelled = engine.submit("a star", seed=1, **{**SMALL, "num_inference_steps": 1000})
        with pytest.raises(TimeoutError):
            cancelled.result(timeout=0.01)
        cancelled.cancel()
        with pytest.raises(braid.Cancelled):
            cancelled.result()
        with pytest.raises(braid.Late):
            engine.submit("a star", deadline=0.0, **SMALL).result()
    with pytest.raises(braid.Stopped):
        engine.submit("a star", **SMALL)


def test_typed_errors(pipe, tmp_path):
    with pytest.raises(braid.FileError) as raised:
        braid.Pipeline.from_files(tmp_path / "absent.safetensors")
    assert str(raised.value.path).endswith("absent.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}")
    with pytest.raises(braid.Error):
        braid.Pipeline.from_files(tmp_path / "cut.safetensors")
    with pytest.raises(braid.ParameterError) as raised:
        pipe("a star", **{**SMALL, "num_inference_steps": 0})
    assert raised.value.field == "steps" and isinstance(raised.value, ValueError)
    with pytest.raises(braid.ParameterError, match="scheduler"):
        pipe("a star", scheduler="eulr", **SMALL)
    for wrong, words in [
        ({"ip_adapter_image": 7}, "image"), ({"steps": 4}, "no argument 'steps'"), ({"ip_adapter_start": 0.5}, "ip_adapter_image"),
        ({"seed": -1}, "seed"), ({"ip_adapter_image": np.zeros((8, 8, 4), np.uint8)}, "H, W, 3"),
        ({"ip_adapter_image": REFERENCES[0], "ip_adapter_scale": [1.0, 2.0]}, "1 adapters"),
    ]:
        with pytest.raises((TypeError, ValueError, OverflowError), match=words):
            pipe("a star", **SMALL, **wrong)


def test_without_adapter():
    plain = braid.Pipeline.from_files(ASSETS / "sdxl.safetensors", config=ASSETS / "config", device="cpu", threads=2)
    assert plain.num_ip_adapters == 0
    with pytest.raises(ValueError, match="no adapter is loaded"):
        plain("a star", ip_adapter_image=REFERENCES[0], **SMALL)


def test_types_and_device():
    pipe = load(dtype="bf16")
    assert (pipe.device, pipe.dtype) == ("cpu", "bf16")
    with pytest.raises(ValueError, match="dtype"):
        load(dtype="f64")
