"""Open WebUI's server, asked as its page asks it: a socket session, the defaults of a new chat, a streamed answer.

Runs in the environment that Open WebUI itself is installed in.
"""

from __future__ import annotations

import asyncio
import os
import time
import uuid
from typing import Any

import aiohttp
import socketio
from report import LORA, QUESTION, report

PAGE = os.environ["GEMLANE_OPENWEBUI"]
MODEL = "gemma-7b-it-lora"
FEATURES = dict.fromkeys(("voice", "image_generation", "code_interpreter", "web_search", "memory"), False)


class Chat:
    """One new chat: its first question, and what comes over the socket until its answer is whole."""

    def __init__(self, model: str) -> None:
        self.model = model
        self.events: list[dict[str, Any]] = []
        self.is_whole = asyncio.Event()

    def take(self, event: dict[str, Any], *_: Any) -> None:
        """Note an event; the last one of an answer says that it is done, or holds an error."""
        data = event.get("data", {})
        self.events.append(data)
        inner = data.get("data") or {}
        if data.get("type") == "chat:message:error" or (isinstance(inner, dict) and inner.get("done")):
            self.is_whole.set()

    def body(self, session_id: str) -> dict[str, Any]:
        """What the page posts for the first message of a chat."""
        question_id, answer_id = str(uuid.uuid4()), str(uuid.uuid4())
        question = {"id": question_id, "parentId": None, "childrenIds": [answer_id], "role": "user"}
        question |= {"content": QUESTION, "timestamp": int(time.time()), "models": [self.model]}
        tasks = dict.fromkeys(("title_generation", "tags_generation", "follow_up_generation"), True)
        return {
            "stream": True,
            "model": self.model,
            "messages": [{"role": "user", "content": QUESTION}],
            "params": {},
            "tool_servers": [],
            "features": FEATURES,
            "variables": {},
            "session_id": session_id,
            "id": answer_id,
            "parent_id": None,
            "user_message": question,
            "background_tasks": tasks,
        }

    @property
    def pieces(self) -> list[str]:
        """The deltas of the answer."""
        data = [event.get("data") or {} for event in self.events if event.get("type") == "response:completion"]
        return [part["delta"] for part in data if part.get("type") == "response.output_text.delta"]

    @property
    def text(self) -> str:
        """The answer as the chat keeps it."""
        outputs = [event["data"]["output"] for event in self.events if (event.get("data") or {}) and _output(event)]
        return "".join(part["text"] for item in outputs[-1] for part in item.get("content", [])) if outputs else ""

    @property
    def errors(self) -> list[Any]:
        """What the page would show in red."""
        return [event["data"] for event in self.events if event.get("type") == "chat:message:error"]


def _output(event: dict[str, Any]) -> Any:
    data = event.get("data")
    return isinstance(data, dict) and data.get("output")


async def ask(session: aiohttp.ClientSession, token: str, model: str) -> Chat:
    """One new chat, from the socket's session to the whole answer."""
    chat, socket = Chat(model), socketio.AsyncClient()
    socket.on("events", chat.take)
    auth = {"token": token}
    await socket.connect(PAGE, socketio_path="/ws/socket.io", transports=["websocket"], auth=auth)
    await socket.emit("user-join", {"auth": auth})
    await asyncio.sleep(1)
    headers = {"Authorization": f"Bearer {token}"}
    body = chat.body(socket.get_sid() or "")
    async with session.post(f"{PAGE}/api/chat/completions", headers=headers, json=body) as response:
        assert response.status == 200, await response.text()
    await asyncio.wait_for(chat.is_whole.wait(), 60)
    await socket.disconnect()
    return chat


async def main() -> None:
    """Sign in, list the models, and chat with the base model and an adapter."""
    async with aiohttp.ClientSession() as session:
        async with session.post(f"{PAGE}/api/v1/auths/signin", json={"email": "", "password": ""}) as response:
            token = (await response.json())["token"]
        async with session.get(f"{PAGE}/api/models", headers={"Authorization": f"Bearer {token}"}) as response:
            models = [model["id"] for model in (await response.json())["data"]]
        plain = await ask(session, token, MODEL)
        adapted = await ask(session, token, f"{MODEL}:{LORA}")
    report(
        "open-webui",
        answers={"base": plain.text, LORA: adapted.text},
        stream=adapted.pieces,
        models=models,
        errors=[*plain.errors, *adapted.errors],
    )


if __name__ == "__main__":
    asyncio.run(main())
