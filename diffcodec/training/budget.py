"""A run in a given time, all of it: compiling, training, validation, the quantised model."""

import time
from collections.abc import Callable
from dataclasses import dataclass

REHEARSED_CROPS = (8, 16)  # of the calibration
MARGIN, MARGIN_SECONDS = 0.05, 4.0  # of what is expected after the last step; and its pictures
MOST_MINUTES = 1_000_000  # two years; the number of steps stays one that numbers can hold
REMEMBERED_STEPS = 20  # by which the pace is known


@dataclass
class Budget:
    """The time that is left for steps.

    Attributes:
        end: on the clock, when the last step is to be done.
        step_seconds: what a step takes.
        validation_seconds: what a validation takes.
    """

    end: float
    step_seconds: float
    validation_seconds: float

    def steps_left(self) -> int:
        """How many steps there is time for."""
        return max(0, round((self.end - time.monotonic()) / self.step_seconds))

    def note(self, steps: int, seconds: float) -> None:
        """Note that the latest steps took so long."""
        weight = min(1.0, steps / REMEMBERED_STEPS)
        self.step_seconds += weight * (seconds / steps - self.step_seconds)

    def has_time_to_validate(self) -> bool:
        """Whether some steps would follow a validation."""
        return time.monotonic() + 2 * self.validation_seconds < self.end


def expected_seconds(quantise: Callable[[int], object], crops: int) -> float:
    """What quantising takes, by rehearsals of some crops: a part for each, and one for all.

    Args:
        quantise: by so many crops.
        crops: how many it will be.
    """
    taken = []
    for count in REHEARSED_CROPS:
        begin = time.monotonic()
        quantise(min(count, crops))
        taken.append(time.monotonic() - begin)
    few, more = REHEARSED_CROPS
    for_each = max(0.0, taken[1] - taken[0]) / (more - few)
    return taken[1] + for_each * max(0, crops - more)
