"""python -m unittest discover benches/peers: rows, ratios, options and turns, without any peer."""
import argparse
import contextlib
import io
import json
import sys
import tempfile
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import case  # noqa: E402
import compare  # noqa: E402
import report  # noqa: E402
import row  # noqa: E402


def side(seconds: list, step: float, image=None, **more) -> dict:
    stages = {"denoise": [step] * len(seconds)} | ({"image": image} if image else {})
    return {"seconds": seconds, "stages": stages, "step_mean_seconds": step, "pictures": 1, "outside": [], "threads": 2,
            "engine": "peer eager", "version": "1", "width": 8, "height": 8, "steps": 2, "dtype": "f32",
            "against": {"relative": 0.0, "largest": 0, "differing": 0.0, "checksum": "00000001"}} | more


class Rows(unittest.TestCase):
    def test_nearest_rank(self):
        samples = [float(i) for i in range(10, 0, -1)]
        self.assertEqual([row.percentile(samples, p) for p in (50, 90, 99)], [5.0, 9.0, 10.0])
        self.assertEqual(row.percentile([3.0], 50), 3.0)

    def test_deviation_divides_by_one_less(self):
        self.assertEqual(row.deviation([1.0, 3.0]), 2.0**0.5)
        self.assertIsNone(row.deviation([1.0]))

    def test_row(self):
        samples = [{"seconds": 2.0, "stages": {"text": 0.5, "denoise": 1.0}, "step_seconds": [0.25, 0.75]},
                   {"seconds": 4.0, "stages": {"text": 0.7, "denoise": 3.0}, "step_seconds": [1.0, 2.0]}]
        out = row.row({}, {"pictures": 1}, 9.0, 5.0, samples)
        self.assertEqual((out["mean_seconds"], out["step_mean_seconds"], out["first_seconds"]), (3.0, 1.0, 5.0))
        self.assertEqual(out["stages"], {"denoise": [1.0, 3.0], "text": [0.5, 0.7]})
        self.assertAlmostEqual(out["stage_share"]["text"], 0.2)


class Ratios(unittest.TestCase):
    def test_each_pair_counts_by_itself(self):
        # A machine twice as slow in the second pair leaves that pair's ratio as it is.
        pairs = [(side([1.0], 0.1), side([2.0], 0.2)), (side([2.2], 0.2), side([4.0], 0.4)),
                 (side([3.0], 0.9), side([4.0], 1.0))]
        out = report.summary(pairs)
        self.assertAlmostEqual(out["picture"]["ratio"], 0.55)
        self.assertEqual((out["step"]["ratio"], out["step"]["least"], out["step"]["greatest"]), (0.5, 0.5, 0.9))

    def test_a_stage_that_the_peer_did_before_does_not_count(self):
        ours, theirs = side([5.0, 7.0, 6.5], 1.0, image=[2.0, 3.0, 3.5]), side([6.0], 2.0, outside=["image"])
        self.assertEqual(report.summary([(ours, theirs)])["picture"]["braid"], 3.0)
        self.assertEqual(report.summary([(ours, side([6.0], 2.0))])["picture"]["braid"], 6.5)

    def test_different_work_is_told(self):
        result = lambda b, p: [{"same_profile": True, "pairs": [(b, p)]}]
        self.assertEqual(report.notes(result(side([1.0], 1.0), side([1.0], 1.0))), [])
        for ours, theirs in ((side([1.0], 1.0, build="debug"), side([1.0], 1.0)),
                             (side([1.0], 1.0, threads=1), side([1.0], 1.0)),
                             (side([1.0], 1.0, checksum="00000002"), side([1.0], 1.0)),
                             (side([1.0], 1.0), side([1.0], 1.0, against={"relative": 0.1, "largest": 90, "checksum": "00000001"}))):
            self.assertEqual(len(report.notes(result(ours, theirs))), 1)

    def test_a_unet_alone_has_no_image(self):
        theirs = unet(0.2, "f32", 1e-6)
        results = [{"same_profile": True, "summary": report.summary([(side([5.0], 0.1), theirs)]), "pairs": [(side([5.0], 0.1), theirs)]}]
        self.assertEqual(list(results[0]["summary"]), ["step"])
        cells = [cell.strip() for cell in report.table(results).splitlines()[-1].split("|")[1:-1]]
        self.assertEqual(cells[7:], ["**0.500** (0.500 to 0.500)", "", "", "", "1", "1.0e-06, the first output"])
        self.assertEqual(len(report.notes(results)), 1)  # that it is the UNet alone

    def test_outputs_that_are_not_of_the_same_unet(self):
        for dtype, relative, told in (("f32", 9e-5, False), ("f32", 2e-4, True), ("bf16", 0.019, False), ("bf16", 0.021, True)):
            result = {"same_profile": True, "pairs": [(side([1.0], 1.0, dtype=dtype), unet(1.0, dtype, relative))]}
            self.assertEqual(len(report.same_work(result)), int(told), (dtype, relative))

    def test_images_that_differ(self):
        for dtype, relative, told in (("f32", 0.019, ""), ("f32", 0.021, "different work"), ("bf16", 0.021, "see the f32 row")):
            against = {"relative": relative, "largest": 9, "checksum": "00000001"}
            pairs = [(side([1.0], 1.0, dtype=dtype), side([1.0], 1.0, dtype=dtype, against=against))]
            found = report.same_work({"same_profile": True, "pairs": pairs})
            self.assertEqual(len(found), int(bool(told)), (dtype, relative))
            self.assertIn(told, "".join(found))

    def test_the_worst_pair_is_the_one_that_is_told(self):
        pairs = [(side([1.0], 1.0), unet(1.0, "f32", relative)) for relative in (1e-6, 1e-3, 1e-5)]
        self.assertEqual(report.worst({"pairs": pairs})["relative"], 1e-3)
        self.assertEqual(len(report.same_work({"pairs": pairs})), 1)

    def test_what_is_compiled_or_quantized_is_told(self):
        theirs = [side([1.0], 1.0, compiled="default", first_seconds=first) for first in (80.0, 9.0)]
        ours = side([1.0], 1.0)
        found = report.notes([{"same_profile": True, "pairs": [(ours, peer) for peer in theirs]}])
        self.assertEqual(len(found), 1)
        self.assertIn("9 to 80 s", found[0])
        ours, differs = side([1.0], 1.0, quantize="int8"), {"relative": 0.1, "largest": 90, "checksum": "00000001"}
        found = report.notes([{"same_profile": True, "pairs": [(ours, side([1.0], 1.0, against=differs))]}])
        self.assertEqual(len(found), 1)
        self.assertIn("int8", found[0])
        self.assertEqual(report.types(ours, side([1.0], 1.0, dtype="bf16")), "f32 with int8 beside bf16")
        self.assertEqual(report.types(side([1.0], 1.0, quantize="none"), side([1.0], 1.0)), "f32")


