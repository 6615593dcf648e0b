"""One self-contained HTML page about a run: works offline, in light and dark, on paper."""

from collections.abc import Mapping, Sequence
from html import escape
from io import StringIO

from salf.plots import plot_accuracy, svg_of
from salf.records import RoundRecord, final_accuracy

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1b1b; --paper: #ffffff; --line: #8a8a8a; }
@media (prefers-color-scheme: dark) { :root { --ink: #ececec; --paper: #16181b; --line: #777777; } }
body { font: 1rem/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
       max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
figure { margin: 1.5rem 0; background: #ffffff; color: #1b1b1b; border-radius: 6px; padding: .5rem; }
figure svg { width: 100%; height: auto; display: block; }
table { border-collapse: collapse; }
.wide { overflow-x: auto; }
th, td { border-bottom: 1px solid var(--line); padding: .25rem .75rem; text-align: right; }
th:first-child, td:first-child { text-align: left; }
pre { border: 1px solid var(--line); border-radius: 6px; padding: .75rem; overflow-x: auto; }
"""


def render_report(title: str, settings: str, layers: Sequence[str], records: Sequence[RoundRecord]) -> str:
    """Return the page about one run: its curve, its figures, who reached each layer, and all settings (TOML).

    `layers` are the layers' names, input to output.
    """
    last = records[-1]
    figures = {
        "test accuracy": f"{100 * final_accuracy(records):.2f} %",
        "rounds": str(last.round),
        "virtual time": f"{last.time_s:g} s",
        "updates refused": str(sum(record.rejected for record in records)),
    }
    asked = sum(record.clients for record in records)
    reached = {
        name: f"{100 * sum(record.contributors[index] for record in records) / asked:.1f} %"
        for index, name in enumerate(layers)
    }
    page = StringIO()
    page.write(f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n')
    page.write('<meta name="viewport" content="width=device-width, initial-scale=1">\n')
    page.write(f"<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n<h1>{escape(title)}</h1>\n")
    page.write(_table("Result", ("figure", "value"), figures))
    if any(record.accuracy is not None for record in records):
        curve = svg_of(plot_accuracy({title: [records]}, "test accuracy against virtual time"))
        page.write(f'<figure role="img" aria-label="Test accuracy against virtual time">{curve}</figure>\n')
    page.write(_table("Share of the clients asked that conveyed each layer", ("layer", "share"), reached))
    page.write("<h2>Settings</h2>\n<p>Reproduce it: save this as <code>experiment.toml</code> and run\n")
    page.write(
        f"<code>salf run experiment.toml</code>.</p>\n<pre>{escape(settings)}</pre>\n</main>\n</body>\n</html>\n"
    )
    return page.getvalue()


def _table(heading: str, columns: tuple[str, str], rows: Mapping[str, str]) -> str:
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
    body = "".join(
        f'<tr><th scope="row">{escape(key)}</th><td>{escape(value)}</td></tr>' for key, value in rows.items()
    )
    return (
        f'<h2>{escape(heading)}</h2>\n<div class="wide"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>\n"
    )
