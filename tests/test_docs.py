"""The documentation is true: its commands parse and run, its examples work, its tables agree with the code."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_contract

import triptych
from triptych import cli
from triptych.cli.words import parse_settings
from triptych.config import Budget
from triptych.data.dataset import Dataset
from triptych.errors import InputError
from triptych.models import registry

ROOT = Path(__file__).parent.parent
READMES = ("README.md", "README.zh-CN.md")
TINY = "3steps"


def blocks(file: str, *languages: str) -> list[str]:
    """The code blocks of a Markdown file, in order."""
    text = (ROOT / file).read_text(encoding="utf-8")
    return [code for language, code in re.findall(r"^```(\w+)\n(.*?)^```$", text, re.M | re.S) if language in languages]


def commands(file: str) -> list[str]:
    """All command lines of a Markdown file, comments left out."""
    lines = "".join(blocks(file, "bash", "console")).splitlines()
    return [line.removeprefix("$ ") for line in lines if line and not line.startswith("#")]


def triptych_commands(file: str) -> list[list[str]]:
    """The arguments of the file's `triptych` commands."""
    return [shlex.split(line)[1:] for line in commands(file) if line.startswith("triptych ")]


def shortened(arguments: list[str]) -> list[str]:
    """A command with the smallest of budgets."""
    return [TINY if before == "--budget" else word for before, word in zip(["", *arguments], arguments, strict=False)]


