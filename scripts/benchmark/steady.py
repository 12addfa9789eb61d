"""Latency at a fixed rate, from when a request was due."""

import json, statistics, subprocess

from .comparisons import KEYS, LIMIT, Held
from .load import Bare, request_around
from .machine import LOAD_CORE
from .node import VERIFY, Node

RATE, SECONDS, CONNECTIONS, ROUNDS = 20_000, 10, 64, 3


def steady(programs, scratch):
    node = Node(programs, scratch, "steady", KEYS, limits=[LIMIT])
    held = Held(node)
    bare = Bare(programs, scratch, "steady", node.answer(VERIFY, node.keys[0]))
    head, tail = request_around(node, node.keys[0])
    plan = scratch / "steady.plan"
    plan.write_text("\n---\n".join([head, tail, "\n".join(node.keys)]), newline="")

    def once(address):
        out = subprocess.run(
            ["taskset", "-c", LOAD_CORE, programs.steady, address, str(RATE), str(SECONDS),
             str(CONNECTIONS), plan],
            check=True, capture_output=True, text=True,
        )
        return json.loads(out.stdout)

    rounds = [{"bare": once(bare.address), "keystead": once(node.address)} for _ in range(ROUNDS)]
    for one in (bare, held, node):
        one.stop()
    for which in ("bare", "keystead"):
        middle = {figure: statistics.median(one[which][figure] for one in rounds)
                  for figure in ("p50_us", "p99_us", "p999_us", "max_us", "refused")}
        print(f"  {which} at {RATE:,}/s: {middle}")
    return {"rate": RATE, "seconds": SECONDS, "connections": CONNECTIONS, "rounds": rounds}
