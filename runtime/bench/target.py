"""The server under load: which model and adapters it lists, and how a request names them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from runtime.bench.schedule import BASE
from runtime.commands.stream import Address, get_json
from runtime.errors import GemlaneError

_LLAMA_SERVER: Final = "llamacpp"
"""What llama-server says owns its model. Source: llama.cpp tools/server/README.md."""


@dataclass(frozen=True, slots=True)
class LoadTarget:
    """A server and the names that it takes."""

    address: Address
    model: str
    """The base model's id."""
    models: Mapping[str, str]
    """The model id of each adapter, where adapters are chosen by model, as in gemlane and vLLM."""
    numbers: Mapping[str, int]
    """The number of each adapter, where they are chosen by number, as in llama-server."""

    @property
    def adapters(self) -> tuple[str, ...]:
        """The names of all adapters, as the server lists them."""
        return (*self.models, *self.numbers)

    def naming(self, adapter: str) -> dict[str, Any]:
        """The keys of a body that choose an adapter, or the base."""
        if self.numbers:
            scales = [{"id": number, "scale": float(name == adapter)} for name, number in self.numbers.items()]
            return {"model": self.model, "lora": scales}
        return {"model": self.models.get(adapter, self.model)}

    def chosen(self, names: str) -> tuple[str, ...]:
        """The adapters that a list with commas names; ``all`` is every one of the server's.

        Raises:
            GemlaneError: the server lists no adapter of a name, or none at all.
        """
        known = self.adapters
        if names == "all":
            if not known:
                raise GemlaneError(f"{self.address.url} lists no adapters; leave --adapters out to ask for the base")
            return known
        wanted = tuple(name.strip() for name in names.split(",") if name.strip()) or (BASE,)
        for name in wanted:
            if name not in (BASE, *known):
                there = ", ".join(known[:8]) + (", ..." if len(known) > 8 else "") if known else "none"
                raise GemlaneError(f"{self.address.url} lists no adapter {name!r}; it has: {there}")
        return wanted


def find_target(address: Address, model: str = "") -> LoadTarget:
    """Ask a server what it serves. ``model`` is the base model's id; empty: the first one that the server lists.

    Raises:
        ServerUnreachable: nothing listens there.
        ServerRefused: the server has no list of models, or does not give it.
        GemlaneError: the list is empty, or not in OpenAI's form.
    """
    try:
        listed = [(str(entry["id"]), entry.get("owned_by")) for entry in get_json(address, "/v1/models")["data"]]
    except (KeyError, TypeError, AttributeError, ValueError):
        raise GemlaneError(f"{address.url}/v1/models is not a list of models in OpenAI's form") from None
    if not listed:
        raise GemlaneError(f"{address.url} lists no model")
    base = model or listed[0][0]
    if listed[0][1] == _LLAMA_SERVER:
        return LoadTarget(address, base, {}, _numbers(get_json(address, "/lora-adapters")))
    others = [name for name, _ in listed if name != base]
    # gemlane's adapters are called MODEL:NAME.
    return LoadTarget(address, base, {name.removeprefix(f"{base}:"): name for name in others}, {})


def _numbers(entries: Any) -> dict[str, int]:
    """llama-server's adapters by the names of their files; by their numbers where two files are called alike."""
    stems = [Path(str(entry["path"])).stem for entry in entries]
    names = stems if len(set(stems)) == len(stems) else [str(entry["id"]) for entry in entries]
    return {name: int(entry["id"]) for name, entry in zip(names, entries, strict=True)}
