"""What a million keys cost: time to ready, memory, throughput."""

import signal, statistics, subprocess, time

from .comparisons import LIMIT, Held
from .load import Load, compare, script
from .machine import LOAD_CORE
from .node import Node

KEYS, KEYS_FEW = 1_000_000, 1_000
STARTS = 5


def million(programs, scratch, pairs):
    # Room for all of them: its parts are of one size, and keys spread over them by chance.
    settings = {
        "KEYSTEAD__CACHE__ENTRIES_MAX": str(KEYS * 5 // 4),
        # At the default of five minutes a million keys in use are read again 3,333 times a second.
        "KEYSTEAD__CACHE__REFRESH": "24h",
    }
    node = Node(programs, scratch, "million", 1, limits=[LIMIT], settings=settings)
    node.stop()
    all_keys = scratch / "million.keys"
    began = time.monotonic()
    node.fill(KEYS, all_keys)
    filled = time.monotonic() - began
    print(f"  filled in {filled:.0f} s", flush=True)

    ready = []
    for _ in range(STARTS):
        ready.append(node.start())
        node.stop()
    ready.append(node.start())
    few = Node(programs, scratch, "few", KEYS_FEW, limits=[LIMIT])
    empty_mib = node.resident_mib()

    lua = script(scratch, "million", node, all_keys)
    began = time.monotonic()
    remembered = remember_all(node, lua)
    remembering = time.monotonic() - began
    print(f"  {remembered:,.0f} keys remembered in {remembering:.0f} s", flush=True)
    full_mib = node.resident_mib()

    held = [Held(node), Held(few)]
    lua_few = script(scratch, "few", few, few.keys)
    figures = compare(
        "million", lambda: Load(few, lua_few), lambda: Load(node, lua), pairs)
    figures |= {
        "keys": KEYS, "fill_seconds": filled,
        "ready_seconds_median": statistics.median(ready), "ready_seconds_max": max(ready),
        "resident_mib_before": empty_mib, "resident_mib_remembered": full_mib,
        "remembered": remembered, "remembering_seconds": remembering,
    }
    for one in (*held, node, few):
        one.stop()
    print("  " + ", ".join(f"{name} {value:,.2f}" for name, value in figures.items()))
    return figures


def remember_all(node, lua):
    """Presents each key until all are remembered, and answers how many are."""
    wrk = subprocess.Popen(
        ["taskset", "-c", LOAD_CORE, "wrk", "-t1", "-c32", "-d3600s", "-s", str(lua),
         f"http://{node.address}"], stdout=subprocess.DEVNULL)
    remembered, before = 0, -1
    while before < remembered < KEYS:
        # The gauge is set every second or so.
        time.sleep(5)
        before, remembered = remembered, node.metric("keystead_cached_keys ")
    wrk.send_signal(signal.SIGINT)
    wrk.wait()
    return remembered
