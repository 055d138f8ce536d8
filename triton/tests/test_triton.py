"""The backend in NVIDIA's own server, on the CPU with the bundled model, beside one process. `make test-serving` runs it: TRITON
is where the server's wheel is unpacked, BACKENDS what `make triton` has filled."""

import os
import re
import shutil
import socket
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException, shared_memory

import braid

ROOT = Path(__file__).resolve().parents[2]
ASSETS = ROOT / "assets/demo"
REFERENCES = sorted((ASSETS / "references").glob("*.png"))
OPTIONS = {
    "model": str(ASSETS / "sdxl.safetensors"), "config": str(ASSETS / "config"), "ip_adapter": str(ASSETS / "ip-adapter.safetensors"),
    "clip_vision": str(ASSETS / "image_encoder"), "device": "cpu", "threads": 1,
}
PARAMETERS = {
    "model": OPTIONS["model"], "config": OPTIONS["config"], "adapters": OPTIONS["ip_adapter"], "clip_vision": OPTIONS["clip_vision"],
    "threads": "1",
}
SMALL = {"height": 64, "width": 64, "num_inference_steps": 2, "guidance_scale": 3.0}
# A batch begins when four rows wait, and not before: no test depends on time.
FOUR = "dynamic_batching { preferred_batch_size: [ 4 ] max_queue_delay_microseconds: 60000000 }"
TYPES = {"seed": ("UINT64", np.uint64), "steps": ("INT32", np.int32), "width": ("INT32", np.int32), "height": ("INT32", np.int32),
         "guidance_scale": ("FP32", np.float32), "ip_adapter_scale": ("FP32", np.float32)}


@pytest.fixture(scope="module")
def pipe():
    return braid.Pipeline.from_files(**OPTIONS)


# ---- The server ----

def write_model(repository: Path, name: str, parameters: dict[str, str], replaced: dict[str, str] | None = None) -> None:
    """A model with the example's configuration, but for its parameters and what is replaced."""
    text = (ROOT / "triton/model_repository/sdxl/config.pbtxt").read_text()
    text = re.sub(r"^parameters .*\n", "", text, flags=re.M)
    for old, new in (replaced or {}).items():
        assert old in text
        text = text.replace(old, new)
    text += "".join(f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}\n' for key, value in parameters.items())
    (repository / name / "1").mkdir(parents=True)
    (repository / name / "config.pbtxt").write_text(text)


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


