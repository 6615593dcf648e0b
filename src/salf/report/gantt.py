"""The time-line of one round: who was receiving, computing or sending what, and where the round ended."""

from collections.abc import Sequence

from salf.records import ClientLine, Span, TimeLine
from salf.report import svg
from salf.report.reported import Group

_ROW = 17.0
_LEFT = 46.0
_SHADES = 4  # of layers, taken in turn: neighbours can be told apart


def draw_timeline(group: Group) -> str:
    """Draw the typical round of a group's first run; nothing where it is not known."""
    timeline = group.runs[0].timeline
    if timeline is None or timeline.round is None:
        return ""
    end = max(timeline.end_s, timeline.deadline_s or 0.0)
    bottom = 34 + _ROW * len(timeline.lines)
    frame = svg.Frame(_LEFT, 34, svg.WIDTH - 24, bottom, (0.0, 1.02 * end), (0.0, 1.0))
    rows = [part for place, one in enumerate(timeline.lines) for part in _row(one, place, timeline.layers, frame)]
    cut, name = (timeline.end_s, "end") if timeline.deadline_s is None else (timeline.deadline_s, "deadline")
    mark = svg.line(frame.at_x(cut), 24, frame.at_x(cut), bottom, "deadline")
    label = svg.text(frame.right, 18, f"{name} {cut:.3g} s", "end")
    parts = [svg.text(4, 18, "client", "start"), *rows, mark, label, *frame.x_axis("virtual time in the round (s)")]
    some = "" if len(timeline.lines) == timeline.clients else f", {len(timeline.lines)} of {timeline.clients} clients"
    caption = f"{group.label}: round {timeline.round}, seed {group.seeds[0]}{some}"
    return svg.figure(caption, _summary(timeline), bottom + 44, parts)


def _row(one: ClientLine, place: int, layers: Sequence[str], frame: svg.Frame) -> list[str]:
    """Return the bars of one client, from left to right, sending below the rest."""
    top = frame.top + _ROW * place
    parts = [svg.text(_LEFT - 6, top + 12, str(one.client), "end")]
    for span in one.spans:
        x, width = frame.at_x(span.start_s), frame.at_x(span.end_s) - frame.at_x(span.start_s)
        y, height = (top + 11, 4.0) if span.activity == "send" else (top + 1, 10.0)
        parts.append(svg.rectangle(x, y, max(width, 0.1), height, _kind(span), _title(one, span, layers)))
    return parts


def _kind(span: Span) -> str:
    """Return the classes of a bar: what it was, and whether it was of use."""
    shade = f"b{span.layer % _SHADES}" if span.layer is not None else {"backward": "b0"}.get(span.activity, "")
    return " ".join(part for part in (span.activity, shade, "" if span.counted else "lost") if part)


def _title(one: ClientLine, span: Span, layers: Sequence[str]) -> str:
    what = span.activity if span.layer is None else f"{span.activity} of layer {layers[span.layer]}"
    fate = ", cut off" if span.cut else "" if span.counted else ", lost"
    return f"client {one.client}: {what}, {span.start_s:.3g} to {span.end_s:.3g} s{fate}"


def _summary(timeline: TimeLine) -> str:
    """Say in words who got how far."""
    end = f"ended after {timeline.end_s:.3g} s"
    cut = "without a deadline" if timeline.deadline_s is None else f"with a deadline of {timeline.deadline_s:.3g} s"
    depths = "; ".join(f"client {one.client}: {one.depth}" for one in timeline.lines)
    return f"Round {timeline.round}, {cut}, {end}. Of {len(timeline.layers)} layers were conveyed by {depths}."


def legend() -> str:
    """Return what the bars mean."""
    entries = (
        ("receive", "receiving the model, or switched off"),
        ("forward", "forward pass"),
        ("backward b0", "backward pass, a shade per layer"),
        ("send", "sending"),
        ("backward b0 lost", "lost: done or begun, but not part of the model"),
    )
    return (
        '<ul class="legend">'
        + "".join(
            f'<li><svg viewBox="0 0 24 14" width="24" height="14" aria-hidden="true">'
            f"{svg.rectangle(1, 5 if kind == 'send' else 2, 22, 4 if kind == 'send' else 10, kind)}</svg>{words}</li>"
            for kind, words in entries
        )
        + "</ul>\n"
    )
