"""What recording costs the validations beside it: for long, and while old events are deleted."""

import contextlib, json, statistics, subprocess, sys, threading, time, urllib.request

from . import load as generator
from .machine import Throwaway, leave_the_servers_core, need, wait_until
from .node import Api, Node
from .usage import DAYS, fill

KEYS = 1000
# One in fifty lacks the scope that is asked for, and is refused.
KEYS_REFUSED = 20
# What recording adds is told by pairs of so many seconds: from one minute to the next the machine changes more
# than by that.
PAIRS, PAIR_SECONDS = 9, 15
# Promised.
RATIO_MAX, GUARD_BYTES = 2.0, 20 * 1024 ** 3
# A node tidies up so long after its start.
SWEEP_AFTER = 10
# Of a day; its last may not be over.
HOURS_CUT = 23


def sustained(programs, scratch, rate, seconds):
    """At a fixed rate on PostgreSQL with all events and on SQLite with those of refusals: what the ledger holds
    afterwards against what the generator was told. Then the same node in pairs, with recording and without."""
    figures = {}
    for name, events in (("postgres", "all"), ("sqlite", "refused")):
        figures[name] = on_database(programs, scratch, f"sustained-{name}", name, lambda node:
                                    recorded(node, scratch, events, rate, seconds))
        tell_sustained(name, events, figures[name])
    return figures


def retention(programs, scratch, rate, seconds, events):
    """A day of events is deleted while keys are validated at a fixed rate, against the same node that
    deletes nothing."""
    figures = {}
    for name in ("sqlite", "postgres"):
        figures[name] = on_database(programs, scratch, f"retention-{name}", name, lambda node:
                                    cut(node, scratch, rate, seconds, events))
        tell_retention(name, figures[name])
    return figures


def on_database(programs, scratch, name, kind, measure):
    """PostgreSQL writes through to the disk."""
    database = Throwaway("postgres", fsync=True) if kind == "postgres" else None
    if database:
        need("psql", "postgresql-client")
    settings = {"KEYSTEAD__DATABASE__URL": database.url} if database else {}
    node = None
    try:
        node = Node(programs, scratch, name, KEYS, settings=settings)
        node.database = database
        return measure(node)
    finally:
        if node:
            node.stop()
        if database:
            database.stop()


def again(node, **settings):
    """Starts it anew with further settings."""
    node.stop()
    node.environment |= {f"KEYSTEAD__USAGE__{name}": value for name, value in settings.items()}
    return node.start()


def plan(node, scratch):
    """A file for the generator."""
    api = Api(node.address, node.owner)
    made = api.call("POST", "/v1/keys/batch", {"items": [{
        "name": "may not read", "consumer": "acme",
        "grants": [{"service": "invoicing", "scopes": ["invoice:send"]}],
    }] * KEYS_REFUSED})
    refused = [item["api_key"] for item in made["items"]]
    step = len(node.keys) // len(refused)
    keys = []
    for at, key in enumerate(refused):
        keys += [*node.keys[at * step:(at + 1) * step], key]
    wait_until(lambda: node.metric("keystead_verifiers_pending ") == 0)
    return generator.plan(scratch, node, keys)


def load(node, path, rate, seconds, samples=None):
    return generator.at_rate(
        node.programs, node.address, path, rate, seconds, samples=samples, ahead=generator.AHEAD)


def recorded(node, scratch, events, rate, seconds):
    Api(node.address, node.owner).call("PATCH", "/v1/services/invoicing", {"usage": {"events": events}})
    path = plan(node, scratch)
    sizes, is_done = [], threading.Event()

    def watch():
        leave_the_servers_core()
        while not is_done.wait(2):
            sizes.append(bytes_of(node))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        told = load(node, path, rate, seconds)
    finally:
        is_done.set()
        watcher.join()
    ended = time.monotonic()
    wait_until(lambda: node.metric("keystead_usage_journal_bytes ") == 0, bound=600)
    drained = time.monotonic() - ended
    sizes.append(bytes_of(node))
    held = ledger(node)
    lost = {name: node.metric(f"keystead_usage_{name} ") for name in ("events_shed", "blocks_lost")}
    expect(node, events, told["codes"], held, lost)

    def again_with(recording):
        again(node, RECORDING=recording)
        return load(node, path, rate, min(seconds, PAIR_SECONDS))

    pairs = [{"without": again_with("false"), "with": again_with("true")} for _ in range(PAIRS)]
    ratios = sorted(pair["with"]["p99_us"] / pair["without"]["p99_us"] for pair in pairs)
    return {
        "events": events, "rate": rate, "seconds": seconds, "reached": told["answered"] / seconds,
        "with": told, "pairs": pairs, "p99_ratio": statistics.median(ratios), "p99_ratios": ratios,
        "drained_after_seconds": drained, "ledger": held, "bytes_highest": max(sizes),
        "bytes_at_end": sizes[-1], **lost,
    }


def bytes_of(node):
    """What the ledger and the journal take on the disk, and all else of the node."""
    size = 0
    for file in node.folder.iterdir():
        # A log of SQLite may be gone by now.
        with contextlib.suppress(FileNotFoundError):
            size += file.stat().st_size
    if node.database:
        size += int(sql(node, "SELECT pg_database_size(current_database())"))
    return size


def sql(node, query):
    out = subprocess.run(["psql", "-XAtc", query, node.database.url], check=True, capture_output=True, text=True)
    return out.stdout.strip()


