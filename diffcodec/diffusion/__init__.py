"""The mathematics: forward and reverse process, schedules, plans, bound and losses."""
