"""``gemlane chat`` against a running server."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from aiohttp import ClientSession

from runtime.cli import build_parser
from runtime.commands import chat
from runtime.commands.conversation import Chat
from runtime.commands.stream import Address, ChatRequest, StreamedAnswer, get_json
from runtime.errors import GemlaneError, ServerRefused, ServerUnreachable
from tests.runtime.double import ScriptedEngine

MESSAGES = [{"role": "user", "content": "Hello?"}]


def address_of(client: ClientSession, token: str = "") -> Address:
    """Where the test's server listens."""
    assert client._base_url is not None
    return Address(str(client._base_url).rstrip("/"), token)


async def asked(address: Address, **options: object) -> StreamedAnswer:
    """One streamed answer, taken in a thread as the command does."""
    answer = StreamedAnswer()
    await asyncio.to_thread(ChatRequest(address, MESSAGES, **options).stream, answer)  # type: ignore[arg-type]
    return answer


async def test_an_answer_streams_with_its_counts(client: ClientSession) -> None:
    """The text, the number of tokens and the reason of the end are those of the server."""
    answer = await asked(address_of(client))
    assert (answer.text, answer.n_tokens, answer.finish_reason, answer.error) == ("Hello world", 2, "stop", "")
    assert answer.first_token_s is not None


async def test_an_unknown_adapter_is_told_in_the_servers_words(client: ClientSession) -> None:
    """The status and the server's message become the answer's error; there is no text."""
    answer = await asked(address_of(client), lora="nobody")
    assert answer.text == ""
    assert answer.error.startswith("404: no adapter ")


async def test_an_answer_that_breaks_off_keeps_its_text(client: ClientSession, engine: ScriptedEngine) -> None:
    """What had come stays, and the error follows it."""
    engine.script = ["Hel", GemlaneError("lost")]
    answer = await asked(address_of(client))
    assert answer.text == "Hel"
    assert answer.error == "lost"


async def test_a_missing_token_names_the_way_out(
    serve: Callable[..., Awaitable[ClientSession]], tmp_path: Path
) -> None:
    """A server with tokens refuses, and the message says where to give one; with the token it answers."""
    tokens = tmp_path / "tokens"
    tokens.write_text("secret\n")
    client = await serve(token_file=str(tokens))
    refused = await asked(address_of(client))
    assert refused.error.startswith("401: ")
    assert refused.error.endswith("give the token with --token-file or GEMLANE_TOKEN")
    assert (await asked(address_of(client, "secret"))).text == "Hello world"


async def test_a_cancelled_answer_ends_on_the_server(client: ClientSession, engine: ScriptedEngine) -> None:
    """Cancelling from another thread ends the request, and frees the server's sequence."""
    engine.script = ["Hel", asyncio.Event()]
    request, answer = ChatRequest(address_of(client), MESSAGES), StreamedAnswer()
    running = asyncio.create_task(asyncio.to_thread(request.stream, answer))
    await asyncio.wait_for(engine.waiting.wait(), 5)
    request.cancel()
    await running
    await asyncio.wait_for(engine.left.wait(), 5)
    assert len(engine.cancelled) == 1


def test_no_server_is_one_line() -> None:
    """An address where nothing listens is an error that says how to start a server."""
    with pytest.raises(ServerUnreachable, match="Connection refused; start one with gemlane serve"):
        get_json(Address("http://127.0.0.1:1"), "/v1/models")
    with pytest.raises(ServerUnreachable, match="must begin with http://, https:// or unix:"):
        get_json(Address("ftp://host"), "/v1/models")


def make_chat(*loras: str) -> Chat:
    """A chat that has not begun."""
    return Chat(Address("http://127.0.0.1:1"), list(loras) or [""], "", {})


