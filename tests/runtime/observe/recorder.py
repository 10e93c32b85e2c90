"""An observer that remembers."""

from __future__ import annotations

from runtime.observe.events import Event


class Recorder:
    """Keeps every event in order."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def observe(self, event: Event) -> None:
        """Keep one event."""
        self.events.append(event)
