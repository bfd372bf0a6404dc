from __future__ import annotations

import asyncio
import json
import logging
import logging.config
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn
from arq.logs import default_log_config
from loguru import logger

from app.telemetry import LogContext, bind_context, configure_logging, reset_context, set_context, take_over_logging
from app.telemetry.logs import ARQ_LOGGERS, QUIET_LOGGERS, InterceptHandler
from app.telemetry.records import MAX_MESSAGE_CHARS
from app.telemetry.redaction import REDACTOR

FOREIGN = ("arq", *ARQ_LOGGERS, *QUIET_LOGGERS, "uvicorn", "uvicorn.access", "uvicorn.error", "asyncio", "py.warnings")


@pytest.fixture(autouse=True)
def untouched_logging() -> Iterator[None]:
    root = logging.getLogger()
    loggers = [logging.getLogger(name) for name in FOREIGN]
    before = [(item, list(item.handlers), list(item.filters), item.level, item.propagate) for item in [root, *loggers]]
    known = REDACTOR._known
    token = set_context(LogContext())
    yield
    reset_context(token)
    REDACTOR._known = known
    logging.captureWarnings(False)
    for item, handlers, filters, level, propagate in before:
        item.handlers, item.filters, item.propagate = handlers, filters, propagate
        item.setLevel(level)
    logger.remove()


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().err.splitlines()


def documents(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines(capsys)]


