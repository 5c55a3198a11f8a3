"""Whether an engine may be given work: a state machine of four states, and the weight version that the engine holds.

    STARTING --started--> STALE --current--> READY          any but DEAD --died, hung--> DEAD --restarted--> STARTING
                            ^-- missed, rewound'

Only a READY engine gets work. An engine that holds no weights of its own is current as soon as it has started.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

__all__ = ["TRANSITIONS", "Event", "Health", "State", "after"]


class State(Enum):
    STARTING = "starting"       # its process is being made or does not answer yet
    STALE = "stale"             # answers, without the weights of now
    READY = "ready"             # answers, with the weights of now
    DEAD = "dead"               # its process is gone or is being ended


class Event(Enum):
    STARTED = "started"         # it answers for the first time
    CURRENT = "current"         # it holds the weights of now
    MISSED = "missed"           # there are newer weights, and it did not take them
    REWOUND = "rewound"         # the learners went back to an older checkpoint: what it holds is of no use
    DIED = "died"               # its process, or the engine behind it, is gone
    HUNG = "hung"               # it does not answer a ping
    RESTARTED = "restarted"     # a new process takes its place


TRANSITIONS: dict[tuple[State, Event], State] = {
    (State.STARTING, Event.STARTED): State.STALE,
    (State.STARTING, Event.DIED): State.DEAD,
    (State.STARTING, Event.HUNG): State.DEAD,
    (State.STALE, Event.CURRENT): State.READY,
    (State.STALE, Event.MISSED): State.STALE,
    (State.STALE, Event.REWOUND): State.STALE,
    (State.STALE, Event.DIED): State.DEAD,
    (State.STALE, Event.HUNG): State.DEAD,
    (State.READY, Event.CURRENT): State.READY,
    (State.READY, Event.MISSED): State.STALE,
    (State.READY, Event.REWOUND): State.STALE,
    (State.READY, Event.DIED): State.DEAD,
    (State.READY, Event.HUNG): State.DEAD,
    (State.DEAD, Event.RESTARTED): State.STARTING,
}


@dataclass(frozen=True)
class Health:
    """version: of the weights that the engine holds; None for those it was started with, or where it needs none."""

    state: State = State.STARTING
    version: int | None = None
    num_restarts: int = 0

    @property
    def is_ready(self) -> bool:
        return self.state is State.READY

    @property
    def is_alive(self) -> bool:
        """Whether it answers calls, be it with old weights."""
        return self.state in (State.STALE, State.READY)


def after(health: Health, event: Event, version: int | None = None) -> Health:
    """The health that `event` leads to. version: with CURRENT, that of the weights it holds now.

    A version never goes back but by a restart or a rewinding, which lose it. Any other event than those of TRANSITIONS
    is a bug.
    """
    assert (health.state, event) in TRANSITIONS, f"an engine that is {health.state.value} must not be {event.value}"
    state = TRANSITIONS[health.state, event]
    if event is Event.RESTARTED:
        return Health(state, None, health.num_restarts + 1)
    if event is Event.REWOUND:
        return Health(state, None, health.num_restarts)
    if event is not Event.CURRENT:
        assert version is None, f"only a current engine has a new version, got {event.value} with {version}"
        return Health(state, health.version, health.num_restarts)
    assert health.version is None or (version is not None and version >= health.version), (
        f"an engine's version must not go back from {health.version}, got {version}")
    return Health(state, version, health.num_restarts)
