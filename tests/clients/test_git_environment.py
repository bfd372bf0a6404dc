from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from pydantic import SecretStr

from app.clients.git_environment import Credentials, environment, make_home
from app.clients.git_url import Scheme, parse_repository_url
from app.errors import InvalidInput, UnsafeUrl

TOKEN = "tok-3n"
GIVEN = Credentials("git.example.org", SecretStr(TOKEN))


def seen(url: str, credentials: Credentials = GIVEN) -> dict[str, str]:
    return environment(Path("/h"), url=parse_repository_url(url, allow_file=True), credentials=credentials)


def git(env: dict[str, str], *args: str, cwd: Path | None = None, stdin: str = "") -> str:
    done = subprocess.run(["git", *args], env=env, cwd=cwd, input=stdin, capture_output=True, text=True, check=False)
    return done.stdout


def test_the_token_is_in_the_environment_for_its_host_only() -> None:
    assert TOKEN in seen("https://git.example.org/a").values()
    assert TOKEN in seen("https://GIT.example.org:443/a").values()
    others = [
        "https://git.example.org:8443/a",
        "https://example.org/a",
        "https://a.git.example.org/a",
        "https://git.example.org.evil.example/a",
        "ssh://git.example.org/a",
        "git@git.example.org:a",
        "/git.example.org/a",
    ]
    assert not [url for url in others if TOKEN in str(seen(url))]
    assert TOKEN not in str(environment(Path("/h"), credentials=GIVEN))


def test_the_token_is_a_value_of_its_own_in_the_environment() -> None:
    holders = [name for name, value in seen("https://git.example.org/a").items() if TOKEN in value]
    assert holders == ["NIGHTSHIFT_GIT_CHILD_TOKEN"]


def test_git_fills_in_the_token_for_exactly_its_host(tmp_path: Path) -> None:
    make_home(tmp_path)
    url = parse_repository_url("https://git.example.org/a", allow_file=False)
    env = environment(tmp_path, url=url, credentials=Credentials("git.example.org", SecretStr("a%s\\n$(id)`id`'\"")))

    def fill(asked: str) -> str:
        return git(env, "credential", "fill", cwd=tmp_path, stdin=f"url={asked}\n\n")

    filled = fill("https://git.example.org/a").splitlines()
    assert "username=x-access-token" in filled
    assert "password=a%s\\n$(id)`id`'\"" in filled
    for asked in ("https://evil.example/a", "https://git.example.org:8443/a", "http://git.example.org/a"):
        assert "password" not in fill(asked)


@pytest.mark.parametrize("token", ["", "a\nhost=evil.example", "a\x00", "a\r"])
def test_a_token_that_would_say_more_to_git_is_refused_unshown(token: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        Credentials("h", SecretStr(token))
    assert "evil" not in caught.value.detail


@pytest.mark.parametrize("host", ["", "*.example.org", "h/x", "ada@h", "h\nx"])
def test_a_token_belongs_to_one_host(host: str) -> None:
    with pytest.raises(UnsafeUrl):
        Credentials(host, SecretStr("t"))


def test_credentials_do_not_print_their_token() -> None:
    assert TOKEN not in repr(GIVEN)


@pytest.mark.parametrize(
    ("url", "allowed"), [("https://h/a", "https"), ("git@h:a", "ssh"), ("ssh://h/a", "ssh"), ("/a", "file")]
)
def test_only_the_protocol_of_the_url_is_allowed(url: str, allowed: str) -> None:
    assert seen(url)["GIT_ALLOW_PROTOCOL"] == allowed


def test_without_a_url_no_protocol_is_allowed(tmp_path: Path) -> None:
    assert environment(tmp_path)["GIT_ALLOW_PROTOCOL"] == ""
    assert environment(tmp_path, protocol=Scheme.FILE)["GIT_ALLOW_PROTOCOL"] == "file"


def test_nothing_of_the_service_reaches_git_but_how_to_reach_the_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NIGHTSHIFT_LLM_API_KEY", "GIT_DIR", "GIT_TRACE", "GIT_SSH_COMMAND", "GIT_CONFIG_PARAMETERS", "HOME"):
        monkeypatch.setenv(name, "from-outside")
    monkeypatch.setenv("https_proxy", "http://proxy.example:3128")
    env = environment(tmp_path)
    assert "from-outside" not in env.values()
    assert env["https_proxy"] == "http://proxy.example:3128"
    assert env["PATH"] == os.environ["PATH"]


def test_configuration_of_machine_user_and_repository_does_not_overrule_ours(tmp_path: Path) -> None:
    home = tmp_path / "home"
    make_home(home)
    make_home(home)
    env = environment(home)
    repository = tmp_path / "repository"
    repository.mkdir()
    git(env, "init", "--quiet", cwd=repository)
    for key, value in (("core.hooksPath", "/evil"), ("core.fsmonitor", "/evil"), ("credential.helper", "/evil")):
        git(env, "config", key, value, cwd=repository)
    assert git(env, "config", "core.hooksPath", cwd=repository) == "/dev/null\n"
    assert git(env, "config", "core.fsmonitor", cwd=repository) == "false\n"
    assert git(env, "config", "credential.helper", cwd=repository) == "\n"
    origins = {line.split("\t")[0] for line in git(env, "config", "--list", "--show-origin", cwd=home).splitlines()}
    assert origins == {f"file:{home}/.gitconfig", "command line:"}


def test_the_far_end_of_a_local_transport_has_our_configuration_from_the_file(tmp_path: Path) -> None:
    # git takes GIT_CONFIG_COUNT out of the environment of `upload-pack`.
    make_home(tmp_path)
    env = {key: value for key, value in environment(tmp_path).items() if not key.startswith("GIT_CONFIG_COUNT")}
    assert git(env, "config", "--global", "--get", "safe.directory") == "*\n"
    assert git(env, "config", "--global", "--get", "core.hooksPath") == "/dev/null\n"
    assert git(env, "config", "--global", "--get", "protocol.ext.allow") == "never\n"


def test_ssh_never_asks_and_knows_its_hosts() -> None:
    command = seen("git@h:a")["GIT_SSH_COMMAND"]
    assert "-oBatchMode=yes" in command
    assert "-oStrictHostKeyChecking=yes" in command
