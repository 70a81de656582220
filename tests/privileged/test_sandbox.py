"""Templates of others reach nothing but their variables, and cost no more than is said."""

import pytest

from opd_trl.privileged import get_builder, sandbox
from opd_trl.privileged.sandbox import Template


def refused(text: str) -> str:
    with pytest.raises(ValueError, match="privileged_template") as error:
        Template(text, key="privileged_template").render(context="C", prompt="P")
    assert "\n" not in str(error.value)
    assert repr(text)[:50] in str(error.value)
    return str(error.value)


@pytest.mark.attack("recipes", "a privileged_template that reaches for Python", "refused, with the template")
@pytest.mark.parametrize(
    "text",
    [
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ context.__class__.__mro__[1].__subclasses__() }}",
        "{{ ''['__class__'] }}",
        "{{ context | attr('__class__') }}",
        "{{ self.__init__.__globals__ }}",
        "{{ '{0.__class__}'.format(context) }}",
        "{{ [].append(1) }}",
        "{% import 'os' as os %}",
        "{% include '/etc/passwd' %}",
    ],
)
def test_a_template_cannot_reach_python(text):
    assert "unsafe" in refused(text) or "no loader" in refused(text)


@pytest.mark.attack("recipes", "a privileged_template that asks for gigabytes, hours or endless depth", "refused")
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{% for i in range(10**9) %}x{% endfor %}", "Range too big"),
        ("{{ 'a' * 10**10 }}", "more than 1024 MiB"),
        ("{{ 'x' | center(10**10) }}", "more than 1024 MiB"),
        ("{{ '%9999999999d' % 1 }}", "more than 1024 MiB"),
        ("{{ '{:>9999999999}'.format(1) }}", "more than 1024 MiB"),
        ("{{ 'a' * 20000000 }}", "20,000,000 characters"),
        ("{{ 9 ** 9 ** 9 }}", "a power of numbers above"),
        ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "recursion depth"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion depth"),
        ("{{ lipsum(n=10**7) }}", "undefined"),
    ],
)
def test_what_a_template_costs_is_bounded(text, said):
    assert said in refused(text)


@pytest.mark.attack("recipes", "a privileged_template whose loops or macros never end", "refused after 10 s")
@pytest.mark.parametrize(
    "text",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
    ],
)
def test_loops_and_macros_have_a_deadline(text, monkeypatch):
    monkeypatch.setattr(sandbox, "MOST_SECONDS", 0.2)
    assert "it takes more than 0.2 s" in refused(text)


def test_what_templates_are_for_works_as_ever():
    text = "{% for line in context.splitlines() %}- {{ line | upper }}\n{% endfor %}{{ prompt ~ '!' }}"
    assert get_builder("hint", template=text)("2 + 2?", "a\nb") == "- A\n- B\n2 + 2?!"


@pytest.mark.parametrize("text", ["{{ nope }}", "{{ 1 / 0 }}", "{{ context.nope() }}"])
def test_a_template_that_fails_is_named(text):
    refused(text)
