"""What there is to say about a parameter file, line by line."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Finding:
    """An ``"error"`` (the run would fail, or not do what is asked for) or a ``"warning"`` at a line; 0 for none."""

    level: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{f'line {self.line}: ' if self.line else ''}{self.level}: {self.text}"


@dataclass
class Findings:
    """A growing list of findings."""

    items: list[Finding] = field(default_factory=list)

    def add(self, level: str, line: int, text: str) -> None:
        """Add one."""
        self.items.append(Finding(level, line, text))

    def error(self, line: int, text: str) -> None:
        """Add an error."""
        self.add("error", line, text)

    def warning(self, line: int, text: str) -> None:
        """Add a warning."""
        self.add("warning", line, text)

    def sorted(self) -> tuple[Finding, ...]:
        """All in the order of lines."""
        return tuple(sorted(self.items, key=lambda f: f.line))
