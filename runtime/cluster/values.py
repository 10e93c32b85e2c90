"""What crosses between the web process and a replica, besides requests and their events.

Ray carries these values as pickles between its own processes, and trusts all of them: a process that has the cluster's
token can run code on every machine of the cluster.
"""

from __future__ import annotations

from dataclasses import dataclass

from runtime.config import EngineSettings
from runtime.engines.protocol import GenerationEvent, Replica
from runtime.errors import GemlaneError


@dataclass(frozen=True, slots=True)
class ReplicaPlan:
    """What a replica needs to know to start."""

    settings: EngineSettings
    max_in_flight: int
    state_dir: str
    """Empty: the platform's own, on the machine of the replica."""
    node_id: str
    """Ray's name of the web process's machine."""
    version: str
    """gemlane's, in the web process."""
    log_level: str


@dataclass(frozen=True, slots=True)
class LogLine:
    """A log record of a replica, for the log of the web process."""

    level: int
    logger: str
    message: str


@dataclass(frozen=True, slots=True)
class Report:
    """The state of a replica at one moment."""

    replica_id: str
    """Ray's id of the replica, which Ray never uses again."""
    replica: Replica
    """The replica as the server shows it; its name is the rank that Ray gave it."""
    loaded: float
    """How much of the model file has been read, 0 to 1."""
    failure: str
    """Why the engine could not be started the first time; empty if it could, or may yet."""
    log: tuple[LogLine, ...]


@dataclass(frozen=True, slots=True)
class Unreadable:
    """The machine of a replica has no such file of an adapter, or another content there: the bytes are needed."""

    replica_id: str
    digest: str


Item = GenerationEvent | GemlaneError | Unreadable
"""What a message of an answer holds: events, and an error or what is missing as the end."""
