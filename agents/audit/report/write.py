"""Writes a report as report.json and as a report.html that opens without network."""

from __future__ import annotations

import base64
from html import escape
from pathlib import Path

from agents.audit.report.model import ClassReport, Report
from agents.audit.report.style import STYLE
from agents.audit.report.table import NONE, number, percent

_HEADINGS = (
    *("model", "accuracy", "loss", "mismatched", "trained"),
    *("accepted", "missing", "rejected", "seconds", "SHA-256"),
)
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""


def write_report(report: Report, out_dir: Path) -> tuple[Path, Path]:
    """Writes both files into ``out_dir``, which is made if need be, and returns the paths: JSON, HTML."""
    out_dir.mkdir(parents=True, exist_ok=True)
    json_path, html_path = out_dir / "report.json", out_dir / "report.html"
    json_path.write_text(report.model_dump_json(indent=2) + "\n", encoding="utf-8")
    html_path.write_text(render_html(report), encoding="utf-8")
    return json_path, html_path


def render_html(report: Report) -> str:
    """The whole page; every text of the run is escaped and every picture lies in the page itself."""
    # Here, because matplotlib takes a while to import and most commands draw nothing.
    from agents.audit.report import pictures

    sections = [_header(report), _tiles(report)]
    if report.base is not None:
        sections.append(_picture("Accuracy by round", pictures.accuracy_curve(report), "Held-out accuracy by round"))
    sections.append(_rounds(report))
    if report.per_class:
        chart = pictures.per_class_change(report.per_class)
        sections.append(_picture("What got better, what got worse", chart, "Accuracy by class", _both_sides(report)))
    if report.confusion is not None:
        matrices = pictures.confusion_matrices(report.confusion, [one.name for one in report.per_class])
        note = "Of every 100 held-out images of a row's class, how many were taken for the column's."
        sections.append(_picture("Confusion", matrices, "Confusion matrices of base and newest model", note))
    if report.time.overhead_share is not None:
        parts, note = _time_parts(report)
        sections.append(_picture("Where the time went", pictures.time_bar(parts), "Shares of the wall time", note))
    sections.append(_facts(report))
    return _PAGE.format(title=escape(f"{report.run} · fedbus"), style=STYLE, body="\n".join(sections))


def _header(report: Report) -> str:
    clients = ", ".join(f"{count} {kind}" for kind, count in report.clients if count) or "no"
    line = (
        f"{report.users} users with {report.images_per_user} images each · {len(report.rounds)} rounds · "
        f"{clients} clients · seed {report.seed}"
    )
    reason = f'<p class="reason">{escape(report.reason)}</p>' if report.reason else ""
    return (
        f'<header><h1>{escape(report.run)} <span class="status {report.status}">{report.status}</span></h1>'
        f"<p>{escape(line)}</p>{reason}</header>"
    )


def _tiles(report: Report) -> str:
    base = report.base.accuracy if report.base else None
    final = report.final.accuracy
    gain = None if base is None or final is None else 100 * (final - base)
    accepted = sum(one.updates_accepted for one in report.rounds)
    missing = sum(one.updates_missing for one in report.rounds)
    tiles = [
        ("base model", percent(base), f"loss {number(report.base.loss if report.base else None, 3)}", ""),
        ("newest model", percent(final), f"loss {number(report.final.loss, 3)}", ""),
        ("change", NONE if gain is None else f"{gain:+.1f}", "points of accuracy", _sign(gain)),
        ("updates", str(accepted), f"accepted, {missing} missing", ""),
        ("wall time", f"{report.wall_seconds:.1f} s", f"{percent(report.time.overhead_share)} not compute", ""),
    ]
    cells = [
        f"<div><dt>{name}</dt><dd class='{kind}'>{escape(value)}</dd><dd class='note'>{escape(note)}</dd></div>"
        for name, value, note, kind in tiles
    ]
    return f'<dl class="tiles">{"".join(cells)}</dl>'


def _sign(value: float | None) -> str:
    return "" if not value else "gain" if value > 0 else "loss"


def _picture(title: str, svg: str, alt: str, note: str = "") -> str:
    data = base64.b64encode(svg.encode()).decode()
    text = f"<p>{escape(note)}</p>" if note else ""
    return (
        f"<section><h2>{escape(title)}</h2>{text}"
        f'<img alt="{escape(alt)}" src="data:image/svg+xml;base64,{data}"></section>'
    )


def _both_sides(report: Report) -> str:
    changes = [
        (one.final - one.base, one) for one in report.per_class if one.base is not None and one.final is not None
    ]
    better = sum(change > 0 for change, _ in changes)
    worse = sum(change < 0 for change, _ in changes)
    text = f"{better} of {len(changes)} classes got better and {worse} got worse."
    if changes:
        best, worst = max(changes, key=lambda item: item[0]), min(changes, key=lambda item: item[0])
        text += f" Largest gain: {_change(best[1])}."
        if worst[0] < 0:
            text += f" Largest loss: {_change(worst[1])}."
    return text


def _change(one: ClassReport) -> str:
    return f"{one.name}, {percent(one.base)} to {percent(one.final)}"


def _rounds(report: Report) -> str:
    head = "".join(f"<th>{heading}</th>" for heading in _HEADINGS)
    base = report.base
    rows = [["base", percent(base.accuracy), number(base.loss, 3), *[NONE] * 7]] if base else []
    for one in report.rounds:
        rows.append(
            [
                f"round {one.round}",
                percent(one.accuracy) if one.failed is None else " ".join(filter(None, ["failed", one.code])),
                number(one.loss, 3),
                str(one.mismatched_images),
                str(one.trained_images),
                str(one.updates_accepted),
                str(one.updates_missing),
                str(one.updates_rejected),
                number(one.seconds, 2),
                (one.model_sha256 or NONE)[:12],
            ]
        )
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    table = f"<table class='rounds'><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<section><h2>Rounds</h2><div class="scroll">{table}</div></section>'


def _time_parts(report: Report) -> tuple[list[tuple[str, float]], str]:
    """Labelled seconds that sum to the wall time, and what they are."""
    time, clients = report.time, report.clients.total
    labelling = min(time.labelling or 0.0, report.wall_seconds)
    predict, train = time.predict / clients, time.train / clients
    rest = max(0.0, report.wall_seconds - labelling - predict - train)
    note = (
        f"Wall time of the run, as one of its {clients} clients saw it on average. Everything else is waiting, "
        "upload, aggregation and the bus."
    )
    return [("labelling", labelling), ("predicting", predict), ("training", train), ("everything else", rest)], note


def _facts(report: Report) -> str:
    facts = [("newest model", report.final.model_sha256), ("augmentations", f"{report.augmentations} for each image")]
    if report.held_out_images is not None:
        facts.append(("held-out images", str(report.held_out_images)))
    if (labels := report.labels) is not None:
        provider = f"{labels.provider} ({labels.model})" if labels.model else labels.provider
        facts.append(("labels", f"{labels.images} images by {provider}"))
        dropped = ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in labels.dropped.items())
        facts.append(("dropped images", dropped or "none"))
        if labels.prompt_tokens:
            facts.append(("tokens", f"{labels.prompt_tokens} in, {labels.completion_tokens} out"))
    rows = "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in facts)
    return f'<section><h2>Facts</h2><table class="facts"><tbody>{rows}</tbody></table></section>'
