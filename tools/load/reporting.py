"""The report of a run: a table on the terminal; JSON, PNG and one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import json
import tempfile
from html import escape
from pathlib import Path
from typing import Any

from outcome import Outcome
from plan import HOURS

from modelsync.core.curves import Panel
from modelsync.edges.host import plots

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#111;max-width:1100px;margin:2rem auto;padding:0 1rem}
table{border-collapse:collapse;margin:1rem 0}
td{padding:.2rem .9rem .2rem 0;text-align:left;border-bottom:1px solid #e5e7eb;font-variant-numeric:tabular-nums}
.grid{display:grid;grid-template-columns:repeat(auto-fit,minmax(480px,1fr));gap:1rem}
img{width:100%}.bad{color:#b91c1c;font-weight:600}.good{color:#15803d;font-weight:600}
"""


def figures(outcome: Outcome) -> dict[str, Any]:
    """Everything that is told, by name."""
    record, hit_rate = outcome.record, outcome.hit_rate()
    told: dict[str, Any] = {
        "requests": record.due,
        "failed requests": record.failed,
        "wrong answers": outcome.wrong,
        **{f"latency {name}, ms": round(value, 2) for name, value in record.percentiles_ms().items()},
        "generator at most late, ms": round(1000 * outcome.worst_lag_s, 1),
        "hit rate, %": round(100 * hit_rate, 1) if hit_rate is not None else None,
    }
    if outcome.samples:
        first, last = outcome.samples[0], outcome.samples[-1]
        told |= {"loads": last.loads - first.loads, "evictions": last.evictions - first.evictions}
    if outcome.swaps:
        told |= {
            "swaps (publishes)": len(outcome.done_swaps),
            "publishes refused or lost": len(outcome.swaps) - len(outcome.done_swaps),
            "versions that answered": len({(model, version) for model, version, _ in record.answers}),
        }
    if outcome.events:
        told |= {
            "primary killed: promoted after, s": _rounded(outcome.promoted_s),
            "primary killed: publishing again after, s": _rounded(outcome.resumed_s),
            "failed requests in the 10 s after the kill": _failed_after_kill(outcome),
        }
    return told


def _rounded(value: float | None) -> float | None:
    return round(value, 2) if value is not None else None


def _failed_after_kill(outcome: Outcome) -> int:
    killed = next((at for at, word in outcome.marks if word.endswith("killed")), None)
    if killed is None:
        return 0
    return sum(
        second.failed for number, second in outcome.record.seconds.items() if int(killed) <= number <= killed + 10
    )


def say(outcome: Outcome) -> None:
    """The table, on the terminal."""
    told = figures(outcome)
    width = max(map(len, told))
    print()
    for name, value in told.items():
        print(f"{name.ljust(width)}  {'-' if value is None else value}")
    for kind, count in outcome.record.failures.most_common():
        print(f"  failed: {count} x {kind}")
    for line in outcome.record.first_failures:
        print(f"  {line}")
    print("\nhot models by hour of the day")
    for hour in range(0, HOURS, 3):
        print(f"  {hour:02d}:00  {_hottest(outcome, hour)}")
    print()


def write(outcome: Outcome, out: Path) -> list[Path]:
    """Keep everything; returns where."""
    out.mkdir(parents=True, exist_ok=True)
    paths = [out / "loadtest.json", out / "loadtest.png", out / "loadtest.html"]
    document = {
        "figures": figures(outcome),
        "plan": {key: getattr(outcome.plan, key) for key in ("seconds", "rate", "models", "skew", "seed")},
        "failures": dict(outcome.record.failures),
        "events": [[round(at, 3), word] for at, word in outcome.marks],
    }
    paths[0].write_text(json.dumps(document, indent=1) + "\n")
    plots.draw(outcome.panels(), paths[1], "modelsync under load")
    paths[2].write_text(page(outcome))
    return paths


def page(outcome: Outcome) -> str:
    """One HTML file with its pictures inside."""
    verdict = '<p class="good">Every request was answered, and rightly.</p>'
    if not outcome.good:
        verdict = f'<p class="bad">{outcome.record.failed} requests failed, {outcome.wrong} were answered wrongly.</p>'
    plan = outcome.plan
    about = f"{plan.rate:g} requests/s for {plan.seconds:g} s over {plan.models} models, Zipf {plan.skew:g}; open loop."
    hours = {f"{hour:02d}:00": _hottest(outcome, hour) for hour in range(HOURS)}
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>modelsync under load</title>'
        f"<style>{_STYLE}</style><h1>modelsync under load</h1><p>{escape(about)}</p>{verdict}{_table(figures(outcome))}"
        f'<div class="grid">{"".join(map(_picture, outcome.panels()))}</div>'
        f"<h2>Hot models by hour of the day</h2>{_table(hours)}</html>\n"
    )


def _table(values: dict[str, Any]) -> str:
    rows = (
        f"<tr><td>{escape(name)}</td><td>{escape('–' if value is None else str(value))}</td></tr>"
        for name, value in values.items()
    )
    return f"<table>{''.join(rows)}</table>"


def _hottest(outcome: Outcome, hour: int) -> str:
    return ", ".join(f"{name} ({count})" for name, count in outcome.hottest(hour))


def _picture(panel: Panel) -> str:
    return f'<img alt="{escape(panel.title)}" src="data:image/svg+xml;base64,{_svg(panel)}">'


def _svg(panel: Panel) -> str:
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "panel.svg"
        plots.draw([panel], path, "", columns=1)
        return base64.b64encode(path.read_bytes()).decode()
