"""What a run will take, as its trial steps foretell it."""

from __future__ import annotations

from dataclasses import dataclass

from triptych.config import Budget
from triptych.training.progress import duration


@dataclass(frozen=True)
class Cost:
    """What a run will take, from a few trial steps."""

    seconds_per_step: float
    seconds_beside: float
    """Of all validations, sample grids and checkpoints, where no clock limits them."""
    memory_bytes: int
    """Of this process at most: on a GPU the GPU's memory."""
    disk_bytes: int
    n_parameters: int
    images_per_step: int
    """Training items of all phases of a step."""

    def steps(self, budget: Budget) -> float:
        """Steps that fit in a budget."""
        if budget.unit == "seconds":
            # Work beside the training takes an eighth of the time at most: see `Trainer._spent`.
            beside = min(self.seconds_beside, budget.amount / 8)
            return max(1.0, (budget.amount - beside) / self.seconds_per_step)
        return budget.amount if budget.unit == "steps" else budget.amount / self.images_per_step

    def seconds(self, budget: Budget) -> float:
        """Wall-clock time of a budget, unless the training ends before it is spent."""
        if budget.unit == "seconds":
            return budget.amount
        return self.steps(budget) * self.seconds_per_step + self.seconds_beside

    def describe(self, budget: Budget) -> str:
        """The estimate for a budget, in a sentence."""
        steps, time = f"{self.steps(budget):,.0f} steps", duration(self.seconds(budget))
        plan = f"about {steps} in {time}" if budget.unit == "seconds" else f"about {time} for {steps}"
        return (
            f"{self.n_parameters:,} parameters; {plan} ({self.seconds_per_step * 1000:.3g} ms a step of"
            f" {self.images_per_step} items), {self.memory_bytes / 2**30:.2g} GiB of memory,"
            f" {self.disk_bytes / 2**20:.3g} MiB on disk"
        )
