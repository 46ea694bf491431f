"""``python -m modelsync.edges.gates.checks structure or load TREE …``: ends with 0, or says what is wrong, and 1."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from modelsync.edges.gates.checks.formats import Unfit, check_tree


def main(arguments: list[str]) -> int:
    """Look at one version's tree."""
    tree = Path(arguments[1])
    try:
        looked_at = check_tree(tree)
        if arguments[0] == "load":
            from modelsync.edges.gates.checks.loading import check_load  # noqa: PLC0415  imports the model's libraries

            check_load(tree, **json.loads(arguments[2]))
    except Unfit as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stderr.write(f"{looked_at} files looked at\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
