"""A rack on one machine: each host a set of namespaces with an sshd of its own.

The hosts have a network (veth to a bridge), a hostname, a home folder and processes of their own.
The bridge stands in a namespace that plays the operator's machine, so the real machine's network
is never touched, and all of it is gone when the processes end.
"""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SSHD = "/usr/sbin/sshd"

HOST = """
set -eu
echo worker-$1 >/proc/sys/kernel/hostname
mount -t tmpfs tmpfs /run
mkdir -p /run/sshd
mount --bind "$2/passwd-$1" /etc/passwd
mount --bind "$2/hosts" /etc/hosts
ip link set lo up
until ip link show eth0 >/dev/null 2>&1; do sleep 0.02; done
ip address add 10.77.0.1$1/24 dev eth0
ip link set eth0 up
exec /usr/sbin/sshd -D -e -f "$2/sshd_config"
"""

SSHD_CONFIG = """
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/key.pub
PidFile none
UsePAM no
StrictModes no
PasswordAuthentication no
PermitRootLogin prohibit-password
MaxStartups 100
Subsystem sftp internal-sftp
"""

SSH_CONFIG = """
Host *
  User root
  IdentityFile {folder}/key
  IdentitiesOnly yes
  StrictHostKeyChecking yes
  UserKnownHostsFile {folder}/known_hosts
  LogLevel ERROR
"""


def why_not() -> str:
    """Return why there can be no such hosts here; nothing where there can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "network namespaces need Linux and root"
    tools = (
        SSHD,
        "unshare",
        "nsenter",
        "ip",
        "ssh",
        "scp",
        "ssh-keygen",
        "setsid",
        "setpriv",
        "flock",
    )
    missing = [tool for tool in tools if not shutil.which(tool)]
    if missing:
        return f"not installed: {', '.join(missing)}"
    probe = "ip link add probe type bridge && mount -t tmpfs tmpfs /run"
    command = ["unshare", "--net", "--mount", "--uts", "--pid", "--fork", "--mount-proc"]
    done = subprocess.run([*command, "sh", "-c", probe], capture_output=True, text=True)
    return f"namespaces are not allowed here: {done.stderr.strip()}" if done.returncode else ""


class Lab:
    """Hosts, the operator's machine, and how to run something on either."""

    def __init__(self, folder: Path, count: int):
        self.folder, self.count = folder, count
        self.processes = []
        self.home = folder / "operator"
        self.home.mkdir()
        self.write_files()
        self.operator = self.spawn("unshare", "--net", "sleep", "600")
        net = "ip link set lo up && ip link add br0 type bridge && ip link set br0 up"
        self.check(self.operator, f"{net} && ip address add 10.77.0.1/24 dev br0")
        flags = ["--net", "--mount", "--uts", "--pid", "--fork", "--mount-proc", "--kill-child"]
        self.hosts = [
            self.spawn("unshare", *flags, "sh", "-c", HOST, "sh", str(number), str(folder))
            for number in range(count)
        ]
        for number, host in enumerate(self.hosts):
            ends = ["netns", str(self.operator.pid), "type", "veth", "peer", "name", "eth0"]
            link = ["ip", "link", "add", f"veth{number}", *ends, "netns", str(host.pid)]
            subprocess.run(link, check=True)
            self.check(
                self.operator, f"ip link set veth{number} master br0 && ip link set veth{number} up"
            )
        for number in range(count):
            self.until(lambda number=number: not self.ssh(number, "true").returncode)

    def write_files(self):
        folder = self.folder
        for key in ("key", "host_key"):
            line = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / key]
            subprocess.run(line, check=True)
        (folder / "sshd_config").write_text(SSHD_CONFIG.format(folder=folder))
        (folder / "ssh_config").write_text(SSH_CONFIG.format(folder=folder))
        key = (folder / "host_key.pub").read_text()
        (folder / "known_hosts").write_text(f"10.77.0.* {key}")
        names = "".join(f"10.77.0.1{n} worker-{n}\n" for n in range(self.count))
        (folder / "hosts").write_text(f"127.0.0.1 localhost\n{names}")
        for number in range(self.count):
            home = folder / f"worker-{number}"
            home.mkdir()
            lines = Path("/etc/passwd").read_text().splitlines(keepends=True)
            lines = [line for line in lines if not line.startswith("root:")]
            root = f"root:x:0:0:root:{home}:/bin/bash\n"
            (folder / f"passwd-{number}").write_text("".join([root, *lines]))

    def spawn(self, *command):
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *command],  # also when the tests are killed
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self.processes.append(process)
        own, theirs = os.readlink("/proc/self/ns/net"), f"/proc/{process.pid}/ns/net"
        self.until(lambda: os.readlink(theirs) != own)
        return process

    @staticmethod
    def until(condition, seconds=20):
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, "it did not happen in time"
            time.sleep(0.05)

    def inside(self, process):
        return ["nsenter", f"--net=/proc/{process.pid}/ns/net"]

    def check(self, process, command):
        subprocess.run([*self.inside(process), "sh", "-c", command], check=True)

    def ssh(self, number, command):
        line = ["ssh", "-F", self.folder / "ssh_config", f"10.77.0.1{number}", command]
        return self.run(*line)

    def popen(self, *command, **environment):
        """Start a command on the operator's machine."""
        bin_folder = Path(__file__).parent / "stand_ins"
        place = {
            "HOME": str(self.home),
            "PATH": f"{bin_folder}:{os.environ['PATH']}",
            "USER": "root",
            "LAB": str(self.folder),
            "LAB_PYTHON": sys.executable,
            "VENV": sys.prefix,
        }
        return subprocess.Popen(
            [*self.inside(self.operator), *map(str, command)],
            env=place | environment,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, *command, timeout=100, **environment):
        """Run a command on the operator's machine to its end."""
        process = self.popen(*command, **environment)
        out, err = process.communicate(timeout=timeout)
        return subprocess.CompletedProcess(command, process.returncode, out, err)

    def alive(self, number):
        """Return the processes of one host that belong to a cluster."""
        command = "pgrep -f '[i]pyparallel|[j]upyterlab'; true"
        return self.ssh(number, command).stdout.split()

    def close(self):
        for process in reversed(self.processes):
            process.kill()  # with a host's first process all its others end
            process.wait()
