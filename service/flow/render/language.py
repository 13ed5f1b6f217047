"""Liquid, as users may write it in mails: no file access, and bounds on loops, memory and output."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import cache, wraps
from typing import Any

from liquid import BoundTemplate, Environment
from liquid.exceptions import LiquidError, ResourceLimitError

from service.errors import Invalid

#: Characters of one text, and elements of one list, that a filter takes or gives.
LARGEST_TEXT = 100_000
LARGEST_LIST = 10_000
#: Ranges take whole numbers below this: `(1..1000000000) | join` would hold a core for minutes.
LARGEST_RANGE = 1_000

#: Filters that give back what they took; bounding the one of every fall-back would cost a tenth of a mail.
_HARMLESS = frozenset(["default"])

_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"")
_RANGE = re.compile(r"\.\.")
_SMALL_RANGE = re.compile(r"\(\s*\d{1,3}\s*\.\.\s*\d{1,3}\s*\)")
_LIQUID = re.compile(r"\{%.*?%\}|\{\{.*?\}\}", re.DOTALL)


class MailEnvironment(Environment):
    """Liquid's environment with its limits set."""

    loop_iteration_limit = 1_000
    output_stream_limit = 1_000_000
    local_namespace_limit = 200_000
    context_depth_limit = 20
    block_nesting_limit = 50

    def __init__(self, *, autoescape: bool) -> None:
        super().__init__(autoescape=autoescape)
        for name in ("include", "render"):
            del self.tags[name]
        self.filters = {
            name: function if name in _HARMLESS else _bounded(name, function) for name, function in self.filters.items()
        }


@cache
def environment(autoescape: bool) -> MailEnvironment:
    """The environment of HTML (``autoescape``) or of plain text (subjects, the text twin)."""
    return MailEnvironment(autoescape=autoescape)


def parse(source: str, *, autoescape: bool, what: str = "template") -> BoundTemplate:
    """A template ready to render.

    Raises
    ------
    Invalid
        If the Liquid is wrong, naming the line and what was expected.
    """
    for match in _LIQUID.finditer(source):
        bare = _SMALL_RANGE.sub("", _QUOTED.sub("", match.group()))
        if _RANGE.search(bare):
            line = source.count("\n", 0, match.start()) + 1
            raise Invalid(f"{what} line {line}: a range takes whole numbers below {LARGEST_RANGE}, such as (1..5)")
    try:
        template = environment(autoescape).from_string(source)
        # Liquid looks filters up when it renders; a misspelt one must not wait until the mails are due.
        for name, places in template.analyze(include_partials=False).filters.items():
            if name not in environment(autoescape).filters:
                line = source.count("\n", 0, places[0].index) + 1
                raise Invalid(f"{what} line {line}: unknown filter {name!r}; see Liquid's list of filters")
        return template
    except LiquidError as error:
        raise Invalid(f"{what}{_place(error, source)}: {_reason(error)}") from error
    except RecursionError as error:
        raise Invalid(f"{what}: the Liquid is nested too deeply; keep it below 50 levels") from error


def fill(template: BoundTemplate, context: Mapping[str, Any]) -> str:
    """The text of a template for one recipient; what the context lacks renders as nothing.

    Raises
    ------
    ValueError
        If a limit is reached or a filter meets what it cannot take, naming the reason.
    """
    try:
        return template.render(context)
    except LiquidError as error:
        raise ValueError(_reason(error)) from error
    except RecursionError as error:
        raise ValueError("the values are nested too deeply to render") from error


def _place(error: LiquidError, source: str) -> str:
    token = getattr(error, "token", None)
    if token is None or getattr(token, "start_index", -1) < 0:
        return ""
    return f" line {source.count(chr(10), 0, token.start_index) + 1}"


def _reason(error: LiquidError) -> str:
    return str(error.message if getattr(error, "message", None) else error).splitlines()[0]


def _bounded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` that refuses what a chain of filters could grow without end: Liquid's own limits do not see it."""

    @wraps(function)  # carries over with_context and with_environment
    def bounded(value: Any, *arguments: Any, **keywords: Any) -> Any:
        for given in (value, *arguments):
            _check_size(name, given)
        if name.startswith("replace") and len(arguments) == 2:
            text, old, new = str(value), str(arguments[0]), str(arguments[1])
            if len(text) + text.count(old) * len(new) > LARGEST_TEXT:
                raise ResourceLimitError(f"{name} would make more than {LARGEST_TEXT} characters", token=None)
        is_list = isinstance(value, list | tuple | range)
        if name == "join" and arguments and is_list and len(value) * (len(str(arguments[0])) + 1) > LARGEST_TEXT:
            raise ResourceLimitError(f"{name} would make more than {LARGEST_TEXT} characters", token=None)
        result = function(value, *arguments, **keywords)
        _check_size(name, result)
        return result

    return bounded


def _check_size(name: str, given: Any) -> None:
    if isinstance(given, str):
        if len(given) > LARGEST_TEXT:
            raise ResourceLimitError(
                f"filter {name} met {len(given)} characters; at most {LARGEST_TEXT} are taken", token=None
            )
    elif isinstance(given, list | tuple | range):
        if len(given) > LARGEST_LIST:
            raise ResourceLimitError(
                f"filter {name} met a list of {len(given)}; at most {LARGEST_LIST} are taken", token=None
            )
    elif isinstance(given, int) and given.bit_length() > 256:
        raise ResourceLimitError(f"filter {name} met a number of more than 256 bits", token=None)