def demo_command() -> list[str]:
    """The arguments of what `make demo` runs."""
    match = re.search(r"^demo:.*\n\t\.venv/bin/triptych (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    assert match
    return shlex.split(match[1])


class TestReadme:
    @pytest.mark.parametrize("arguments", triptych_commands("README.md"), ids=" ".join)
    def test_commands_parse(self, arguments: list[str]) -> None:
        verb = cli.parse(arguments)
        if isinstance(verb, cli.Fit | cli.Compare):
            Budget.parse(verb.train.budget)
            parse_settings(verb.settings)
        names = [verb.model] if isinstance(verb, cli.Fit | cli.Models) and verb.model else []
        names += verb.names or [] if isinstance(verb, cli.Compare) else []
        assert set(names) <= set(registry.find_models())

    def test_every_verb_is_shown(self) -> None:
        assert {arguments[0] for arguments in triptych_commands("README.md")} == set(cli.VERBS)

    def test_every_model_is_named(self) -> None:
        for file in READMES:
            text = (ROOT / file).read_text(encoding="utf-8")
            assert not [name for name in registry.find_models() if f"`{name}`" not in text]

    def test_make_targets_exist(self) -> None:
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        for file in (*READMES, "CONTRIBUTING.md"):
            for target in re.findall(r"\bmake ([a-z-]+)", "\n".join(commands(file))):
                assert re.search(rf"^{target}:", makefile, re.M), target

    def test_both_languages_have_the_same_commands_and_code(self) -> None:
        english, chinese = (commands(file) for file in READMES)
        assert english == chinese
        english, chinese = ([ast.dump(ast.parse(code)) for code in blocks(file, "python")] for file in READMES)
        assert english == chinese

    def test_the_python_example_runs(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        (code,) = blocks("README.md", "python")
        code, n_budgets = re.subn(r'budget="\w+"', f'budget="{TINY}", verbose=False', code)
        assert n_budgets == 1
        names: dict[str, Any] = {}
        exec(compile(code, "README.md", "exec"), names)
        data, model, images, likelihood = (names[name] for name in ("data", "model", "images", "likelihood"))
        assert isinstance(images, np.ndarray)
        assert images.shape == (16, 1, 8, 8)
        assert likelihood.kind == "exact"
        assert len(likelihood.nats) == len(data.test)
        assert type(names["again"]) is type(model)

    @pytest.mark.slow
    def test_the_commands_run_one_after_the_other(self, tmp_path: Path) -> None:
        home = {**os.environ, "PYTHONPATH": "", "COLUMNS": "120"}
        shared = {"torchrun": ["-m", "torch.distributed.run"], "triptych": ["-m", "triptych"]}
        lines = [shlex.split(line) for line in commands("README.md") if line.split()[0] in shared]
        for program, *arguments in [["triptych", *demo_command()], *lines]:
            command = [sys.executable, *shared[program], *shortened(arguments)]
            done = subprocess.run(command, cwd=tmp_path, env=home, capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{shlex.join(arguments)}\n{done.stderr}"
        for made in (
            "runs/compare-digits/report.html",
            "runs/vae-digits/summary.json",
            "samples.png",
            "scores.csv",
            "runs/compare-moons/table.csv",
            "sevens.png",
            "runs/compare-drawn/report.html",
            "runs/finer/summary.json",
            "shared.npz",
        ):
            assert (tmp_path / made).is_file(), made


FACTORIAL = "factorial"


@pytest.fixture
def factorial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The example of CONTRIBUTING, as if its file lay in the folder that the text says."""
    (code,) = blocks("CONTRIBUTING.md", "python")
    folder = tmp_path / "models"
    for panel in registry.PANELS:
        (folder / panel).mkdir(parents=True)
    file = folder / "tractable" / f"{FACTORIAL}.py"
    file.write_text(code, encoding="utf-8")
    found = {**registry.find_models(), **registry.find_models(folder)}
    name = f"triptych.models.tractable.{FACTORIAL}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(registry, "find_models", lambda: found)
    monkeypatch.setattr(test_contract, "MODELS", found)
    registry.model_class.cache_clear()
    yield FACTORIAL
    registry.model_class.cache_clear()


class TestContributing:
    def test_the_example_keeps_the_contract(self, factorial: str, tmp_path: Path) -> None:
        checks = inspect.getmembers(test_contract.TestEveryModel(), inspect.ismethod)
        n_spaces = 0
        for space in test_contract.SPACES.values():
            for n_classes in (0, 3):
                try:
                    registry.create_model(factorial, space, n_classes=n_classes)
                except InputError:
                    continue
                n_spaces += n_classes == 0
                for name, check in checks:
                    assert name.startswith("test_")
                    extra = {"tmp_path": tmp_path} if "tmp_path" in inspect.signature(check).parameters else {}
                    check(factorial, space, n_classes, **extra)
        assert n_spaces == 4, "all images, and no points"

    def test_the_example_trains_with_its_option(self, factorial: str, tmp_path: Path, tiny: Dataset) -> None:
        settings = {"budget": "40steps", "validations": 1, "batch_size": 32, "verbose": False}
        model = triptych.fit(factorial, tiny, out=tmp_path / "run", weight_decay=0.01, **settings)
        uniform = triptych.create_model(factorial, tiny.space)
        nats = [triptych.score(m, tiny.test).nats.mean() for m in (model, uniform)]
        assert nats[0] > nats[1] + 1
        assert triptych.load(tmp_path / "run").weight_decay == 0.01
        with pytest.raises(InputError, match="weight_decay"):
            triptych.create_model(factorial, tiny.space, weight_decay=-1.0)

    def test_the_example_is_in_the_style_of_the_project(self, factorial: str) -> None:
        source = Path(sys.modules[f"triptych.models.tractable.{factorial}"].__file__ or "")
        for arguments in (["check"], ["format", "--check"]):
            command = [sys.executable, "-m", "ruff", *arguments, "--no-cache", "--config", str(ROOT / "pyproject.toml")]
            done = subprocess.run([*command, str(source)], capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout + done.stderr


def test_the_options_of_models_are_those_of_the_code() -> None:
    text = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^## `(\w+)`\n(.*?)(?=^## |\Z)", text, re.M | re.S))
    assert set(sections) == set(registry.find_models())
    for name, section in sections.items():
        told = dict(re.findall(r"^\| `(\w+)` \| `([^`]+)` \|", section, re.M))
        assert told == {option: repr(default) for option, (_, default) in registry.model_options(name).items()}, name


def test_the_public_names_are_documented() -> None:
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert not [name for name in triptych.__all__ if not re.search(rf":: triptych\.{name}$", text, re.M)]


def files_of_the_project() -> list[Path]:
    """All text files, generated ones left out."""
    generated = {"_build", "build", "dist", "runs", "shared", "__pycache__"}
    found = []
    for folder, subfolders, names in os.walk(ROOT):
        subfolders[:] = [
            name
            for name in subfolders
            if name not in generated and not name.endswith(".egg-info") and (not name.startswith(".") or name == ".ci")
        ]
        found += [Path(folder, name) for name in names if not name.endswith((".png", ".gz", ".npz", ".pyc"))]
    return found


def test_no_file_names_a_place_of_one_machine_or_a_registry() -> None:
    folders = "|".join(["work", "root", "tmp", "home", "Users"])
    hosts = [
        "py" + "pi",
        "python" + "hosted",
        "download.py" + "torch",
        "ana" + "conda",
        "npm" + "js",
        "hugging" + "face.co",
    ]
    pattern = re.compile(rf"(?<![\w.\])}}>])/(?:{folders})/|" + "|".join(map(re.escape, hosts)), re.I)
    wrong = []
    for file in files_of_the_project():
        for number, line in enumerate(file.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
            if pattern.search(line):
                wrong.append(f"{file.relative_to(ROOT)}:{number}: {line.strip()[:80]}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("file", [*READMES, "CONTRIBUTING.md", "CHANGELOG.md", "RESULTS.md"])
def test_links_lead_somewhere(file: str) -> None:
    text = re.sub(r"^```.*?^```$", "", (ROOT / file).read_text(encoding="utf-8"), flags=re.M | re.S)
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", text)
    assert not [target for target in targets if not (ROOT / target).exists()]


@pytest.mark.slow
def test_the_pages_build_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sphinx", "-W", "-q", "-b", "html", str(ROOT / "docs"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "api.html").is_file()