def test_conversations_of_adapters_are_apart() -> None:
    """Each adapter sees its own answers; one that stays chosen goes on, a new one begins."""
    talk = make_chat("", "pirate")
    talk.ask("Hi")
    talk.take([StreamedAnswer("hello"), StreamedAnswer("arr")])
    talk.choose(["pirate", "shout"])
    pirate, shout = talk.ask("Again")
    assert [message["content"] for message in pirate.messages] == ["Hi", "arr", "Again"]
    assert [message["content"] for message in shout.messages] == ["Again"]
    assert (pirate.lora, shout.lora) == ("pirate", "shout")


def test_a_message_without_an_answer_is_taken_back() -> None:
    """After an error the conversation is as before, so that the next message is valid."""
    talk = make_chat()
    talk.ask("Hi")
    talk.take([StreamedAnswer(error="lost")])
    assert talk.conversations[0].messages == []


def test_commands_change_the_chat() -> None:
    """Options, system message, adapters and the conversation follow their commands."""
    talk, out = make_chat(), io.StringIO()
    for line in ("/set temperature 0", "/set top_p 0.5", "/set top_p", "/system Be brief.", "/lora base pirate:0.5"):
        assert chat.obey(talk, line, out) is None
    assert talk.options == {"temperature": 0}
    assert talk.loras == ["", "pirate:0.5"]
    assert [message["role"] for message in talk.ask("Hi")[0].messages] == ["system", "user"]
    talk.take([StreamedAnswer("one"), StreamedAnswer("two")])
    assert chat.obey(talk, "/retry", out) == "Hi"
    chat.obey(talk, "/clear", out)
    assert all(not conversation.messages for conversation in talk.conversations)
    assert chat.obey(talk, "/retry", out) is None
    chat.obey(talk, "/dance", out)
    assert "no command /dance; /help lists them" in out.getvalue()


def test_a_value_that_is_no_number_is_refused() -> None:
    """``/set`` says what came, and keeps the options as they were."""
    talk = make_chat()
    with pytest.raises(GemlaneError, match="temperature must be a number, not 'hot'"):
        chat.obey(talk, "/set temperature hot", io.StringIO())
    assert talk.options == {}


def test_a_talk_is_saved_as_text(tmp_path: Path) -> None:
    """The file has each adapter's conversation under its name."""
    talk, file = make_chat("", "pirate"), tmp_path / "talk.txt"
    talk.ask("Hi")
    talk.take([StreamedAnswer("hello"), StreamedAnswer("arr")])
    chat.obey(talk, f"/save {file}", io.StringIO())
    assert file.read_text() == "# base\n\nuser: Hi\n\nassistant: hello\n\n# pirate\n\nuser: Hi\n\nassistant: arr\n\n"


async def test_one_prompt_prints_its_answer_alone(client: ClientSession, capsys: pytest.CaptureFixture[str]) -> None:
    """With a prompt on the command line, standard output is the answer and nothing else, for use in a pipe."""
    arguments = build_parser("chat").parse_args(["chat", "--url", address_of(client).url, "Hello", "there"])
    assert await asyncio.to_thread(chat.run, arguments) == 0
    assert capsys.readouterr().out == "Hello world\n"


async def test_side_by_side_asks_each_adapter(
    client: ClientSession, engine: ScriptedEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two --lora make two requests at once, one without an adapter and one with."""
    words = ["chat", "--url", address_of(client).url, "--lora", "base", "--lora", "pirate", "Hello"]
    assert await asyncio.to_thread(chat.run, build_parser("chat").parse_args(words)) == 0
    assert sorted(len(request.blend.members) for request in engine.requests) == [0, 1]
    assert capsys.readouterr().out.splitlines()[0].split(" | ")[1] == "pirate"


def test_an_unreadable_token_file_is_named(tmp_path: Path) -> None:
    """The error for a token file that cannot be read names it and the reason, before anything is asked."""
    arguments = build_parser("chat").parse_args(["chat", "--token-file", str(tmp_path / "none"), "Hi"])
    with pytest.raises(ServerRefused, match=r"cannot read --token-file .*none: No such file or directory"):
        chat.run(arguments)
