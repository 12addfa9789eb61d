"""The load generator, and the comparison with a bare handler."""

import json, statistics, subprocess, sys, time

from .machine import LOAD_CORE, Process, cpu_seconds, free_address, wait_for
from .node import VERIFY

CONNECTIONS, SECONDS = 32, 2
# A generator that uses more of its core than this is what is measured, and not the server.
GENERATOR_MAX = 0.90
# A generator of a fixed rate can go ahead of a database on its core where the system lets it: what is
# measured is the server and not who of those two had to wait. (A lower priority of the database's would not
# do: Linux weighs sessions against one another, and each process of PostgreSQL's has one of its own.) Only at
# rates at which it sleeps: whoever never does is stopped 50 ms in each second.
AHEAD = ["chrt", "--fifo", "1"]
if subprocess.run([*AHEAD, "true"], capture_output=True, check=False).returncode:
    AHEAD = []

# All keys are of one length, so a request is three pieces put together: beforehand, unless there are very
# many, or putting them together is what would be measured.
LUA = """
local keys = {}
for line in io.lines(%(keys)q) do keys[#keys + 1] = line end
local at, head, tail = 0, %(head)q, %(tail)q
local few = #keys <= 200000
if few then
  for i = 1, #keys do keys[i] = head .. keys[i] .. tail end
end
function request()
  at = at + 1
  if at > #keys then at = 1 end
  if few then return keys[at] end
  return head .. keys[at] .. tail
end
function done(summary, latency)
  io.write(string.format("RESULT %d %d %d %d %d\\n", summary.requests, summary.duration,
    latency:percentile(99), summary.errors.status,
    summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.timeout))
end
"""


def quoted(text):
    """A Lua string that needs no escapes but these."""
    text = str(text).replace("\\", "\\\\").replace('"', '\\"')
    return '"' + text.replace("\r", "\\r").replace("\n", "\\n") + '"'


def request_around(node, key, asked=VERIFY):
    """The bytes before and behind the key of a request that asks about `key`."""
    body = asked.body(node, key)
    headers = {"Host": "keystead", **asked.headers(node, key), "content-type": asked.media_type,
               "content-length": len(body)}
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"POST {asked.path} HTTP/1.1\r\n{lines}\r\n{body}".split(key)


def script(scratch, name, node, keys, asked=VERIFY):
    """A script of wrk that presents the keys, or tokens, of a list, or of a file, in turn."""
    lines = keys
    if isinstance(keys, list):
        if len(set(map(len, keys))) != 1:
            sys.exit(f"bench: {name}: what is presented in turn must be of one length")
        lines = scratch / f"{name}.keys"
        lines.write_text("".join(key + "\n" for key in keys))
    with open(lines) as file:
        head, tail = request_around(node, file.readline().strip(), asked)
    path = scratch / f"{name}.lua"
    pieces = {"keys": lines, "head": head, "tail": tail}
    text = LUA
    for piece, value in pieces.items():
        text = text.replace(f"%({piece})q", quoted(value))
    path.write_text(text)
    return path


def script_of_one(scratch, name, node, key, asked=VERIFY):
    """The same for one key alone, which costs the generator less: for who does not look at the key."""
    headers = {**asked.headers(node, key), "content-type": asked.media_type}
    done = LUA[LUA.index("function done"):].replace("%%", "%")
    path = scratch / f"{name}.one.lua"
    path.write_text(
        f'wrk.method, wrk.path, wrk.body = "POST", {quoted(asked.path)},'
        f' {quoted(asked.body(node, key))}\n'
        + "".join(f"wrk.headers[{quoted(header)}] = {quoted(value)}\n"
                  for header, value in headers.items())
        + done)
    return path


