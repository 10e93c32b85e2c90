"""PyPI ``llama-index``'s class for servers that speak like OpenAI: chats, completions, streams, typed answers."""

from __future__ import annotations

from llama_index.core.llms import ChatMessage
from llama_index.llms.openai_like import OpenAILike
from report import LORA, QUESTION, TOKEN, error_of, report
from typed import MODEL, URL, Place


def llm(model: str) -> OpenAILike:
    """One of the server's models."""
    return OpenAILike(
        model=model,
        api_base=URL,
        api_key=TOKEN,
        is_chat_model=True,
        should_use_structured_outputs=True,
        context_window=512,
        temperature=0,
        max_tokens=64,
        max_retries=0,
    )


adapted, message = llm(f"{MODEL}:{LORA}"), ChatMessage(role="user", content=QUESTION)
report(
    "llama-index-llms-openai-like",
    answers={"base": llm(MODEL).complete(QUESTION).text, LORA: adapted.chat([message]).message.content},
    stream=[chunk.delta or "" for chunk in adapted.stream_chat([message])],
    typed=llm(MODEL).as_structured_llm(Place).chat([message]).raw.model_dump(),
    errors={"unknown_lora": error_of(lambda: llm(f"{MODEL}:nobody").complete("hi"))},
)
