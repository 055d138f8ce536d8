"""Ray Data and Ray Serve on two CPU workers with the bundled model, beside one process."""

import base64
import io
import json
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import PIL.Image
import pytest

os.environ.setdefault("RAY_AUTH_MODE", "disabled")

import ray
import requests
from ray import serve

import braid
import ray_data
import ray_serve

ROOT = Path(__file__).resolve().parents[2]
ASSETS = ROOT / "assets/demo"
REFERENCES = sorted((ASSETS / "references").glob("*.png"))
OPTIONS = {
    "model": str(ASSETS / "sdxl.safetensors"), "config": str(ASSETS / "config"), "ip_adapter": str(ASSETS / "ip-adapter.safetensors"),
    "clip_vision": str(ASSETS / "image_encoder"), "device": "cpu", "threads": 1,
}
SMALL = {"height": 64, "width": 64, "num_inference_steps": 2, "guidance_scale": 3.0}


@pytest.fixture(scope="module")
def cluster():
    os.environ["PYTHONPATH"] = str(Path(__file__).parent)
    ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def pipe():
    return braid.Pipeline.from_files(**OPTIONS)


def pixels(file: bytes) -> bytes:
    return PIL.Image.open(io.BytesIO(file)).convert("RGB").tobytes()


def lines(count: int) -> list[str]:
    with_image = {"ip_adapter_image": str(REFERENCES[0])}
    return [json.dumps({"prompt": f"{i} stars", **SMALL, **(with_image if i % 2 else {})}) for i in range(count)]


def check(rows: list[dict], expected: dict[int, bytes]) -> None:
    assert sorted(row["line"] for row in rows) == sorted(expected)
    for row in rows:
        assert row["error"] == "" and list(row["seeds"]) == [row["line"]]
        assert [pixels(image) for image in row["images"]] == [expected[row["line"]]]


def alone(pipe: braid.Pipeline, items: list[dict]) -> dict[int, bytes]:
    return {item["line"]: pipe(**json.loads(item["request"])).images[0].tobytes() for item in items}


def test_data(cluster, pipe):
    items = ray_data.rows(lines(12))
    check(ray_data.draw(items, OPTIONS, workers=2, batch_size=3).take_all(), alone(pipe, items))


def test_a_wrong_request_fails_alone(cluster, pipe):
    items = ray_data.rows([*lines(2), '{"prompt": "x", "num_inference_steps": 0}'])
    rows = ray_data.draw(items, OPTIONS, workers=1, batch_size=3).take_all()
    check([row for row in rows if row["line"] < 3], alone(pipe, items[:2]))
    assert [("steps" in row["error"], len(row["images"])) for row in rows if row["line"] == 3] == [(True, 0)]


class Dying(ray_data.Worker):
    """A worker that ends its process at its second batch, once."""

    def __init__(self, options, mark):
        super().__init__(options)
        self.mark, self.batches = mark, 0

    def __call__(self, batch):
        self.batches += 1
        if self.batches == 2 and not os.path.exists(self.mark):
            open(self.mark, "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(batch)


def test_killed_worker(cluster, pipe, tmp_path):
    mark = tmp_path / "died"
    items = ray_data.rows(lines(10))
    dataset = ray.data.from_items(items, override_num_blocks=5).map_batches(
        Dying, fn_constructor_args=(OPTIONS, str(mark)), batch_size=2, concurrency=2, num_cpus=1)
    check(dataset.take_all(), alone(pipe, items))
    assert mark.exists()


@pytest.fixture(scope="module")
def url(cluster):
    serve.start(http_options={"port": 8123})
    serve.run(ray_serve.build({"options": OPTIONS, "replicas": 2}), name="braid")
    yield "http://127.0.0.1:8123"
    serve.shutdown()


def body(i: int) -> dict:
    return {"prompt": f"{i} stars", "n": 1, "size": "64x64", "seed": i, "num_inference_steps": 2, "guidance_scale": 3.0}


def files(response: requests.Response) -> list[bytes]:
    assert response.status_code == 200, response.text
    return [pixels(base64.b64decode(entry["b64_json"])) for entry in response.json()["data"]]


def test_generations(url, pipe):
    answer = requests.post(f"{url}/v1/images/generations", json={**body(3), "n": 2})
    assert files(answer) == [image.tobytes() for image in pipe("3 stars", seed=3, num_images_per_prompt=2, **SMALL).images]
    assert [entry["seed"] for entry in answer.json()["data"]] == [3, 4]


def test_edits(url, pipe):
    upload = [("image", (path.name, path.read_bytes(), "image/png")) for path in REFERENCES[:2]]
    answer = requests.post(f"{url}/v1/images/edits", data={**body(3), "ip_adapter_scale": "0.5"}, files=upload)
    expected = pipe("3 stars", seed=3, ip_adapter_image=list(REFERENCES[:2]), ip_adapter_scale=0.5, **SMALL)
    assert files(answer) == [image.tobytes() for image in expected.images]


def test_refusals(url):
    for wrong, param in [({"size": "big"}, "size"), ({"n": 0}, "n"), ({"n": "x"}, "n"), ({"response_format": "url"}, "response_format"),
                         ({"prompt": ""}, "prompt"), ({"steps": 3}, "steps"), ({"num_inference_steps": 0}, "steps"),
                         ({"scheduler": "eulr"}, "scheduler")]:
        answer = requests.post(f"{url}/v1/images/generations", json={**body(1), **wrong})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text
    for data in ("no JSON", "[1]"):
        assert requests.post(f"{url}/v1/images/generations", data=data).status_code == 400
    for name, content in [("image", b"no image"), ("mask", REFERENCES[0].read_bytes())]:
        answer = requests.post(f"{url}/v1/images/edits", data=body(1), files=[(name, ("a.png", content, "image/png"))])
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, name), answer.text


def test_load_and_a_killed_replica(url, pipe):
    """200 requests, one of two replicas killed in their middle: each gets its own image."""
    expected = {i: pipe(f"{i} stars", seed=i, **SMALL).images[0].tobytes() for i in range(10)}
    killed = threading.Event()

    def ask(i: int) -> tuple[int, bytes]:
        if i == 60:
            os.kill(requests.get(f"{url}/health").json()["pid"], signal.SIGKILL)
            killed.set()
        for attempt in range(60):
            answer = requests.post(f"{url}/v1/images/generations", json=body(i % 10))
            # 429: the queue is full; 5xx: the proxy has not seen the replica's end yet. Clients ask again.
            if answer.status_code not in (429, 500, 502, 503):
                return i % 10, files(answer)[0]
            time.sleep(0.5)
        raise AssertionError(answer.text)

    with ThreadPoolExecutor(8) as clients:
        for i, image in clients.map(ask, range(200)):
            assert image == expected[i]
    assert killed.is_set()
