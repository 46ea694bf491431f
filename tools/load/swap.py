"""A process of its own that publishes a new version again and again, by popularity; one line of JSON for each.

{"at": unix seconds, "model": number, "version": N, "variant": 0 or 1, "took_s", "error"}
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time

from plan import zipf

from modelsync import publish
from modelsync.core.errors import ModelsyncError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--redis", required=True)
    parser.add_argument("--fleet", required=True)
    parser.add_argument("--every", type=float, required=True)
    parser.add_argument("--seed", type=int, required=True)
    arguments = parser.parse_args()
    models = json.load(sys.stdin)  # [[name, path of variant a, path of variant b], …]; both begin with a as version 1
    dice, weights = random.Random(arguments.seed), zipf(len(models), 0.7)
    variants = [0] * len(models)
    sys.stdout.write("ready\n")  # what was imported until here would otherwise compete with the first requests
    sys.stdout.flush()
    due_s = time.monotonic()
    while True:
        due_s += arguments.every
        time.sleep(max(0.0, due_s - time.monotonic()))
        number = dice.choices(range(len(models)), weights)[0]
        variant = 1 - variants[number]
        line = attempt(arguments, models[number], variant)
        if "error" not in line:
            variants[number] = variant
        sys.stdout.write(json.dumps({"model": number, "variant": variant, **line}) + "\n")
        sys.stdout.flush()


def attempt(arguments: argparse.Namespace, model: list[str], variant: int) -> dict[str, object]:
    """Publish once; an error is told, and the next turn tries something else."""
    started_s = time.perf_counter()
    try:
        done = publish(
            model[0], model[1 + variant], redis=arguments.redis, fleet=arguments.fleet, wait=1, timeout_s=10.0,
            author="loadtest",
        )  # fmt: skip
    except ModelsyncError as error:
        return {"at": time.time(), "took_s": time.perf_counter() - started_s, "error": type(error).__name__}
    return {"at": time.time(), "took_s": time.perf_counter() - started_s, "version": done.version}


if __name__ == "__main__":
    main()
