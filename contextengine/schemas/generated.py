"""A function that is written by a program: its text, line by line, and the names that the text uses."""

from __future__ import annotations

from typing import Any


class Function:
    """Gathers the text of a function; whoever writes it derives from this. `names` are what it may use besides."""

    def __init__(self, **names: Any) -> None:
        self._lines: list[str] = []
        self._names = names
        self._variables = 0

    def made(self, head: str, result: str, told: str) -> Any:
        """The function: `head` is its name and parameters, `result` an expression, `told` its file in a traceback."""
        source = "\n".join([f"def {head}:", *self._lines, f" return {result}"])
        exec(compile(source, f"<{told}>", "exec"), self._names)  # noqa: S102  the text is ours
        return self._names[head.partition("(")[0]]

    def _write(self, indent: str, *lines: str) -> None:
        self._lines += [indent + line for line in lines]

    def _variable(self) -> str:
        self._variables += 1
        return f"_{self._variables}"

    def _constant(self, value: object) -> str:
        """The name of a value in the text."""
        name = f"_constant{len(self._names)}"
        self._names[name] = value
        return name