class Load:
    """What one run of the generator saw, and what it cost the server."""

    def __init__(self, server, script, seconds=SECONDS, may_refuse=False):
        address, pid = server.address, server.process.child.pid
        spent = cpu_seconds(pid)
        child = subprocess.Popen(
            ["taskset", "-c", LOAD_CORE, "wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s",
             "-s", str(script), f"http://{address}"],
            stdout=subprocess.PIPE, text=True,
        )
        time.sleep(seconds * 0.1)
        began, used = time.monotonic(), cpu_seconds(child.pid)
        time.sleep(seconds * 0.8)
        self.share = (cpu_seconds(child.pid) - used) / (time.monotonic() - began)
        out, _ = child.communicate()
        line = next(line for line in out.splitlines() if line.startswith("RESULT"))
        requests, micros, p99_us, self.refused, broken = map(int, line.split()[1:])
        if broken or (self.refused and not may_refuse):
            sys.exit(f"bench: {broken} broken and {self.refused} refused of {requests} requests at"
                     f" {address}")
        self.requests, self.seconds = requests, micros / 1e6
        self.per_second, self.p99_ms = requests / self.seconds, p99_us / 1000
        self.cpu_us = (cpu_seconds(pid) - spent) / requests * 1e6


# The server adds these to whatever it answers.
OF_THE_SERVER = {"content-length", "date", "connection"}


def plan(scratch, node, keys):
    """A file for the generator of a fixed rate, which presents the keys in turn."""
    path = scratch / f"{node.name}.plan"
    path.write_text("\n---\n".join([*request_around(node, keys[0]), "\n".join(keys)]), newline="")
    return path


def at_rate(programs, address, asked, rate, seconds, connections=CONNECTIONS, samples=None, ahead=()):
    """Asks what stands in the file so often a second, whether or not what was asked before was answered, and answers what
    `examples/steady.rs` tells."""
    command = ["taskset", "-c", LOAD_CORE, *ahead, programs.steady, address, rate, seconds, connections, asked]
    out = subprocess.run([str(part) for part in [*command, *([samples] if samples else [])]],
                         check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(out.stdout)


class Bare:
    """The handler that answers `answer`, headers and a body, and does nothing else."""

    def __init__(self, programs, scratch, name, answer):
        headers, body = answer
        lines = "".join(f"{name}: {value}\n" for name, value in headers
                        if name.lower() not in OF_THE_SERVER)
        path = scratch / f"{name}.answer"
        path.write_bytes(lines.encode() + b"\n" + body)
        self.address = free_address()
        self.process = Process([programs.bare, self.address, path])
        wait_for(self.address, "/")

    def stop(self):
        self.process.stop()


def compare(name, others, ours, pairs):
    """Runs `others` and `ours`, each a function that makes a Load, in turn; answers the figures."""
    others(), ours()
    kept, thrown = [], 0
    while len(kept) < pairs:
        pair = other, our = others(), ours()
        # The bare handler may be faster than the generator: then it is its CPU time that tells.
        if our.share > GENERATOR_MAX:
            thrown += 1
            if thrown > pairs:
                sys.exit(f"bench: {name}: the generator is too busy to measure with")
            continue
        kept.append(pair)
        print(f"  {name}: {our.per_second:,.0f}/s of {other.per_second:,.0f}/s ="
              f" {our.per_second / other.per_second:.2f}; {our.cpu_us:.1f} µs of CPU, {other.cpu_us:.1f}"
              f" there: {other.cpu_us / our.cpu_us:.2f}", flush=True)
    ratios = sorted(our.per_second / other.per_second for other, our in kept)
    middle = statistics.median
    return {
        "ratio_median": middle(ratios), "ratio_min": ratios[0], "ratio_max": ratios[-1],
        "per_second_median": middle(our.per_second for _, our in kept),
        "other_per_second_median": middle(other.per_second for other, _ in kept),
        # What one request costs, whatever else the machine does meanwhile.
        "cpu_ratio_median": middle(other.cpu_us / our.cpu_us for other, our in kept),
        "cpu_us_median": middle(our.cpu_us for _, our in kept),
        "other_cpu_us_median": middle(other.cpu_us for other, _ in kept),
        "p99_ms_median": middle(our.p99_ms for _, our in kept),
        "other_p99_ms_median": middle(other.p99_ms for other, _ in kept),
        "generator_share_max": max(our.share for _, our in kept),
        "other_generator_share_max": max(other.share for other, _ in kept),
        "pairs": len(kept), "thrown_away": thrown,
    }
