"""How many replicas a stage needs: by the work that waits for the stage itself.

A caption is pulled through the stages, so a request is in the decoder while the encoder works on it. Counted by
requests alone, as Serve does, a slow encoder would have all stages scaled up with it.

Serve's controller runs this with nothing but Ray at hand: no import from this package may stand here.
"""

import math
from typing import Any

from ray.serve.config import AutoscalingContext

OWN_WORK = "own_work"
"""Key in a replica's ``record_autoscaling_stats``: images that are computed there or wait for it."""

_MARGIN = 0.3
"""A load that far above what the replicas are for is still theirs; one that far below is not yet too little."""


def by_own_work(context: AutoscalingContext) -> tuple[float, dict[str, Any]]:
    """Serve's policy function: the requests' usual count, times how much work of its own a request in a replica is:
    less than one image where it waits for another stage, more where it brings several.

    Requests that queue at the callers count by the same measure: where replicas are full of requests that wait for
    another stage, those behind them would too. A deployment that records no stats is scaled by all its requests.
    Serve itself applies the delays and the bounds.

    Returns:
        replicas, and no state.
    """
    target, config = context.target_num_replicas, context.config
    if config is None or context.current_num_replicas == 0:
        return target, {}
    work = (context.aggregated_metrics or {}).get(OWN_WORK, {})
    running = context.total_running_requests
    work_of_each = sum(work.values()) / running if work and running else 1.0
    wanted = context.total_num_requests * work_of_each / config.get_target_ongoing_requests()
    if wanted > target * (1 + _MARGIN):
        return math.ceil(wanted), {}
    # At least one, whatever the margin makes of nothing.
    fewer = max(1, math.ceil(wanted * (1 + _MARGIN)))
    return min(target, fewer), {}
