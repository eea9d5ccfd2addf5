"""The architecture holds: imports point one way, and `import triptych` is light."""

import ast
import subprocess
import sys
from pathlib import Path

import triptych

PACKAGE = Path(triptych.__file__).parent

# What each part may import, besides itself and the base that all share.
BASE = {"errors", "spaces", "files", "consoles", "pickles", "parallel", "ranks"}
ALLOWED = {
    "errors": set(),
    "files": set(),
    "consoles": set(),
    "pickles": set(),
    "parallel": set(),
    "ranks": set(),
    "spaces": set(),
    "config": set(),
    "data": set(),
    "objectives": set(),
    "nn": set(),
    "sampling": {"nn", "objectives"},
    "models": {"objectives", "nn", "sampling"},
    "evaluation": {"models", "data", "objectives", "nn"},
    "training": {"evaluation", "models", "data", "config", ""},
    "report": {"evaluation", "data"},
    "drawing": {"sampling", "models", "data"},
    "api": {"drawing", "sampling", "training", "evaluation", "models", "data", "config"},
    "completion": {"api", "drawing", "sampling", "training", "models", "data", "config"},
    "latent_use": {"api", "completion", "drawing", "training", "evaluation", "models", "data", "config"},
    "translation": {"api", "completion", "drawing", "models", "data", "config"},
    "theory": {"data", "nn", "objectives"},
    "exhibits": {"api", "evaluation", "models", "data"},
    "sizing": {"models", "data"},
    "sweeping": {"api", "training", "data", "config"},
    "comparison": {"api", "sizing", "report", "training", "evaluation", "models", "data", "config"},
    "cli": {
        "api",
        "comparison",
        "completion",
        "drawing",
        "exhibits",
        "latent_use",
        "sweeping",
        "theory",
        "translation",
        "sampling",
        "report",
        "evaluation",
        "training",
        "models",
        "data",
        "config",
        "",
    },
    "__main__": {"cli"},
    "": {"api", "comparison", "completion", "data", "latent_use", "sweeping", "translation"},
}


def part_of(module: str) -> str:
    """'triptych.data.idx' -> 'data'; 'triptych' -> ''."""
    return [*module.split("."), ""][1]


def test_imports_point_one_way() -> None:
    wrong = []
    for file in PACKAGE.rglob("*.py"):
        relative = file.relative_to(PACKAGE)
        part = "" if relative == Path("__init__.py") else relative.parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            modules = []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{relative}: write imports absolutely"
                # `from triptych import api` imports a part; `from triptych import __version__` the package.
                names = [alias.name for alias in node.names]
                is_root = node.module == "triptych"
                modules = [f"triptych.{n}" if is_root and n in ALLOWED else str(node.module) for n in names]
            for module in modules:
                target = part_of(module)
                if module.split(".")[0] == "triptych" and target not in ALLOWED[part] | BASE | {part}:
                    wrong.append(f"{relative} imports {module}")
    assert not wrong, "\n".join(wrong)


def test_importing_triptych_and_the_command_line_is_light() -> None:
    code = "import sys, triptych, triptych.cli; print(*{'torch', 'numpy', 'sklearn', 'matplotlib'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == ""


def test_public_names_exist() -> None:
    for name in triptych.__all__:
        assert getattr(triptych, name) is not None
    assert set(triptych.__all__) <= set(dir(triptych))
