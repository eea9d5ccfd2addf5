"""The examples are true: their scripts run, with stand-ins for Slurm and Kubernetes, and their commands parse."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from test_docs import ROOT, commands
from torch.distributed.run import get_args_parser

from triptych import cli
from triptych.config import Budget

SBATCH = ROOT / "examples" / "slurm" / "train.sbatch"
MANIFEST = ROOT / "examples" / "kubernetes" / "job.yaml"
DOCKERFILE = MANIFEST.with_name("Dockerfile")
SMALL = ["--batch-size", "16", "--set", "hidden=4", "--device", "cpu", "--validations", "2"]

# Runs what follows its options once for each node, all at once. Like Slurm's own (src/srun/signals.c), it answers
# SIGTERM by killing its tasks.
SRUN = """
import os, signal, subprocess, sys
from pathlib import Path
words = sys.argv[1:]
while words[0].startswith("--"):
    words.pop(0)
nodes = [subprocess.Popen(words) for _ in range(int(os.environ["SLURM_JOB_NUM_NODES"]))]
signal.signal(signal.SIGTERM, lambda *_: [node.kill() for node in nodes])
Path(os.environ["TASKS"]).write_text(" ".join(str(node.pid) for node in nodes))
sys.exit(max(node.wait() % 256 for node in nodes))
"""
SCANCEL = """
import os, signal, sys
from pathlib import Path
assert sys.argv[1:] == ["--signal=TERM", os.environ["SLURM_JOB_ID"]]
for pid in Path(os.environ["TASKS"]).read_text().split():
    os.kill(int(pid), signal.SIGTERM)
"""
SCONTROL = """
import os, sys
from pathlib import Path
if sys.argv[1:3] == ["show", "hostnames"]:
    assert sys.argv[3] == os.environ["SLURM_JOB_NODELIST"]
    print("\\n".join(["localhost"] * int(os.environ["SLURM_JOB_NUM_NODES"])))
else:
    Path(os.environ["ASKED"]).write_text(" ".join(sys.argv[1:]))
"""
TORCHRUN = """
import os, sys
os.execv(sys.executable, [sys.executable, "-m", "torch.distributed.run", *sys.argv[1:]])
"""
RECORDER = """
import json, os, sys
from pathlib import Path
Path(os.environ["ASKED"]).write_text(json.dumps(sys.argv[1:]))
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder with a small set, and the stand-ins in `bin`."""
    images = np.random.default_rng(0).integers(0, 2, (80, 8, 8)).astype(np.uint8)
    np.savez(tmp_path / "images.npz", images=images)
    (tmp_path / "bin").mkdir()
    for name, code in {"srun": SRUN, "scancel": SCANCEL, "scontrol": SCONTROL, "torchrun": TORCHRUN}.items():
        put(tmp_path / "bin" / name, code)
    return tmp_path


def put(path: Path, code: str) -> None:
    path.write_text(f"#!{sys.executable}{code}")
    path.chmod(0o755)


def environment(home: Path, more: Mapping[str, str]) -> dict[str, str]:
    """What a scheduler's script finds, of which the paths are of this test."""
    own = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "TORCH"))}
    paths = {"DATA": str(home / "images.npz"), "RUN": str(home / "run"), "ASKED": str(home / "asked")}
    paths |= {"TASKS": str(home / "tasks")}
    path = {"PATH": f"{home / 'bin'}:{os.environ['PATH']}"}
    return {**own, **path, **paths, "PROCESSES": "1", "OMP_NUM_THREADS": "1", **more}


def slurm(home: Path, **more: str) -> dict[str, str]:
    job = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_JOB_NUM_NODES": "2"}
    return environment(home, job | more)


def documents() -> dict[str, Any]:
    """The manifest's documents by their kind."""
    return {each["kind"]: each for each in yaml.safe_load_all(MANIFEST.read_text(encoding="utf-8"))}


def container() -> dict[str, Any]:
    (only,) = documents()["Job"]["spec"]["template"]["spec"]["containers"]
    return only


