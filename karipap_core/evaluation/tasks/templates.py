"""Templates of strangers: rendered in Jinja's sandbox, with the harness's own settings and filters, in bounded steps.

The sandbox keeps a template from Python's internals. It does not keep it from counting to 10¹⁵ or from writing a string
of many gigabytes: the limits here do.
"""

import functools
import re
from collections.abc import Callable, Iterator, Sized
from contextlib import contextmanager
from typing import Any

from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.sandbox import SandboxedEnvironment

MOST_STEPS = 20_000  # passes through loops and macros of one rendering
MOST_LENGTH = 1_000_000  # characters or items of anything that a template makes, digits of a number
MOST_SOURCE = 100_000  # characters of a template
# In a format: a width or precision that is given apart, or of more than four digits.
WIDTH = re.compile(r"%[-+ #0]*\d*\.?(\*|\d{5,})|\{[^{}]*:[^{}]*\d{5,}")


class BoundedEnvironment(SandboxedEnvironment):
    """A sandbox whose templates come to an end. Raises SecurityError, in a sentence, where one would not."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self, *args, **options) -> None:
        super().__init__(*args, **options)
        self.steps = 0
        self.globals["range"] = self._range
        self.globals.pop("lipsum", None)
        self.filters = {name: _bounded(name, filtering) for name, filtering in self.filters.items()}

    def from_string(self, source, *args, **options):
        self.steps = 0  # the harness makes a template anew for each rendering
        if isinstance(source, str) and len(source) > MOST_SOURCE:
            raise SecurityError(f"a template of {len(source):,} characters, the most is {MOST_SOURCE:,}")
        return super().from_string(source, *args, **options)

    def _parse(self, source, name, filename):
        tree = super()._parse(source, name, filename)
        blocks: list[Any] = [*tree.find_all(nodes.For), *tree.find_all(nodes.Macro), *tree.find_all(nodes.CallBlock)]
        for block in blocks:
            call = nodes.Call(nodes.EnvironmentAttribute("step"), [], [], None, None)
            block.body.insert(0, nodes.ExprStmt(call).set_lineno(block.lineno))
        for joined in list(tree.find_all(nodes.Concat)):  # a ~ b ~ c as a + of strings, which is looked at
            whole: nodes.Expr = nodes.Const("")
            for one in joined.nodes:
                whole = nodes.Add(whole, nodes.Filter(one, "string", [], [], None, None))
            whole.set_lineno(joined.lineno)
            joined.nodes = [whole]
        return tree

    def step(self, count: int = 1) -> None:
        self.steps += count
        if self.steps > MOST_STEPS:
            raise SecurityError(f"a template that takes more than {MOST_STEPS:,} steps")

    def _range(self, *args) -> range:
        numbers = range(*args)
        if len(numbers) > MOST_STEPS:
            raise SecurityError(f"a range of more than {MOST_STEPS:,} numbers in a template")
        self.step(len(numbers) // 10)  # whoever makes a list of them takes no steps of a loop
        return numbers

    def call_binop(self, context, operator, left, right):
        if operator == "**":
            _check_power(left, right)
        elif operator == "%" and isinstance(left, str):
            _check_format(left)
        elif operator == "+" and isinstance(left, Sized) and isinstance(right, Sized):
            _check_length(len(left) + len(right))
        elif operator == "*":
            _check_product(left, right)
        return super().call_binop(context, operator, left, right)

    def wrap_str_format(self, value):
        wrapped = super().wrap_str_format(value)
        if wrapped is not None:
            _check_format(value.__self__)
        return wrapped

    def call(__self, __context, __obj, *args, **kwargs):  # noqa: N805 (so that no keyword of a template meets them)
        owner = getattr(__obj, "__self__", None)
        _check_arguments(getattr(__obj, "__name__", ""), owner, (*args, *kwargs.values()))
        found = super().call(__context, __obj, *args, **kwargs)
        return _check_result(found)


def _bounded(name: str, filtering: Callable) -> Callable:
    """A filter whose arguments and result are looked at. `wraps` keeps what Jinja has marked it with."""
    given = 1 if hasattr(filtering, "jinja_pass_arg") else 0  # behind the environment or context

    @functools.wraps(filtering)
    def bounded(*args, **kwargs):
        _check_arguments(name, args[given] if len(args) > given else None, (*args[given + 1 :], *kwargs.values()))
        return _check_result(filtering(*args, **kwargs))

    return bounded


def _check_arguments(name: str, owner: Any, args: tuple) -> None:
    """Raises SecurityError where a function could make much of little."""
    for one in args:
        if isinstance(one, int) and abs(one) > MOST_LENGTH:
            raise SecurityError(f"the number {str(one)[:20]} in a template, the most is {MOST_LENGTH:,}")
    if isinstance(owner, list | dict | set):  # extend, update
        _check_length(len(owner) + sum(len(one) for one in args if isinstance(one, Sized)))
    if name == "format" and isinstance(owner, str):
        _check_format(owner)
    elif name == "replace" and isinstance(owner, str):
        new = max((len(one) for one in args[1:2] if isinstance(one, str)), default=0)
        _check_length(len(owner) + (len(owner) + 1) * new)
    elif name == "join":
        for several, separator in ((owner, args[:1]), (args[0] if args else "", (owner,))):  # a filter, a method
            if isinstance(several, list | tuple):
                longest = max((len(one) for one in (*several, *separator) if isinstance(one, str)), default=0)
                _check_length(2 * longest * len(several))


def _check_result(found: Any) -> Any:
    if isinstance(found, str | list | tuple):
        _check_length(len(found))
    return found


def _check_length(length: int) -> None:
    if length > MOST_LENGTH:
        raise SecurityError(f"a template that makes {length:,} characters or items, the most is {MOST_LENGTH:,}")


def _check_format(template: str) -> None:
    if WIDTH.search(template):
        raise SecurityError(f"the format {template[:40]!r} in a template: widths have at most four digits")


def _check_product(left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int):
        _check_length((left.bit_length() + right.bit_length()) // 3)
    elif isinstance(left, int) and isinstance(right, Sized):
        _check_length(left * len(right))
    elif isinstance(right, int) and isinstance(left, Sized):
        _check_length(right * len(left))


def _check_power(base: Any, exponent: Any) -> None:
    if isinstance(base, int) and isinstance(exponent, int):
        _check_length(base.bit_length() * max(0, exponent) // 3)


@contextmanager
def sandboxed() -> Iterator[None]:
    """The harness renders templates in this sandbox, with its own settings and filters."""
    from lm_eval import utils

    plain = utils.env
    safe = BoundedEnvironment(undefined=plain.undefined, keep_trailing_newline=plain.keep_trailing_newline)
    safe.filters |= {name: _bounded(name, one) for name, one in plain.filters.items() if name not in safe.filters}
    utils.env = safe
    try:
        yield
    finally:
        utils.env = plain
