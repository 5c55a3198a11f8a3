"""Imports point one way: launch -> actors -> rlaif, and each engine has one door."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = {folder: sorted((ROOT / folder).rglob("*.py")) for folder in ("rlaif", "actors", "launch")}
ENGINES = ("ray", "vllm", "deepspeed")


def imported(path):
    """Top-level names of everything a file imports, also inside functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} must import by whole names"
            names.add(node.module.partition(".")[0])
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in (
                "import_module", "__import__"):
            raise AssertionError(f"{path} must import by statement, got a call in line {node.lineno}")
    return names


def importers(folder, name):
    return [path.relative_to(ROOT).as_posix() for path in FILES[folder] if name in imported(path)]


def test_all_three_layers_are_looked_at():
    assert len(FILES["rlaif"]) > 25 and len(FILES["actors"]) > 10 and len(FILES["launch"]) >= 3


@pytest.mark.parametrize("name", [*ENGINES, "actors", "launch"])
def test_the_pure_core_imports_neither_an_engine_nor_a_layer_above(name):
    assert importers("rlaif", name) == []


def test_actors_import_nothing_of_launch():
    assert importers("actors", "launch") == []


@pytest.mark.parametrize(("name", "door"), [
    # The others run in vLLM's own worker processes.
    ("vllm", ["actors/engines/engine.py", "actors/engines/engine_worker.py", "actors/engines/gpu_worker.py"]),
    # The second writes down what the first holds.
    ("deepspeed", ["actors/learners/zero.py", "actors/learners/zero_state.py"]),
])
def test_an_engine_has_one_door(name, door):
    assert importers("actors", name) == door
    assert importers("launch", name) == []


@pytest.mark.parametrize("door", ["engines.engine", "engines.engine_worker", "learners.zero"])
def test_a_door_is_opened_inside_the_actors_only(door):
    """Neither engine is imported by the driver: its modules name the doors inside functions only."""
    for path in (*FILES["actors"], *FILES["launch"]):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = {node.module for node in tree.body if isinstance(node, ast.ImportFrom)}
        if path.stem == door.partition(".")[2].partition("_")[0]:
            continue        # one leaf of a door names the other
        assert f"actors.{door}" not in names, path


def test_nothing_is_decided_by_a_clock_that_may_jump():
    """Limits and beats are measured by monotonic clocks; the one date that is read is a server's, and it is bounded."""
    asking = [path.relative_to(ROOT).as_posix() for folder in FILES for path in FILES[folder]
              for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
              if isinstance(node, ast.Attribute) and (
                  ast.unparse(node) == "time.time" or node.attr in ("now", "utcnow", "today"))
              and not ast.unparse(node).startswith("self.")]
    assert asking == ["actors/judging/explanation_server.py"]
