"""Asks a model over the OpenAI-compatible chat API, and asks again where that may help.

The key is read from the environment, sent in the `Authorization` header, and nowhere else: no error and no log holds
it, even where the server sends it back.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import httpx
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_attempt
from tenacity.wait import wait_exponential, wait_random

from steering_pts.errors import OracleError

MAX_ANSWER_BYTES: Final = 1024 * 1024
MAX_WAIT_SECONDS: Final = 60.0
_RETRIED: Final = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
_SHOWN_CHARACTERS: Final = 200


class EndpointError(Exception):
    """The endpoint gave no answer that can be used; the message says why, without the key."""


class TransientEndpointError(EndpointError):
    """The same, but asking again may help. `wait` is how many seconds the server asked for, None if it did not."""

    def __init__(self, message: str, wait: float | None = None) -> None:
        super().__init__(message)
        self.wait = wait


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A model behind a chat endpoint.

    Attributes:
        url: Of the API, up to and without `/chat/completions`; `/v1` is added where the path is empty.
        model: The model's name there.
        key_env: The environment variable that holds the key; None for a server that needs none.
        seconds: Most time that one attempt may take, from connecting to the answer's last byte.
        retries: Further attempts after 429, 5xx, a lost connection or an attempt that took too long.
        backoff: Seconds before the second attempt, half of them at random. The wait doubles up to a minute, and gives
            way to the server's `Retry-After`.
    """

    url: str
    model: str
    key_env: str | None
    seconds: float
    retries: int
    backoff: float

    def key(self) -> str | None:
        """The key, None where none is needed.

        Raises:
            OracleError: The environment variable is not set, or holds what can't be sent.
        """
        if self.key_env is None:
            return None
        key = os.environ.get(self.key_env, "").strip()
        if not key:
            raise OracleError(
                f"the environment variable {self.key_env}, which should hold the judge's key, is not set"
            )
        if not key.isascii() or not key.isprintable():
            raise OracleError(f"the environment variable {self.key_env} holds characters that no key has")
        return key

    def chat_url(self) -> str:
        """Where questions are posted."""
        url = self.url.rstrip("/").removesuffix("/chat/completions")
        return f"{url}{'' if httpx.URL(url).path.strip('/') else '/v1'}/chat/completions"

    async def ask(self, client: httpx.AsyncClient, prompt: str) -> str:
        """The model's answer to one message, at temperature 0.

        Raises:
            EndpointError: No answer, after all attempts.
            OracleError: The key is not to be had.
        """
        attempts = AsyncRetrying(
            retry=retry_if_exception_type(TransientEndpointError),
            stop=stop_after_attempt(self.retries + 1),
            wait=self._wait,
            reraise=True,
        )
        answer: str = await attempts(self._ask_once, client, prompt)
        return answer

    def _wait(self, state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome is not None else None
        if isinstance(error, TransientEndpointError) and error.wait is not None:
            return min(error.wait, MAX_WAIT_SECONDS)
        half = self.backoff / 2
        return wait_exponential(multiplier=half, max=MAX_WAIT_SECONDS)(state) + wait_random(0, half)(state)

    async def _ask_once(self, client: httpx.AsyncClient, prompt: str) -> str:
        key = self.key()
        # The body is read as it comes: a compressed one could unpack to any size.
        headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
        if key is not None:
            headers["Authorization"] = f"Bearer {key}"
        body = {"model": self.model, "messages": [{"role": "user", "content": prompt}], "temperature": 0}
        try:
            async with (
                asyncio.timeout(self.seconds),
                client.stream("POST", self.chat_url(), json=body, headers=headers) as response,
            ):
                content = await _read(response)
                status, wait = response.status_code, _retry_after(response.headers)
        except TimeoutError:
            raise TransientEndpointError(f"no answer within {self.seconds:g} s") from None
        except (httpx.TransportError, httpx.InvalidURL) as error:
            raise TransientEndpointError(_without(key, f"{type(error).__name__}: {error}")) from None
        if status == httpx.codes.OK:
            return _without(key, _answer_in(content))
        shown = _without(key, content.decode(errors="replace").strip())[:_SHOWN_CHARACTERS]
        message = f"status {status}: {shown}" if shown else f"status {status}"
        raise TransientEndpointError(message, wait) if status in _RETRIED else EndpointError(message)


async def _read(response: httpx.Response) -> bytes:
    content = bytearray()
    async for chunk in response.aiter_raw():
        content += chunk
        if len(content) > MAX_ANSWER_BYTES:
            raise EndpointError(f"the answer is larger than {MAX_ANSWER_BYTES} bytes")
    return bytes(content)


def _answer_in(content: bytes) -> str:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        raise EndpointError("the answer is not JSON") from None
    match value:
        case {"choices": [{"message": {"content": str(text)}}, *_]}:
            return text
    raise EndpointError("the answer is not that of a chat completion: it has no choices[0].message.content")


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """The seconds that `Retry-After` asks for; a date, the header's other form, is not worth its parsing."""
    value = headers.get("retry-after", "")
    return float(value) if value.isdecimal() and len(value) < 7 else None


def _without(key: str | None, text: str) -> str:
    return text if key is None else text.replace(key, "[key]")
