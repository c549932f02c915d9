"""What a disk shows while requests arrive, by the engine's promises alone.

Requests that share a cluster take effect one after the other, each as a whole; one that is refused changes nothing.
An increment refuses parts of clusters, reads, and what is called the same, by what its own image holds: the model
knows that, too.
"""

import errno
from dataclasses import dataclass, field


@dataclass
class Request:
    kind: str       # write, zero, trim, read, same
    offset: int
    length: int
    data: bytes = b""
    fua: bool = False
    byte: int | None = None         # data is this, repeated
    who: str = ""
    outcome: object = None          # "ok", an errno, or what was read

    @property
    def end(self):
        return self.offset + self.length

    def __str__(self):
        outcome = f"{len(self.outcome)} bytes" if isinstance(self.outcome, bytes) else self.outcome
        return f"{self.who}: {self.kind} {self.length} at {self.offset} -> {outcome}"


@dataclass(frozen=True)
class State:
    """Of an arena: its bytes, and which of its clusters the image holds (of interest in an increment only)."""
    bytes: bytes
    held: tuple


@dataclass
class Arena:
    """A range of the disk that no request crosses. In an increment its ends are ends of clusters."""
    start: int
    end: int
    state: State


@dataclass
class Disk:
    size: int
    cluster: int
    mode: str
    parent: bytes = b""     # whole clusters, as a reader of the empty image sees them before they are cut at `size`
    arenas: list = field(default_factory=list)

    def __post_init__(self):
        padded = -(-self.size // self.cluster) * self.cluster
        self.parent = self.parent[:padded] + bytes(padded - len(self.parent[:padded]))

    def add_arena(self, start, end):
        clusters = -(-end // self.cluster) - start // self.cluster
        self.arenas.append(Arena(start, end, State(self.parent[start:end], (False,) * clusters)))

    def content(self):
        return b"".join(a.state.bytes for a in self.arenas)

    def cluster_of(self, k):
        return k * self.cluster, min((k + 1) * self.cluster, self.size)

    def whole(self, r, k):
        start, end = self.cluster_of(k)
        return r.offset <= start and end <= r.end

    def refused(self, arena, state, r):
        first, last = r.offset // self.cluster, (r.end - 1) // self.cluster
        if r.kind == "same" and self.mode != "compare":
            return True
        if self.mode == "full":
            return False
        held = state.held[first - arena.start // self.cluster:last + 1 - arena.start // self.cluster]
        if r.kind == "read":
            return not all(held)
        parts = [h for k, h in ((first, held[0]), (last, held[-1])) if not self.whole(r, k)]
        return any(held) or bool(parts) if r.kind == "same" else not all(parts)

    def apply(self, arena, state, r):
        """(outcome, the state after it)"""
        if self.refused(arena, state, r):
            return errno.EINVAL, state
        a, b = r.offset - arena.start, r.end - arena.start
        if r.kind == "read":
            return state.bytes[a:b], state
        if r.kind == "same":
            return "ok", state
        now = state.bytes[:a] + (r.data if r.kind == "write" else bytes(r.length)) + state.bytes[b:]
        held = list(state.held)
        for k in range(r.offset // self.cluster, (r.end - 1) // self.cluster + 1) if self.mode != "full" else ():
            start, end = self.cluster_of(k)
            shown = now[start - arena.start:end - arena.start].ljust(self.cluster, b"\0")
            # what the parent shows already is not stored
            if shown != self.parent[start:start + self.cluster]:
                held[k - arena.start // self.cluster] = True
        return "ok", State(now, tuple(held))

    def explained(self, arena, strands, after):
        """Is there an order of these requests, each strand's own kept, with these outcomes, that ends with `after`?"""
        seen, stack = set(), [((0,) * len(strands), arena.state)]
        while stack:
            done, state = stack.pop()
            if all(n == len(s) for n, s in zip(done, strands)):
                if state == after:
                    return True
                continue
            for i, strand in enumerate(strands):
                if done[i] == len(strand):
                    continue
                outcome, then = self.apply(arena, state, strand[done[i]])
                at = (*done[:i], done[i] + 1, *done[i + 1:])
                if outcome == strand[done[i]].outcome and (at, then) not in seen:
                    seen.add((at, then))
                    stack.append((at, then))
        return False


def merged(ranges):
    """Ranges (offset, end), as (offset, length) without overlaps and neighbours."""
    found = []
    for start, end in sorted(ranges):
        if found and start <= found[-1][1]:
            found[-1][1] = max(found[-1][1], end)
        else:
            found.append([start, end])
    return [(start, end - start) for start, end in found]