def ledger(node):
    """Uses by outcome as counted, and events by outcome, of which each request has one."""
    api = Api(node.address, node.owner)
    counted = api.call("GET", "/v1/usage/summary?group_by=outcome")
    counts = {one["group"]["outcome"]: one["uses"] for one in counted["groups"]}
    request = urllib.request.Request(f"http://{node.address}/v1/usage/export", headers={
        "x-api-key": node.owner, "audit-reason": "a measurement"})
    events, requests = {}, set()
    with urllib.request.urlopen(request, timeout=60) as answer:
        for line in answer:
            event = json.loads(line)
            events[event["outcome"]] = events.get(event["outcome"], 0) + 1
            requests.add(event["request_id"])
    return {"counts": counts, "events": events, "requests": len(requests)}


def expect(node, events, codes, held, lost):
    kept = {code: count for code, count in codes.items() if events == "all" or code != "valid"}
    faults = []
    if held["counts"] != codes:
        faults.append(f"the ledger counts {held['counts']}, the generator {codes}")
    if held["events"] != kept:
        faults.append(f"the ledger has the events {held['events']}, not {kept}")
    if held["requests"] != sum(kept.values()):
        faults.append(f"they are of {held['requests']} requests, not {sum(kept.values())}")
    if any(lost.values()):
        faults.append(f"some were shed or lost: {lost}")
    if faults:
        sys.exit("\n".join([f"bench: {node.name}:", *faults]))


def cut(node, scratch, rate, seconds, events):
    path = plan(node, scratch)
    node.stop()
    made = fill(node, events, DAYS)
    # More than the generator made, so that nothing is old.
    ready = again(node, EVENTS_RETENTION=f"{DAYS + 10}d")
    time.sleep(SWEEP_AFTER + 2)
    # The quieter of two: a stall of the machine in the only one would hide what the deletion costs.
    before = min((load(node, path, rate, seconds) for _ in range(2)), key=lambda told: told["p99_us"])

    again(node, EVENTS_RETENTION=f"{DAYS - 1}d")
    started = time.monotonic()
    ended = []

    def watch():
        leave_the_servers_core()
        while not ended:
            if node.metric("keystead_usage_hours_cut_total ") >= HOURS_CUT:
                ended.append(time.monotonic() - started)
            time.sleep(0.25)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    samples = scratch / f"{node.name}.samples"
    load(node, path, rate, SWEEP_AFTER + seconds, samples)
    # Longer than the load was there it is measured only as far as that went.
    watcher.join(timeout=600)
    if not ended:
        sys.exit("bench: a day of events is not deleted after ten minutes")
    # The generator's time begins a moment after the node's.
    during = within(samples, SWEEP_AFTER - 1, ended[0] + 0.5)
    if len(during) < 100:
        sys.exit(f"bench: only {len(during)} validations while events were deleted")
    during.sort()
    told = {f"p{name}_us": during[int(len(during) * share)] for name, share in
            (("50", 0.5), ("99", 0.99), ("999", 0.999))} | {"answered": len(during), "max_us": during[-1]}
    return {
        "made": {"events": made["events"], "days": DAYS}, "rate": rate, "ready_after_seconds": ready,
        "hours_cut": node.metric("keystead_usage_hours_cut_total "), "cut_seconds": ended[0] - SWEEP_AFTER,
        "measured_seconds": min(ended[0] - SWEEP_AFTER, seconds),
        "without": before, "with": told, "p99_ratio": told["p99_us"] / before["p99_us"],
    }


def within(samples, start, end):
    """The latencies of those that were due in these seconds of the load."""
    found = []
    with open(samples) as file:
        for line in file:
            due_ms, micros = line.split()
            if start <= int(due_ms) / 1000 < end:
                found.append(int(micros))
    return found


def tell_sustained(name, events, one):
    print(f"\n  {name}, events of {events}: {one['reached']:,.0f} validations a second of {one['rate']:,} for"
          f" {one['seconds']} s; counts and events are the generator's own: {one['ledger']}")
    ratios = one["p99_ratios"]
    print(f"    p99 {one['with']['p99_us'] / 1000:.2f} ms; of {PAIRS} pairs with and without recording the ratio is"
          f" {one['p99_ratio']:.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}), {verdict(one['p99_ratio'] <= RATIO_MAX)}")
    print(f"    disk {one['bytes_highest'] / 1e6:,.0f} MB at most, {one['bytes_at_end'] / 1e6:,.0f} MB at the"
          f" end, {verdict(one['bytes_highest'] <= GUARD_BYTES)}; all stored"
          f" {one['drained_after_seconds']:.1f} s after the last", flush=True)


def tell_retention(name, one):
    print(f"\n  {name}: {one['hours_cut']:.0f} hours of {one['made']['events']:,} events over"
          f" {one['made']['days']} days deleted in {one['cut_seconds']:.1f} s, of which"
          f" {one['measured_seconds']:.0f} s are measured, beside {one['rate']:,} validations a second")
    print(f"    p99 {one['with']['p99_us'] / 1000:.2f} ms meanwhile, {one['without']['p99_us'] / 1000:.2f} ms"
          f" without: {one['p99_ratio']:.2f} times, {verdict(one['p99_ratio'] <= RATIO_MAX)};"
          f" max {one['with']['max_us'] / 1000:.1f} and {one['without']['max_us'] / 1000:.1f} ms", flush=True)


def verdict(holds):
    return "as promised" if holds else "NOT as promised"
