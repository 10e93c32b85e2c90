"""The other two ways to listen: https, and a Unix socket."""

from __future__ import annotations

import socket
import ssl
import stat
import subprocess
from pathlib import Path

import pytest
from aiohttp import ClientSession, UnixConnector, web

from runtime.adapters.service import AdapterService
from runtime.adapters.store import Store
from runtime.app import build_app
from runtime.config import ServerSettings
from runtime.errors import ConfigError
from runtime.web.listener import bind_socket, listen
from runtime.web.tls import load_tls, reload_tls
from tests.runtime.double import ScriptedEngine

CHAT = {"model": "gemma-7b-it-lora", "messages": [{"role": "user", "content": "Hi"}]}


@pytest.fixture
def app(engine: ScriptedEngine, store: Store) -> web.Application:
    """The application over the scripted engine."""
    return build_app(engine, AdapterService(store), ServerSettings())


def make_certificate(folder: Path, name: str = "localhost") -> tuple[str, str]:
    """A certificate for ``name`` and 127.0.0.1 that signs itself, and its key."""
    folder.mkdir(exist_ok=True)
    certificate, key = folder / "cert.pem", folder / "key.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-keyout", str(key), "-out", str(certificate), "-days", "2", "-subj", f"/CN={name}"),
            *("-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"),
        ],
        check=True,
        capture_output=True,
    )
    return str(certificate), str(key)


def break_file(path: str) -> None:
    """Make a certificate file unreadable as one."""
    Path(path).write_text("no certificate")


async def test_https_answers_with_the_certificate(app: web.Application, tmp_path: Path) -> None:
    """A client that trusts the certificate gets its answer; one that does not refuses the connection."""
    certificate, key = make_certificate(tmp_path / "one")
    settings = ServerSettings(tls_cert=certificate, tls_key=key)
    async with listen(app, "127.0.0.1", 0, tls=load_tls(settings)) as listener, ClientSession(listener.url) as client:
        assert listener.url.startswith("https://127.0.0.1:")
        trust = ssl.create_default_context(cafile=certificate)
        async with client.post("/v1/chat/completions", json=CHAT, ssl=trust) as response:
            assert response.status == 200
        with pytest.raises(OSError, match="CERTIFICATE_VERIFY_FAILED"):
            await client.get("/health", ssl=ssl.create_default_context())


async def test_a_new_certificate_is_used_without_a_restart(app: web.Application, tmp_path: Path) -> None:
    """After a reload, new connections get the new certificate; a broken file leaves the old one in use."""
    certificate, key = make_certificate(tmp_path / "one")
    settings = ServerSettings(tls_cert=certificate, tls_key=key)
    context = load_tls(settings)
    assert context is not None
    async with listen(app, "127.0.0.1", 0, tls=context) as listener:
        make_certificate(tmp_path / "one", "renewed")
        reload_tls(context, settings)
        trust = ssl.create_default_context(cafile=certificate)
        break_file(certificate)
        with pytest.raises(ConfigError, match="cannot be used"):
            reload_tls(context, settings)
        async with ClientSession(listener.url) as client, client.get("/health", ssl=trust) as response:
            assert response.status == 200


def test_a_certificate_needs_its_key(tmp_path: Path) -> None:
    """One without the other, a missing file and a key of another certificate are errors before listening."""
    certificate, _ = make_certificate(tmp_path / "one")
    _, other_key = make_certificate(tmp_path / "two")
    with pytest.raises(ConfigError, match="belong together: give both"):
        load_tls(ServerSettings(tls_cert=certificate))
    with pytest.raises(ConfigError, match="No such file or directory"):
        load_tls(ServerSettings(tls_cert=certificate, tls_key=str(tmp_path / "none")))
    with pytest.raises(ConfigError, match="KEY_VALUES_MISMATCH"):
        load_tls(ServerSettings(tls_cert=certificate, tls_key=other_key))
    assert load_tls(ServerSettings()) is None


async def test_a_unix_socket_answers_this_user_alone(app: web.Application, tmp_path: Path) -> None:
    """Requests work over the socket, its mode keeps others out, and it is gone afterwards."""
    path = tmp_path / "gemlane.sock"
    async with listen(app, "", 0, socket_path=str(path)) as listener:
        assert listener.url == f"unix:{path}"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        async with (
            ClientSession("http://localhost", connector=UnixConnector(str(path))) as client,
            client.post("/v1/chat/completions", json=CHAT) as response,
        ):
            assert response.status == 200
    assert not path.exists()


def test_a_socket_left_behind_is_replaced(tmp_path: Path) -> None:
    """A socket of a server that was killed does not stand in the way; one in use does, and is not harmed."""
    path = str(tmp_path / "gemlane.sock")
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(path)
    with bind_socket(path) as bound:
        bound.listen()
        with pytest.raises(OSError, match="in use"):
            bind_socket(path)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)


def test_another_file_is_never_replaced(tmp_path: Path) -> None:
    """A regular file and a link to nowhere at the socket's place stay as they are."""
    file, link = tmp_path / "file", tmp_path / "link"
    file.write_text("mine")
    link.symlink_to("nowhere")
    for path in (file, link):
        with pytest.raises(OSError, match="a file that is not a socket is there"):
            bind_socket(str(path))
    assert file.read_text() == "mine"
    assert link.is_symlink()


def test_a_socket_needs_no_token(engine: ScriptedEngine, store: Store) -> None:
    """The file's mode decides who may connect, so --host does not matter."""
    build_app(engine, AdapterService(store), ServerSettings(host="0.0.0.0", socket="/run/gemlane.sock"))  # noqa: S104