def unet(step: float, dtype: str, relative: float) -> dict:
    against = {"relative": relative, "largest": 0.1, "differing": 1.0, "checksum": "00000009", "peer_bf16": 0.01}
    return side([1.0], step, part="unet", dtype=dtype, against=against)


def arguments(*words: str) -> argparse.Namespace:
    return compare.arguments([*words, "-t", "2"])


class Options(unittest.TestCase):
    def test_variants(self):
        taken = {v.name: v.options for v in compare.variants("eager,compile,max-autotune+channels-last,eager+channels-last")}
        self.assertEqual(taken, {"eager": [], "compile": ["--compile", "default"],
                                 "max-autotune+channels-last": ["--compile", "max-autotune", "--memory-format", "channels-last"],
                                 "eager+channels-last": ["--memory-format", "channels-last"]})
        for wrong in ("", "eager,", "fast", "eager+", "eager+nhwc", "channels-last"):
            with self.assertRaises(argparse.ArgumentTypeError, msg=wrong):
                compare.variants(wrong)

    def test_types(self):
        self.assertEqual((arguments().dtype, arguments("--dtype", "f32,bf16").dtype), ([None], ["f32", "bf16"]))
        for wrong in (["--dtype", "fp8"], ["--dtype", "f32,"], ["--dtype", "f16", "--device", "cpu"]):
            with self.assertRaises(SystemExit, msg=wrong), contextlib.redirect_stderr(io.StringIO()):
                arguments(*wrong)

    def test_each_type_has_each_variant_and_openvino(self):
        args = arguments("--diffusers", sys.executable, "--openvino", sys.executable, "--dtype", "f32,bf16", "--variants",
                         "eager,compile", "--device", "cpu")
        found = compare.cases(args, Path("folder"))
        self.assertEqual([c.name for c in found], ["diffusers eager f32", "diffusers compile f32", "openvino f32",
                                                   "diffusers eager bf16", "diffusers compile bf16", "openvino bf16"])
        for c in found:
            self.assertIn(c.name.split()[-1], c.settings())
            self.assertEqual(c.settings().count("--dtype"), 1)

    def test_what_is_compared_unasked(self):
        true, compare.has_compiler = compare.has_compiler, lambda _args: found
        self.addCleanup(setattr, compare, "has_compiler", true)
        names = lambda: [c.name for c in compare.cases(arguments("--diffusers", sys.executable), Path("folder"))]
        found = True
        self.assertEqual(names(), ["diffusers eager", "diffusers eager+channels-last", "diffusers compile"])
        found = False
        self.assertEqual(names(), ["diffusers eager", "diffusers eager+channels-last"])


