"""Cores, and what a process does with freed memory."""

import os
import platform
import subprocess
import sys

import pytest

from raycap.hardware import KEEP_FREED_BLOCKS, KEEP_FREED_MEMORY, num_cores

# Prints how many pages the system had to map while as much memory was needed and freed again and again.
NEEDED_AGAIN_AND_AGAIN = """
import ctypes, resource, threading
import torch
ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # PR_SET_THP_DISABLE: some systems map many pages at once
{before}
def need(times):
    for _ in range(times):
        [torch.ones({num_bytes} // 4) for _ in range({at_once})]
def count():
    need(10)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    need(10)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
{count}
"""
IN_A_THREAD = "thread = threading.Thread(target=count); thread.start(); thread.join()"
LARGE, SMALL = 2**25, 2**22


def mapped_pages(before="", count="count()", env=None, num_bytes=LARGE, at_once=1):
    code = NEEDED_AGAIN_AND_AGAIN.format(before=before, count=count, num_bytes=num_bytes, at_once=at_once)
    mine = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "LD_PRELOAD"))}
    env = mine | {"CUDA_VISIBLE_DEVICES": ""} | (env or {})
    return int(subprocess.run([sys.executable, "-c", code], env=env, check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="freed memory is kept with glibc only")
def test_memory_that_is_needed_again_is_not_mapped_again():
    pages = 10 * LARGE // os.sysconf("SC_PAGE_SIZE")
    assert mapped_pages() > pages // 2, "it must be mapped again otherwise for this to show anything"
    keep = "from raycap.hardware import keep_freed_memory; keep_freed_memory()"
    assert mapped_pages(before=keep) < pages // 100
    assert mapped_pages(count=IN_A_THREAD, env=KEEP_FREED_MEMORY) < pages // 100


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="freed memory is kept with glibc only")
def test_blocks_that_threads_need_again_are_not_mapped_again():
    pages = 10 * 12 * SMALL // os.sysconf("SC_PAGE_SIZE")
    of_thread = {"count": IN_A_THREAD, "num_bytes": SMALL, "at_once": 12}
    assert mapped_pages(**of_thread) > pages // 10, "they must be mapped again otherwise for this to show anything"
    assert mapped_pages(**of_thread, env=KEEP_FREED_BLOCKS) < pages // 100


@pytest.mark.parametrize(("counted", "cores"), [(3, 3), (None, 1)])
def test_without_affinity_the_machines_cores_are_counted(monkeypatch, counted, cores):
    monkeypatch.setattr(os, "cpu_count", lambda: counted)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert num_cores() == cores
