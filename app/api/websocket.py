"""`/ws`: commands in, answers and events out. What is said there is in `ws_session`."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.websockets import WebSocket

from app.api.auth import Authenticator
from app.api.dependencies import engine_of, shutdown_of
from app.api.principal import Principal
from app.api.problems import STORE_ERRORS
from app.api.tickets import redeem_ticket
from app.api.ws_frames import close_code, close_reason
from app.api.ws_session import Session
from app.errors import NightshiftError
from app.telemetry import bind_context
from app.telemetry.metrics import STREAM_CLIENTS

router = APIRouter()


@router.websocket("/ws")
async def events(socket: WebSocket) -> None:
    """Serve a client whose credentials stand in its `Authorization` header, or in `?ticket=`.

    With `?last_event_id=` its own channel begins behind that event. A client that is refused is accepted first: a
    browser tells a page only of closes, not of HTTP answers.
    """
    await socket.accept()
    try:
        shutdown_of(socket).refuse_late()
        caller = await _caller(socket)
    except (NightshiftError, *STORE_ERRORS) as error:
        await socket.close(close_code(error), close_reason(error))
        return
    bind_context(user_id=caller.user_id)
    with STREAM_CLIENTS.labels("websocket").track_inprogress():
        session = Session(socket, engine_of(socket), caller, shutdown_of(socket))
        await session.run(socket.query_params.get("last_event_id"))


async def _caller(socket: WebSocket) -> Principal:
    authorization, ticket = socket.headers.get("authorization"), socket.query_params.get("ticket")
    if ticket is not None and authorization is None:
        return await redeem_ticket(engine_of(socket), ticket)
    authenticator: Authenticator = socket.app.state.authenticator
    return await authenticator.authenticate(authorization)
