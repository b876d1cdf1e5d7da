"""The style sheet of report.html."""

STYLE = """
:root { color-scheme: light; --ink: #1f2733; --soft: #5b6577; --line: #e3e7ee; --gain: #1a7f4b; --loss: #b3372f; }
* { box-sizing: border-box; }
body { margin: 0; background: #f4f6f9; color: var(--ink); font: 15px/1.5 system-ui, "Segoe UI", Roboto, sans-serif; }
main { max-width: 980px; margin: 0 auto; padding: 32px 20px 64px; }
h1 { margin: 0; font-size: 26px; overflow-wrap: anywhere; }
h2 { margin: 0 0 6px; font-size: 17px; }
p { margin: 4px 0 12px; color: var(--soft); }
.status { font-size: 13px; font-weight: 600; padding: 3px 10px; border-radius: 12px; vertical-align: 5px; }
.status.running { background: #e8ebf1; }
.status.completed { background: #dcf3e6; color: var(--gain); }
.status.failed, .status.cancelled { background: #fbe3e1; color: var(--loss); }
.reason { color: var(--loss); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; margin: 20px 0; }
.tiles div, section { background: #fff; border: 1px solid var(--line); border-radius: 10px; }
.tiles div { padding: 14px 16px; }
.tiles dt { color: var(--soft); font-size: 13px; }
.tiles dd { margin: 0; font-size: 26px; font-weight: 650; font-variant-numeric: tabular-nums; }
.tiles dd.note { font-size: 13px; font-weight: 400; color: var(--soft); }
.gain { color: var(--gain); }
.loss { color: var(--loss); }
section { padding: 18px 20px; margin: 14px 0; }
img { display: block; width: 100%; height: auto; }
.scroll { overflow-x: auto; }
table { width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums; }
th { font-weight: 600; font-size: 13px; color: var(--soft); text-align: right; }
th, td { padding: 6px 10px; border-bottom: 1px solid var(--line); white-space: nowrap; }
td { text-align: right; }
th:first-child, td:first-child, .facts td { text-align: left; }
tbody tr:last-child > * { border-bottom: 0; }
.rounds td:last-child { font-family: ui-monospace, Menlo, Consolas, monospace; font-size: 13px; }
.facts th { width: 160px; }
.facts td { white-space: normal; overflow-wrap: anywhere; }
"""
