"""How many uses a second go from the journal of a node into the ledger."""

import json, statistics, subprocess

from .machine import SERVER_CORE, Throwaway

# The second half goes into a ledger that has events.
BLOCKS, ROUNDS = 100, 5


def ingest(programs, scratch):
    """The node has one core; PostgreSQL has the other, and writes through to the disk."""
    figures = {}
    for name in ("sqlite", "postgres"):
        server = None if name == "sqlite" else Throwaway("postgres", fsync=True)
        url = server.url if server else f"sqlite:{scratch}/keystead.db"
        rounds = [one(programs, scratch / f"{name}-{number}", url) for number in range(ROUNDS)]
        if server:
            server.stop()
        rates = [told["events_per_second"] for told in rounds]
        figures[name] = {"median": statistics.median(rates), "min": min(rates), "max": max(rates), "rounds": rounds}
        print(f"  {name}: {figures[name]['median']:,.0f} events a second"
              f" ({min(rates):,.0f} to {max(rates):,.0f})", flush=True)
    return figures


def one(programs, folder, url):
    folder.mkdir()
    command = ["taskset", "-c", SERVER_CORE, programs.ingest, url, folder, str(BLOCKS)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
