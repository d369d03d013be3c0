"""Ends a process as a power cut would."""

from __future__ import annotations

import signal
import subprocess
from typing import List, Optional, Sequence


def run_until(command: Sequence, moment: Optional[str]) -> List[str]:
    """Run a script, kill it with signal 9 when it has printed a line, and return what it
    printed; None lets it end."""
    lines = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            lines.append(line.strip())
            if lines[-1] == moment:
                process.send_signal(signal.SIGKILL)
                break
    return lines
