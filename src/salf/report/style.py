"""The style sheet of a report: light, dark and on paper; no fonts, pictures or scripts from elsewhere."""

# Colours of lines that people with every kind of colour vision tell apart (Okabe and Ito, 2008). On dark paper its
# black is white and its blue lighter, which keeps both visible.
STYLE = """
:root { color-scheme: light dark; --ink: #1b1b1b; --soft: #505050; --paper: #ffffff; --card: #f6f7f9; --line: #8a8a8a;
  --grid: #d9d9d9; --mark: #ffe9a8; --heat: #0072b2; --send: #b04a00; --wait: #9aa0a6; --late: #b3261e;
  --c0: #0072b2; --c1: #d55e00; --c2: #009e73; --c3: #cc79a7; --c4: #e69f00; --c5: #56b4e9; --c6: #000000; }
@media screen and (prefers-color-scheme: dark) { :root { --ink: #ececec; --soft: #b9bdc2; --paper: #16181b;
  --card: #1f2226; --line: #777777; --grid: #3a3d42; --mark: #5a4600; --heat: #56b4e9; --send: #e69f00; --wait: #6f757c;
  --late: #ff8a80; --c0: #3f9fdf; --c6: #ffffff; } }
* { box-sizing: border-box; }
body { font: 1rem/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 72rem;
  margin: 0 auto; padding: 1rem; overflow-wrap: break-word; }
h1 { line-height: 1.2; margin: .5rem 0; } h2 { margin: 2rem 0 .5rem; }
p { max-width: 48rem; }
.note { color: var(--soft); }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr)); gap: 1rem; }
figure { margin: 0; background: var(--card); border-radius: 8px; padding: .5rem; min-width: 0; max-width: 40rem; }
figcaption { font-weight: 600; padding: 0 .25rem .25rem; }
figure svg { width: 100%; height: auto; display: block; }
svg text { fill: var(--ink); font: 14px system-ui, sans-serif; }
.axis { stroke: var(--line); } .grid { stroke: var(--grid); }
.curve { fill: none; stroke: var(--c); stroke-width: 2.2; } .band { fill: var(--c); fill-opacity: .18; }
.mark { fill: var(--c); } .bar { fill: var(--c); }
.c0 { --c: var(--c0); } .c1 { --c: var(--c1); } .c2 { --c: var(--c2); } .c3 { --c: var(--c3); } .c4 { --c: var(--c4); }
.c5 { --c: var(--c5); } .c6 { --c: var(--c6); }
.d1 { stroke-dasharray: 8 4; } .d2 { stroke-dasharray: 2 3; } .d3 { stroke-dasharray: 9 3 2 3; }
.none { fill: var(--paper); stroke: var(--grid); }
.h1, .h2, .h3, .h4, .h5, .h6, .h7, .h8 { fill: var(--heat); }
.h1 { fill-opacity: .14; } .h2 { fill-opacity: .26; } .h3 { fill-opacity: .38; } .h4 { fill-opacity: .5; }
.h5 { fill-opacity: .62; } .h6 { fill-opacity: .74; } .h7 { fill-opacity: .87; }
.receive { fill: var(--wait); } .forward { fill: var(--c2); } .backward { fill: var(--c0); }
.send { fill: var(--send); }
.b1 { fill-opacity: .8; } .b2 { fill-opacity: .62; } .b3 { fill-opacity: .44; }
.lost { fill-opacity: .1; stroke: currentColor; stroke-width: .6; stroke-dasharray: 2 2; }
.deadline { stroke: var(--late); stroke-width: 2; stroke-dasharray: 6 3; }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; padding: 0; margin: .5rem 0; }
.legend svg { vertical-align: middle; margin-right: .4rem; }
.wide { overflow-x: auto; }
.wide:focus-visible, pre:focus-visible, summary:focus-visible { outline: 2px solid var(--c0); }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid var(--line); padding: .25rem .75rem; text-align: right; white-space: nowrap; }
th:first-child { text-align: left; padding-left: 0; }
pre, code { font: .9rem/1.45 ui-monospace, monospace; }
pre { border: 1px solid var(--line); border-radius: 6px; padding: .75rem; overflow-x: auto; margin: .5rem 0; }
mark { background: var(--mark); color: var(--ink); }
summary { cursor: pointer; padding: .25rem 0; }
@media print { :root { color-scheme: light; } body { max-width: none; padding: 0; font-size: 10pt; }
  figure, tr { break-inside: avoid; } h2 { break-after: avoid; } .figures { grid-template-columns: 1fr 1fr; }
  .wide, pre { overflow: visible; } th, td { padding: .15rem .2rem; font-size: 7.5pt; }
  thead th { font-size: 7pt; white-space: normal; overflow-wrap: anywhere; }
  pre { white-space: pre-wrap; font-size: 8pt; columns: 2; }
  details::details-content { content-visibility: visible; block-size: auto; } * { print-color-adjust: exact; } }
"""
