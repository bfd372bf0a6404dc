"""Language models. `open_model(settings)` gives the configured one, or the offline one where none is configured.

    model = open_model(settings())
    reply = await model.complete([Message.user("Why is the sky blue?")])
    async with aclosing(model.stream([Message.user("...")])) as deltas:
        async for delta in deltas: ...
    digest, usage = await model.structured([Message.user("...")], Digest)

The protocol is the OpenAI-compatible one, which nearly every provider and server speaks. Calls are not retried here:
errors say whether a retry may help and when, and the engine decides.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractContextManager, AsyncExitStack, suppress
from itertools import count
from typing import Unpack, cast

from pydantic import SecretStr
from pydantic_core import to_json

from app.clients.embeddings import LexicalEmbedder, RemoteEmbedder
from app.clients.llm_endpoint import Endpoint, EndpointSettings
from app.clients.llm_meter import Estimate, Meter, Metered, report, unmetered
from app.clients.llm_models import (
    DEFAULT_REASKS,
    ChatOptions,
    Completion,
    Delta,
    Embedder,
    Embeddings,
    M,
    Message,
    Model,
    TextDelta,
    ToolCall,
    ToolOptions,
    ToolSpec,
    Usage,
    estimate_tokens,
)
from app.clients.llm_requests import Dialect, chat_body
from app.clients.llm_stream import StreamAssembler
from app.clients.llm_structured import read_structured, schema_of, source_names, with_instructions, with_problem
from app.clients.llm_wire import Ask, JsonObject, WireChat, completion_of, parse_reply
from app.clients.offline import OFFLINE_MODEL, OfflineModel
from app.clients.sources import Source, Statement, render_sources
from app.errors import ClientError, InvalidModelOutput, NotConfigured, RemoteStatus, SettingsError
from app.settings import Settings
from app.telemetry.measure import measured
from app.telemetry.metrics import LLM_CALL_DURATION_S, LLM_CALLS, LLM_TOKENS

__all__ = [
    "OFFLINE_MODEL",
    "Completion",
    "Delta",
    "Embeddings",
    "Estimate",
    "Message",
    "Metered",
    "Model",
    "OfflineModel",
    "RemoteModel",
    "Source",
    "Statement",
    "TextDelta",
    "ToolCall",
    "ToolSpec",
    "Usage",
    "estimate_tokens",
    "open_model",
    "render_sources",
]

_CHAT = "/chat/completions"
_DRAIN_S = 1.0
MAX_OPEN_CALLS = 1_000
"""Requests open at once in a process, whatever the limits of the fleet are."""
_MOST_DIALECTS = 100


class RemoteModel:
    """A model behind an OpenAI-compatible API."""

    def __init__(self, endpoint: Endpoint, model: str | None, embedder: Embedder, meter: Meter = unmetered) -> None:
        self._endpoint = endpoint
        self._model = model
        self._embedder = embedder
        self._meter = meter
        self._dialects: dict[str, Dialect] = {}

    def metered(self, meter: Meter) -> RemoteModel:
        """The same model, each of whose requests goes through a meter."""
        model = RemoteModel(self._endpoint, self._model, self._embedder.metered(meter), meter)
        model._dialects = self._dialects
        return model

    @property
    def name(self) -> str:
        """The configured model; empty when each call has to name one."""
        return self._model or ""

    async def complete(self, messages: Sequence[Message], **options: Unpack[ToolOptions]) -> Completion:
        """The whole reply at once. The server is silent until it is ready: prefer `stream` for long replies."""
        return await self._complete(messages, options)

    async def stream(self, messages: Sequence[Message], **options: Unpack[ToolOptions]) -> AsyncGenerator[Delta, None]:
        """The reply as it is made: `TextDelta`s, then the tool calls, then the `Completion`.

        Raises `MalformedReply` when the stream is cut; what was yielded until then is all there is.
        """
        ask = self._ask(messages, options)
        assembler = StreamAssembler(ask)
        async with self._meter(Estimate.of_chat(ask.model, messages, options)) as metered:
            with self._measured(ask):
                async with AsyncExitStack() as stack:
                    events, requests = await self._open_stream(stack, ask, options)
                    async for data in events:
                        if delta := assembler.feed(data):
                            yield delta
                        if assembler.done:
                            break
                    await _drain(events)
                completion = self._counted(ask, assembler.finish())
            report(metered, completion.usage, requests)
        for call in completion.tool_calls:
            yield call
        yield completion

    async def structured(
        self,
        messages: Sequence[Message],
        shape: type[M],
        *,
        max_reasks: int = DEFAULT_REASKS,
        **options: Unpack[ChatOptions],
    ) -> tuple[M, Usage]:
        """A reply that is valid for `shape`, and the usage of all asks.

        A reply that does not fit is shown to the model again with what is wrong, at most `max_reasks` times; then
        `InvalidModelOutput` is raised. Where the messages carry sources, a `Statement` must cite one of them.
        """
        asked = with_instructions(messages, shape)
        conversation, names, usage = asked, source_names(messages), Usage()
        result: M | str = ""
        for _ in range(max_reasks + 1):
            reply = await self._complete(conversation, cast(ToolOptions, options), schema=schema_of(shape))
            usage += reply.usage
            result = read_structured(reply, shape, names)
            if not isinstance(result, str):
                return result, usage
            conversation = with_problem(asked, reply, result)
        raise InvalidModelOutput(
            f"{self._endpoint.peer.label} gave no valid {shape.__name__} in {max_reasks + 1} replies: {result}"
        )

    async def embed(self, texts: Sequence[str]) -> Embeddings:
        """Vectors of the texts: by the configured embedding server, else `offline-lexical`."""
        return await self._embedder.embed(texts)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._endpoint.aclose()
        await self._embedder.aclose()

    def _ask(self, messages: Sequence[Message], options: ToolOptions) -> Ask:
        model = options.get("model") or self._model
        if not model:
            raise NotConfigured("no model is named: expected NIGHTSHIFT_LLM_MODEL to be set, or a model in the call")
        return Ask(self._endpoint.peer, model, messages)

    async def _complete(
        self, messages: Sequence[Message], options: ToolOptions, schema: tuple[str, JsonObject] | None = None
    ) -> Completion:
        ask = self._ask(messages, options)
        estimate = Estimate.of_chat(ask.model, messages, options, to_json(schema[1]) if schema else b"")
        async with self._meter(estimate) as metered:
            with self._measured(ask):
                completion, requests = await self._post(ask, options, schema)
                self._counted(ask, completion)
            report(metered, completion.usage, requests)
        return completion

    async def _post(
        self, ask: Ask, options: ToolOptions, schema: tuple[str, JsonObject] | None
    ) -> tuple[Completion, int]:
        """The completion, and how many requests it took."""
        for requests in count(1):
            body = chat_body(ask, options, self._dialect(ask.model), schema=schema)
            try:
                data = await self._endpoint.post(_CHAT, body)
            except RemoteStatus as refusal:
                self._learn(ask.model, body, refusal)
            else:
                return completion_of(parse_reply(WireChat, data, ask.peer), ask), requests
        raise AssertionError("the count does not end")

    def _measured(self, ask: Ask) -> AbstractContextManager[None]:
        return measured(LLM_CALLS, LLM_CALL_DURATION_S, self._label(ask))

    def _counted(self, ask: Ask, completion: Completion) -> Completion:
        LLM_TOKENS.labels(self._label(ask), "prompt").inc(completion.usage.prompt_tokens)
        LLM_TOKENS.labels(self._label(ask), "completion").inc(completion.usage.completion_tokens)
        return completion

    def _label(self, ask: Ask) -> str:
        # Callers may name any model; each would be a time series for ever.
        return ask.model if ask.model == self._model else "other"

    async def _open_stream(
        self, stack: AsyncExitStack, ask: Ask, options: ToolOptions
    ) -> tuple[AsyncGenerator[str, None], int]:
        """The events of the stream, and how many requests they took."""
        for requests in count(1):
            body = chat_body(ask, options, self._dialect(ask.model), stream=True)
            try:
                return await stack.enter_async_context(self._endpoint.events(_CHAT, body)), requests
            except RemoteStatus as refusal:
                self._learn(ask.model, body, refusal)
        raise AssertionError("the count does not end")

    def _dialect(self, model: str) -> Dialect:
        return self._dialects.get(model, Dialect())

    def _learn(self, model: str, body: JsonObject, refusal: RemoteStatus) -> None:
        """Remember what the server cannot do; raise the refusal again when it is about something else."""
        learned = self._dialect(model).learn(body, refusal)
        if learned is None:
            raise refusal
        if len(self._dialects) >= _MOST_DIALECTS:
            # The names come with the calls; learning again costs one request.
            self._dialects.clear()
        self._dialects[model] = learned


async def _drain(events: AsyncGenerator[str, None]) -> None:
    """Read to the end of the body, without which the connection cannot be used again; give up quickly."""
    with suppress(TimeoutError, ClientError):  # The reply is complete already.
        async with asyncio.timeout(_DRAIN_S):
            async for _ in events:
                pass


def open_model(settings: Settings) -> Model:
    """The model and the embedder that the settings name. Raises `SettingsError` for a URL or key that cannot be used.

    Without `llm_base_url` it is the offline model, without `embedding_base_url` embeddings are lexical. Close it with
    `aclose()`. Open one for a process: it holds the connections, and bounds how many are open.
    """
    embedder = _open_embedder(settings)
    if settings.llm_base_url is None:
        return OfflineModel(embedder)
    endpoint = _open_endpoint(settings, "NIGHTSHIFT_LLM", settings.llm_base_url, settings.llm_api_key)
    return RemoteModel(endpoint, settings.llm_model, embedder)


def _open_embedder(settings: Settings) -> Embedder:
    if settings.embedding_base_url is None:
        return LexicalEmbedder()
    if settings.embedding_model is None:
        raise SettingsError("NIGHTSHIFT_EMBEDDING_MODEL: expected to be set, because NIGHTSHIFT_EMBEDDING_BASE_URL is")
    key = settings.embedding_api_key
    endpoint = _open_endpoint(settings, "NIGHTSHIFT_EMBEDDING", settings.embedding_base_url, key)
    return RemoteEmbedder(endpoint, settings.embedding_model)


def _open_endpoint(settings: Settings, prefix: str, base_url: str, api_key: SecretStr | None) -> Endpoint:
    open_at_once = min(settings.llm_concurrency or MAX_OPEN_CALLS, MAX_OPEN_CALLS)
    return Endpoint(EndpointSettings(prefix, base_url, api_key, settings.llm_timeout_s, open_at_once))
