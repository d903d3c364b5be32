"""What a file may not do, and what is given files: the base of fuzz targets."""

import logging
import os
import re
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

# Of the processor, and of bytes beyond what was held before.
SECONDS, MEMORY = 10, 2**29


class Failure(BaseException):
    """What is forbidden to a file; no handler of exceptions stops it."""


class Guard:
    """An audit hook that forbids code, writing, programs and sockets while it is on."""

    FORBIDDEN = re.compile(
        r"exec|marshal\.|pickle\.|code\.|ctypes\.|subprocess\.|socket\.|shutil\."
        r"|tempfile\.|urllib\.|ftplib\.|smtplib\.|os\.(system|exec|posix_spawn|spawn"
        r"|fork|remove|rename|mkdir|rmdir|symlink|link|chmod|chown|truncate|utime"
        r"|putenv|kill|startfile)|import"
    )
    OWN = ("sklearn", "sktransfer")
    BUILT = "scipy/stats/_distn_infrastructure.py"
    WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

    def __init__(self):
        self.on, self.seen = False, []
        sys.addaudithook(self)

    def __call__(self, event, arguments):
        if self.on and self.forbids(event, arguments):
            self.on = False
            self.seen.append(f"{event} {arguments!r:.300}\n{self.where()}")
            raise Failure(event)

    def forbids(self, event, arguments) -> bool:
        if event == "open":
            return bool(arguments[2] & self.WRITES)
        if event == "import":
            # What of these is there has been imported before.
            return arguments[0].split(".")[0] not in self.OWN
        if event == "exec" and sys._getframe(2).f_code.co_filename.endswith(self.BUILT):
            # Signatures of distributions, from names that are SciPy's own.
            return False
        return self.FORBIDDEN.match(event) is not None

    def where(self) -> str:
        return "".join(traceback.format_stack(limit=12)[:-2])


class Target:
    """What is given files, and how these are made and changed."""

    # Exceptions that may be raised.
    documented: tuple[type[Exception], ...]
    # Files to begin with, made by `prepare`.
    seeds: list[bytes]

    def __init__(self):
        warnings.simplefilter("ignore")
        logging.disable()
        # On a disk of memory, as every file is written once.
        shared = "/dev/shm" if os.path.isdir("/dev/shm") else None
        self.scratch = Path(tempfile.mkdtemp(prefix="sktransfer-fuzz-", dir=shared))
        self.was_read = False
        self.prepare()
        self.guard = Guard()

    def failure(self, data: bytes) -> str | None:
        """Return what is wrong about what happens with a file, or None."""
        self.was_read, self.guard.seen = False, []
        run = self.prepared(data)
        before, start = reset_peak(), time.process_time()
        problem = None
        try:
            self.guard.on = True
            run()
            self.was_read = True
        except self.documented:
            pass
        except BaseException as error:
            self.guard.on = False
            problem = "".join(traceback.format_exception(error))
        finally:
            self.guard.on = False
        if self.guard.seen:
            return "\n".join(self.guard.seen) + f"\nforbidden {self.guard.seen[0]:.60}"
        if problem:
            return problem
        if (taken := time.process_time() - start) > SECONDS:
            return f"took {taken:.1f} seconds"
        if (more := peak_bytes() - before) > MEMORY:
            return f"took {more // 2**20} MiB"
        return None


def reset_peak() -> int:
    """Have Linux forget this process's peak memory, and return what it holds now."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak_bytes()


def peak_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", status)[1])