class Server:
    """A server without models, which are loaded by name."""

    def __init__(self, folder: Path):
        wheel = Path(os.environ["TRITON"])
        self.repository, self.log = folder / "models", folder / "log"
        self.repository.mkdir()
        http, grpc = free_ports(2)
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [wheel / "pytriton/tritonserver/bin/tritonserver",
                 f"--model-repository={self.repository}", f"--backend-directory={os.environ['BACKENDS']}",
                 "--model-control-mode=explicit", "--exit-timeout-secs=60", f"--http-port={http}", f"--grpc-port={grpc}",
                 "--http-address=127.0.0.1", "--grpc-address=127.0.0.1", "--allow-metrics=false"],
                # One pool of memory, so that what grows is not left over in others.
                env={**os.environ, "LD_LIBRARY_PATH": str(wheel / "nvidia_pytriton.libs"), "MALLOC_ARENA_MAX": "1"},
                stdout=log, stderr=subprocess.STDOUT)
        # For one thread; the other client is for many.
        self.http = tritonclient.http.InferenceServerClient(f"127.0.0.1:{http}", network_timeout=600)
        self.grpc = tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{grpc}")
        while not self.is_ready():
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.1)

    def is_ready(self) -> bool:
        try:
            return self.http.is_server_ready()
        except OSError:
            return False

    def load(self, name: str, parameters: dict[str, str] | None = None, replaced: dict[str, str] | None = None) -> None:
        write_model(self.repository, name, {**PARAMETERS, **(parameters or {})}, replaced)
        self.http.load_model(name)

    def unload(self, name: str) -> None:
        self.http.unload_model(name)
        while self.http.is_model_ready(name):
            time.sleep(0.1)

    def statistics(self, name: str) -> dict:
        return self.http.get_inference_statistics(name)["model_stats"][0]

    def megabytes(self) -> int:
        """Memory that is no file's."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"RssAnon:\s+(\d+) kB", status)[1]) >> 10


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    started = Server(tmp_path_factory.mktemp("triton"))
    started.load("demo")
    started.load("four", replaced={"dynamic_batching { max_queue_delay_microseconds: 20000 }": FOUR})
    yield started
    started.http.close()
    started.grpc.close()
    started.process.terminate()
    assert started.process.wait(timeout=120) == 0, started.log.read_text()[-4000:]


# ---- Requests ----

def inputs(client, **given):
    """Inputs of one row, or of as many as there are prompts in a list. `image` has an array, `files` a list of bytes."""
    made = []
    for name, value in given.items():
        rows = value if isinstance(given.get("prompt"), list) else [value]
        if name == "image":
            array, kind, name = np.stack(rows), "UINT8", "ip_adapter_image"
        elif name == "files":
            array, kind, name = np.array(rows, dtype=np.object_), "BYTES", "ip_adapter_image_file"
        elif name in TYPES:
            kind, dtype = TYPES[name]
            array = np.array(rows, dtype=dtype).reshape(-1, 1)
        else:
            array, kind = np.array([bytes_of(row) for row in rows], dtype=np.object_).reshape(-1, 1), "BYTES"
        made.append(client.InferInput(name, array.shape, kind))
        made[-1].set_data_from_numpy(array)
    return made


def bytes_of(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode()


def small(**given) -> dict:
    rows = len(given["prompt"]) if isinstance(given["prompt"], list) else 0
    settings = {"steps": 2, "width": 64, "height": 64, "guidance_scale": 3.0}
    return {**{name: [value] * rows if rows else value for name, value in settings.items()}, **given}


def draw(server: Server, model: str = "demo", **given) -> np.ndarray:
    return server.grpc.infer(model, inputs(tritonclient.grpc, **small(**given))).as_numpy("image")


def alone(pipe, prompt: str, seed: int, **more) -> np.ndarray:
    return np.asarray(pipe(prompt, seed=seed, **{**SMALL, **more}).images[0])


def pixels(path: Path) -> np.ndarray:
    return np.asarray(PIL.Image.open(path).convert("RGB"))


def refusal(server: Server, model: str = "demo", **given) -> str:
    with pytest.raises(InferenceServerException) as raised:
        draw(server, model, **given)
    return raised.value.message()


# ---- Tests ----

def test_bytes(server, pipe):
    expected = alone(pipe, "three hearts", 5)[None]
    assert np.array_equal(draw(server, prompt="three hearts", seed=5), expected)
    got = server.http.infer("demo", inputs(tritonclient.http, **small(prompt="three hearts", seed=5))).as_numpy("image")
    assert np.array_equal(got, expected)
    got = draw(server, prompt="a star", seed=6, image=pixels(REFERENCES[0]), ip_adapter_scale=0.5)
    assert np.array_equal(got[0], alone(pipe, "a star", 6, ip_adapter_image=REFERENCES[0], ip_adapter_scale=0.5))
    got = draw(server, prompt="a star", seed=6, files=[path.read_bytes() for path in REFERENCES[:2]], negative_prompt="noise")
    assert np.array_equal(got[0], alone(pipe, "a star", 6, ip_adapter_image=list(REFERENCES[:2]), negative_prompt="noise"))
    # Both kinds, and a scheduler.
    got = draw(server, prompt="a star", seed=6, image=pixels(REFERENCES[1]), files=[REFERENCES[0].read_bytes()], scheduler="ddim")
    expected = alone(pipe, "a star", 6, ip_adapter_image=[REFERENCES[1], REFERENCES[0]], scheduler="ddim")
    assert np.array_equal(got[0], expected)


def test_shared_memory(server, pipe):
    """A reference and an image in the host's memory that client and server share."""
    given, made = pixels(REFERENCES[0])[None], np.zeros((1, 64, 64, 3), np.uint8)
    regions = [shared_memory.create_shared_memory_region(name, f"/braid-{os.getpid()}-{name}", array.nbytes)
               for name, array in (("given", given), ("made", made))]
    try:
        shared_memory.set_shared_memory_region(regions[0], [given])
        for name, array in (("given", given), ("made", made)):
            server.http.register_system_shared_memory(name, f"/braid-{os.getpid()}-{name}", array.nbytes)
        reference = tritonclient.http.InferInput("ip_adapter_image", given.shape, "UINT8")
        reference.set_shared_memory("given", given.nbytes)
        image = tritonclient.http.InferRequestedOutput("image")
        image.set_shared_memory("made", made.nbytes)
        server.http.infer("demo", [*inputs(tritonclient.http, **small(prompt="a star", seed=6)), reference], outputs=[image])
        got = shared_memory.get_contents_as_numpy(regions[1], np.uint8, made.shape)
        assert np.array_equal(got[0], alone(pipe, "a star", 6, ip_adapter_image=REFERENCES[0]))
    finally:
        server.http.unregister_system_shared_memory()
        for region in regions:
            shared_memory.destroy_shared_memory_region(region)


