"""What a caller must hear about: errors with a stable type, a status and a remedy (RFC 9457)."""

from __future__ import annotations

from typing import Any, ClassVar


class ServiceError(Exception):
    """An error that reaches the caller as a problem body.

    Attributes
    ----------
    slug : str
        Last part of the problem's stable ``type`` URI.
    status_code : int
        HTTP status.
    title : str
        The kind of problem in a few words, the same for each occurrence.
    """

    slug: ClassVar[str] = "error"
    status_code: ClassVar[int] = 500
    title: ClassVar[str] = "Something failed"

    def __init__(self, detail: str, **extra: Any) -> None:
        super().__init__(detail)
        self.detail = detail
        self.extra = extra


class BadRequest(ServiceError):
    """The request cannot be read."""

    slug, status_code, title = "bad-request", 400, "The request cannot be read"


class Unauthorized(ServiceError):
    """No key, or one that is not known."""

    slug, status_code, title = "unauthorized", 401, "A valid key is needed"


class Forbidden(ServiceError):
    """The key lacks the scope."""

    slug, status_code, title = "forbidden", 403, "The key does not allow this"


class NotFound(ServiceError):
    """Nothing goes by that name."""

    slug, status_code, title = "not-found", 404, "Nothing goes by that name"


class Conflict(ServiceError):
    """The state of things does not allow it."""

    slug, status_code, title = "conflict", 409, "The present state does not allow this"


class TooLarge(ServiceError):
    """The body is over a limit."""

    slug, status_code, title = "too-large", 413, "The body is too large"


class Invalid(ServiceError):
    """The request can be read, but a value in it is wrong."""

    slug, status_code, title = "invalid", 422, "A value is not acceptable"


class Unavailable(ServiceError):
    """Something we need does not answer; try again."""

    slug, status_code, title = "unavailable", 503, "Not available right now"
