from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest

from app.clients.llm import (
    Model,
    Usage,
)
from app.errors import (
    CredentialsRefused,
    MalformedReply,
    RemoteStatus,
)
from tests.clients.llm_support import model_of
from tests.fakes.model_server import ModelServer, Raw


@pytest.fixture
async def server() -> AsyncIterator[ModelServer]:
    async with ModelServer() as running:
        yield running


@pytest.fixture
async def model(server: ModelServer) -> AsyncIterator[Model]:
    async with model_of(server) as opened:
        yield opened


def embedding_settings(server: ModelServer) -> dict[str, object]:
    return {"embedding_base_url": server.base_url, "embedding_model": "embed-1", "embedding_api_key": "sk-embed"}


async def test_embeddings_come_in_batches_and_keep_the_order(server: ModelServer) -> None:
    texts = [f"{number} text" for number in range(70)]
    async with model_of(server, **embedding_settings(server)) as model:
        embeddings = await model.embed(texts)
    assert [vector[1] for vector in embeddings.vectors] == [float(ord(text[0])) for text in texts]
    assert [vector[0] for vector in embeddings.vectors] == [float(len(text)) for text in texts]
    assert embeddings.model == "embed-1"
    assert embeddings.usage == Usage(sum(map(len, texts)), 0)
    assert [len(request.body["input"]) for request in server.requests] == [32, 32, 6]
    assert server.requests[0].headers["authorization"] == "Bearer sk-embed"


async def test_no_texts_are_no_request(server: ModelServer) -> None:
    async with model_of(server, **embedding_settings(server)) as model:
        assert (await model.embed([])).vectors == []
    assert server.requests == []


@pytest.mark.parametrize(
    "data",
    [
        [{"index": 0, "embedding": [1.0]}],
        [{"index": 0, "embedding": [1.0]}, {"index": 0, "embedding": [1.0]}],
        [{"index": 0, "embedding": [1.0]}, {"index": 1, "embedding": [1.0, 2.0]}],
        [{"index": 0, "embedding": "AAAA"}, {"index": 1, "embedding": "AAAA"}],
    ],
    ids=["missing", "doubled", "lengths differ", "encoded"],
)
async def test_wrong_embeddings_are_malformed(server: ModelServer, data: list[dict[str, object]]) -> None:
    server.script_embeddings(Raw(json.dumps({"data": data, "model": "embed-1"})))
    async with model_of(server, **embedding_settings(server)) as model:
        with pytest.raises(MalformedReply):
            await model.embed(["a", "b"])


async def test_an_error_instead_of_embeddings_is_read(server: ModelServer) -> None:
    server.script_embeddings(Raw('{"error": {"message": "input too long", "code": 400}}'))
    async with model_of(server, **embedding_settings(server)) as model:
        with pytest.raises(RemoteStatus, match="input too long"):
            await model.embed(["a"])


async def test_refused_embedding_credentials_name_their_own_setting() -> None:
    async with ModelServer(api_key="sk-right") as server, model_of(server, **embedding_settings(server)) as model:
        with pytest.raises(CredentialsRefused, match="NIGHTSHIFT_EMBEDDING_API_KEY"):
            await model.embed(["a"])