def pod(home: Path, index: int, **more: str) -> dict[str, str]:
    """The environment of a pod's container, with this test's folder and the way to the others in place of its own."""
    given = {each["name"]: each["value"] for each in container()["env"]}
    own = environment(home, {"JOB_COMPLETION_INDEX": str(index)})
    ours = {name: own[name] for name in ("DATA", "RUN", "PROCESSES", "OMP_NUM_THREADS")}
    return {**own, **given, **ours, **more}


def steps_done(run: Path) -> int:
    lock = run / "run.lock"
    words = lock.read_text().split() if lock.is_file() else []
    return int(words[0]) if words else 0


def wait_for_steps(run: Path, n: int, *processes: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 90
    while steps_done(run) < n:
        assert all(process.poll() is None for process in processes), processes[0].communicate()[0]
        assert time.monotonic() < until, "it does not train"
        time.sleep(0.02)


def begin(command: list[str], env: Mapping[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def check_command(words: list[str]) -> cli.Fit:
    """The training that torchrun is asked for, once its command line has been read by torchrun and by Triptych."""
    torchrun = get_args_parser().parse_args(words)
    assert torchrun.module
    assert torchrun.training_script == "triptych"
    verb = cli.parse(torchrun.training_script_args)
    assert isinstance(verb, cli.Fit)
    assert verb.auto_resume
    Budget.parse(verb.train.budget)
    return verb


class TestSlurm:
    def test_the_script_is_sound(self) -> None:
        subprocess.run(["bash", "-n", str(SBATCH)], check=True)
        if shellcheck := shutil.which("shellcheck"):
            subprocess.run([shellcheck, str(SBATCH)], check=True)

    def test_sbatch_reads_all_its_lines(self) -> None:
        """Those after the first command would be passed over."""
        lines = SBATCH.read_text(encoding="utf-8").splitlines()
        first = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
        assert not [line for line in lines[first:] if line.startswith("#SBATCH")]
        options = dict(re.match(r"#SBATCH --([a-z-]+)=?(\S*)", line).groups() for line in lines if "#SBATCH" in line)  # type: ignore[union-attr]
        assert options["ntasks-per-node"] == "1"
        assert "requeue" in options
        notice = int(options["signal"].removeprefix("B:USR1@"))
        (wait,) = re.findall(r"^export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=(\d+)$", "\n".join(lines), re.M)
        assert int(wait) < notice

    @pytest.mark.parametrize("nodes", ["1", "2"])
    def test_what_it_asks_for(self, home: Path, nodes: str) -> None:
        put(home / "bin" / "torchrun", RECORDER)
        env = slurm(home, SLURM_JOB_NUM_NODES=nodes, SLURM_RESTART_COUNT="3", SLURM_GPUS_ON_NODE="4")
        del env["PROCESSES"]
        subprocess.run(["bash", str(SBATCH), "--size", "32"], env=env, check=True)
        words = json.loads((home / "asked").read_text())
        verb = check_command(words)
        assert (str(verb.source), str(verb.out)) == (env["DATA"], env["RUN"])
        assert verb.data.size == "32"
        torchrun = get_args_parser().parse_args(words)
        assert (torchrun.nnodes, torchrun.nproc_per_node, torchrun.rdzv_backend) == (nodes, "4", "c10d")
        assert torchrun.rdzv_endpoint == f"localhost:{20000 + os.getpid() % 10000}"
        assert torchrun.rdzv_id == f"{os.getpid()}-3"
        assert verb.train.batch_size is not None
        assert verb.train.batch_size % (8 * 4) == 0

    def test_a_training_that_fails_is_not_queued_again(self, home: Path) -> None:
        put(home / "bin" / "torchrun", "\nraise SystemExit(1)\n")
        done = subprocess.run(["bash", str(SBATCH)], env=slurm(home), check=False)
        assert done.returncode == 1
        assert not (home / "asked").exists()

    @pytest.mark.slow
    def test_out_of_time_saved_queued_again_and_ended(self, home: Path) -> None:
        env, run = slurm(home), home / "run"
        command = ["bash", str(SBATCH), "--budget", "1500steps", *SMALL]
        first = begin(command, env)
        wait_for_steps(run, 20, first)
        first.send_signal(signal.SIGUSR1)
        told = first.communicate(timeout=60)[0]
        assert first.returncode != 0
        assert (home / "asked").read_text() == f"requeue {os.getpid()}", told
        assert not (run / "summary.json").exists()
        n_first = steps_done(run)
        assert 20 <= n_first < 1500
        assert f"Interrupted after step {n_first}, which is saved" in told
        (home / "asked").unlink()
        second = subprocess.run(command, env={**env, "SLURM_RESTART_COUNT": "1"}, capture_output=True, text=True)
        assert second.returncode == 0, second.stderr
        assert not (home / "asked").exists()
        summary = json.loads((run / "summary.json").read_text())
        assert summary["steps"] == 1500
        assert summary.get("lost_steps", 0) == 0

    @pytest.mark.slow
    def test_preempted_and_killed(self, home: Path) -> None:
        """TERM, which Slurm sends to the script and the tasks, saves and asks for nothing, since Slurm queues a
        preempted job itself; KILL is gone on from, too."""
        env, run = slurm(home, SLURM_JOB_NUM_NODES="1", PROCESSES="2"), home / "run"
        command = ["bash", str(SBATCH), "--budget", "800steps", *SMALL]
        first = begin(command, env)
        wait_for_steps(run, 20, first)
        for pid in [first.pid, *map(int, (home / "tasks").read_text().split())]:
            os.kill(pid, signal.SIGTERM)
        told = first.communicate(timeout=60)[0]
        assert first.returncode != 0
        assert f"Interrupted after step {steps_done(run)}, which is saved" in told
        n_first = steps_done(run)
        second = subprocess.Popen(command, env=env, start_new_session=True)
        wait_for_steps(run, n_first + 20)
        for pid in descendants(second.pid):
            os.kill(pid, signal.SIGKILL)
        second.wait()
        third = subprocess.run(command, env=env, capture_output=True, text=True)
        assert third.returncode == 0, third.stderr
        assert json.loads((run / "summary.json").read_text())["steps"] == 800
        assert not (home / "asked").exists()


def descendants(pid: int) -> list[int]:
    """A process and all that it and they have begun."""
    children = Path(f"/proc/{pid}/task/{pid}/children")
    if not children.is_file():
        pytest.skip("needs the process files of Linux")
    return [pid, *(each for child in children.read_text().split() for each in descendants(int(child)))]


class TestKubernetes:
    def test_the_parts_fit_each_other(self) -> None:
        parts = documents()
        assert set(parts) == {"Service", "PersistentVolumeClaim", "Job"}
        service, claim, job = parts["Service"], parts["PersistentVolumeClaim"], parts["Job"]
        spec, template = job["spec"], job["spec"]["template"]["spec"]
        env = {each["name"]: each["value"] for each in container()["env"]}
        name = job["metadata"]["name"]
        assert service["spec"]["clusterIP"] == "None"
        assert service["spec"]["selector"] == {"batch.kubernetes.io/job-name": name}
        assert template["subdomain"] == service["metadata"]["name"]
        assert env["MEETING"].split(":")[0] == f"{name}-0.{service['metadata']['name']}"
        assert spec["completionMode"] == "Indexed"
        assert spec["completions"] == spec["parallelism"] == int(env["NODES"])
        assert container()["resources"]["limits"]["nvidia.com/gpu"] == int(env["PROCESSES"])
        assert int(env["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"]) < template["terminationGracePeriodSeconds"]
        assert env["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] == "1"
        assert template["restartPolicy"] == "Never", "a pod failure policy allows no other"
        (rule,) = spec["podFailurePolicy"]["rules"]
        assert rule == {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]}
        volumes = {volume["name"]: volume for volume in template["volumes"]}
        mounts = {mount["name"]: mount["mountPath"] for mount in container()["volumeMounts"]}
        assert volumes.keys() == mounts.keys()
        assert volumes["data"]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
        assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
        assert all(env[place].startswith(mounts["data"]) for place in ("DATA", "RUN"))

    def test_nothing_runs_as_root(self) -> None:
        security = documents()["Job"]["spec"]["template"]["spec"]["securityContext"]
        assert security["runAsNonRoot"]
        assert security["runAsUser"] > 0
        assert container()["securityContext"]["allowPrivilegeEscalation"] is False
        assert container()["securityContext"]["capabilities"] == {"drop": ["ALL"]}

    def test_the_image_has_what_it_copies(self) -> None:
        lines = [line.split() for line in DOCKERFILE.read_text(encoding="utf-8").splitlines() if line]
        copied = [word for line in lines if line[0] == "COPY" for word in line[1:-1]]
        assert {"pyproject.toml", "constraints.txt", "src"} <= set(copied)
        assert all((ROOT / name).exists() for name in copied)
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        assert project["readme"] in copied
        assert set(project["license-files"]) <= set(copied)
        (base,) = [line[1] for line in lines if line[0] == "FROM"]
        versions = [name.split(" :: ")[-1] for name in project["classifiers"]]
        assert re.fullmatch(r"python:([\d.]+)-slim", base)[1] in versions  # type: ignore[index]
        (user,) = [line[1] for line in lines if line[0] == "USER"]
        security = documents()["Job"]["spec"]["template"]["spec"]["securityContext"]
        assert user == f"{security['runAsUser']}:{security['runAsGroup']}"
        assert container()["image"] in DOCKERFILE.read_text(encoding="utf-8")

    @pytest.mark.parametrize("index", [0, 1])
    def test_what_it_asks_for(self, home: Path, index: int) -> None:
        put(home / "bin" / "torchrun", RECORDER)
        env = pod(home, index, PROCESSES="4")
        subprocess.run([*container()["command"], *container()["args"]], env=env, check=True)
        words = json.loads((home / "asked").read_text())
        verb = check_command(words)
        torchrun = get_args_parser().parse_args(words)
        assert torchrun.rdzv_endpoint == "triptych-0.triptych:29400"
        assert torchrun.rdzv_conf == f"is_host={int(index == 0)}"
        assert (torchrun.nnodes, torchrun.nproc_per_node) == ("2", "4")
        assert (str(verb.source), str(verb.out)) == (env["DATA"], env["RUN"])
        assert verb.train.batch_size is not None
        assert verb.train.batch_size % (2 * 4) == 0

    @pytest.mark.slow
    def test_a_pod_is_evicted_and_replaced(self, home: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            meeting = f"127.0.0.1:{free.getsockname()[1]}"
        run = home / "run"
        command = [*container()["command"], container()["args"][0] + " " + shlex.join(SMALL)]

        def start(index: int) -> subprocess.Popen[str]:
            return begin(command, pod(home, index, MEETING=meeting, BUDGET="1500steps"))

        pods = [start(0), start(1)]
        wait_for_steps(run, 20, *pods)
        pods[1].terminate()  # it is evicted
        told = pods[1].communicate(timeout=60)[0]
        assert pods[1].returncode != 0, told
        replacement = start(1)
        ended = [each.communicate(timeout=120)[0] for each in (pods[0], replacement)]
        assert pods[0].returncode == 0, ended[0]
        assert replacement.returncode == 0, ended[1]
        summary = json.loads((run / "summary.json").read_text())
        assert summary["steps"] == 1500
        assert summary.get("lost_steps", 0) == 0


class TestReadme:
    def test_its_commands(self) -> None:
        """Those of Triptych parse, alone or under torchrun, and the files that the others name exist."""
        n_parsed = 0
        for line in commands("examples/README.md"):
            words = shlex.split(line)
            if words[0] == "torchrun":
                check_command(words[1:])
            elif words[0] == "triptych":
                cli.parse(words[1:])
            else:
                files = [word for word in words if word.startswith("examples/")]
                assert all((ROOT / file).is_file() for file in files), line
                continue
            n_parsed += 1
        assert n_parsed == 3

    def test_its_links(self) -> None:
        text = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
        links = re.findall(r"\]\(([^)]+)\)", text)
        assert links
        assert all((ROOT / "examples" / link).is_file() for link in links)
