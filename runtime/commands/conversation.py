"""The state of a chat: what was said under each adapter, and the requests that go on from there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from runtime.commands.stream import Address, ChatRequest, StreamedAnswer


@dataclass(slots=True)
class Conversation:
    """The messages under one adapter."""

    lora: str
    messages: list[dict[str, str]] = field(default_factory=list)


@dataclass(slots=True)
class Chat:
    """The state of a chat: what is asked, under which adapters, with which options."""

    address: Address
    loras: list[str]
    system: str
    options: dict[str, Any]
    conversations: list[Conversation] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Begin a conversation for each adapter."""
        self.clear()

    def clear(self) -> None:
        """Forget what was said."""
        self.conversations = [Conversation(lora) for lora in self.loras]

    def choose(self, loras: Sequence[str]) -> None:
        """Answer under ``loras`` from now on; conversations of adapters that stay go on."""
        known = {conversation.lora: conversation for conversation in self.conversations}
        self.loras = list(loras) or [""]
        self.conversations = [known.get(lora, Conversation(lora)) for lora in self.loras]

    def drop_answers(self) -> str | None:
        """Take the last message back with its answers; its text, or None if there is none."""
        last = None
        for conversation in self.conversations:
            while conversation.messages:
                message = conversation.messages.pop()
                if message["role"] == "user":
                    last = message["content"]
                    break
        return last

    def ask(self, text: str) -> list[ChatRequest]:
        """Add a message to each conversation; the requests for its answers."""
        head = [{"role": "system", "content": self.system}] if self.system else []
        for conversation in self.conversations:
            conversation.messages.append({"role": "user", "content": text})
        return [
            ChatRequest(self.address, [*head, *conversation.messages], conversation.lora, self.options)
            for conversation in self.conversations
        ]

    def take(self, answers: Sequence[StreamedAnswer]) -> None:
        """Add the answers to their conversations; a message without any answer is taken back."""
        for conversation, answer in zip(self.conversations, answers, strict=True):
            if answer.text:
                conversation.messages.append({"role": "assistant", "content": answer.text})
            else:
                conversation.messages.pop()
