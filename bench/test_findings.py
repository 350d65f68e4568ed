"""Verdicts, medians over rounds, and the picture."""

import unittest
import xml.etree.ElementTree

from bench.contender import Fault
from bench.findings import Measured, compared
from bench.load import alternating
from bench.plot import svg
from bench.report import of_measure, of_verdicts, table


class Verdicts(unittest.TestCase):
    def test_what_must_be_less_is_met_at_its_bound_and_not_above(self):
        self.assertTrue(compared("m", "≤ 1/4", 1, 4, 1 / 4).met)
        self.assertFalse(compared("m", "≤ 1/4", 1.1, 4, 1 / 4).met)

    def test_what_must_be_more_is_met_at_its_bound_and_not_below(self):
        self.assertTrue(compared("m", "≥ 10 ×", 10, 1, 10, at_most=False).met)
        self.assertFalse(compared("m", "≥ 10 ×", 9, 1, 10, at_most=False).met)

    def test_without_a_contender_nothing_is_claimed(self):
        verdict = compared("m", "≥ 10 ×", 10, None, 10, at_most=False)
        self.assertIsNone(verdict.met)
        self.assertIn("not compared", of_verdicts([verdict]))

    def test_a_measure_that_failed_is_shown_as_such_and_met_nothing(self):
        failed = Measured.failed("echo", Fault("no port | left\nand more"))
        self.assertIn("no port / left", of_measure(failed))
        self.assertEqual([verdict.met for verdict in failed.verdicts], [None])
        self.assertFalse(failed.whole)

    def test_the_margin_tells_how_many_times_better_either_way(self):
        self.assertAlmostEqual(compared("m", "≤ 1/4", 1, 8, 1 / 4).margin, 2)
        self.assertAlmostEqual(compared("m", "≥ 10 ×", 20, 1, 10, at_most=False).margin, 2)


class Rounds(unittest.TestCase):
    def test_errors_are_summed_up_and_the_rest_is_the_median(self):
        runs = iter([{"p50_ms": 1, "errors": 1}, {"p50_ms": 9, "errors": 0}, {"p50_ms": 2, "errors": 2}])
        found = alternating({"one": lambda: next(runs)}, 3)
        self.assertEqual((found["one"]["p50_ms"], found["one"]["errors"]), (2, 3))

    def test_who_fails_is_told_and_left_out_and_the_others_go_on(self):
        def fails():
            raise Fault("it ended")

        lost = []
        found = alternating({"a": lambda: {"errors": 0}, "b": fails}, 2, lambda name, why: lost.append((name, str(why))))
        self.assertEqual((list(found), lost), (["a"], [("b", "it ended")]))

    def test_who_comes_first_changes(self):
        order = []
        jobs = {name: lambda name=name: order.append(name) or {"errors": 0} for name in "abc"}
        alternating(jobs, 3)
        self.assertEqual("".join(order), "abcbcacab")


class Shown(unittest.TestCase):
    def test_a_table_is_as_wide_in_every_line(self):
        lines = table(["", "number"], [["a long name", "1"], ["b", "1,000,000"]]).splitlines()
        self.assertEqual(len({len(line) for line in lines}), 1)

    def test_the_picture_is_well_formed_and_shows_every_verdict(self):
        verdicts = [compared("time & <space>", "≤ 1/4", 1, 8, 1 / 4), compared("rate", "≥ 1", 5, 10, 1, at_most=False)]
        picture = svg([Measured("m", "about", [], verdicts=verdicts)])
        texts = [element.text for element in xml.etree.ElementTree.fromstring(picture).iter() if element.text]
        self.assertTrue({"time & <space> ≤ 1/4", "rate ≥ 1"} <= set(texts))


if __name__ == "__main__":
    unittest.main()
