"""The scripts of cluster/ as text: their syntax, what a dry run prints, what they refuse."""

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = ROOT / "cluster"
SCRIPTS = sorted([*CLUSTER.glob("*.sh"), *CLUSTER.glob("*.sbatch")])
PAGE = (CLUSTER / "README.md").read_text()
POD = {
    "PROJECT": "my-project",
    "ZONE": "us-west4-a",
    "NAME": "pod",
    "TYPE": "v5litepod-16",
    "VERSION": "v2-alpha-tpuv5-lite",
    "ADDRESSES": "10.0.0.2,10.0.0.3,10.0.0.4",
}


def bash(line, folder=ROOT, **environment):
    """Run one line without anything of this machine's environment but PATH."""
    place = {"PATH": os.environ["PATH"], "HOME": "/home/reader", "USER": "reader"}
    return subprocess.run(
        ["bash", "-c", line],
        env=place | environment,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
    )


def pod_script():
    """Return the script inside kubernetes.yaml."""
    text = (CLUSTER / "kubernetes.yaml").read_text()
    inner = re.search(r"- \|\n(.*?)\n {10}volumeMounts", text, re.S)[1]
    return re.sub(r"^ {14}", "", inner, flags=re.M) + "\n"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_bash_reads_it(script):
    assert subprocess.run(["bash", "-n", script]).returncode == 0


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not installed")
def test_shellcheck_has_nothing_to_say():
    done = subprocess.run(["shellcheck", *SCRIPTS], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == ""
    inner = ["shellcheck", "--shell=bash", "-"]
    done = subprocess.run(inner, input=pod_script(), capture_output=True, text=True)
    assert done.stdout == ""


def test_nothing_is_killed_by_name():
    """One place signals processes, and it signals what its pid file proves to be its own."""
    text = {path.name: path.read_text() for path in SCRIPTS}
    for name, script in text.items():
        assert not re.search(r"pkill|killall|kill -9|kill 0", script), name
        if re.search(r"\bkill -", script):
            assert name == "services.sh"


def page_blocks():
    """Return (command, what the page says it prints) for every dry run on the page."""
    for block in re.findall(r"```console\n(.*?)```", PAGE, re.S):
        for part in re.split(r"^\$ ", block, flags=re.M)[1:]:
            command, _, printed = part.partition("\n")
            yield command, printed


def chapter_cells(kind):
    cells = json.loads((ROOT / "notebooks/26_pod.ipynb").read_text())["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == kind]


def chapter_recipes():
    """Return what chapter 26 hands to its `recipe`, call by call."""
    calls = []
    for source in chapter_cells("code"):
        tree = ast.parse(re.sub(r"^%.*$", "", source, flags=re.M))
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "recipe":
                words = [ast.literal_eval(word) for word in node.args]
                calls.append((words, {k.arg: ast.literal_eval(k.value) for k in node.keywords}))
    return calls


def test_the_chapter_prints_what_a_dry_run_prints():
    """Its recipes run, from asking to giving back; folded lines mean the same to a shell."""
    (source,) = (source for source in chapter_cells("code") if "def fold(" in source)
    tree = ast.parse(source)
    kept = [node for node in tree.body if getattr(node, "name", "") == "fold"]
    kept += [node for node in tree.body if ast.unparse(node).startswith("POD =")]
    names = {"re": re}
    exec(compile(ast.Module(kept, []), "26_pod", "exec"), names)
    verbs = []
    for (words, *script), change in chapter_recipes():
        script = script[0] if script else "tpu.sh"
        done = bash(f"cluster/{script} --dry-run {words}", **(names["POD"] | change))
        assert done.returncode == 0, done.stderr
        for line in done.stdout.splitlines():
            folded = names["fold"](line)
            assert max(map(len, folded.splitlines())) < 200
            assert shlex.split(folded.replace("\\\n", " ")) == shlex.split(line)
        verbs.append(re.sub(r"--worker \S+ ", "", words).split()[0])
    way = ["enable", "queue", "wait", "setup", "bucket", "start", "notebook", "tunnel"]
    assert verbs[: len(way)] == way
    assert {"restart", "stop", "delete", "list"} <= set(verbs)


def page_environment():
    words = " ".join(re.findall(r"^export (.*)$", PAGE, re.M)).split()
    return dict(word.split("=", 1) for word in words)


@pytest.mark.parametrize(("command", "printed"), page_blocks(), ids=lambda text: text[:60])
def test_the_page_shows_what_a_dry_run_prints(command, printed):
    done = bash(command, **page_environment())
    assert done.returncode == 0, done.stderr
    assert done.stdout == printed


def test_the_page_shows_every_command():
    shown = " ".join(command for command, _ in page_blocks())
    ours = (CLUSTER / "tpu.sh").read_text()
    text = "".join((CLUSTER / name).read_text() for name in ("verbs.sh", "files.sh")) + ours
    for verb in re.findall(r"^verb_(\w+)\(", text, re.M):
        assert re.search(rf"--dry-run( --worker \S+)? {verb}\b", shown), verb
        for script in ("tpu",) if f"verb_{verb}(" in ours else ("tpu", "hosts"):
            usage = bash(f"cluster/{script}.sh --help").stdout
            assert re.search(rf"^  (\w+ \| )*{verb}\b", usage, re.M), (script, verb)


def test_a_dry_run_runs_nothing(tmp_path):
    """Not even gcloud or ssh need be there, and nothing is written."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in ("bash", "id", "uname", "cat", "dirname", "grep"):
        (tools / tool).symlink_to(shutil.which(tool))
    for command, _ in page_blocks():
        done = bash(command, **page_environment(), PATH=str(tools), HOME=str(tmp_path))
        assert done.returncode == 0, (command, done.stderr)
    assert list(tmp_path.iterdir()) == [tools]


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("gcloud"), reason="gcloud is not installed")
def test_gcloud_knows_every_command_and_flag(tmp_path):
    """By the argument parser of the real gcloud, which reads them and runs nothing."""
    printed = "".join(printed for _, printed in page_blocks())
    printed += "\n".join(re.findall(r"gcloud [a-z][^`\n]*", "\n".join(chapter_cells("markdown"))))
    # As a shell would:
    printed = re.sub(r"\$(\w+)", lambda name: POD.get(name[1], name[0]), printed)
    # What follows a -- goes to ssh; workers' numbers make no difference.
    lines = {line.partition(" -- ")[0] for line in re.findall(r"^gcloud .*", printed, re.M)}
    lines = {re.sub(r"--worker=\d|--id \d", "--worker=0", line) for line in lines}
    commands = tmp_path / "commands.json"
    commands.write_text(json.dumps([{"command_string": line} for line in sorted(lines)]))
    place = {"CLOUDSDK_CONFIG": str(tmp_path), "CLOUDSDK_CORE_CHECK_GCE_METADATA": "false"}
    done = subprocess.run(
        ["gcloud", "meta", "lint-gcloud-commands", f"--commands-file={commands}"],
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path)} | place,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        pytest.skip(f"this gcloud checks no commands: {done.stderr.strip()}")
    found = json.loads(done.stdout)
    assert len(found) == len(lines) > 15
    refused = {row["command_string"]: row["error_message"] for row in found if not row["success"]}
    assert refused == {}


HOSTS = "a 10.0.0.1\nb 10.0.0.2\n"


@pytest.mark.parametrize(
    ("line", "change", "says"),
    [
        ("tpu.sh start", {"ZONE": "", "NAME": ""}, "Not set: ZONE, NAME; "),
        ("tpu.sh create", {"TYPE": "", "VERSION": ""}, "Not set: TYPE, VERSION; "),
        ("tpu.sh --dry-run start", {"ADDRESSES": ""}, "Not set: ADDRESSES; "),
        ("tpu.sh --dry-run start", {"NAME": "Pod 1"}, "must start with a small letter"),
        ("tpu.sh --dry-run start", {"NAME": "p;rm"}, "small letters, digits and dashes only"),
        ("tpu.sh --dry-run start", {"PARALLEL": "x"}, "PARALLEL is 'x'"),
        ("tpu.sh --dry-run start", {"TIMEOUT": "soon"}, "TIMEOUT is 'soon'"),
        ("tpu.sh enable", {"PROJECT": ""}, "Not set: PROJECT; "),
        ("tpu.sh --dry-run --worker 3 run -- id", {}, "There is no worker 3; there are 3"),
        ("tpu.sh --dry-run --worker 0-9 run -- id", {}, "There is no worker 9"),
        ("tpu.sh --dry-run --worker 2-0 run -- id", {}, "runs backwards"),
        ("tpu.sh --dry-run --worker 1,,2 run -- id", {}, "--worker is '1,,2'"),
        ("tpu.sh --dry-run --worker 1-2-3 run -- id", {}, "--worker has '1-2-3' in it"),
        ("tpu.sh --dry-run --worker one run -- id", {}, "--worker is 'one'"),
        ("tpu.sh --worker", {}, "--worker needs a list"),
        ("tpu.sh --dry-run run", {}, "run needs a command"),
        ("tpu.sh --dry-run fly", {}, "There is no command 'fly'"),
        ("tpu.sh --fast start", {}, "There is no option '--fast'"),
        ("tpu.sh --dry-run copy no-such-folder", {}, "There is no 'no-such-folder'"),
        ("tpu.sh --dry-run wait soon", {}, "wait is 'soon'"),
        ("tpu.sh --dry-run nfs", {}, "nfs knows start and stop"),
        ("tpu.sh --dry-run nfs start", {"ADDRESSES": "10.0.0.2"}, "There is one host only"),
        ("tpu.sh --dry-run bucket start", {}, "needs the bucket's name"),
        ("tpu.sh --dry-run tunnel 80", {}, "must lie between 1024 and 65535"),
        ("tpu.sh --dry-run preview", {}, "preview needs an empty folder"),
        ("tpu.sh --dry-run notebook off", {}, "notebook knows start, stop and status"),
        ("hosts.sh start", {"HOSTS": "none.txt"}, "There is no hosts file"),
        ("hosts.sh start", {"TEXT": "a\n"}, "is not 'name address'"),
        ("hosts.sh start", {"TEXT": "-oProxyCommand=x 10.0.0.1\n"}, "is not 'name address'"),
        ("hosts.sh start", {"TEXT": "a 8.8.8.8\n"}, "8.8.8.8 is not a private address"),
        ("hosts.sh start", {"TEXT": "# nobody\n"}, "names no host"),
        ("hosts.sh --dry-run --worker 2 start", {}, "There is no worker 2; there are 2"),
        ("store.sh serve srv 10.0.0.1", {}, "say it from the root"),
        ("store.sh serve /srv/x 8.8.8.8", {}, "8.8.8.8 is a public address"),
        ("store.sh mount 8.8.8.8 /srv/x", {}, "8.8.8.8 is not a private address"),
        ("store.sh bucket gs://x /srv/x", {}, "without gs://"),
        ("host.sh --name Llama status", {}, "must start with a small letter"),
        ("host.sh start cluster", {}, "There is no Python at"),
        ("host.sh stop cluster", {}, "There is no service 'cluster'"),
        ("host.sh fly", {}, "There is no command 'fly'"),
        ("host.sh setup --constraints none.txt", {}, "There is no file"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path, line, change, says):
    (tmp_path / "hosts.txt").write_text(change.pop("TEXT", HOSTS))
    place = POD | {"HOME": str(tmp_path), "HOSTS": str(tmp_path / "hosts.txt")} | change
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "gcloud").symlink_to("/bin/false")  # whatever happens, nobody is asked
    done = bash(f"{CLUSTER}/{line}", PATH=f"{tools}:{os.environ['PATH']}", **place)
    assert done.returncode == 2
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("listed", "count", "chosen"),
    [
        ("all", 3, "0 1 2"),
        ("0-3,7", 8, "0 1 2 3 7"),
        ("2,0,2", 3, "2 0"),
        ("1-2,0-1", 3, "1 2 0"),
        ("08", 9, "8"),
    ],
)
def test_ranges(listed, count, chosen):
    done = bash(f". cluster/lib.sh && expand_workers {listed} {count}")
    assert done.stdout.split() == chosen.split()


@pytest.mark.parametrize(
    "word", ["", "plain", "two words", "it's", "$HOME", "a\nb", "~", "*", "--x=a b", "--x='", "é"]
)
def test_quoted_words_come_back(word):
    """What a dry run prints, and what ssh hands to the remote shell, means the same words."""
    done = bash('. cluster/lib.sh && eval "printf \'%s|\' $(quote "$WORD" x)"', WORD=word)
    assert done.stdout == f"{word}|x|"


@pytest.mark.parametrize(
    ("address", "private"),
    [
        *[(a, True) for a in ("10.1.2.3", "172.16.0.1", "172.31.9.9", "192.168.0.1", "127.0.0.1")],
        *[(a, True) for a in ("100.64.0.1", "100.127.0.1")],
        *[(a, False) for a in ("8.8.8.8", "172.15.0.1", "172.32.0.1", "100.63.0.1", "0.0.0.0")],
        *[(a, False) for a in ("100.128.0.1", "193.168.0.1", "", "example.com")],
    ],
)
def test_private_addresses(address, private):
    done = bash(f". cluster/lib.sh && is_private '{address}'")
    assert (done.returncode == 0) is private


@pytest.mark.slow
def test_the_first_worker_goes_alone_once_a_pod(tmp_path):
    """The first connection makes the key and gives it to the pod: two at once would collide."""
    tools, log, key = tmp_path / "bin", tmp_path / "log", tmp_path / ".ssh/google_compute_engine"
    tools.mkdir()
    key.parent.mkdir()
    fake = tools / "gcloud"
    fake.write_text(f"""#!/bin/bash
case "$4" in
  describe) echo "$FOUND" ;;
  ssh)
    echo come >>{log}
    sleep 0.2
    until [ "$(grep -c come {log})" -ge "$TOGETHER" ]; do sleep 0.02; done
    touch {key}
    echo gone >>{log}
    exit "$CODE" ;;
