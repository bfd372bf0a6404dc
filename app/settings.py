"""Every environment variable of Nightshift, typed, with its unit in its name.

A variable is `NIGHTSHIFT_` and the field's name in capitals; a `.env` file in the working directory is read too. This
module is the only one that looks at the environment.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal, NamedTuple
from zoneinfo import ZoneInfo

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from app.errors import SettingsError

MIN_WEIGHT, MAX_WEIGHT = 0.01, 1_000
"""Of a user; among others that weigh 1, more would be none at all or all there is."""
MAX_WEIGHTS = 1_000
LOOPBACK_HOSTS = frozenset({"127.0.0.1", "::1", "localhost"})

AuthMode = Literal["keys", "jwt", "off"]

MAX_QUOTAS = 100
QUOTA_KEY = re.compile(r"[A-Za-z][^\s,=]{0,127}")
LLM_KEY = "llm"
"""The key of the model's quota; a model that has limits of its own has `llm:<model>`."""


class QuotaLimits(NamedTuple):
    """What a key may use, over all processes. None: no limit."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrency: int | None = None
    """Calls open at once."""


class Settings(BaseSettings):
    """All settings, read once at start. A wrong value raises `SettingsError` through `load_settings`."""

    model_config = SettingsConfigDict(env_prefix="NIGHTSHIFT_", env_file=".env", extra="ignore", frozen=True)

    # Where things are
    redis_url: SecretStr | None = None
    """`redis://`, `rediss://`, `unix://` or `redis+sentinel://host:port,host:port/service[/db]`. Unset: embedded."""
    data_dir: Path = Path(".nightshift")
    """The embedded server's data, API keys, repository mirrors."""
    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65_535)

    # Where the commands find the service
    url: str = "http://127.0.0.1:8000"
    """Base of the API that the `nightshift` commands call."""
    api_key: SecretStr | None = None
    """The API key or JWT that they send."""

    # Who may come in
    auth: AuthMode | None = None
    """Unset: `off` on loopback, `keys` elsewhere. `off` elsewhere refuses to start."""
    api_keys_file: Path | None = None
    """Hashed API keys; unset: `api-keys.json` in the data directory."""
    jwt_secret: SecretStr | None = None
    """HS256 secret. Either this or `jwt_jwks_url`."""
    jwt_jwks_url: str | None = None
    """Where the RS256 keys of the issuer are published (a JWKS document)."""
    jwt_issuer: str | None = None
    jwt_audience: str | None = None
    allowed_origins: Annotated[tuple[str, ...], NoDecode] = ()
    """Comma-separated browser origins besides the service's own that may call the API and the WebSocket."""

    # The engine
    queues: Annotated[tuple[tuple[str, int | None], ...], NoDecode] = ()
    """`agent:4,git:8` or `agent,git`: the lanes of this worker process. Unset: all."""
    concurrency: int | None = Field(None, ge=1)
    """Bound on running tasks over all lanes of the process."""
    lease_s: float = Field(10.0, ge=1.0, le=300.0)
    """A worker that does not renew for so long has lost its tasks."""
    shutdown_grace_s: float = Field(25.0, ge=0.0)
    """How long running tasks may go on after SIGTERM before they are handed back."""
    result_ttl_s: float = Field(86_400.0, ge=1.0)
    """How long a finished task and its result are kept."""
    dead_letter_ttl_s: float = Field(30 * 86_400.0, ge=1.0)
    idempotency_ttl_s: float = Field(86_400.0, ge=1.0)
    queue_max_depth: int = Field(100_000, ge=1)
    """Unfinished tasks a queue holds before an enqueue is answered with 503."""
    user_weights: Annotated[tuple[tuple[str, float], ...], NoDecode] = ()
    """`ada=4,bob=0.5`: how many turns in a queue a user has to one of the others, 0.01 to 1000; up to 1,000 users."""
    unknown_task_ttl_s: float = Field(600.0, ge=0.0)
    """How long a task whose name no worker knows waits for one that does."""
    timezone: str = "UTC"
    """IANA name; cron entries are meant in it."""
    cpu_threads: int = Field(4, ge=1)
    """`ctx.run_cpu` calls that run at once in a process."""

    # Logs
    log_level: Literal["TRACE", "DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"] = "INFO"
    log_format: Literal["text", "json"] = "text"

    metrics_port: int | None = Field(None, ge=1, le=65_535)
    """Where a worker process serves its own metrics, on `host`; unset: nowhere. The API has `/metrics`."""

    # Models
    llm_base_url: str | None = None
    """Base of an OpenAI-compatible API, with its version: `https://host/v1`. Unset: the offline model."""
    llm_api_key: SecretStr | None = None
    llm_model: str | None = None
    llm_timeout_s: float = Field(120.0, gt=0)
    """Longest silence of the model: until its first byte, and between two chunks."""
    llm_requests_per_minute: int | None = Field(None, ge=1)
    """Calls of the model a minute, over all processes."""
    llm_tokens_per_minute: int | None = Field(None, ge=1)
    """Tokens in and out a minute, over all processes."""
    llm_concurrency: int | None = Field(None, ge=1)
    """Model calls open at once, over all processes. In any case at most 1,000 in one process."""
    quotas: Annotated[tuple[tuple[str, QuotaLimits], ...], NoDecode] = ()
    """`llm:gpt-x=60/100000/8,web=120`: requests and tokens a minute and calls at once of other keys, over all
    processes. Any of the three may be left out."""
    embedding_base_url: str | None = None
    embedding_api_key: SecretStr | None = None
    embedding_model: str | None = None

    # git and web
    git_allow_file_urls: bool = False
    """Whether clients of the API may name repositories on this machine (`file://` and plain paths)."""
    git_timeout_s: float = Field(600.0, gt=0)
    git_token: SecretStr | None = None
    """Password or token for https remotes of `git_token_host`; never leaves the child's environment."""
    git_token_host: str | None = None
    web_allow_private: bool = False
    """Whether `fetch` may connect to addresses that are not public."""

    @field_validator("timezone")
    @classmethod
    def _known_zone(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (KeyError, ValueError, OSError) as error:
            raise ValueError("expected an IANA time zone such as Europe/Berlin") from error
        return value

    @field_validator("queues", mode="before")
    @classmethod
    def _parse_queues(cls, value: object) -> object:
        return (
            tuple(_parse_lane(part) for part in value.split(",") if part.strip()) if isinstance(value, str) else value
        )

    @field_validator("user_weights", mode="before")
    @classmethod
    def _parse_weights(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(_parse_weight(part) for part in value.split(",") if part.strip())
        return value

    @field_validator("user_weights")
    @classmethod
    def _check_weights(cls, value: tuple[tuple[str, float], ...]) -> tuple[tuple[str, float], ...]:
        if len(value) > MAX_WEIGHTS:
            raise ValueError(f"{len(value)} users: expected at most {MAX_WEIGHTS}")
        if twice := [user for user, count in Counter(user for user, _ in value).items() if count > 1]:
            raise ValueError(f"{twice[0]}: expected one weight")
        for user, weight in value:
            if user == "arq":
                raise ValueError("expected no weight for arq: tasks of stock clients weigh 1")
            if not MIN_WEIGHT <= weight <= MAX_WEIGHT:
                raise ValueError(f"{user}={weight:g}: expected a weight of {MIN_WEIGHT} to {MAX_WEIGHT}")
        return value

    @field_validator("quotas", mode="before")
    @classmethod
    def _parse_quotas(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(_parse_quota(part) for part in value.split(",") if part.strip())
        return value

    @field_validator("quotas")
    @classmethod
    def _each_once(cls, value: tuple[tuple[str, QuotaLimits], ...]) -> tuple[tuple[str, QuotaLimits], ...]:
        keys = [key for key, _ in value]
        if len(keys) > MAX_QUOTAS:
            raise ValueError(f"{len(keys)} keys: expected at most {MAX_QUOTAS}")
        if LLM_KEY in keys:
            raise ValueError("the key llm has NIGHTSHIFT_LLM_REQUESTS_PER_MINUTE and its like: expected other keys")
        if len(set(keys)) < len(keys):
            raise ValueError("expected each key once")
        return value

    @field_validator("allowed_origins", mode="before")
    @classmethod
    def _parse_origins(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip().rstrip("/") for part in value.split(",") if part.strip())
        return value

    @property
    def keys_file(self) -> Path:
        """Where the hashed API keys are."""
        return self.api_keys_file or self.data_dir / "api-keys.json"

    @property
    def is_loopback(self) -> bool:
        """Whether the API listens for this machine only."""
        return self.host in LOOPBACK_HOSTS

    @property
    def auth_mode(self) -> AuthMode:
        """The mode in force. Raises `SettingsError` for `off` on an address that others can reach."""
        mode = self.auth or ("off" if self.is_loopback else "keys")
        if mode == "off" and not self.is_loopback:
            raise SettingsError(
                f"NIGHTSHIFT_AUTH=off with NIGHTSHIFT_HOST={self.host!r}: "
                "expected a loopback address, or 'keys' or 'jwt'"
            )
        if mode == "jwt" and not (self.jwt_secret or self.jwt_jwks_url):
            raise SettingsError(
                "NIGHTSHIFT_AUTH=jwt: expected NIGHTSHIFT_JWT_SECRET or NIGHTSHIFT_JWT_JWKS_URL to be set"
            )
        return mode

    @property
    def quota_limits(self) -> dict[str, QuotaLimits]:
        """The limits of all keys that have any."""
        llm = QuotaLimits(self.llm_requests_per_minute, self.llm_tokens_per_minute, self.llm_concurrency)
        return dict(self.quotas) | ({LLM_KEY: llm} if any(llm) else {})

    @property
    def zone(self) -> ZoneInfo:
        """The time zone of cron entries."""
        return ZoneInfo(self.timezone)


def _parse_lane(part: str) -> tuple[str, int | None]:
    name, _, count = part.strip().partition(":")
    if not name or (count and not (count.isdigit() and int(count) >= 1)):
        raise ValueError("expected name or name:concurrency, separated by commas, such as agent:4,git:8")
    return name, int(count) if count else None


def _parse_weight(part: str) -> tuple[str, float]:
    user, _, weight = part.strip().rpartition("=")
    wanted = f"{part.strip()!r}: expected user=weight, separated by commas, such as ada=4,bob=0.5"
    if not user:
        raise ValueError(wanted)
    try:
        return user, float(weight)
    except ValueError:
        raise ValueError(wanted) from None


def _parse_quota(part: str) -> tuple[str, QuotaLimits]:
    key, equals, numbers = part.strip().partition("=")
    limits = [number.strip() for number in numbers.split("/")]
    if not (
        equals
        and QUOTA_KEY.fullmatch(key)
        and len(limits) <= 3
        and any(limits)
        and all(re.fullmatch(r"([1-9][0-9]{0,11})?", limit, re.ASCII) for limit in limits)
    ):
        raise ValueError(
            "expected key=requests a minute/tokens a minute/calls at once, separated by commas, each number at least 1 "
            f"or left out, such as llm:gpt-x=60/100000/8,web=120; got {part.strip()!r}"
        )
    return key, QuotaLimits(*(int(limit) if limit else None for limit in limits))


def load_settings(**overrides: object) -> Settings:
    """Read the environment. Raises `SettingsError` with one line per wrong variable: name, value, what is expected."""
    try:
        return Settings(**overrides)  # type: ignore[arg-type]
    except ValidationError as error:
        raise SettingsError("\n".join(_describe(item) for item in error.errors())) from None  # type: ignore[arg-type]


_chosen: list[Settings] = []


@lru_cache(maxsize=1)
def settings() -> Settings:
    """The settings of this process: those of the environment, unless `use_settings` chose others before."""
    return _chosen[-1] if _chosen else load_settings()


def use_settings(chosen: Settings) -> None:
    """Make these the settings of this process, for `./run serve` and `./run demo`, which start the embedded server
    themselves."""
    _chosen[:] = [chosen]
    settings.cache_clear()


def inherited(names: Iterable[str]) -> dict[str, str]:
    """Those of the named variables that this process has, to be handed on to a child with a scrubbed environment."""
    return {name: os.environ[name] for name in names if name in os.environ}


def child_environment(**settings: object) -> dict[str, str]:
    """The environment of a child process that is of this service: that of this process, with other settings."""
    return os.environ | {f"NIGHTSHIFT_{name.upper()}": str(value) for name, value in settings.items()}


def _describe(item: dict[str, object]) -> str:
    location = item["loc"]
    field = str(location[0]) if isinstance(location, tuple) and location else "?"
    info = Settings.model_fields.get(field)
    secret = info is not None and "SecretStr" in str(info.annotation)
    value = "(secret)" if secret else repr(item["input"])
    message = str(item["msg"]).removeprefix("Value error, ")
    return f"NIGHTSHIFT_{field.upper()}={value}: {message}"
