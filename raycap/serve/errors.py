"""A request that cannot be answered, in the one form that clients get."""

from pydantic import Field, computed_field

from raycap.config import Config
from raycap.data.images import ImageError


class ErrorDetail(Config):
    """What was wrong with a request."""

    type: str = Field(examples=["undecodable_image"])
    message: str
    """Field, value, remedy."""

    field: str | None

    request_id: str | None = None
    """The same as in the X-Request-ID header and in the server's logs."""

    @computed_field  # type: ignore[prop-decorator]
    @property
    def param(self) -> str | None:
        """The field again, under the name that OpenAI's clients read."""
        return self.field

    @computed_field  # type: ignore[prop-decorator]
    @property
    def code(self) -> str:
        """The type again, under the name that OpenAI's clients read."""
        return self.type


class ErrorResponse(Config):
    """The one form of every error."""

    error: ErrorDetail


class RequestError(Exception):
    """A request that cannot be answered, the status that says so, and headers that belong to it."""

    def __init__(
        self, status: int, kind: str, message: str, field: str | None = None, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.kind, self.field, self.headers = status, kind, field, headers

    @classmethod
    def malformed(cls, message: str, field: str | None = None) -> "RequestError":
        return cls(400, "malformed_request", message, field)

    @classmethod
    def of_image(cls, error: ImageError, field: str) -> "RequestError":
        if error.reason == "oversized":
            return cls(413, "image_too_large", f"{field}: {error}; send a smaller image", field)
        return cls(422, "undecodable_image", f"{field}: {error}; send a whole JPEG, PNG or WebP file", field)


class Overloaded(Exception):  # noqa: N818 - an answer, not a mistake
    """A stage's queue is full: nothing was computed, and the same request may succeed later."""

    def __init__(self, retry_after_seconds: float) -> None:
        super().__init__(f"the server has too much to do; try again in {retry_after_seconds:g} s")
        self.retry_after_seconds = retry_after_seconds

    def __reduce__(self) -> tuple[type["Overloaded"], tuple[float]]:
        return Overloaded, (self.retry_after_seconds,)
