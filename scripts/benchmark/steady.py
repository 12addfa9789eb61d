"""Latency at a fixed rate, from when a request was due."""

import statistics

from .comparisons import KEYS, LIMIT, Held
from .load import Bare, at_rate, plan
from .node import VERIFY, Node

RATE, SECONDS, CONNECTIONS, ROUNDS = 20_000, 10, 64, 7
# After so long the ledger has made ready what its held writer does not take, and waits.
SETTLED_SECONDS = 5


def steady(programs, scratch):
    node = Node(programs, scratch, "steady", KEYS, limits=[LIMIT])
    held = Held(node)
    bare = Bare(programs, scratch, "steady", node.answer(VERIFY, node.keys[0]))
    keys = plan(scratch, node, node.keys)

    def once(address, seconds=SECONDS):
        return at_rate(programs, address, keys, RATE, seconds, CONNECTIONS)

    once(node.address, SETTLED_SECONDS)
    rounds = [{"bare": once(bare.address), "keystead": once(node.address)} for _ in range(ROUNDS)]
    for one in (bare, held, node):
        one.stop()
    for which in ("bare", "keystead"):
        middle = {figure: statistics.median(one[which][figure] for one in rounds)
                  for figure in ("p50_us", "p99_us", "p999_us", "max_us", "refused")}
        print(f"  {which} at {RATE:,}/s: {middle}")
    ratios = sorted(one["keystead"]["p99_us"] / one["bare"]["p99_us"] for one in rounds)
    print(f"  p99 of the bare handler's, round by round: {statistics.median(ratios):.2f}"
          f" ({ratios[0]:.2f} to {ratios[-1]:.2f})")
    return {"rate": RATE, "seconds": SECONDS, "connections": CONNECTIONS, "rounds": rounds}
