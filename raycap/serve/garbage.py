"""When Python looks for garbage in cycles: hundreds of requests in flight are many young objects, hardly any of them
garbage, and by default all are looked at after every 700 that are made."""

import gc

_YOUNG_OBJECTS = 10_000


def collect_seldom() -> None:
    """In a process that answers requests. What is in no cycle, as the pixels and embeddings of an answered request
    are, is freed at once all the same. (Serve's replicas leave the objects of their start alone,
    RAY_SERVE_FREEZE_GC_ON_STARTUP, not those of requests.)"""
    young, *older = gc.get_threshold()
    if young:  # 0: not at all
        gc.set_threshold(max(young, _YOUNG_OBJECTS), *older)