esac
""")
    fake.chmod(0o755)
    place = {"HOME": str(tmp_path), "PATH": f"{tools}:{os.environ['PATH']}"}
    place |= POD | {"FOUND": "10.0.0.2 10.0.0.3 10.0.0.4", "TOGETHER": "1", "CODE": "0"}

    def ran(words, **change):
        log.write_text("")
        done = bash(f"cluster/tpu.sh {words}", **(place | change))
        assert done.returncode == int((place | change)["CODE"]), done.stderr
        return log.read_text().split()

    def alone(**change):
        found = ran("run hostname", **change)
        return len(found) == 6 and found[:2] == ["come", "gone"]

    def together(**change):  # or it would wait for ever
        return len(ran("run hostname", TOGETHER="3", **change)) == 6

    assert alone(CODE="1")
    assert alone()  # it did not succeed before
    assert together()
    assert alone(FOUND="10.0.0.5 10.0.0.6 10.0.0.7")  # another pod of this name
    assert ran("--worker 0 run hostname", NAME="other") == ["come", "gone"]
    assert together(NAME="other")
    key.unlink()
    assert alone(NAME="other")
    assert ran("create") == []
    assert alone()


def test_create_and_delete_find_what_is_there(tmp_path):
    """Twice created is once created; twice deleted is once deleted; a refusal is passed on."""
    tools, log = tmp_path / "bin", tmp_path / "log"
    tools.mkdir()
    fake = tools / "gcloud"
    fake.write_text(f"""#!/bin/bash
