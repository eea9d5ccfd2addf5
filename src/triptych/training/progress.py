"""What a person sees while a model trains: a live bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn

from triptych.errors import printable

LINES = 5  # Lines printed over a run where the output is no terminal.


def duration(seconds: float) -> str:
    """`42 s`, `3 min 20 s`, `2 h 05 min`."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"


class TrainingProgress:
    """The progress of one run.

    Arguments:
        title: What is being trained.
        console: Where to write; None for nowhere.
        progress: Share of the budget used at the start (of a resumed run).
    """

    def __init__(self, title: str, console: Console | None, progress: float = 0.0) -> None:
        self.title, self.console = printable(title), console
        self.start_time, self.start_progress = time.perf_counter(), progress
        self.printed = progress
        self.bar: Progress | None = None
        if console is not None and console.is_terminal:
            self.bar = Progress(
                TextColumn("[bold]{task.description}"),
                BarColumn(20),
                TextColumn("{task.percentage:>3.0f}%"),
                TextColumn("{task.fields[left]} left"),
                TextColumn("[dim]{task.fields[losses]}"),
                console=console,
            )
            self.task = self.bar.add_task(escape(self.title), total=1.0, left="?", losses="")

    def __enter__(self) -> TrainingProgress:
        if self.bar:
            self.bar.start()
            self.bar.update(self.task, completed=self.start_progress)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar:
            self.bar.stop()

    def update(self, progress: float, steps: int, terms: dict[str, float]) -> None:
        """Shows the share of the budget used, the steps done and the latest losses."""
        if self.console is None:
            return
        used = max(progress - self.start_progress, 1e-9)
        left = duration((time.perf_counter() - self.start_time) * max(0.0, 1 - progress) / used)
        losses = "  ".join(f"{name.rsplit('/', 1)[-1]} {value:.4g}" for name, value in terms.items())
        if self.bar:
            self.bar.update(self.task, completed=min(progress, 1.0), left=left, losses=f"step {steps}  {losses}")
        elif progress - self.printed >= 1 / LINES:
            self.printed = progress
            self.console.print(
                f"{self.title}: {min(progress, 1):.0%}, {left} left, step {steps}, {losses}",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )
