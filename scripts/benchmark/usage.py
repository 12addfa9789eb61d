"""How long the usage ledger takes to answer over 5,000,000 events and 400 days of counts."""

import json, statistics, subprocess, threading, time, urllib.parse, urllib.request

from .machine import Throwaway, resident_mib
from .node import Api, Node

EVENTS, DAYS, COUNT_DAYS = 5_000_000, 30, 400
EXPORTED = 1_000_000
ROUNDS = 20
DAY = 86_400


def usage(programs, scratch, events):
    figures = {}
    for name in ("sqlite", "postgres"):
        database = Throwaway("postgres") if name == "postgres" else None
        settings = {"KEYSTEAD__DATABASE__URL": database.url} if database else {}
        try:
            figures[name] = on(Node(programs, scratch, f"usage-{name}", 1, settings=settings), events)
        finally:
            if database:
                database.stop()
    tell(figures)
    return figures


def on(node, events):
    try:
        node.stop()
        made = fill(node, events)
        node.start()
        api = Api(node.address, node.owner)
        queries = {
            "events: newest page": "events?limit=200",
            "events: page of a busy key": f"events?limit=200&key={made['busy_key']}",
            "events: page of a rare key": f"events?limit=200&key={made['rare_key']}",
            "events: page of a key idle for weeks": f"events?limit=200&key={made['idle_key']}",
            "events: page of no key": "events?limit=200&key=key_01jd8k3v9we5m8t7q2x4z6y0ab",
            "summary: 30 days by day and outcome": "summary?bucket=day&group_by=outcome",
            "summary: 400 days by day and outcome":
                f"summary?bucket=day&group_by=outcome&from={ago(COUNT_DAYS - 1)}",
            "summary: 30 days by day and outcome, a key":
                f"summary?bucket=day&group_by=outcome&key={made['busy_key']}",
            "summary: 30 days by day and key": "summary?bucket=day&group_by=key",
        }
        times = {name: timed(api, f"/v1/usage/{query}") for name, query in queries.items()}
        return {"made": made, "times": times, "export": export(node, events)}
    finally:
        node.stop()


def fill(node, events, count_days=COUNT_DAYS):
    out = subprocess.run(
        [node.programs.fill_usage, str(events), str(DAYS), str(count_days)], check=True,
        stdout=subprocess.PIPE, text=True,
        env={**node.environment, "KEYSTEAD__SERVER__LISTEN": node.address},
    )
    return json.loads(out.stdout)


def ago(days):
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - days * DAY))


def timed(api, path):
    """Milliseconds; the first one finds nothing in any cache of the server's."""
    times = []
    for _ in range(ROUNDS):
        began = time.monotonic()
        answer = api.call("GET", path)
        times.append((time.monotonic() - began) * 1000)
    held = answer.get("items", answer.get("groups"))
    return {"first_ms": times[0], "median_ms": statistics.median(times), "max_ms": max(times),
            "held": len(held)}


def export(node, events):
    """Reads a window of the newest events and watches the server's memory meanwhile."""
    since = ago(DAYS * min(1, EXPORTED / events))
    path = f"/v1/usage/export?from={urllib.parse.quote(since)}"
    request = urllib.request.Request(f"http://{node.address}{path}", headers={
        "x-api-key": node.owner, "audit-reason": "a measurement"})
    before, highest, is_done = node.resident_mib(), [0], threading.Event()

    def watch():
        while not is_done.wait(0.1):
            highest[0] = max(highest[0], resident_mib(node.process.child.pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    began, lines, size = time.monotonic(), 0, 0
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            while chunk := answer.read(1 << 20):
                lines += chunk.count(b"\n")
                size += len(chunk)
    finally:
        is_done.set()
        watcher.join()
    return {"events": lines, "bytes": size, "seconds": time.monotonic() - began,
            "resident_mib_before": before, "resident_mib_highest": highest[0]}


def tell(figures):
    for name, one in figures.items():
        made = one["made"]
        print(f"\n  {name}: {made['events']:,} events, stored at {made['events_per_second']:,}/s")
        for table, (size, rows) in made["bytes"].items():
            each = size / rows if rows else 0
            print(f"    {table:14} {rows:>12,} rows {size / 1e6:>9,.0f} MB {each:>7,.0f} bytes a row")
        print(f"    {'':46} {'first':>8} {'median':>8} {'max':>8}  in milliseconds")
        for what, times in one["times"].items():
            print(f"    {what:46} {times['first_ms']:8.1f} {times['median_ms']:8.1f} "
                  f"{times['max_ms']:8.1f}  {times['held']} items")
        out = one["export"]
        print(f"    export of {out['events']:,} events, {out['bytes'] / 1e6:,.0f} MB in "
              f"{out['seconds']:.0f} s; memory {out['resident_mib_before']:.0f} MiB before, "
              f"{out['resident_mib_highest']:.0f} MiB at most")