class Commands(unittest.TestCase):
    """What is run, with the running replaced."""

    def setUp(self):
        self.ran, true_run, true_text = [], case.run, case.run_text
        self.addCleanup(lambda: (setattr(case, "run", true_run), setattr(case, "run_text", true_text)))
        case.run = lambda _args, command: self.ran.append([str(c) for c in command]) or [{}]
        case.run_text = lambda _args, command: self.ran.append([str(c) for c in command]) or "--compat"

    def commands(self, peer: str, *words: str) -> tuple[list, list]:
        """Braid's and the peer's."""
        args = arguments(f"--{peer}", sys.executable, "--variants", "eager", *words)
        with tempfile.TemporaryDirectory() as folder:
            one = compare.cases(args, Path(folder))[0]
            one.prepare(Path(folder))
            one.braid_row()
            one.peer_row()
        return next(c for c in self.ran if "e2e" in c), self.ran[-1]

    def test_int8_is_braids_alone(self):
        ours, theirs = self.commands("diffusers", "--quantize", "int8", "--dtype", "bf16")
        self.assertTrue(all("--quantize" in c for c in self.ran if "generate" in c or "e2e" in c))
        self.assertNotIn("--quantize", theirs)
        for command in (ours, theirs):
            self.assertEqual(command[command.index("--dtype") + 1], "bf16")

    def test_beside_a_unet_alone_braid_has_guidance_and_no_adapter(self):
        ours, theirs = self.commands("openvino", "--cfg-scale", "1")
        self.assertEqual(float(ours[ours.index("--cfg-scale") + 1]), 5.0)
        self.assertFalse([word for word in ours if "ip-adapter" in word or "clip-vision" in word])
        self.assertEqual((theirs[theirs.index("--dtype") + 1], ours[ours.index("--device") + 1]), ("f32", "cpu"))
        for flag in ("--steps", "--size", "-r", "--warmup", "-t"):
            self.assertEqual(ours[ours.index(flag) + 1], theirs[theirs.index(flag) + 1], flag)

    def test_an_export_serves_its_own_file_and_size_alone(self):
        with tempfile.TemporaryDirectory() as name:
            model = Path(name)
            (model / "sdxl.safetensors").write_bytes(b"weights")
            work = case.Work(model, 64, 2, 5.0, model)
            self.assertFalse(case.is_exported(model, work))
            (model / "export.json").write_text(json.dumps(case.export_stamp(work)))
            self.assertTrue(case.is_exported(model, work))
            self.assertTrue(case.is_exported(model, work._replace(steps=9, dtype="bf16")))
            self.assertFalse(case.is_exported(model, work._replace(size=72)))
            (model / "sdxl.safetensors").write_bytes(b"others")
            self.assertFalse(case.is_exported(model, work))


class Turns(unittest.TestCase):
    def run_turns(self, fails=()):
        log = []

        class Logged:
            def __init__(self, name):
                self.name = name

            def prepare(self, _folder):
                log.append("prepare " + self.name)

            def same_profile(self):
                return True

            def braid_row(self):
                log.append("A")
                return side([1.0], 1.0)

            def peer_row(self):
                log.append(self.name)
                if (self.name, log.count(self.name)) in fails:
                    raise case.Failed("planted")
                return side([1.0], 2.0)

        with contextlib.redirect_stderr(io.StringIO()):
            return log, *compare.alternate([Logged("B"), Logged("C")], 2, Path("folder"))

    def test_braid_stands_beside_each_peer_in_each_round(self):
        log, results, failed = self.run_turns()
        self.assertEqual(log, ["prepare B", "prepare C", *"ABACABAC"])
        self.assertEqual(([len(r["pairs"]) for r in results], failed), ([2, 2], False))

    def test_a_peer_that_fails_is_left_out_and_told(self):
        log, results, failed = self.run_turns({("B", 1)})
        self.assertEqual(log[2:], [*"ABACAC"])
        self.assertEqual(([r["peer"] for r in results], failed), (["C"], True))
        _, results, failed = self.run_turns({("B", 2)})
        self.assertEqual(([len(r["pairs"]) for r in results], failed), ([1, 2], True))


if __name__ == "__main__":
    unittest.main()
