"""python -m unittest discover benches/peers: the arithmetic of the rows and ratios, without any peer."""
import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import compare  # noqa: E402
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
        pairs = [(side([1.0], 0.1), side([2.0], 0.2)), (side([2.2], 0.2), side([4.0], 0.4)), (side([3.0], 0.9), side([4.0], 1.0))]
        out = compare.summary(pairs)
        self.assertAlmostEqual(out["picture"]["ratio"], 0.55)
        self.assertEqual((out["step"]["ratio"], out["step"]["least"], out["step"]["greatest"]), (0.5, 0.5, 0.9))

    def test_a_stage_that_the_peer_did_before_does_not_count(self):
        ours, theirs = side([5.0, 7.0, 6.5], 1.0, image=[2.0, 3.0, 3.5]), side([6.0], 2.0, outside=["image"])
        self.assertEqual(compare.summary([(ours, theirs)])["picture"]["braid"], 3.0)
        self.assertEqual(compare.summary([(ours, side([6.0], 2.0))])["picture"]["braid"], 6.5)

    def test_different_work_is_told(self):
        result = lambda b, p: [{"same_profile": True, "pairs": [(b, p)]}]
        self.assertEqual(compare.notes(result(side([1.0], 1.0), side([1.0], 1.0))), [])
        for ours, theirs in ((side([1.0], 1.0, threads=1), side([1.0], 1.0)),
                             (side([1.0], 1.0, checksum="00000002"), side([1.0], 1.0)),
                             (side([1.0], 1.0), side([1.0], 1.0, against={"relative": 0.1, "largest": 90, "checksum": "00000001"}))):
            self.assertEqual(len(compare.notes(result(ours, theirs))), 1)


if __name__ == "__main__":
    unittest.main()