def test_rows(server, pipe):
    """Rows of one request: a row without a reference has an empty file."""
    got = server.http.infer("demo", inputs(
        tritonclient.http, **small(prompt=["a star", "two crosses"], seed=[1, 2], files=[[REFERENCES[0].read_bytes()], [b""]])))
    expected = [alone(pipe, "a star", 1, ip_adapter_image=REFERENCES[0]), alone(pipe, "two crosses", 2)]
    assert np.array_equal(got.as_numpy("image"), expected)
    assert got.as_numpy("seed").tolist() == [[1], [2]]
    assert "row 1 has 128x64" in refusal(server, prompt=["a", "b"], width=[64, 128])
    assert "row 1: steps: " in refusal(server, prompt=["a", "b"], steps=[2, 0])


def together(server: Server, requests: list[dict]) -> list[np.ndarray | str]:
    def ask(given: dict) -> np.ndarray | str:
        try:
            return draw(server, "four", **given)[0]
        except InferenceServerException as error:
            return error.message()

    with ThreadPoolExecutor(len(requests)) as clients:
        return list(clients.map(ask, requests))


def test_batched(server, pipe):
    """Four requests that wait at once are one execution, and each has its own bytes."""
    before = server.statistics("four")
    files = [[b""], [REFERENCES[0].read_bytes()], [b""], [REFERENCES[1].read_bytes()]]
    got = together(server, [{"prompt": f"{i} stars", "seed": i, "files": files[i], "steps": 2 + i % 2} for i in range(4)])
    for i in range(4):
        reference = {"ip_adapter_image": REFERENCES[i // 2]} if i % 2 else {}
        assert np.array_equal(got[i], alone(pipe, f"{i} stars", i, num_inference_steps=2 + i % 2, **reference)), i
    after = server.statistics("four")
    assert int(after["execution_count"]) == int(before.get("execution_count", 0)) + 1
    assert int(after["inference_count"]) == int(before.get("inference_count", 0)) + 4
    assert [batch["batch_size"] for batch in after["batch_stats"]] == [4]


def test_one_fails_alone(server, pipe):
    requests = [{"prompt": f"{i} stars", "seed": i, "scheduler": "ddim", "steps": 2} for i in range(4)]
    requests[1]["scheduler"], requests[2]["steps"] = "eulr", 0
    got = together(server, requests)
    for i in (0, 3):
        assert np.array_equal(got[i], alone(pipe, f"{i} stars", i, scheduler="ddim")), i
    assert got[1].startswith("scheduler: ") and "eulr" in got[1] and "(BRAID_ERROR_PARAMETER)" in got[1]
    assert got[2].startswith("steps: ")


def test_refusals(server):
    for text, given in [
        ("steps: ", {"steps": 0}), ("steps: a number from 0", {"steps": -1}), ("width", {"width": 63}),
        ("guidance_scale", {"guidance_scale": float("nan")}), ("prompt: byte 1 is 0", {"prompt": b"a\0b"}), ("prompt", {"prompt": b"\xff"}),
        ("ip_adapter_image_file: ", {"files": [b"no image"]}), ("scheduler: ", {"scheduler": "eulr"}),
    ]:
        assert text in refusal(server, **{"prompt": "a", **given}), text
    # Triton counts inputs, and lets one without a prompt pass.
    with pytest.raises(InferenceServerException, match="prompt: it is missing"):
        server.http.infer("demo", inputs(tritonclient.http, seed=1))
    assert server.http.is_model_ready("demo")


def test_models_that_do_not_load(server):
    for name, parameters, replaced, cause in [
        ("absent", {"model": "/nowhere/sdxl.safetensors"}, {}, "/nowhere/sdxl.safetensors"),
        ("relative", {"model": "mine.safetensors"}, {}, "models/relative/1/mine.safetensors"),
        ("threds", {"threds": "1"}, {}, "parameters: there is no `threds`"),
        ("dtype", {"dtype": "f8"}, {}, "dtype: unknown value `f8`"),
        ("device", {"device": "cpu"}, {}, "parameters: device: instance_group chooses"),
        ("input", {}, {'"negative_prompt"': '"negative"'}, "input: there is no `negative`"),
        ("unbatched", {}, {"max_batch_size: 8": "max_batch_size: 0", "dynamic_batching { max_queue_delay_microseconds: 20000 }": ""},
         "max_batch_size: 1 or more is needed"),
    ]:
        with pytest.raises(InferenceServerException) as raised:
            server.load(name, parameters, replaced)
        assert cause in raised.value.message(), raised.value.message()
        assert cause in server.log.read_text()
        assert not server.http.is_model_ready(name)


def test_cancel(server, pipe):
    """A request that was cancelled while it was drawn stops at a step, and counts as failed; the next one is drawn."""
    def counts() -> tuple[int, int, int]:
        statistics = server.statistics("cancelled")
        counted = statistics["inference_stats"]
        return int(statistics.get("execution_count", 0)), *(int(counted[name].get("count", 0)) for name in ("success", "fail"))

    server.load("cancelled")
    long = inputs(tritonclient.grpc, **{**small(prompt="a star"), "steps": 1000, "width": 128, "height": 128})
    for attempt in range(1, 60):
        done = threading.Event()
        ticket = server.grpc.async_infer("cancelled", long, lambda result, error, done=done: done.set())
        # Time for the request to begin; one that was cancelled before it did is sent again.
        time.sleep(0.5)
        ticket.cancel()
        assert done.wait(timeout=600)
        assert np.array_equal(draw(server, "cancelled", prompt="a star", seed=1)[0], alone(pipe, "a star", 1))
        executions, successes, failures = counts()
        assert successes == attempt, "a request that was cancelled was drawn to its end"
        if executions > successes:
            break
    assert executions == successes + 1 and failures >= 1
    server.unload("cancelled")


def test_unload_and_load(server, pipe):
    server.load("again")
    used = []
    for i in range(12):
        assert np.array_equal(draw(server, "again", prompt="a star", seed=i)[0], alone(pipe, "a star", i))
        server.unload("again")
        used.append(server.megabytes())
        server.http.load_model("again")
    print("megabytes after each unloading:", used)
    assert max(used[6:]) < max(used[:6]) + 16
    server.unload("again")
    shutil.rmtree(server.repository / "again")


def test_unloaded_while_it_draws(server, pipe):
    """Requests that were taken are answered before the model goes; those that come later are refused by the server."""
    server.load("going")

    def ask(i: int) -> np.ndarray | None:
        try:
            return draw(server, "going", prompt="a star", seed=i)[0]
        except InferenceServerException as error:
            assert "going" in error.message()
            return None

    with ThreadPoolExecutor(8) as clients:
        answers = [clients.submit(ask, i) for i in range(40)]
        answers[0].result()
        server.http.unload_model("going")
        images = [answer.result() for answer in answers]
    assert images[0] is not None
    for i, image in enumerate(images):
        assert image is None or np.array_equal(image, alone(pipe, "a star", i)), i


def test_load(server, pipe):
    """200 requests over two instances, some with references, some wrong: each gets its own image or its own refusal."""
    server.load("two", replaced={"count: 1": "count: 2"})
    files = [path.read_bytes() for path in REFERENCES]

    def given(i: int) -> dict:
        kind = i % 4
        more = {} if kind < 2 else {"files": [files[i % 3]]} if kind == 2 else {"image": pixels(REFERENCES[i % 3])}
        return {"prompt": f"{i % 12} stars", "seed": i % 12, **more}

    expected = {i: alone(pipe, f"{i} stars", i, **({"ip_adapter_image": REFERENCES[i % 3]} if i % 4 > 1 else {})) for i in range(12)}

    def ask(i: int) -> bool:
        if i % 20 == 19:
            return "steps: " in refusal(server, "two", **given(i), steps=0)
        return np.array_equal(draw(server, "two", **given(i))[0], expected[i % 12])

    with ThreadPoolExecutor(8) as clients:
        assert all(clients.map(ask, range(40)))
        before = server.megabytes()
        assert all(clients.map(ask, range(200)))
        after = server.megabytes()
    statistics = server.statistics("two")
    print(f"megabytes before and after 200 requests: {before}, {after}; executions: {statistics['execution_count']}")
    # A pipeline keeps what it has compiled for each number of rows: 126 MB after 1,200 requests, and the same after 1,600.
    assert after < before + 64
    assert int(statistics["inference_stats"]["success"]["count"]) == 228 and int(statistics["inference_stats"]["fail"]["count"]) == 12
    assert int(statistics["execution_count"]) < 240
