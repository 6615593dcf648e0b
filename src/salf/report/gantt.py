"""The timeline of one round: what each client received, computed and sent, and when the round ended."""

from collections.abc import Sequence
from dataclasses import dataclass

from salf.records import TimeLine
from salf.report.frame import WIDTH, Frame, Picture
from salf.report.reported import RunGroup

ROW = 17.0  # the height of a client

# What the bars mean, by their classes in the style sheet.
_MEANINGS = {
    "receive": "receives the model",
    "forward": "forward pass",
    "backward": "backward pass; the shades separate layers",
    "send": "sends its update",
    "lost": "lost: does not enter the model",
}


@dataclass(frozen=True)
class RoundPicture(Picture):
    """A figure of one round, with a row for each client."""

    timeline: TimeLine


def draw_round(group: RunGroup) -> RoundPicture | None:
    """Draw the typical round of a group's first run; None where it is not known."""
    timeline = group.runs[0].timeline
    if timeline is None or timeline.round is None:
        return None
    end = max(timeline.end_s, timeline.deadline_s or 0.0)
    frame = Frame(46, 34, WIDTH - 24, 34 + ROW * len(timeline.lines), (0.0, 1.02 * end))
    some = "" if len(timeline.lines) == timeline.clients else f", {len(timeline.lines)} of {timeline.clients} clients"
    caption = f"{group.label}: round {timeline.round}, seed {group.seeds[0]}{some}"
    cut = "without a deadline" if timeline.deadline_s is None else f"with a deadline of {timeline.deadline_s:.3g} s"
    depths = "; ".join(f"client {one.client}: {one.depth}" for one in timeline.lines)
    summary = (
        f"Round {timeline.round}, {cut}, ended after {timeline.end_s:.3g} s. "
        f"Of {len(timeline.layers)} layers, clients sent: {depths}."
    )
    return RoundPicture(caption, summary, frame, timeline)


def bars_of(pictures: Sequence[RoundPicture]) -> dict[str, str]:
    """Return the meaning of each kind of bar that occurs, by its class in the style sheet."""
    spans = [span for one in pictures for line in one.timeline.lines for span in line.spans]
    occurring = {span.activity for span in spans} | {"lost" for span in spans if not span.counted}
    return {kind: meaning for kind, meaning in _MEANINGS.items() if kind in occurring}
