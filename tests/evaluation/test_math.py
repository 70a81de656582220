import pytest

from opd_trl.evaluation import math_accuracy
from opd_trl.scripts.common import reward_func


@pytest.mark.parametrize(
    ("completion", "answer", "expected"),
    [
        (r"Therefore \boxed{\frac{1}{2}}.", "0.5", 1.0),
        (r"\boxed{72}", "She sold 48/2 = <<48/2=24>>24.\n#### 72", 1.0),
        (r"\boxed{1,000}", "1000", 1.0),
        (r"\boxed{7}", "8", 0.0),
        ("I do not know.", "8", 0.0),
        (r"first \boxed{3}, no: \boxed{4}", r"thus \boxed{4}", 1.0),
        (r"\boxed{x+1}", "$1+x$", 1.0),
        (r"\boxed{\frac{1}{", "1", 0.0),
    ],
)
def test_an_answer_is_right_where_its_value_is(completion, answer, expected):
    assert math_accuracy([completion], [answer]) == [expected]
    assert math_accuracy([[{"role": "assistant", "content": completion}]], [answer]) == [expected]


def test_the_reward_is_known_by_its_name_on_the_command_line():
    assert reward_func("math_accuracy") is math_accuracy
    with pytest.raises(ValueError, match=r"'math_acuracy' is none of .*math_accuracy"):
        reward_func("math_acuracy")
