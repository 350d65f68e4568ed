"""The arithmetic and the honesty of the measuring, without any contender."""

import unittest

from bench.contender import Fault, Line
from bench.echo_child import payload
from bench.report import table
from bench.rounds import Plan, Samples, deadline, measure, order, percentile

PLAN = Plan(rounds=3, calls=5, warm=2, size=20)


class Recorder(Line):
    def __init__(self, calls, name, answer=lambda text: text):
        self.calls, self.name, self.answer = calls, name, answer

    def call(self, text):
        self.calls.append((self.name, text))
        return self.answer(text)

    def close(self):
        pass


class Measuring(unittest.TestCase):
    def test_a_percentile_is_a_value_that_was_measured(self):
        hundred = list(range(1, 101))
        self.assertEqual([percentile(hundred, p) for p in (1, 50, 99, 100)], [1, 50, 99, 100])
        self.assertEqual(percentile([7], 50), 7)
        self.assertEqual(percentile([1, 2, 3], 50), 2)

    def test_rounds_alternate_and_another_goes_first_in_each(self):
        calls = []
        measure({name: Recorder(calls, name) for name in "ab"}, PLAN)
        turns = [name for before, (name, _) in zip([(None, "")] + calls, calls) if name != before[0]]
        self.assertEqual("".join(turns), "abab")  # ab, ba, ab: neighbours melt into one
        self.assertEqual([len([c for c in calls if c[0] == name]) for name in "ab"], [21, 21])

    def test_who_goes_first_comes_round_again(self):
        self.assertEqual([order([1, 2, 3], turn)[0] for turn in range(4)], [1, 2, 3, 1])

    def test_warm_calls_do_not_count(self):
        samples = measure({"a": Recorder([], "a")}, PLAN)["a"]
        self.assertEqual([len(one) for one in samples.rounds], [5, 5, 5])

    def test_no_two_calls_send_the_same(self):
        calls = []
        measure({name: Recorder(calls, name) for name in "ab"}, PLAN)
        self.assertEqual(len({text for _, text in calls}), len(calls))

    def test_a_wrong_answer_ends_the_run(self):
        with self.assertRaisesRegex(Fault, "a: sent 'call 00000000 xxxxxx', got 'x'"):
            measure({"a": Recorder([], "a", lambda _: "x")}, PLAN)

    def test_an_answer_of_another_call_ends_the_run(self):
        with self.assertRaises(Fault):
            measure({"a": Recorder([], "a", lambda text: payload(0, 20))}, PLAN)

    def test_a_hang_ends_the_run(self):
        with self.assertRaisesRegex(Fault, "a: a round took more than 1 s"):
            with deadline(1, "a"):
                while True:
                    pass

    def test_the_table_compares_with_the_baseline(self):
        results = {"stdio": Samples([[1_000_000] * 4]), "bridge": Samples([[2_000_000] * 2, [3_000_000] * 2])}
        head, stdio, bridge = table(results, ["stdio"]).splitlines()
        self.assertEqual(head.split()[-2:], ["x", "stdio"])
        self.assertEqual(stdio.split(), ["stdio", "1.000", "1.000", "1,000", "1.000", "-", "1.000", "1.00"])
        self.assertEqual(bridge.split(), ["bridge", "2.000", "3.000", "400", "2.000", "-", "3.000", "2.00"])


if __name__ == "__main__":
    unittest.main()
