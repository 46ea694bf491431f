"""tools/loadtest: plan, set up, send, and say what came of it."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import threading
import time
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import reporting
from drive import ClientSender, HttpSender, Question, Run, Sender
from models import train
from outcome import Outcome
from plan import Plan
from world import World

OUT = Path(__file__).resolve().parents[2] / ".cache" / "loadtest"
KILL_AT = 0.4
"""Of the run: late enough to see it quiet before, early enough to see it recover."""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tools/loadtest", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long; it is also the length of its day (60)")
    parser.add_argument("--rate", type=float, default=150.0, help="requests a second, on average over the day (150)")
    parser.add_argument("--models", type=int, default=24, help="how many models (24)")
    parser.add_argument("--skew", type=float, default=1.1, help="Zipf's exponent of their popularity (1.1)")
    parser.add_argument("--budget-share", type=float, default=0.5, help="of all models that fit into memory (0.5)")
    parser.add_argument(
        "--swap-every", type=float, default=1.0, metavar="S", help="publish a version so often (1; 0: never)"
    )
    parser.add_argument("--no-kill", action="store_true", help="let the primary live")
    parser.add_argument(
        "--in-process", action="store_true", help="drive the client library instead of an inference server"
    )
    parser.add_argument("--cold", action="store_true", help="let the first requests wait for the import of libraries")
    parser.add_argument("--target", metavar="URL", help="an inference server that runs already: load only")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=OUT, metavar="DIR", help="for the report")
    return parser.parse_args()


def main() -> int:
    options = arguments()
    with ExitStack() as stack:
        outcome = against_target(options) if options.target else against_world(options, stack)
    reporting.say(outcome)
    for path in reporting.write(outcome, options.out):
        print(f"kept in {path}")
    return 0 if outcome.good else 1


def against_target(options: argparse.Namespace) -> Outcome:
    questions = questions_of(options.target)
    plan = Plan(options.seconds, options.rate, len(questions), options.skew, options.seed)
    print(
        f"{len(questions)} models at {options.target}, {options.rate:g} requests/s for {options.seconds:g} s",
        flush=True,
    )
    run, document = asyncio.run(drive(plan, questions, lambda: HttpSender(options.target, questions)))
    return Outcome(plan, questions, run.record, run.samples, run.worst_lag_s, document)


def against_world(options: argparse.Namespace, stack: ExitStack) -> Outcome:
    directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="modelsync-load-")))
    variants = train(options.models, options.seed, directory)
    questions = [each.question for each in variants]
    total = sum(each.size_bytes for each in variants)
    budget_bytes = int(options.budget_share * total)
    print(
        f"{len(variants)} models of {total / 2**20:.0f} MiB; {budget_bytes / 2**20:.0f} MiB may be in memory",
        flush=True,
    )
    world = stack.enter_context(World(variants, budget_bytes, options.seed))
    plan = Plan(options.seconds, options.rate, len(questions), options.skew, options.seed)

    def sender() -> Sender:
        if options.in_process:
            return ClientSender(world.live, budget_bytes, questions)
        return HttpSender(world.url, questions)

    if not options.in_process:
        world.serve(cold=options.cold)
    where = "the client library" if options.in_process else "modelsync-serve"
    print(f"alpha, beta, gamma; {where} beside beta; {options.rate:g} requests/s for {options.seconds:g} s", flush=True)
    if options.swap_every:
        world.start_swaps(options.swap_every)
    began = time.time()
    killer = None
    if not options.no_kill:
        killer = threading.Thread(target=_kill_later, args=(world, KILL_AT * options.seconds), daemon=True)
        killer.start()
    run, document = asyncio.run(drive(plan, questions, sender))
    world.end()
    if killer is not None:
        killer.join(60)
    return Outcome(
        plan,
        questions,
        run.record,
        run.samples,
        run.worst_lag_s,
        document,
        began=began,
        swaps=world.swaps,
        events=world.events,
        expected=world.expected(),
    )


def _kill_later(world: World, delay_s: float) -> None:
    time.sleep(delay_s)
    world.kill_primary()


async def drive(plan: Plan, questions: list[Question], make: Any) -> tuple[Run, dict[str, Any]]:
    """The run and what the server counted over it."""
    sender: Sender = make()
    try:
        run = Run(plan, questions, sender)
        await run()
        try:
            return run, await sender.stats()
        except Exception as error:  # somebody else's server may have no such page
            print(f"no statistics from the server: {error!r}", file=sys.stderr)
            return run, {}
    finally:
        await sender.close()


def questions_of(url: str) -> list[Question]:
    """Every ready model of a server that takes one table of numbers."""
    request = urllib.request.Request(f"{url}/v2/repository/index", data=b"{}", method="POST")
    with urllib.request.urlopen(request, timeout=10) as response:
        names = sorted({str(each["name"]) for each in json.load(response)})
    found = []
    for name in names:
        with urllib.request.urlopen(f"{url}/v2/models/{name}", timeout=60) as response:
            inputs = json.load(response)["inputs"]
        shape = inputs[0]["shape"] if len(inputs) == 1 else []
        if len(shape) == 2 and shape[1] > 0 and inputs[0]["name"] == "input":
            found.append(Question(name, (0.5,) * shape[1]))
        else:
            print(f"left out: {name} takes {inputs}", file=sys.stderr)
    if not found:
        raise SystemExit(f"{url} has no model that takes one table of numbers")
    return found


if __name__ == "__main__":
    sys.exit(main())
