"""How the service logs: one JSON object a line, with ids and never an e-mail address."""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, TextIO

#: Anything that looks like an address, wherever it stands in a text.
ADDRESS = re.compile(r"[^\s@\"'<>()\[\]{},;:=/\\]{1,64}@(?:[\w-]{1,63}\.)+\w[\w-]{1,62}", re.UNICODE)
REMOVED = "[address removed]"

#: Attributes that every log record has; what else it carries was given as ``extra``.
_STANDARD = set(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}


def redact(text: str) -> str:
    """``text`` without anything that looks like an e-mail address.

    Examples
    --------
    >>> redact("550 no such user <jane.doe@shop.example>")
    '550 no such user <[address removed]>'
    """
    return ADDRESS.sub(REMOVED, text) if "@" in text else text


def redacted(value: Any) -> Any:
    """The same JSON-like value with `redact` applied to every text in it, names included."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {redact(key) if isinstance(key, str) else key: redacted(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [redacted(inner) for inner in value]
    return value


class RedactAddresses(logging.Filter):
    """Removes addresses from message, arguments and extras of every record that passes."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Always lets the record through, cleaned."""
        record.msg = redact(record.getMessage())
        record.args = None
        if record.exc_info and not record.exc_text:
            record.exc_text = logging.Formatter().formatException(record.exc_info)
        if record.exc_text:
            record.exc_text = redact(record.exc_text)
        for name, value in vars(record).items():
            if name not in _STANDARD:
                setattr(record, name, redacted(value))
        return True


class JsonLines(logging.Formatter):
    """A record as one line of JSON: time, level, logger, message, and what the caller gave as ``extra``."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        line: dict[str, Any] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        line.update({name: value for name, value in vars(record).items() if name not in _STANDARD})
        if record.exc_info or record.exc_text:
            line["trace"] = record.exc_text or self.formatException(record.exc_info)  # type: ignore[arg-type]
        return json.dumps(line, default=lambda value: redact(str(value)), ensure_ascii=False)


def configure(level: str = "INFO", stream: TextIO | None = None) -> None:
    """Send every log of the process to ``stream`` (default standard error) as JSON lines without addresses.

    Raises
    ------
    ValueError
        If ``level`` is no logging level.
    """
    number = logging.getLevelNamesMapping().get(level.upper())
    if number is None:
        raise ValueError(f"LOG_LEVEL {level!r} is no level; write DEBUG, INFO, WARNING or ERROR")
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonLines())
    handler.addFilter(RedactAddresses())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(number)
    for noisy in ("httpx", "httpcore", "alembic", "mlflow", "mail.log"):
        logging.getLogger(noisy).setLevel(max(number, logging.WARNING))
