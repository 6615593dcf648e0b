"""A deployment of Flower on this machine: a SuperLink and SuperNodes as real processes.

One folder holds everything: keys, logs, Flower's settings and the SuperLink's database.
"""

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

HERE = Path(__file__).resolve().parent
PROGRAMS = Path(sys.executable).parent
# Without these settings, Flower's command line reports its use and looks for updates over the network.
QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2",  # seconds; a second by default
    "OMP_NUM_THREADS": "1",  # the nodes of one machine share its cores
}


@dataclass
class LocalDeployment:
    """A SuperLink and its SuperNodes; as a context manager it ends all processes that it started.

    Args:
        folder: Where keys, logs and settings go; it is created if necessary.
        nodes: The settings of each node, beside `partition-id` and `num-partitions`.
        secure: Whether to encrypt all traffic and to accept only nodes with a registered key.
        separate: Whether a separate SuperExec starts the server app, which then survives the SuperLink.
        simulated: Whether Flower's simulation engine runs the nodes.
    """

    folder: Path
    nodes: Sequence[Mapping[str, object]]
    secure: bool = True
    separate: bool = False
    simulated: bool = False
    superlink: "subprocess.Popen[bytes] | None" = None
    supernodes: "list[subprocess.Popen[bytes]]" = field(default_factory=list)
    _started: "list[subprocess.Popen[bytes]]" = field(default_factory=list)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self._secret = self.folder / "superexec.secret"  # the SuperLink recognises its SuperExec by it
        self._secret.write_text(secrets.token_hex(32))
        self._secret.chmod(0o600)
        self.home = self.folder.resolve() / "home"
        search = f"{PROGRAMS}{os.pathsep}{os.environ.get('PATH', '')}"
        self._environment = {**os.environ, **QUIET, "FLWR_HOME": str(self.home), "PATH": search}

    def __enter__(self) -> "LocalDeployment":
        with ExitStack() as on_failure:
            on_failure.callback(self.stop)
            if self.secure:
                command = [str(HERE / "certificates.sh"), "keys", "IP:127.0.0.1", str(len(self.nodes) + 1)]
                subprocess.run(command, cwd=self.folder, check=True, capture_output=True)
            self._write_connection()
            self.start_superlink()
            if self.separate:
                self._start_superexec()
            if not self.simulated:
                self.supernodes = [self.start_supernode(place) for place in range(len(self.nodes))]
            on_failure.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start_superlink(self) -> None:
        """Start the SuperLink, or start it again, and wait until it answers."""
        command = ["flower-superlink", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--disable-runtime-dependency-installation", "--database", str(self.folder / "state.db")]
        if self.secure:
            keys = self.folder / "keys"
            command += ["--ssl-ca-certfile", str(keys / "ca.crt"), "--ssl-certfile", str(keys / "server.crt")]
            command += ["--ssl-keyfile", str(keys / "server.key"), "--enable-supernode-auth"]
        else:
            command += ["--insecure"]
        if self.separate:
            command += ["--isolation", "process", "--superexec-auth-secret-file", str(self._secret)]
        if self.simulated:
            command += ["--simulation"]
        self.superlink = self._start("superlink", command)
        self._wait_for_port()

    def start_supernode(self, place: int, key: int | None = None) -> "subprocess.Popen[bytes]":
        """Start a SuperNode.

        Args:
            place: Its position in `nodes`.
            key: The number of its key, by default `place`; -1 for none.
        """
        number = place if key is None else key
        settings = {"partition-id": place, "num-partitions": len(self.nodes), **self.nodes[place]}
        command = ["flower-supernode", "--superlink", self.address, "--port", str(free_port())]
        command += ["--node-config", " ".join(f"{name}={value}" for name, value in settings.items())]
        command += self._trust()
        if self.secure and number >= 0:
            command += ["--auth-supernode-private-key", str(self.folder / "keys" / f"node{number}")]
        if self.secure and number == place:
            self.flwr("supernode", "register", str(self.folder / "keys" / f"node{number}.pub"), "local")
        return self._start(f"supernode{place}", command)

    def _start_superexec(self) -> None:
        command = ["flower-superexec", "--runtime-api-address", self.address, *self._trust()]
        self._start("superexec", [*command, "--superexec-auth-secret-file", str(self._secret)])

    def _trust(self) -> list[str]:
        """Return the options by which a program trusts the SuperLink."""
        return ["--root-certificates", str(self.folder / "keys" / "ca.crt")] if self.secure else ["--insecure"]

    def flwr(self, *arguments: str, timeout: float = 1800) -> str:
        """Run Flower's command line and return its output. Raises `RuntimeError` if it fails."""
        command = [str(PROGRAMS / "flwr"), *arguments]
        done = subprocess.run(
            command, env=self._environment, capture_output=True, text=True, timeout=timeout, check=False
        )
        if done.returncode:
            raise RuntimeError(f"flwr {' '.join(arguments)} failed:\n{done.stdout}{done.stderr}")
        return done.stdout

    def run(self, app: Path, timeout: float = 1800, **config: object) -> str:
        """Run an app with changed settings and return its log."""
        return self.flwr(*self._run_arguments(app, config), "--stream", timeout=timeout)

    def begin(self, app: Path, **config: object) -> None:
        """Start an app without waiting for its end."""
        self.flwr(*self._run_arguments(app, config))

    def log(self, name: str) -> str:
        """Return the log of `superlink` or of a node, such as `supernode0`."""
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def stop(self) -> None:
        """Kill all processes that were started, and the processes that these started."""
        for process in self._started:
            process.kill()
            process.wait()
        self._started.clear()
        until = time.monotonic() + 60
        while (left := self.processes()) and time.monotonic() < until:
            for process_id in left:
                kill(process_id, signal.SIGKILL)
            time.sleep(0.1)  # a process that is being killed may just have started another

    def processes(self, naming: str = "") -> list[int]:
        """Return the ids of this deployment's processes whose command line contains a word; on Linux, also orphans."""
        mark = f"FLWR_HOME={self.home}".encode()
        return [
            int(folder.name)
            for folder in Path("/proc").glob("[0-9]*")
            if mark in _read(folder / "environ").split(b"\0") and naming.encode() in _read(folder / "cmdline")
        ]

    def _run_arguments(self, app: Path, config: Mapping[str, object]) -> list[str]:
        settings = " ".join(f"{name.replace('_', '-')}={_toml(value)}" for name, value in config.items())
        arguments = ["run", str(app), "local", *(["--run-config", settings] if settings else [])]
        cpus = f"client-resources-num-cpus=1 init-args-num-cpus={len(self.nodes)}"  # so that all nodes run at once
        simulation = f"num-supernodes={len(self.nodes)} {cpus}"
        return [*arguments, *(["--federation-config", simulation] if self.simulated else [])]

    def _write_connection(self) -> None:
        self.home.mkdir(exist_ok=True)
        trust = (
            f'root-certificates = "{self.folder.resolve() / "keys" / "ca.crt"}"' if self.secure else "insecure = true"
        )
        (self.home / "config.toml").write_text(f'[superlink.local]\naddress = "{self.address}"\n{trust}\n')

    def _start(self, name: str, command: Sequence[str]) -> "subprocess.Popen[bytes]":
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [str(PROGRAMS / command[0]), *command[1:]], env=self._environment, stdout=log, stderr=log
            )
        self._started.append(process)
        return process

    def _wait_for_port(self, seconds: float = 600) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            if self.superlink is not None and self.superlink.poll() is not None:
                break
            time.sleep(0.2)
        raise RuntimeError(f"the SuperLink does not answer:\n{self.log('superlink')[-2000:]}")


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"'{value}'" if isinstance(value, (str, Path)) else str(value)


def free_port() -> int:
    """Return a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _read(file: Path) -> bytes:
    """Return the content of a file; nothing if it is gone, like the files of a process that has ended."""
    try:
        return file.read_bytes()
    except OSError:
        return b""


def kill(process: int, how: signal.Signals) -> None:
    """Send a signal to a process that may have ended."""
    with suppress(ProcessLookupError):
        os.kill(process, how)
