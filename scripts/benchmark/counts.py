"""Instructions per verification and per introspection, counted by callgrind: what no load on the machine
changes. Of a warm one those of the worker that answers, of the others those of the whole process, which does
not record: what it journals five times a second would be counted with whichever key is asked for just then."""

import contextlib, http.client, itertools, json, shutil, subprocess, sys

from . import node as nodes
from .machine import ROOT, need, run
from .node import Node

# Unknown and known lookup ids must not be told apart by what refusing them costs.
TOLERANCE = 0.01
WARM, COLD, REPEATED = 2000, 200, 300
ROUNDS, TRIES = 20, 5


def total(path):
    lines = path.read_text().splitlines()
    return max(int(line.split()[1]) for line in lines if line.startswith(("summary:", "totals:")))


class Counted:
    """A node under callgrind."""

    def __init__(self, programs, scratch, name, recording):
        need("callgrind_control", "valgrind")
        self.scratch = scratch / f"{name}.counts"
        self.scratch.mkdir()
        self.node = Node(
            programs, scratch, name, keys=200, settings={"KEYSTEAD__USAGE__RECORDING": recording},
            limits=[{"name": "burst", "limit": 1_000_000, "period": "1s"}],
        )
        # Only what is counted need be slow.
        self.node.stop()
        self.node.start(["valgrind", "--tool=callgrind", "--instr-atstart=no", "--separate-threads=yes",
                         f"--callgrind-out-file={self.scratch / 'callgrind.out'}"])
        host, port = self.node.address.split(":")
        self.connection = http.client.HTTPConnection(host, int(port), timeout=60)
        self.introspect = nodes.Introspect(self.node.asker())
        self.control("-i", "on")

    def ask(self, key, asked=nodes.VERIFY):
        """The code of the answer, or whether the key is active."""
        headers = {"content-type": asked.media_type, **asked.headers(self.node, key)}
        self.connection.request("POST", asked.path, asked.body(self.node, key), headers)
        told = json.loads(self.connection.getresponse().read())
        return told["code"] if asked is nodes.VERIFY else told["active"]

    def control(self, *what):
        run("callgrind_control", *what, self.node.process.child.pid, stdout=subprocess.DEVNULL)

    def newest(self):
        """What the last dump says of each thread."""
        parts = {}
        for path in self.scratch.glob("callgrind.out.*-*"):
            parts.setdefault(int(path.name.split(".")[-1].split("-")[0]), []).append(path)
        return parts[max(parts)]

    def worker(self):
        """The thread that answers."""
        return max(self.newest(), key=lambda path: path.read_text().count("h1::dispatcher"))

    def each(self, make, code, threads=newest, asked=nodes.VERIFY):
        """Instructions for each of the keys that `make` makes. Under callgrind a machine with
        other work may be too slow for a look-up in time: then all of them are asked again."""
        for _ in range(TRIES):
            keys = make()
            self.control("-z")
            codes = {self.ask(key, asked) for key in keys}
            self.control("-d")
            if codes == {code}:
                return sum(map(total, threads(self))) / len(keys)
        sys.exit(f"bench: {codes} in the place of {code}")

    def compare(self, left, right):
        """Two kinds of unknown keys in turn: each a function that makes the keys of a round."""
        for make in (left, right):
            self.each(make, "unknown")
        counts = [(self.each(left, "unknown"), self.each(right, "unknown")) for _ in range(ROUNDS)]
        lefts, rights = zip(*counts)
        # What else the process does meanwhile only adds, so the least is nearest to the truth.
        left, right = min(lefts), min(rights)
        return {"unknown_lookup_id": left, "wrong_secret": right, "ratio": right / left}

    def warm(self, code="valid", asked=nodes.VERIFY):
        keys = itertools.cycle(self.node.keys)
        some = lambda: [next(keys) for _ in range(WARM)]
        self.each(some, code, asked=asked)
        return self.each(some, code, threads=lambda self: [self.worker()], asked=asked)

    def cold_unknown(self):
        known = itertools.cycle(self.node.keys)
        return self.compare(
            lambda: [nodes.stranger() for _ in range(COLD)],
            lambda: [nodes.with_another_secret(next(known)) for _ in range(COLD)],
        )

    def close(self):
        self.node.stop()

    def repeated_unknown(self):
        def again(key):
            # Remembered for some seconds, which a round does not take.
            self.ask(key)
            return [key] * REPEATED

        stranger, wrong = nodes.stranger(), nodes.with_another_secret(self.node.keys[0])
        return self.compare(lambda: again(stranger), lambda: again(wrong))


def instructions(programs, scratch, keep):
    """Fails if an unknown lookup id and a wrong secret do not cost the same. The profile of a warm
    verification is copied to `keep`."""
    figures = {}
    with contextlib.closing(Counted(programs, scratch, "recorded", "true")) as counted:
        figures["warm"] = counted.warm()
        shutil.copy(counted.worker(), keep)
        figures["introspect_key"] = counted.warm(True, counted.introspect)
    with contextlib.closing(Counted(programs, scratch, "unrecorded", "false")) as counted:
        figures["cold_unknown"] = counted.cold_unknown()
        figures["repeated_unknown"] = counted.repeated_unknown()
    print(f"instructions\n  warm: {figures['warm']:,.0f}\n  introspect_key: {figures['introspect_key']:,.0f}")
    for name in ("cold_unknown", "repeated_unknown"):
        pair = figures[name]
        print(f"  {name}: unknown lookup id {pair['unknown_lookup_id']:,.0f}, wrong secret"
              f" {pair['wrong_secret']:,.0f}, ratio {pair['ratio']:.4f}")
        if abs(pair["ratio"] - 1) > TOLERANCE:
            sys.exit("bench: an unknown lookup id and a wrong secret cost differently")
    return figures
