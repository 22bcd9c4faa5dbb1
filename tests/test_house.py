"""The house's law: which room may import which, and what no room may do. It is read from the source."""

from __future__ import annotations

import ast
import gc
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import pytest

import contextengine

HOUSE = Path(contextengine.__file__).parent

EVERYTHING = {"*"}
MAY_IMPORT = {
    # the pure core
    "schemas": set(),
    "delivery": {"schemas"},
    "engine": {"schemas", "delivery"},
    # around it
    "monitoring": {"schemas"},
    "topics": {"schemas", "settings", "post"},
    "tables": {"schemas"},
    "agents": {"engine", "delivery", "tables", "topics", "monitoring", "schemas"},
    "adapters": {"delivery", "topics", "monitoring", "schemas"},
    "streaming": {"engine", "adapters", "topics", "schemas"},
    "testing": {"engine", "delivery", "adapters", "topics", "schemas", "yamlfile"},
    "replay": {"engine", "delivery", "topics", "schemas", "rulefile"},
    # where the rooms meet
    "app": EVERYTHING,
    "cli": EVERYTHING,
    "demo": EVERYTHING,
    "plugins": EVERYTHING,
    "rulefile": EVERYTHING,
    "rules_schema": EVERYTHING,
    "__main__": EVERYTHING,
    # small things
    "broker": {"settings"},
    "settings": {"oauth"},
    "oauth": {"post"},
    "post": set(),
    "yamlfile": set(),
    "errors": set(),
    "__init__": set(),
}
PURE = {"schemas", "delivery", "engine"}
OPEN_TO_ALL = {"errors"}
OPEN_TO_ALL_BUT_THE_PURE = {"settings"}

MAY_IMPORT_FAUST = {"app", "tables", "agents"}
LIBRARIES_OF_THE_PURE = {
    "schemas": {"msgspec", "fastavro", "aiokafka.record.util.decode_varint"},
    "delivery": set(),
    "engine": {
        *("msgspec", "jinja2", "cel_expr_python", "cronsim", "zoneinfo.ZoneInfo"),
        *("datetime.datetime", "datetime.UTC", "datetime.timedelta"),
    },
}
IMPURE = {  # I/O, clocks, chance and concurrency
    *("asyncio", "concurrent", "multiprocessing", "selectors", "signal", "socket", "ssl", "subprocess", "threading"),
    *("datetime", "random", "secrets", "time", "zoneinfo"),
    *("logging", "os", "shutil", "tempfile", "urllib", "warnings"),
}
IMPURE_CALLS = {"open", "print", "input", "uuid1", "uuid4", "monotonic", "perf_counter", "urandom", "getenv"} | {
    *("now", "utcnow", "today"),
}

MAY_NAME_A_PROVIDER = {"adapters", "settings", "cli", "demo"}
A_PROVIDER = re.compile(r"openai|anthropic|claude|gemini|google", re.IGNORECASE)

MODULES = sorted(HOUSE.rglob("*.py"))


@pytest.fixture(autouse=True, scope="module")
def _no_garbage() -> None:
    """Nothing of earlier tests is left that Python 3.11 would log, with `ast`, in the middle of `ast.parse`.

    It raises SystemError then (python/cpython#106905).
    """
    gc.collect()


def room_of(path: Path) -> str:
    """The room (or single module) that this file belongs to."""
    return path.relative_to(HOUSE).parts[0].removesuffix(".py")


