"""Each example runs, in an empty folder, and says what it promises."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

import fastgar as fg
from fastgar.cli import node as node_command

EXAMPLES = Path(__file__).parent.parent / "examples"
PACKAGE = Path(fg.__file__).parent.parent

EXPECTED = {
    "quickstart.py": ("numpy array", "torch tensor", "jax   Array", "11 rows survive 4 liars"),
    "who_is_lying.py": ("not believed: (2, 6)", "accuracy of the robust aggregate"),
    "fool_the_median.py": ("median [2.]", "median [-0.3]", "fool_the_median.png"),
}
RANKS = {  # on four ranks, in fewer steps than they take by themselves
    "ddp_robust.py": ("--steps 10 --out ddp.png", "NaN"),
    "fsdp_robust.py": ("--steps 35 --scope global", "accuracy"),
    "lightning_robust.py": ("--steps 40", "accuracy"),
    "accelerate_robust.py": ("--steps 40", "accuracy"),
}
NEEDS = {
    "quickstart.py": ("torch", "jax"),
    "who_is_lying.py": ("torch", "sklearn"),
    "fool_the_median.py": ("matplotlib",),
    "ddp_robust.py": ("torch", "matplotlib"),
    "fsdp_robust.py": ("torch",),
    "lightning_robust.py": ("torch", "lightning"),
    "accelerate_robust.py": ("torch", "accelerate"),
}


def run(name: str, folder: Path, *arguments: str) -> str:
    result = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments], cwd=folder, capture_output=True,
        text=True, timeout=300, env={**os.environ, "PYTHONPATH": str(PACKAGE)},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_every_example_is_tested() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(EXPECTED) | set(RANKS)


@pytest.mark.parametrize("name", EXPECTED)
def test_an_example_runs(name: str, tmp_path: Path) -> None:
    for library in NEEDS[name]:
        if find_spec(library) is None:
            pytest.skip(f"needs {library}")
    printed = run(name, tmp_path)
    for text in EXPECTED[name]:
        assert text in printed
    left = [path.name for path in tmp_path.iterdir()]
    assert left == (["fool_the_median.png"] if name == "fool_the_median.py" else [])
    if name == "who_is_lying.py":
        lines = [line.split() for line in printed.splitlines() if line.startswith("accuracy of")]
        accuracy = {words[3]: float(words[-1].rstrip("%")) for words in lines}
        assert accuracy["robust"] > 85 > 20 > accuracy["plain"]


@pytest.mark.parametrize("name", RANKS)
def test_an_example_runs_on_four_ranks(name: str, tmp_path: Path) -> None:
    for library in NEEDS[name]:
        if find_spec(library) is None:
            pytest.skip(f"needs {library}")
    arguments, words = RANKS[name]
    launch = f"-m torch.distributed.run --standalone --nproc-per-node 4 {EXAMPLES / name}"
    result = subprocess.run(
        [sys.executable, *launch.split(), *arguments.split()],
        cwd=tmp_path, capture_output=True, text=True, timeout=200,
        env={**os.environ, "PYTHONPATH": str(PACKAGE)},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    line = next(line for line in result.stdout.splitlines()[::-1] if line.startswith(words))
    average, robust = (float(number) for number in re.findall(r"([\d.]+)%", line))
    assert robust > average + 30
    assert [path.name for path in tmp_path.iterdir()] == (["ddp.png"] if "ddp" in name else [])


def test_a_picture_goes_where_it_is_told_to(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    run("fool_the_median.py", tmp_path, "--out", "other.png")
    assert [path.name for path in tmp_path.iterdir()] == ["other.png"]
    assert (tmp_path / "other.png").read_bytes().startswith(b"\x89PNG")


def fake(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(0o755)


def test_the_slurm_script_makes_keys_and_passes_signals_on(tmp_path: Path) -> None:
    """With a Slurm that is two shell scripts: each node gets its key, and the signal."""
    pytest.importorskip("cryptography")
    commands = tmp_path / "bin"
    commands.mkdir()
    fake(commands, "scontrol", 'printf "host%d\\n" 0 1 2 3 4 5 6 7 8')
    fake(commands, "srun", """
        while [[ $1 == --* ]]; do shift; done
        for id in {0..8}; do SLURM_PROCID=$id "$@" & pids+=" $!"; done
        trap 'kill -TERM $pids; wait; exit 0' TERM
        wait
    """)  # fmt: skip
    fake(commands, "fastgar", f"""
        [[ $1 == keys ]] && exec {sys.executable} -m fastgar.cli "$@"
        while [[ $# -gt 0 ]]; do [[ $1 == --out ]] && out=$2; words+=" $1"; shift; done
        trap 'echo ended >> "$out"; exit 0' TERM
        echo "$words" > "$out"
        while true; do sleep 0.05; done
    """)  # fmt: skip
    script = subprocess.Popen(
        ["bash", str(EXAMPLES / "cluster.sbatch")], cwd=tmp_path, stdout=subprocess.DEVNULL,
        env={
            **os.environ, "PYTHONPATH": str(PACKAGE), "SLURM_JOB_ID": "7",
            "SLURM_JOB_NODELIST": "host[0-8]", "PATH": f"{commands}:{os.environ['PATH']}",
        },
    )  # fmt: skip
    folder = tmp_path / "fastgar-7-0"
    nodes = [folder / f"node-{number}" for number in range(9)]
    try:
        until = time.monotonic() + 120
        while not all(node.exists() and node.read_text() for node in nodes):
            assert script.poll() is None and time.monotonic() < until
            time.sleep(0.1)
        script.terminate()
        assert script.wait(60) == 0
    finally:
        script.kill()
        script.wait()
    for number, node in enumerate(nodes):
        words, end = node.read_text().splitlines()
        assert end == "ended"
        assert f"--keys {folder}/keys --id {number}" in words
    cluster = tomllib.loads((folder / "keys" / "cluster.toml").read_text())
    assert cluster["servers"]["f"] == cluster["workers"]["f"] == 1
    assert cluster["nodes"]["w3"]["address"] == "host8:29400"


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="needs shellcheck")
def test_the_slurm_script_is_good_bash() -> None:
    script = str(EXAMPLES / "cluster.sbatch")
    done = subprocess.run(["shellcheck", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_kubernetes_manifest_fits_its_keys(tmp_path: Path) -> None:
    """Sets, services, addresses and the names of keys, as its first lines make them."""
    pytest.importorskip("cryptography")
    text = (EXAMPLES / "cluster.yaml").read_text()
    things = list(yaml.safe_load_all(text))
    sets = {thing["metadata"]["name"]: thing for thing in things if thing["kind"] == "StatefulSet"}
    services = {thing["metadata"]["name"]: thing for thing in things if thing["kind"] == "Service"}
    assert len(things) == len(sets) + len(services) == 4
    pods = []
    for name, each in sets.items():
        pods += [f"{name}-{number}" for number in range(each["spec"]["replicas"])]
        service = services[each["spec"]["serviceName"]]
        labels = each["spec"]["template"]["metadata"]["labels"]
        assert service["spec"]["selector"] == each["spec"]["selector"]["matchLabels"] == labels
        assert service["spec"]["clusterIP"] == "None"
        pod = each["spec"]["template"]["spec"]
        (node,) = pod["containers"]
        parser = argparse.ArgumentParser()
        node_command.add_arguments(parser)
        assert node["command"][:2] == ["fastgar", "node"]
        arguments = parser.parse_args(node["command"][2:])
        mounts = {mount["mountPath"]: mount for mount in node["volumeMounts"]}
        assert set(mounts) == {str(arguments.cluster), str(arguments.key), str(arguments.out)}
        assert mounts[str(arguments.key)]["subPathExpr"] == "$(POD_NAME).pem"
        (keys,) = pod["volumes"]
        assert keys["secret"]["defaultMode"] == 0o400  # else the node refuses its key
    made, secret = re.findall(r"^# +((?:fastgar keys|kubectl create) (?:.*\\\n)*.*)", text, re.M)
    commands = tmp_path / "bin"
    commands.mkdir()
    fake(commands, "fastgar", f'exec {sys.executable} -m fastgar.cli "$@"')
    fake(commands, "kubectl", 'printf "%s\\n" "$@"')
    done = subprocess.run(
        ["bash", "-c", f"{made}\n{secret}".replace("\n#", "\n")], cwd=tmp_path,
        capture_output=True, text=True, check=True, timeout=300,
        env={
            **os.environ, "PYTHONPATH": str(PACKAGE), "PATH": f"{commands}:{os.environ['PATH']}"
        },
    )  # fmt: skip
    given = dict(re.findall(r"^--from-file=(\S+)=(\S+)$", done.stdout, re.M))
    assert sorted(given) == sorted(f"{pod}.pem" for pod in pods)
    nodes = tomllib.loads((tmp_path / "keys" / "cluster.toml").read_text())["nodes"]
    for file, key in given.items():
        assert (tmp_path / key).exists()
        role = file.split("-")[0]
        port = services[role]["spec"]["ports"][0]["port"]
        assert nodes[Path(key).stem]["address"] == f"{file[:-4]}.{role}:{port}"
