"""The comparisons with the bare handler. Each function is given a Bench and answers its figures."""

import json, socket, sqlite3, subprocess, sys, time, urllib.parse

from . import node as nodes
from .load import Bare, Load, compare, script, script_of_one
from .machine import Throwaway, need
from .node import Node

LIMIT = {"name": "burst", "limit": 1_000_000, "period": "1s"}
KEYS = 1000
# So few keys are remembered, and so many asked for in turn, that nearly every one is read again.
REMEMBERED_FEW, KEYS_MANY = 100, 5000


class Bench:
    """What one comparison has started; all of it ends with it."""

    def __init__(self, programs, scratch, pairs):
        self.programs, self.scratch, self.pairs = programs, scratch, pairs
        self.started = []

    def begun(self, process):
        self.started.append(process)
        return process

    def node(self, name, keys=KEYS, **more):
        return self.begun(Node(self.programs, self.scratch, name, keys, **more))

    def cluster(self, settings=(), **more):
        """A node over PostgreSQL and Redis."""
        self.postgres, self.redis = self.begun(Throwaway("postgres")), self.begun(Throwaway("redis"))
        urls = {"KEYSTEAD__DATABASE__URL": self.postgres.url, "KEYSTEAD__REDIS__URL": self.redis.url}
        return self.node("cluster", settings={**urls, **dict(settings)}, **more)

    def held(self, node):
        """Holds up the writer of a node's ledger: uses are recorded and journaled, and wait. On one core
        the storing would be measured, which goes on beside the answers elsewhere."""
        is_cluster = "KEYSTEAD__DATABASE__URL" in node.environment
        return self.begun(HeldPostgres(self.postgres) if is_cluster else Held(node))

    def compare(self, name, node, keys, may_refuse=False, asked=nodes.VERIFY, only_body=False):
        """Against the bare handler that answers what the first of the keys is answered."""
        lua = script(self.scratch, name, node, keys, asked)
        headers, body = node.answer(asked, keys[0])
        if only_body:
            headers = [one for one in headers if one[0].lower() == "content-type"]
        bare = self.begun(Bare(self.programs, self.scratch, name, (headers, body)))
        one = script_of_one(self.scratch, name, node, keys[0], asked)
        return compare(
            name,
            lambda: Load(bare, one),
            lambda: Load(node, lua, may_refuse=may_refuse),
            self.pairs,
        )

    def stop(self):
        for process in reversed(self.started):
            process.stop()


class Held:
    def __init__(self, node):
        self.ledger = sqlite3.connect(node.folder / "usage.db", isolation_level=None)
        self.ledger.execute("BEGIN IMMEDIATE")

    def stop(self):
        self.ledger.close()


class HeldPostgres:
    def __init__(self, postgres):
        need("psql", "postgresql-client")
        self.psql = subprocess.Popen(["psql", "-XAtq", postgres.url], stdin=subprocess.PIPE,
                                     stdout=subprocess.PIPE, text=True)
        self.psql.stdin.write("BEGIN; LOCK TABLE usage_batch IN EXCLUSIVE MODE; SELECT 'held';\n")
        self.psql.stdin.flush()
        if self.psql.stdout.readline().strip() != "held":
            sys.exit("bench: the ledger cannot be held up")

    def stop(self):
        self.psql.stdin.close()
        self.psql.wait(timeout=60)


def warm(bench):
    """SQLite, limits in memory: keys that are remembered, each with one rate limit. Each use is
    recorded and journaled; the ledger takes it later."""
    node = bench.node("warm", limits=[LIMIT])
    bench.held(node)
    return bench.compare("warm", node, node.keys)


def warm_body(bench):
    """The same beside a bare handler that answers the body alone, without the headers."""
    node = bench.node("warm_body", limits=[LIMIT])
    bench.held(node)
    return bench.compare("warm_body", node, node.keys, only_body=True)


def warm_stored(bench):
    """The same while the ledger stores the uses on the core that answers."""
    node = bench.node("warm_stored", limits=[LIMIT])
    return bench.compare("warm_stored", node, node.keys)


def recording(bench):
    """What recording costs: the same keys on two nodes, of which the other does not record."""
    node = bench.node("recording", limits=[LIMIT])
    bench.held(node)
    silent = {"KEYSTEAD__USAGE__RECORDING": "false"}
    other = bench.node("not_recording", limits=[LIMIT], settings=silent)
    lua, other_lua = (script(bench.scratch, one.name, one, one.keys) for one in (node, other))
    return compare(
        "recording", lambda: Load(other, other_lua), lambda: Load(node, lua), bench.pairs)


def warm_unlimited(bench):
    """The same keys without a limit."""
    node = bench.node("warm_unlimited")
    bench.held(node)
    return bench.compare("warm_unlimited", node, node.keys)


def unknown_repeated(bench):
    """One unknown key again and again."""
    node = bench.node("unknown_repeated", keys=1)
    return bench.compare("unknown_repeated", node, [nodes.stranger()])


def cold_sqlite(bench):
    """Keys that are read from SQLite at nearly every use."""
    return cold(bench, bench.node("cold_sqlite", keys=KEYS_MANY, settings=FEW))


def cold_postgres(bench):
    """Keys that are read from PostgreSQL at nearly every use."""
    postgres = bench.begun(Throwaway("postgres"))
    settings = {**FEW, "KEYSTEAD__DATABASE__URL": postgres.url}
    return cold(bench, bench.node("cold_postgres", keys=KEYS_MANY, settings=settings))


FEW = {"KEYSTEAD__CACHE__ENTRIES_MAX": str(REMEMBERED_FEW)}


