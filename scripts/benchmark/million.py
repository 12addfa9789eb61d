"""What a million keys cost: time to ready, memory, throughput."""

import http.client, itertools, signal, statistics, subprocess, threading, time

from .comparisons import LIMIT, Held
from .load import Load, at_rate, compare, plan, script
from .machine import LOAD_CORE, leave_the_servers_core
from .node import Api, Node

KEYS, KEYS_FEW = 1_000_000, 1_000
STARTS = 5
# So many of them, from all over, are presented in turn where it is measured.
PRESENTED = 100_000
# While what all keys have in common is edited once a second.
EDITED_RATE, EDITED_SECONDS = 5_000, 20


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
    full_mib = node.resident_mib()
    print(f"  ready after {max(ready):.2f} s at most, {empty_mib:.0f} MiB; {remembered:,.0f} keys remembered in"
          f" {remembering:.0f} s, {full_mib:.0f} MiB", flush=True)

    some = scratch / "some.keys"
    with open(all_keys) as file:
        some.write_text("".join(itertools.islice(file, 0, None, KEYS // PRESENTED)))
    lua = script(scratch, "some", node, some)
    held = [Held(node), Held(few)]
    lua_few = script(scratch, "few", few, few.keys)
    figures = compare(
        "million", lambda: Load(few, lua_few), lambda: Load(node, lua), pairs)
    figures |= edited(programs, scratch, node, some)
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


def edited(programs, scratch, node, some):
    """Latency while the service of all keys, or their consumer, is edited each second, and without: none of
    the keys is read again for that."""
    path = plan(scratch, node, some.read_text().split())

    def once():
        return at_rate(programs, node.address, path, EDITED_RATE, EDITED_SECONDS)

    is_done, edits, failed = threading.Event(), {"service": [], "consumer": []}, []

    def edit():
        leave_the_servers_core()
        api = Api(node.address, node.owner)
        places = itertools.cycle([("service", "/v1/services/invoicing"), ("consumer", "/v1/consumers/acme")])
        while not is_done.wait(1):
            (kind, place), began = next(places), time.monotonic()
            try:
                api.call("PATCH", place, {"metadata": {"edited": began}})
            except (RuntimeError, OSError, http.client.HTTPException) as error:
                failed.append(error)
                continue
            edits[kind].append(time.monotonic() - began)

    before, keys = once(), node.metric("keystead_cached_keys ")
    editor = threading.Thread(target=edit)
    editor.start()
    try:
        beside = once()
    finally:
        is_done.set()
        editor.join()
    if failed or not all(edits.values()):
        print(f"  edits: {len(failed)} FAILED of {len(failed) + sum(map(len, edits.values()))}; {failed[:1]}")
    after = once()
    return {
        "edits": sum(map(len, edits.values())), "edits_failed": len(failed),
        **{f"edit_of_{kind}_seconds_max": max(times, default=0) for kind, times in edits.items()},
        "edited_refused": beside["refused"],
        "remembered_before_edits": keys, "remembered_after_edits": node.metric("keystead_cached_keys "),
        "edited_p50_us": beside["p50_us"], "edited_p99_us": beside["p99_us"], "edited_max_us": beside["max_us"],
        "unedited_p99_us": (before["p99_us"] + after["p99_us"]) / 2,
        "unedited_max_us": max(before["max_us"], after["max_us"]),
    }
