"""What became of one agent's links: what `status` tells on either side."""

from __future__ import annotations

from dataclasses import dataclass

from protocol.process.control.schema import LastCut, LinkFacts


@dataclass(slots=True)
class LinkHistory:
    """Times are on the caller's clock; whoever asks hears ages, as a router's may be wrong."""

    since: float = 0.0  # when the last link came, or went; if there was none, of no meaning
    links: int = 0
    resumed: int = 0  # of those, how many continued a session
    cut_at: float | None = None
    cut_why: str = ""

    def came(self, now: float, *, resumed: bool) -> None:
        self.since = now
        self.links += 1
        self.resumed += resumed

    def went(self, now: float, why: str) -> None:
        self.since = self.cut_at = now
        self.cut_why = why

    def facts(self, now: float) -> LinkFacts:
        """For JSON; ages in seconds."""
        cut: LastCut | None = None
        if self.cut_at is not None:
            cut = {"age": round(now - self.cut_at, 1), "reason": self.cut_why}
        return {
            "age": round(now - self.since, 1) if self.links else None,
            "links": self.links,
            "resumed": self.resumed,
            "last_cut": cut,
        }
