"""Which call needs which scope, and whether its token has it.

The health service needs no token: what asks it (load balancers, orchestrators) has none, and it tells only whether the
server serves. Reflection, which tells the schema of the API, needs a token of any scope, as do the calls that read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from steering_server.errors import MissingScopeError, NoTokenError, UnknownTokenError
from steering_server.security.tokens import MAX_TOKEN_CHARACTERS, Scope, Tokens

ANY = frozenset(Scope)
SCOPES: dict[str, frozenset[Scope]] = {
    "/steering.v1.GenerationService/Generate": frozenset({Scope.GENERATE}),
    "/steering.v1.GenerationService/StreamGenerate": frozenset({Scope.GENERATE}),
    "/steering.v1.VectorService/ListVectors": ANY,
    "/steering.v1.VectorService/GetVector": ANY,
    "/steering.v1.VectorService/LoadVector": frozenset({Scope.ADMIN}),
    "/steering.v1.VectorService/UnloadVector": frozenset({Scope.ADMIN}),
    "/steering.v1.ModelService/GetModel": ANY,
    "/steering.v1.ModelService/Tokenize": frozenset({Scope.GENERATE}),
    "/steering.v1.ModelService/Detokenize": frozenset({Scope.GENERATE}),
    "/steering.v1.ModelService/GetServerStats": ANY,
}
"""The scopes of which a token needs one, for each method; a method that is missing here needs `admin`."""

_REFLECTION = "/grpc.reflection."


class Access:
    """Judges calls by their tokens."""

    def __init__(self, tokens: Callable[[], Tokens] | None = None) -> None:
        """Takes what gives the tokens of now; None lets every call in."""
        self._tokens = tokens

    def caller(self, method: str, metadata: Iterable[tuple[str, str | bytes]]) -> str:
        """The name of a call's token; empty where none is needed.

        Args:
            method: Path of the method.
            metadata: The call's metadata.

        Raises:
            NoTokenError: It has no token.
            UnknownTokenError: It has a token that nobody was given, or several.
            MissingScopeError: Its token does not allow it.
        """
        if self._tokens is None:
            return ""
        headers = [value for key, value in metadata if key == "authorization"]
        if not headers:
            raise NoTokenError
        holder = None
        if len(headers) == 1 and isinstance(headers[0], str):
            scheme, _, token = headers[0].partition(" ")
            if scheme.lower() == "bearer" and len(token) <= MAX_TOKEN_CHARACTERS:
                holder = self._tokens().holder(token)
        if holder is None:
            raise UnknownTokenError
        needed = ANY if method.startswith(_REFLECTION) else SCOPES.get(method, frozenset({Scope.ADMIN}))
        if not holder.scopes & needed:
            raise MissingScopeError(" or ".join(sorted(scope.value for scope in needed)))
        return holder.name
