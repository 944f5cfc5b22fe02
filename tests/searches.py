"""Settings of searches with Hypothesis."""

from __future__ import annotations

from hypothesis import HealthCheck, Phase, settings

# The same draws every time, and a failure that is shrunk and shown once. Long searches draw anew
# each time, unless `--hypothesis-seed` is given.
ONCE = settings(
    deadline=None,
    derandomize=True,
    database=None,
    report_multiple_bugs=False,
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)
ANEW = settings(ONCE, derandomize=False)