def test_a_record_is_one_line_with_the_bound_fields_that_are_known(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging()
    set_context(LogContext(task="agent.run", task_id="t1", attempt=2, correlation_id="c-1"))
    logger.bind(chunks=3).info("answered in {} ms", 12)
    (line,) = lines(capsys)
    assert line[10] == " "
    assert line[24:] == (
        f"INFO     {__name__}: answered in 12 ms task=agent.run id=t1 attempt=2 correlation=c-1 chunks=3"
    )


def test_a_record_outside_any_task_carries_no_empty_fields(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging()
    logger.info("up")
    (line,) = lines(capsys)
    assert line.endswith(f"{__name__}: up")


def test_a_json_record_has_the_fields_of_the_schema_and_no_others(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(log_format="json")
    set_context(LogContext("git.digest", "t1", "u1", "p1", 1, "c1"))
    logger.bind(commits=[1, 2.5, {"deep": None}]).warning("slow")
    (document,) = documents(capsys)
    at = document.pop("at")
    assert at[10] == "T"
    assert at.endswith("Z")
    assert document == {
        "level": "WARNING",
        "logger": __name__,
        "message": "slow",
        "task": "git.digest",
        "task_id": "t1",
        "user_id": "u1",
        "project_id": "p1",
        "attempt": 1,
        "correlation_id": "c1",
        "extra": {"commits": [1, 2.5, {"deep": None}]},
    }


def test_what_a_logger_was_bound_to_wins_over_the_context(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(log_format="json")
    set_context(LogContext(task_id="of the coroutine"))
    logger.bind(task_id="of the logger").info("x")
    assert documents(capsys)[0]["task_id"] == "of the logger"


async def test_coroutines_that_run_at_once_do_not_see_each_others_fields(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(log_format="json")
    both_bound = asyncio.Barrier(2)

    async def work(task_id: str) -> None:
        bind_context(task_id=task_id)
        await both_bound.wait()
        logger.info(task_id)

    await asyncio.gather(work("a"), work("b"))
    assert sorted((item["message"], item["task_id"]) for item in documents(capsys)) == [("a", "a"), ("b", "b")]


def test_nobody_can_forge_a_line_or_drive_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging()
    bind_context(user_id="eve\nroot")
    logger.bind(path="a\x1b[2J b").info("got {}", "x\r\n2026-01-01 INFO forged\x1b[31m\u2028\u202e\x85")
    (line,) = lines(capsys)
    assert "got x\\r\\n2026-01-01 INFO forged\\x1b[31m\\u2028\\u202e\\x85 " in line
    assert 'user=eve\\nroot path="a\\x1b[2J b"' in line


def test_a_traceback_follows_its_line_with_every_line_marked(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging()
    try:
        raise ValueError("bad\n2026-01-01 forged")
    except ValueError:
        logger.exception("failed")
    first, *rest = lines(capsys)
    assert first.endswith("failed")
    assert len(rest) >= 3
    assert all(line.startswith("    | ") for line in rest)


def test_local_values_do_not_appear_in_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(log_format="json")
    hidden = "value-of-a-local-variable"
    try:
        hidden[len(hidden)]
    except IndexError:
        logger.exception("failed")
    (document,) = documents(capsys)
    assert "IndexError" in document["exception"]
    assert "value-of-a-local" not in document["exception"]


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_secret_appears_nowhere_in_a_record(log_format: Any, capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(log_format=log_format, secrets=["hunter2-hunter2"])
    bind_context(user_id="hunter2-hunter2")
    try:
        raise RuntimeError("no access with hunter2-hunter2")
    except RuntimeError:
        logger.bind(url="https://u:hunter2-hunter2@h/", deep={"a": ["hunter2-hunter2"]}, llm_api_key="other").exception(
            "hunter2-hunter2 {}", "Authorization: Bearer abc.def"
        )
    written = capsys.readouterr().err
    assert "hunter2" not in written
    assert "abc.def" not in written
    assert "other" not in written
    assert written.count("***") >= 6


def test_levels_below_the_configured_one_are_not_written(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("WARNING")
    logger.info("no")
    logging.getLogger("asyncio").info("no")
    logging.getLogger("arq.worker").info("no")
    logging.getLogger("asyncio").warning("yes")
    assert [line.rpartition(" ")[2] for line in lines(capsys)] == ["yes"]


def test_an_unknown_level_is_refused() -> None:
    with pytest.raises(ValueError, match="LOUD"):
        configure_logging("LOUD")


def test_standard_records_keep_level_logger_and_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(log_format="json")
    try:
        raise KeyError("k")
    except KeyError:
        logging.getLogger("asyncio").exception("task %s failed {not a field}", "x")
    (document,) = documents(capsys)
    assert (document["level"], document["logger"]) == ("ERROR", "asyncio")
    assert document["message"] == "task x failed {not a field}"
    assert "KeyError" in document["exception"]


def test_a_standard_level_of_a_librarys_own_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging()
    logging.getLogger("asyncio").log(27, "odd")
    assert "Level 27 asyncio: odd" in lines(capsys)[0]


@pytest.mark.parametrize("name", ["arq.worker", "arq.connections", "arq", "arq.unheard_of"])
def test_arqs_command_line_does_not_double_or_reshape_its_records(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging(log_format="json")  # worker.py is imported
    logging.config.dictConfig(default_log_config(verbose=False))  # then arq's command line configures its own
    if name in ARQ_LOGGERS:
        logging.getLogger(name).info("before on_startup")
        assert [item["message"] for item in documents(capsys)] == ["before on_startup"]
    take_over_logging()  # on_startup
    take_over_logging()  # arq worker --watch starts again
    logging.getLogger(name).info("after")
    assert [(item["message"], item["logger"]) for item in documents(capsys)] == [("after", name)]


def test_uvicorns_own_configuration_is_taken_over_and_its_access_lines_give_way_to_ours(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure_logging(log_format="json")
    uvicorn.Config("app.main:app")  # configures logging when it is made
    take_over_logging()
    for name in ("uvicorn.access", "uvicorn.error"):
        logging.getLogger(name).info('%s - "%s %s HTTP/%s" %d', "1.2.3.4:5", "GET", "/ws?ticket=abcdef", "1.1", 200)
    assert [item["message"] for item in documents(capsys)] == ['1.2.3.4:5 - "GET /ws?ticket=*** HTTP/1.1" 200']


def test_a_logger_that_was_disabled_is_heard_again(capsys: pytest.CaptureFixture[str]) -> None:
    logging.getLogger("asyncio").disabled = True
    configure_logging()
    logging.getLogger("asyncio").error("back")
    assert lines(capsys)[0].endswith("asyncio: back")


def test_requests_of_our_clients_are_not_logged_but_their_warnings_are(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("DEBUG")
    logging.getLogger("httpx").info("HTTP Request: GET https://host/?key=1")
    logging.getLogger("httpcore.http11").debug("headers")
    logging.getLogger("httpx").warning("careful")
    assert [line.rpartition(" ")[2] for line in lines(capsys)] == ["careful"]


def test_warnings_of_python_are_records(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(log_format="json")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(False)  # catch_warnings put its own back
        logging.captureWarnings(True)
        warnings.warn("old habit", DeprecationWarning, stacklevel=1)
    (document,) = documents(capsys)
    assert (document["level"], document["logger"]) == ("WARNING", "py.warnings")
    assert "old habit" in document["message"]


def test_a_record_with_wrong_arguments_is_reported_and_breaks_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging()
    logging.getLogger("asyncio").info("%d", "not a number")
    logger.info("still here")
    written = lines(capsys)
    assert any("Logging error" in line for line in written)
    assert written[-1].endswith("still here")


def test_an_object_that_cannot_be_shown_costs_its_record_only(capsys: pytest.CaptureFixture[str]) -> None:
    class Broken:
        def __str__(self) -> str:
            raise OSError("token=abc")

    configure_logging()
    logger.bind(it=Broken()).info("lost")
    logger.info("next")
    first, second = lines(capsys)
    assert first == "A log record could not be written: OSError"
    assert second.endswith("next")


def test_what_json_cannot_hold_is_written_all_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(log_format="json")
    logger.bind(ratio=float("nan"), name="a\udcff", when={1, 2}).info("file a\udcff")
    (document,) = documents(capsys)
    assert document["message"] == "file a\\udcff"
    assert document["extra"] == {"ratio": None, "name": "a\\udcff", "when": [1, 2]}


def test_a_long_message_is_cut_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(log_format="json")
    logger.info("x" * (MAX_MESSAGE_CHARS + 7))
    assert documents(capsys)[0]["message"] == "x" * MAX_MESSAGE_CHARS + " ... (7 characters more)"


def test_configuring_twice_writes_once(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging()
    configure_logging(log_format="json")
    logger.info("once")
    logging.getLogger("arq.worker").info("once")
    assert [item["message"] for item in documents(capsys)] == ["once", "once"]
    assert [type(handler) for handler in logging.getLogger().handlers] == [InterceptHandler]
