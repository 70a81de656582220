r"""Answers in plain notation, as files and programs write them, to the LaTeX that says the same: `1e-5`, `2*pi`."""

import math
import re
import unicodedata
from typing import Any


_SIGNS = str.maketrans(
    {
        "\N{MINUS SIGN}": "-",
        "\N{EN DASH}": "-",
        "\N{MULTIPLICATION SIGN}": r" \times ",
        "·": r" \cdot ",
        "∞": r"\infty ",
        "°": r"^\circ ",
        "√": r"\sqrt ",
    }
)
_RAISED = re.compile("[⁻⁺⁰¹²³⁴-⁹]+")
_FRACTION_SIGN = re.compile("[¼-¾⅐-⅞]")
_EXPONENT = re.compile(r"(?<![\w\\.])(\d+(?:\.\d*)?|\.\d+)[eE]([+-]?\d{1,6})(?![\w.])")
_MIXED = re.compile(r"(?<![\d/.,])(\d+)\s+(\d+)/(\d+)(?![\d/.])")
_BLANK_THOUSANDS = re.compile(r"[+-]?\d{1,3}(?: \d{3})+(?:\.\d+)?")
_NAMES = {"pi": r"\pi ", "infinity": r"\infty ", "inf": r"\infty ", "oo": r"\infty "}
_NAMES |= {name: rf"\{name}" for name in ("ln", "log", "exp", "sin", "cos", "tan")}
_NAME = re.compile(rf"(?<![A-Za-z\\])(?:{'|'.join(_NAMES)})(?![A-Za-z])")
_POWER = re.compile(r"\^\s*(-?\d+(?:\.\d+)?)")
# A number, and behind a blank what it counts: `3/4 cup`, `5 km/h`, `12 cm^2`. Not `3 and 5`.
_WITH_UNIT = re.compile(
    r"(-?[\d.,]+(?:/\d+)?(?: \\times 10\^\{[+-]?\d+\})?)\s+((?!and\b|or\b)[A-Za-z]{2}[A-Za-z /]*(?:\^\{?-?\d\}?)?)"
)
_ROOT = re.compile(r"(?<![A-Za-z\\])sqrt\s*\(([^()]*)\)")
# A text, and not a product of variables: some word of it has three letters or more.
_WORDS = re.compile(r"(?=.*[^\W\d_]{3})[^\W\d_]+(?:['\- ][^\W\d_]+)*\.?")


def as_latex(text: str) -> str:
    r"""An answer as LaTeX: exponents, powers, products, names, units and words of plain notation are spelt out.

    LaTeX stays as it is, but for what no LaTeX means: a number such as `6e23`, and signs such as `×`, `½`, `x²`.

    Example:
        >>> as_latex("1e-05"), as_latex("2*pi"), as_latex("x**2"), as_latex("5 km/h"), as_latex("True")
        ('1 \\times 10^{-5}', '2 \\cdot \\pi', 'x^{2}', '5\\text{ km/h}', '\\text{True}')
        >>> as_latex(r"\frac{1}{2}"), as_latex("3 1/2"), as_latex("10⁻⁵")
        ('\\frac{1}{2}', '3\\frac{1}{2}', '10^{-5}')
    """
    text = _FRACTION_SIGN.sub(_fraction, text.strip())
    text = _RAISED.sub(lambda run: f"^{{{unicodedata.normalize('NFKC', run[0])}}}", text).translate(_SIGNS)
    text = _EXPONENT.sub(lambda found: rf"{found[1]} \times 10^{{{int(found[2])}}}", text).strip()
    if re.search(r"\\(?!times)", text):
        return text
    if text not in _NAMES and ((_WORDS.fullmatch(text) and len(text) > 3) or text.lower() in ("yes", "no")):
        return rf"\text{{{text.rstrip('.')}}}"
    if _BLANK_THOUSANDS.fullmatch(text):
        return text.replace(" ", "")
    text = _ROOT.sub(r"\\sqrt{\1}", text).replace("**", "^").replace("*", r" \cdot ")
    text = _MIXED.sub(r"\1\\frac{\2}{\3}", _POWER.sub(r"^{\1}", text))
    text = re.sub(r"\s+", " ", _NAME.sub(lambda name: _NAMES[name[0]], text)).strip()
    unit = _WITH_UNIT.fullmatch(text)
    return text if unit is None else rf"{unit[1]}\text{{ {unit[2]}}}"


def _fraction(sign: re.Match[str]) -> str:
    above, below = unicodedata.normalize("NFKC", sign[0]).split("\N{FRACTION SLASH}")
    return rf"\frac{{{above}}}{{{below}}}"


def plain_answer(answer: Any) -> str:
    """The text of a right answer, as a row holds it: a number, true or false, a list of values, a solution.

    Behind the last `####` where there is one, as in GSM8K. Empty where there is no answer: None, NaN, an empty list.

    Example:
        >>> plain_answer(1e-05), plain_answer([1, 2]), plain_answer("3 + 5 = 8\\n#### 8"), plain_answer(None)
        ('1e-05', '1, 2', '8', '')
    """
    if answer is None or (isinstance(answer, float) and math.isnan(answer)):
        return ""
    if isinstance(answer, list):
        return ", ".join(map(plain_answer, answer))
    text = str(answer).rsplit("####", 1)[-1].strip()
    return "" if text.lower() == "nan" else text
