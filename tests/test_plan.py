"""Plans: which of their timesteps are shown on the way."""

import math
from itertools import pairwise

import pytest

from diffcodec.diffusion.plan import PLANS, Plan, shipped_plan


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_previews_of_the_shipped_plans(plan: Plan) -> None:
    levels = len(plan.levels)
    for last in range(1, levels + 1):
        previews = plan.previews(last)
        assert previews[0] == levels and previews[-1] == last
        assert list(previews) == sorted(set(previews), reverse=True)


def test_previews_are_evenly_spaced() -> None:
    """However close the levels are, each has about sqrt(2) times the noise of the next."""
    plan = shipped_plan(0.5, *(1.02**i for i in range(300)))
    previews = plan.previews(40)
    noise = [plan.levels[t - 1] for t in previews]
    for above, below in pairwise(noise[1:]):
        assert above / below == pytest.approx(math.sqrt(2), rel=0.01)
