"""What a bench asks of the processes of its cluster."""

import os
import subprocess
import sys
import time

from kvbench.bed_cluster import cpu_seconds


def test_cpu_seconds() -> None:
    """Of a process that lives, to less than a hundredth of a second; one that has ended is left out."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    before_s = time.process_time()
    spent = cpu_seconds([os.getpid(), ended.pid])
    assert spent.keys() == {os.getpid()}
    assert before_s <= spent[os.getpid()] <= time.process_time()