echo "$*" >>{log}
case "$3 $4" in
  *list) cat {tmp_path}/$3 2>/dev/null; exit "$(cat {tmp_path}/refuse 2>/dev/null || echo 0)" ;;
  *create) echo "$5" >{tmp_path}/$3 ;;
  *delete) rm -f {tmp_path}/$3 {tmp_path}/tpu-vm ;;
  *describe) cat {tmp_path}/state ;;
esac
""")
    fake.chmod(0o755)
    place = POD | {"PATH": f"{tools}:{os.environ['PATH']}", "INTERVAL": "0", "SPOT": "1"}

    def tpu(words):
        done = bash(f"cluster/tpu.sh {words}", **place)
        return done.returncode, done.stderr.strip()

    def asked(verb):
        return sum(f" {verb} " in line for line in log.read_text().splitlines())

    assert tpu("queue") == (0, "")
    assert tpu("queue") == (0, "pod is in the queue already.")
    assert asked("create") == 1
    (tmp_path / "state").write_text("WAITING_FOR_RESOURCES")
    assert tpu("wait 0")[1].endswith(
        "still WAITING_FOR_RESOURCES after 0 minutes; wait again, or delete it."
    )
    (tmp_path / "state").write_text("FAILED")
    assert tpu("wait") == (1, "tpu.sh: The request pod is FAILED; delete it, then ask again.")
    (tmp_path / "state").write_text("ACTIVE")
    assert tpu("wait") == (0, "pod is yours: it costs from now on until delete.")
    assert tpu("delete") == (
        2,
        "tpu.sh: delete asks first; where there is no terminal, say: --yes delete",
    )
    assert tpu("create") == (0, "")
    assert tpu("create") == (0, "pod is there already.")
    assert tpu("--yes delete") == (0, "")
    assert tpu("--yes delete")[1].endswith("nothing to delete.")
    assert asked("delete") == 1
    (tmp_path / "refuse").write_text("1")
    assert tpu("create") == (
        1,
        "tpu.sh: gcloud could not list what is in us-west4-a of my-project.",
    )
    assert asked("create") == 2
