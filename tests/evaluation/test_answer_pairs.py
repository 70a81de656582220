"""Answers beside right answers as GSM8K, SVAMP, MATH-500, AIME and files of one's own write them; wrong ones too."""

import math
import time

import pytest

from opd_trl.evaluation import Judge, majority, math_accuracy
from opd_trl.evaluation.math import as_solution
from opd_trl.evaluation.notation import as_latex


# (right answer as a row holds it, answers that equal it, answers that do not)
ROWS = [
    # Plain numbers
    (1e-05, ["0.00001", "10^{-5}", r"1 \times 10^{-5}", "1e-05"], ["1", "e-5", "1e5"]),
    (6e23, [r"6 \times 10^{23}", "6e23", "6·10²³"], ["6e22"]),
    ("1E5", ["100000", "100,000"], ["1e-5"]),
    ("2e-3", ["0.002", r"\frac{1}{500}"], ["2", "0.0002"]),
    ("6.02214076e23", ["602214076000000000000000", r"6.02214076 \times 10^{23}"], ["6.0221e23"]),
    ("2e-8", ["0.00000002"], ["1e-8", "0"]),
    ("1e-20", ["10^{-20}"], [r"2 \times 10^{-20}"]),
    (".0000672", ["6.72e-5"], ["0.000067"]),
    (0.1 + 0.2, ["0.3", r"\frac{3}{10}"], ["0.4"]),
    (145.0, ["145", "145.0", "145.00"], ["1450", "145.5"]),
    (1234567.0, ["1,234,567"], ["1234568"]),
    ("100000.1", ["100000.10"], ["100000.2"]),
    (r"10,\!080", ["10080", "10,080"], ["10.08"]),
    ("She makes 9 * 2 = $<<9*2=18>>18 a day.\n#### 18", ["18", r"\$18", "18 dollars"], ["9"]),
    ("#### 70,000", ["70000", "70 000"], ["70"]),
    (-3, ["-3", "\N{MINUS SIGN}3", "- 3"], ["3"]),
    (70, ["070", "70.0"], ["7"]),
    # Fractions, percent, units, money
    ("1/3", [r"\frac13", "0.333333", r"\frac{2}{6}"], ["0.33", "1/2"]),
    ("14/3", [r"\frac{14}{3}", "4 2/3", r"4\frac{2}{3}"], ["42/3"]),
    ("2½", ["5/2", "2.5"], ["21/2"]),
    ("50%", [r"50\%", "0.5", "50"], [r"5\%", "0.05"]),
    ("12.5%", ["12.5", "0.125"], ["125"]),
    ("5 km", ["5", r"5\text{ km}", "5 km"], ["6 km"]),
    ("12 cm^2", ["12", r"12\text{ cm}^2"], ["144"]),
    ("60 km/h", ["60"], ["1"]),
    ("3/4 cup", ["3/4", "0.75"], ["4/3"]),
    ("$18.90", ["18.9", r"\$18.90"], ["1890"]),
    (r"5.4 \text{ cents}", ["5.4"], ["54"]),
    (r"90^\circ", ["90", "90°"], ["180"]),
    # Expressions
    ("2*pi", [r"2\pi", "2pi", "6.283185"], ["2", r"2 + \pi"]),
    ("3.14159265", [r"\pi"], ["3.14"]),
    (r"\pi", ["3.141593"], [r"\frac{355}{113}", r"\frac{22}{7}"]),
    ("2*sqrt(2)", [r"\sqrt{8}", "sqrt(8)", r"2\sqrt2"], ["4", "sqrt(2)"]),
    ("ln(2)", [r"\ln 2", "0.693147"], ["ln(3)"]),
    ("x**2 + 1", ["1 + x^{2}", "x² + 1"], ["x2 + 1", "2x + 1", "x^3 + 1"]),
    ("x=5", ["5", "x = 5"], ["y = 5"]),
    ("p - q", ["-q + p"], ["q - p"]),
    # Lists
    ([1, 2], ["1, 2", "(1, 2)", "[1, 2]"], ["1, 3", "1, 2, 3"]),
    ("[3, 5, 7]", ["3, 5, 7", "(3,5,7)"], ["[3, 7, 5]"]),
    ("1,-2", ["-2,1", r"\{1, -2\}"], ["1, 2"]),
    ("(3, pi/2)", [r"\left(3, \frac{\pi}{2}\right)"], [r"(\frac{\pi}{2}, 3)"]),
    (r"\left[ 3, 4 \right]", ["[3, 4]"], ["(3, 4)"]),
    ("[1e-8, 2]", [r"10^{-8}, 2"], ["2e-8, 2"]),
    ("(1, inf)", [r"(1, \infty)"], ["[1, 2)"]),
    # Words
    (True, ["True", "true", r"\text{True}"], ["False", r"\text{false}"]),
    (r"\text{Evelyn}", ["Evelyn", r"\text{Evelyn}"], ["Navin"]),
    ("east", [r"\text{east}", "East"], ["seat", "west"]),
    (r"\text{(C)}", ["C", "(C)"], ["B"]),
]
PAIRS = [
    (a, gold, equal) for gold, *sides in ROWS for equal, side in zip((True, False), sides, strict=True) for a in side
]
UNREADABLE = ["", None, math.nan, "nan", [], "$$", "???", "{"]


@pytest.fixture(scope="module")
def judge():
    with Judge(workers=1, time_limit=30) as judge:
        yield judge


def test_answers_in_the_notations_of_benchmarks_and_files_are_judged_by_what_they_say(judge):
    assert len(PAIRS) >= 100
    answers, golds, _ = zip(*PAIRS, strict=True)
    verdicts = judge([rf"\boxed{{{answer}}}" for answer in answers], map(as_solution, golds))
    wrong = [pair for pair, verdict in zip(PAIRS, verdicts, strict=True) if verdict.correct is not pair[2]]
    assert wrong == []


def test_a_right_answer_without_meaning_gives_no_verdict_and_is_named_once(judge, caplog):
    verdicts = judge([r"\boxed{7}"] * len(UNREADABLE), map(as_solution, UNREADABLE))
    assert {verdict.reason for verdict in verdicts} == {"unparsable gold"}
    assert math_accuracy([r"\boxed{7}"] * 3, ["?!", "?!", "7"]) == [None, None, 1.0]
    assert [record.getMessage().count("'?!'") for record in caplog.records] == [1]


@pytest.mark.parametrize(
    ("answers", "count"),
    [
        (["0.5", r"\frac{1}{2}", "1/2", r"50\%", ".50"], 1),
        (["1, 2", "2, 1", r"\{1, 2\}", "1.0, 2"], 1),
        (["0.00000001", "1e-8", "2e-8"], 2),
        (["x + 1", "1 + x"], 1),
    ],
)
def test_a_vote_counts_wrong_answers_that_are_equal_as_one(judge, answers, count):
    verdicts = judge([rf"\boxed{{{answer}}}" for answer in answers], ["77"] * len(answers))
    assert len({verdict.value for verdict in verdicts}) == count


@pytest.mark.parametrize("text", ["1" * 9999, "1." * 5000, "5 " + "a" * 9990 + "!", "2 3/" * 2500, "1e" + "9" * 9990])
def test_a_hostile_answer_is_read_in_no_time(text):
    start = time.process_time()
    as_latex(text)
    assert time.process_time() - start < 1


def test_right_answers_vote_together_however_they_are_spelt():
    assert majority(["9", "9", "1/3", "0.333333", "x"], [0, 0, 1, 1, 1]) == 1.0