def name_of(path: Path) -> str:
    """The module's dotted name."""
    parts = path.relative_to(HOUSE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def at(path: Path, line: int) -> str:
    """A place in the source, for a message."""
    return f"{path.relative_to(HOUSE.parent)}:{line}"


@cache
def tree_of(path: Path) -> ast.Module:
    """The module's syntax."""
    return ast.parse(path.read_text())


def modules_of(rooms: Iterable[str]) -> list[Path]:
    """The files of these rooms."""
    return [path for path in MODULES if room_of(path) in rooms]


def imports_of(path: Path) -> Iterator[tuple[int, str]]:
    """Every import in the file, also inside functions and for type checking: the line and the dotted name."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{at(path, node.lineno)}: imports are written in full"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def library_of(name: str) -> str:
    """The first part of a dotted name."""
    return name.partition(".")[0]


def rooms_in(path: Path) -> Iterator[tuple[int, str]]:
    """The rooms of ours that the file imports from."""
    for line, name in imports_of(path):
        room = name.split(".")[1] if name.startswith("contextengine.") else ""
        if room and ((HOUSE / room).is_dir() or (HOUSE / f"{room}.py").is_file()):
            yield line, room


def test_every_room_has_a_line_in_the_table():
    assert {room_of(path) for path in MODULES} <= MAY_IMPORT.keys()


def test_a_room_imports_only_from_the_rooms_that_it_may_see():
    broken = [
        f"{at(path, line)}: {room_of(path)} may not import {other}"
        for path in MODULES
        for line, other in rooms_in(path)
        if MAY_IMPORT[room_of(path)] != EVERYTHING
        and other not in MAY_IMPORT[room_of(path)] | {room_of(path)} | OPEN_TO_ALL
        and not (other in OPEN_TO_ALL_BUT_THE_PURE and room_of(path) not in PURE)
    ]
    assert broken == []


def test_only_app_tables_and_agents_import_faust():
    """A VoiceEngine and the consumers never load it."""
    importers = {
        room_of(path) for path in MODULES for _, name in imports_of(path) if library_of(name) in ("faust", "mode")
    }
    assert importers <= MAY_IMPORT_FAUST


def test_the_pure_rooms_import_no_io_no_clock_no_chance_and_few_libraries():
    broken = [
        f"{at(path, line)}: {name}"
        for path in modules_of(PURE)
        for line, name in imports_of(path)
        if {name, library_of(name)}.isdisjoint(
            (sys.stdlib_module_names - IMPURE) | {"contextengine"} | LIBRARIES_OF_THE_PURE[room_of(path)]
        )
    ]
    assert broken == []


def test_the_pure_rooms_call_nothing_that_reads_the_world():
    calls = [
        (path, node.func) for path in modules_of(PURE) for node in ast.walk(tree_of(path)) if isinstance(node, ast.Call)
    ]
    broken = [
        at(path, called.lineno)
        for path, called in calls
        if (called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")) in IMPURE_CALLS
    ]
    assert broken == []


def test_a_provider_is_named_in_adapters_and_where_one_is_chosen_and_nowhere_else():
    """Prose may name one as an example; code may not."""
    broken = []
    for path in modules_of(MAY_IMPORT.keys() - MAY_NAME_A_PROVIDER):
        prose = {id(node.value) for node in ast.walk(tree_of(path)) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree_of(path)):
            told = [getattr(node, field, None) for field in ("id", "attr", "arg", "name", "module", "value", "asname")]
            if id(node) not in prose and any(isinstance(word, str) and A_PROVIDER.search(word) for word in told):
                broken.append(at(path, getattr(node, "lineno", 0)))
    assert broken == []


def test_every_module_says_what_it_is_for():
    """Its docstring is what a reader sees first; an `__init__` that holds nothing needs none."""
    silent = [path for path in MODULES if tree_of(path).body and not ast.get_docstring(tree_of(path))]
    assert silent == []


WATCH = """
import sys
STARTS = {"socket.__new__", "socket.bind", "socket.connect", "_thread.start_new_thread", "subprocess.Popen", "os.fork"}
before, *modules = sys.argv[1:]
if before:
    __import__(before)
started = []
sys.addaudithook(lambda event, arguments: event in STARTS and started.append((event, module)))
for module in modules:
    __import__(module)
print(started)
print("faust" in sys.modules)
"""


def watched(modules: list[Path], before: str = "") -> list[str]:
    """What a process of its own says of importing these modules, and `before` them another one, unwatched."""
    names = [name_of(path) for path in modules]
    imported = subprocess.run(
        [sys.executable, "-c", WATCH, before, *names], capture_output=True, text=True, check=False
    )
    assert imported.returncode == 0, imported.stderr
    return imported.stdout.splitlines()


def test_whoever_imports_no_room_of_fausts_does_not_load_it():
    assert watched(modules_of(MAY_IMPORT.keys() - MAY_IMPORT_FAUST - {"cli", "demo", "__main__"}))[-1] == "False"


def test_importing_a_module_starts_no_thread_no_process_no_event_loop_and_opens_no_socket():
    """Faust itself is not watched: a library of its asks the program `file` about the interpreter."""
    assert watched(modules_of(MAY_IMPORT.keys() - {"__main__"}), before="faust.app.base")[0] == "[]"
