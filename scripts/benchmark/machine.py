"""Processes on their cores, and what a machine must have to measure."""

import atexit, json, os, pathlib, shutil, socket, subprocess, sys, time, urllib.error, urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
# The server has one core; the load generator, and the databases of a cluster, share the other.
SERVER_CORE, LOAD_CORE = "0", "1"


def need(program, package):
    if shutil.which(program) is None:
        sys.exit(f"bench: needs {program}; install it with: apt-get install {package}")


def run(*command, **more):
    return subprocess.run([str(part) for part in command], check=True, cwd=ROOT, **more)


def target_directory():
    metadata = run("cargo", "metadata", "--no-deps", "--format-version", "1", capture_output=True)
    return pathlib.Path(json.loads(metadata.stdout)["target_directory"])


class Programs:
    """The builds that are measured: what is written down is of release builds."""

    def __init__(self, profile="release"):
        run("cargo", "build", "--bins", "--examples", *(["--release"] if profile == "release" else []))
        built = target_directory() / profile
        self.keystead = built / "keystead"
        self.bare = built / "examples" / "bare"
        self.fill = built / "examples" / "fill"
        self.fill_usage = built / "examples" / "fill_usage"
        self.steady = built / "examples" / "steady"
        self.ingest = built / "examples" / "ingest"


def leave_the_servers_core():
    """The thread that calls this, and what it starts, takes no time of the server's core from now on."""
    os.sched_setaffinity(0, {int(LOAD_CORE)})


def free_address():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return "127.0.0.1:%d" % probe.getsockname()[1]


def cpu_seconds(pid):
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_mib(pid):
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    sys.exit("bench: no VmRSS")


class Process:
    """A server on its core, stopped with `stop`."""

    def __init__(self, command, environment=None, log=None):
        self.child = subprocess.Popen(
            ["taskset", "-c", SERVER_CORE, *map(str, command)],
            env={**os.environ, **(environment or {})},
            stdout=log or subprocess.DEVNULL, stderr=subprocess.STDOUT,
        )
        # However a measurement ends: what goes on running would be part of the next.
        atexit.register(self.child.kill)

    def stop(self):
        self.child.terminate()
        self.child.wait(timeout=120)


class Throwaway:
    """A private PostgreSQL or Redis on the other core; it ends with its standard input."""

    def __init__(self, kind, fsync=False):
        self.child = subprocess.Popen(
            ["taskset", "-c", LOAD_CORE, ROOT / "scripts" / "throwaway", kind],
            env={**os.environ, "KEYSTEAD_TEST_FSYNC": "on" if fsync else "off"},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        self.url = self.child.stdout.readline().strip()
        if not self.url:
            sys.exit(f"bench: {kind} did not start; scripts/throwaway missing says why")

    def stop(self):
        self.child.stdin.close()
        self.child.wait(timeout=600)


def wait_for(address, path, bound=60, pause=0.05):
    """Waits until `address` answers, and says how long that took."""
    began = time.monotonic()
    while time.monotonic() < began + bound:
        try:
            urllib.request.urlopen(f"http://{address}{path}", timeout=1).close()
            return time.monotonic() - began
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return time.monotonic() - began
        except OSError:
            pass
        time.sleep(pause)
    sys.exit(f"bench: {address} did not become ready")


def wait_until(is_done, bound=120):
    end = time.monotonic() + bound
    # A gauge is set every second.
    time.sleep(2)
    while not is_done():
        if time.monotonic() > end:
            sys.exit("bench: a node does not come to rest")
        time.sleep(1)
