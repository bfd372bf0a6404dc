"""Texts into vectors: by a server, or, where none is configured, by hashing what the texts are made of."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from app.clients.lexical import hashed_vector
from app.clients.llm_endpoint import Endpoint
from app.clients.llm_meter import Estimate, Meter, report, unmetered
from app.clients.llm_models import Embeddings, Usage, estimate_tokens
from app.clients.llm_requests import embedding_body
from app.clients.llm_wire import WireEmbeddings, parse_reply, usage_of
from app.errors import MalformedReply

BATCH_TEXTS = 32
"""Texts a request. Some servers take no more."""
LEXICAL_MODEL = "offline-lexical"


class RemoteEmbedder:
    """Vectors from `POST /embeddings`, in batches one after the other."""

    def __init__(self, endpoint: Endpoint, model: str, meter: Meter = unmetered) -> None:
        self._endpoint = endpoint
        self._model = model
        self._meter = meter

    def metered(self, meter: Meter) -> RemoteEmbedder:
        """The same one, whose requests go through a meter."""
        return RemoteEmbedder(self._endpoint, self._model, meter)

    async def embed(self, texts: Sequence[str]) -> Embeddings:
        """Vectors in the order of the texts. Raises the classes under `ClientError`."""
        vectors: list[list[float]] = []
        usage = Usage()
        for start in range(0, len(texts), BATCH_TEXTS):
            batch = texts[start : start + BATCH_TEXTS]
            async with self._meter(Estimate.of_embedding(self._model, batch)) as metered:
                reply = await self._ask(batch)
                used = usage_of(reply.usage) or Usage(sum(map(estimate_tokens, batch)), estimated=True)
                report(metered, used)
            vectors += self._in_order(reply, len(batch))
            usage += used
        if len({len(vector) for vector in vectors}) > 1:
            raise MalformedReply(f"{self._endpoint.peer.label} sent vectors of different lengths")
        return Embeddings(vectors, self._model, usage)

    async def _ask(self, batch: Sequence[str]) -> WireEmbeddings:
        data = await self._endpoint.post("/embeddings", embedding_body(batch, self._model))
        return parse_reply(WireEmbeddings, data, self._endpoint.peer)

    def _in_order(self, reply: WireEmbeddings, expected: int) -> list[list[float]]:
        by_index = {item.index: item.embedding for item in reply.data}
        if sorted(by_index) != list(range(expected)):
            raise MalformedReply(f"{self._endpoint.peer.label} sent {len(reply.data)} vectors: expected {expected}")
        return [by_index[index] for index in range(expected)]

    async def aclose(self) -> None:
        """Close the connections."""
        await self._endpoint.aclose()


class LexicalEmbedder:
    """Hashed words and parts of words, see `hashed_vector`. Needs nothing; costs about a millisecond a page."""

    def metered(self, meter: Meter) -> LexicalEmbedder:
        """The same one: it makes no requests."""
        return self

    async def embed(self, texts: Sequence[str]) -> Embeddings:
        """Vectors in the order of the texts; signed as `offline-lexical`. Uses no tokens."""
        # In a thread: a document's worth of texts would hold up the loop for a good while.
        vectors = await asyncio.to_thread(lambda: [hashed_vector(text) for text in texts])
        return Embeddings(vectors, LEXICAL_MODEL, Usage())

    async def aclose(self) -> None:
        """Nothing is open."""