def cold(bench, node):
    return bench.compare(node.name, node, node.keys, may_refuse=True)


def cluster_unlimited(bench):
    """PostgreSQL and Redis: remembered keys without limits. Uses are recorded and journaled; the ledger
    takes them later."""
    node = bench.cluster()
    bench.held(node)
    return bench.compare("cluster_unlimited", node, node.keys)


def cluster_stored(bench):
    """The same while the ledger stores the uses: PostgreSQL on the core of the generator, the node's
    part of it on the core that answers."""
    node = bench.cluster()
    return bench.compare("cluster_stored", node, node.keys)


def cluster_limit(bench):
    """PostgreSQL and Redis: remembered keys with one limit that all nodes share exactly."""
    node = bench.cluster(limits=[LIMIT])
    bench.held(node)
    return bench.compare("cluster_limit", node, node.keys)


def cold_redis(bench):
    """Keys that are read from Redis at nearly every use, where the database's rows were left."""
    node = bench.cluster(keys=KEYS_MANY, settings=FEW)
    lua = script(bench.scratch, "cold_redis", node, node.keys)
    # The first uses leave them there.
    while rows_in(bench.redis) < KEYS_MANY:
        Load(node, lua, may_refuse=True)
    return bench.compare("cold_redis", node, node.keys, may_refuse=True)


def unknown_distinct(bench):
    """Unknown keys of which none comes twice, on PostgreSQL, whose own count of statements says how
    many were looked up."""
    need("psql", "postgresql-client")
    postgres = bench.begun(Throwaway("postgres"))
    ask(postgres, "CREATE EXTENSION pg_stat_statements")
    node = bench.node(
        "unknown_distinct", keys=1, settings={"KEYSTEAD__DATABASE__URL": postgres.url})
    keys = [nodes.stranger() for _ in range(200_000)]
    lua = script(bench.scratch, "unknown_distinct", node, keys)
    ask(postgres, "SELECT pg_stat_statements_reset()")
    decided, busy = node.metric(UNKNOWN), node.metric(BUSY)
    began = time.monotonic()
    load = Load(node, lua, seconds=10, may_refuse=True)
    took = time.monotonic() - began
    looked_up = float(ask(postgres, "SELECT coalesce(sum(calls), 0) FROM pg_stat_statements"
                                    " WHERE query LIKE '%fingerprint%'"))
    return {
        "per_second": load.per_second, "p99_ms": load.p99_ms, "seconds": took,
        "looked_up_per_second": looked_up / took,
        "answered_unknown": node.metric(UNKNOWN) - decided,
        "answered_busy": node.metric(BUSY) - busy,
    }


def token(bench):
    """The token endpoint: client credentials by x-api-key, remembered keys with one limit each; every
    answer is a new token, signed with ES256."""
    node = bench.node("token", limits=[LIMIT])
    bench.held(node)
    return bench.compare("token", node, node.keys, asked=nodes.IssueToken())


def introspect_key(bench):
    """Introspection of remembered API keys, as JSON."""
    return introspection(bench, "introspect_key", lambda node: node.keys)


def introspect_jwt(bench):
    """Introspection of our own access tokens, as JSON: signatures that were verified before, state judged
    each time."""
    return introspection(bench, "introspect_jwt", Node.tokens)


def introspect_phantom(bench):
    """Introspection of remembered API keys, answered with a phantom token that is given out again."""
    return introspection(bench, "introspect_phantom", lambda node: node.keys, "application/jwt")


def introspection(bench, name, presented, accept=None):
    node = bench.node(name)
    asked = nodes.Introspect(node.asker(), accept)
    presented = presented(node)
    # What is not active is answered 200 too, and costs less.
    for one in presented:
        told = node.ask(asked, one)
        if not (told.startswith(b"ey") if accept else json.loads(told)["active"]):
            sys.exit(f"bench: {name}: what is presented is not active")
    bench.held(node)
    return bench.compare(name, node, presented, asked=asked)


UNKNOWN = 'keystead_decisions_total{outcome="unknown"}'
BUSY = 'keystead_problems_total{code="busy"}'


def rows_in(redis):
    at = urllib.parse.urlsplit(redis.url)
    with socket.create_connection((at.hostname, at.port), timeout=5) as connection:
        connection.sendall(b"DBSIZE\r\n")
        return int(connection.makefile().readline().removeprefix(":"))


def ask(postgres, sql):
    asked = subprocess.run(["psql", "-XAtq", "-c", sql, postgres.url], check=True,
                           capture_output=True, text=True)
    return asked.stdout.strip()


ALL = [warm, warm_body, warm_unlimited, warm_stored, recording, unknown_repeated, cold_sqlite, cold_postgres,
       cold_redis, cluster_unlimited, cluster_stored, cluster_limit, unknown_distinct, token, introspect_key,
       introspect_jwt, introspect_phantom]


def run(measure, programs, scratch, pairs):
    bench = Bench(programs, scratch, pairs)
    try:
        return measure(bench)
    finally:
        bench.stop()


def tell(name, figures):
    if "ratio_median" in figures:
        print(f"{name}: {figures['ratio_median']:.2f} of bare ({figures['ratio_min']:.2f} to"
              f" {figures['ratio_max']:.2f}; {figures['cpu_ratio_median']:.2f} by CPU), {figures['per_second_median']:,.0f}/s of"
              f" {figures['other_per_second_median']:,.0f}/s, p99 {figures['p99_ms_median']:.2f} ms"
              f" of {figures['other_p99_ms_median']:.2f} ms")
    else:
        print(f"{name}: " + ", ".join(f"{key} {value:,.1f}" for key, value in figures.items()))
