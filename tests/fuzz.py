"""Coverage-guided fuzzing by atheris (libFuzzer), of the targets in ``targets.py``.

    python tests/fuzz.py --seconds 7200 --out runs/fuzz            all targets, one after another
    python tests/fuzz.py --seconds 600 --out runs/fuzz decode      some of them

Of each the corpus is kept in OUT and gone on with the next time; inputs that raise anything but a
``DiffcodecError`` land in OUT/findings with what they raised, one of each kind. Prints the counts
at the end; ``--count`` those so far. Seconds are of the processor: other work beside it only makes
it take longer.
"""

import argparse
import hashlib
import math
import os
import random
import re
import resource
import signal
import subprocess
import sys
import time
import traceback
import warnings
from pathlib import Path

SHARES = {"parse": 1, "decode": 4, "model": 2, "archive": 2}  # of the time
INPUT_SECONDS, INPUT_MIB = 20, 3000  # an input that takes longer or more is a finding
HANGING_SECONDS = 1200  # of the clock, which other work on the machine slows
STATUS = re.compile(r"#(\d+)\s.*cov: (\d+) ft: \d+ corp: (\d+)/")
FINAL = re.compile(r"stat::number_of_executed_units: (\d+)")
RUN = re.compile(r"^BEGIN (\d+)$|^END (\d+) (\d+)$", re.MULTILINE)


def fuzz(name: str, seconds: int, out: Path) -> None:
    """One target in this process, which libFuzzer ends."""
    import atheris
    import torch

    with atheris.instrument_imports(include=["diffcodec"]):
        from targets import TARGETS

        from diffcodec.errors import DiffcodecError
        from diffcodec.system.memory import keep_freed_memory

    torch.set_num_threads(1)
    warnings.simplefilter("error")
    target, seeds, mutated = TARGETS[name]
    corpus, findings = out / name, out / "findings"
    for folder in (corpus, findings):
        folder.mkdir(parents=True, exist_ok=True)
    end = time.process_time() + seconds
    seen = {path.stem for path in findings.iterdir()}
    for seed in seeds():
        (corpus / hashlib.sha256(seed).hexdigest()[:16]).write_bytes(seed)

    def run(data: bytes) -> None:
        start = time.process_time()
        if start > end:
            os.kill(os.getpid(), signal.SIGINT)
        try:
            target(data)
            if time.process_time() - start > INPUT_SECONDS:
                raise TimeoutError
        except KeyboardInterrupt:
            raise
        except BaseException as e:  # constriction's panics are none of Exception
            kind = f"{name}-{type(e).__name__}-{place(e)}"
            if kind not in seen:
                seen.add(kind)
                (findings / f"{kind}.bin").write_bytes(data)
                (findings / f"{kind}.txt").write_text("".join(traceback.format_exception(e)))

    def mutator(data: bytes, max_size: int, seed: int) -> bytes:
        try:
            new = mutated(data, random.Random(seed), lambda part: atheris.Mutate(part, max_size))
        except (DiffcodecError, ValueError, OverflowError):
            new = atheris.Mutate(data, max_size)
        return new[:max_size]

    options = {
        "max_len": 1 << 16,
        "timeout": HANGING_SECONDS,
        "report_slow_units": HANGING_SECONDS,
        "rss_limit_mb": INPUT_MIB,
        "print_final_stats": 1,
        "artifact_prefix": f"{findings}/{name}-",
    }
    arguments = [f"-{key}={value}" for key, value in options.items()]
    keep_freed_memory()
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # libFuzzer's own then says what it has done
    atheris.Setup([sys.argv[0], *arguments, str(corpus)], run, custom_mutator=mutator)
    atheris.Fuzz()


def place(error: BaseException) -> str:
    """The innermost line of ours, as part of a file name."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if "diffcodec" in f.filename or "tests" in f.filename]
    return f"{Path(ours[-1].filename).stem}-{ours[-1].name}-{ours[-1].lineno}"


def counts(out: Path) -> str:
    """What the logs say, of all runs together; of a run that is not over no processor time."""
    lines = ["target    seconds  processor's  executions  edges  corpus  findings"]
    for name in SHARES:
        log = out / f"{name}.log"
        if not log.is_file():
            continue
        seconds = processor = executions = edges = corpus = 0
        for part in re.split("^(?=BEGIN )", log.read_text(errors="replace"), flags=re.MULTILINE):
            for run, edges_, corpus_ in STATUS.findall(part)[-1:]:
                executions += max(int(run), *map(int, FINAL.findall(part) or [0]))
                edges, corpus = int(edges_), int(corpus_)
            times = RUN.findall(part)
            if times:
                end, used = times[1][1:] if len(times) > 1 else (time.time(), 0)
                seconds += int(end) - int(times[0][0])
                processor += int(used)
        found = len({path.stem for path in (out / "findings").glob(f"{name}-*")})
        numbers = (seconds, processor, executions, edges, corpus, found)
        widths = (9, 11, 10, 5, 6, 8)
        cells = (f"{number:{width}}" for number, width in zip(numbers, widths, strict=True))
        lines.append(f"{name:7} " + "  ".join(cells))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("targets", nargs="*", help=f"of {', '.join(SHARES)}; all by default")
    parser.add_argument("--seconds", type=int, default=7200, help="for all targets together")
    parser.add_argument("--out", type=Path, default=Path("runs/fuzz"))
    parser.add_argument("--count", action="store_true", help="print the counts so far")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    names = options.targets or list(SHARES)
    if options.inside:
        fuzz(names[0], options.seconds, options.out)
        return
    options.out.mkdir(parents=True, exist_ok=True)
    if not options.count:
        for name in names:
            run(name, options.seconds * SHARES[name] // sum(SHARES[n] for n in names), options.out)
    print(counts(options.out))
    sys.exit(any((options.out / "findings").glob("*")))


def run(name: str, seconds: int, out: Path) -> None:
    """One target for so long, whatever ends its process."""
    left = seconds
    with (out / f"{name}.log").open("a") as log:
        while left > 0:
            print(f"BEGIN {int(time.time())}", file=log, flush=True)
            arguments = ["--inside", name, "--seconds", str(left), "--out", str(out)]
            command = [sys.executable, __file__, *arguments]
            before = processor_seconds()
            code = subprocess.run(command, stdout=log, stderr=log, check=False).returncode
            used = math.ceil(processor_seconds() - before)
            left -= used
            print(f"\nEND {int(time.time())} {used}", file=log, flush=True)
            if code == 1:  # of Python, not of libFuzzer: it would fail again
                sys.exit(f"{name}: see {log.name}")


def processor_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()
