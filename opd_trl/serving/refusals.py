"""What the server answers in place of numbers: OpenAI's error shape, with what was expected and what to do."""

from starlette.responses import JSONResponse


TYPES = {401: "authentication_error", 500: "server_error", 503: "overloaded_error"}


class Refusal(Exception):
    """An answer that is an error.

    Args:
        status: HTTP status.
        message: what was given, what was expected, what to do.
        headers: of the response.
    """

    def __init__(self, status: int, message: str, **headers: str):
        super().__init__(message)
        self.status, self.message = status, message
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}

    def response(self) -> JSONResponse:
        """The JSON of OpenAI's errors: `{"error": {"message", "type", "code"}}`."""
        error = {
            "message": self.message,
            "type": TYPES.get(self.status, "invalid_request_error"),
            "code": self.status,
        }
        return JSONResponse({"error": error}, self.status, self.headers)
