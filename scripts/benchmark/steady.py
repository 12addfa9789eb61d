"""Latency at a fixed rate, from when a request was due."""

import statistics, sys

from .comparisons import KEYS, LIMIT, Held
from .load import Bare, at_rate, plan
from .node import VERIFY, Node

RATE, SECONDS, CONNECTIONS, ROUNDS, OF_BARE_MAX = 20_000, 10, 64, 8, 2.5
# After so long the ledger has made ready what its held writer does not take, and waits.
SETTLED_SECONDS = 5


def steady(programs, scratch):
    node = Node(programs, scratch, "steady", KEYS, limits=[LIMIT])
    held = Held(node)
    bare = Bare(programs, scratch, "steady", node.answer(VERIFY, node.keys[0]))
    keys = plan(scratch, node, node.keys)
    addresses = {"bare": bare.address, "keystead": node.address}

    def once(which, seconds=SECONDS):
        figures = at_rate(programs, addresses[which], keys, RATE, seconds, CONNECTIONS)
        if figures["refused"]:
            sys.exit(f"bench: {which} refused {figures['refused']} requests at {RATE:,} a second")
        return figures

    rounds = []
    for which in addresses:
        once(which, SETTLED_SECONDS)
    for turn in range(ROUNDS):
        # Each is the first of a round as often as the other.
        order = list(addresses) if turn % 2 else list(reversed(addresses))
        rounds.append({which: once(which) for which in order})
    for one in (bare, held, node):
        one.stop()
    for which in addresses:
        middle = {figure: statistics.median(one[which][figure] for one in rounds)
                  for figure in ("p50_us", "p99_us", "p999_us", "max_us")}
        print(f"  {which} at {RATE:,}/s: {middle}")
    ratios = sorted(one["keystead"]["p99_us"] / one["bare"]["p99_us"] for one in rounds)
    ratio = statistics.median(ratios)
    print(f"  p99 of the bare handler's, round by round: {ratio:.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
          + (" NOT as promised" if ratio > OF_BARE_MAX else ""))
    return {"rate": RATE, "seconds": SECONDS, "connections": CONNECTIONS, "rounds": rounds}
