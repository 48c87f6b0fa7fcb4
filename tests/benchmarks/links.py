"""How true emulated links are: round trip and one TCP flow through the packet switch, against the trace.

    python -m tests.benchmarks.links [--quick] [--out FILE]

Two network namespaces, a link of `four_cities` between them, and beside it one held to a window. The
round trip is the median of small datagrams there and back; the rate is what arrives of one TCP flow
in the second half of its life (the first belongs to slow start). Goals, for every link:

    round trip    within 2 % and 1 ms of the trace's
    one flow      0.80 to 1.01 of the trace's bandwidth, or of window / round trip if that is less

The rest of a flow's bandwidth is its packets' headers (3 %) and what congestion control leaves; which
one that is, is the kernel's choice and printed. The switch's processor time is shown in cores. The
last line is JSON; the exit code is 1 if a goal is missed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from scheduler.trace import LinkState
from sim.trace import load
from tests.benchmarks.command import ended
from tests.benchmarks.switched import Space, switched, why_not

TRACE = "four_cities"
WINDOW_BYTES = 1_000_000
RTT_SHARE, RTT_S = 0.02, 0.001
RATE_FROM, RATE_TO = 0.80, 1.01

SERVER = """
import socket, sys, threading, time
echo = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
echo.bind(("0.0.0.0", 7000))
server = socket.create_server(("0.0.0.0", 7000))
def answer():
    while True:
        data, who = echo.recvfrom(100)
        echo.sendto(data, who)
threading.Thread(target=answer, daemon=True).start()
print("listening", flush=True)
s, _ = server.accept()
buffer, got = bytearray(1 << 20), [(time.monotonic(), 0)]
while n := s.recv_into(buffer):
    got.append((time.monotonic(), got[-1][1] + n))
middle = (got[0][0] + got[-1][0]) / 2
at_s, at_bytes = next(g for g in got if g[0] >= middle)
print((got[-1][1] - at_bytes) / (got[-1][0] - at_s))
"""
CLIENT = """
import socket, statistics, sys, time
address, seconds = sys.argv[1], float(sys.argv[2])
rtts = []
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
    s.settimeout(5)
    for i in range(21):
        begin = time.perf_counter()
        s.sendto(b"x" * 32, (address, 7000))
        s.recv(100)
        rtts.append(time.perf_counter() - begin)
with socket.create_connection((address, 7000)) as s:
    data, end = bytes(1 << 18), time.monotonic() + seconds
    while time.monotonic() < end:
        s.sendall(data)
print(statistics.median(rtts))
"""


@dataclass(frozen=True, slots=True)
class Case:
    """A link of the trace, from one place to another, its flows held to a window or not."""

    src: str
    dst: str
    window_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Found:
    rtt_s: float
    rate_Bps: float
    cores: float
    """Processor time of the switch / time of the flow."""


def measure(case: Case, seconds: float) -> Found:
    with switched(TRACE, [case.src, case.dst], "--window-bytes", str(case.window_bytes)) as spaces:
        return flow(spaces, seconds)


def flow(spaces: Sequence[Space], seconds: float) -> Found:
    near, far = spaces
    switch = next(p for p in psutil.Process().children() if "switch" in p.cmdline())
    server = subprocess.Popen([*far.enter, sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        server.stdout.readline()
        before_s = sum(switch.cpu_times()[:2])
        client = [*near.enter, sys.executable, "-c", CLIENT, far.address, str(seconds)]
        rtt_s = float(subprocess.run(client, check=True, capture_output=True, text=True).stdout)
        out, _ = server.communicate(timeout=120)
        used_s = sum(switch.cpu_times()[:2]) - before_s
    finally:
        server.kill()
        server.wait()
    return Found(rtt_s, float(out), used_s / seconds)


def missed_by(case: Case, link: LinkState, found: Found) -> list[str]:
    """What is not as it should be, in words."""
    rtt_s, rate_Bps = expected(case, link)
    share = found.rate_Bps / rate_Bps
    missed = []
    if abs(found.rtt_s - rtt_s) > RTT_SHARE * rtt_s + RTT_S:
        missed.append(f"round trip {found.rtt_s * 1e3:.1f} ms, required {rtt_s * 1e3:.1f} ± 2 % ± 1 ms")
    if not RATE_FROM <= share <= RATE_TO:
        missed.append(f"one flow at {share:.2f} of the link, required {RATE_FROM} to {RATE_TO}")
    return [f"{case.src} -> {case.dst}: {m}" for m in missed]


def expected(case: Case, link: LinkState) -> tuple[float, float]:
    """(round trip in s, rate of one flow in bytes/s)."""
    assert link.rtt_s is not None
    assert link.bandwidth_Bps is not None
    window_Bps = case.window_bytes / link.rtt_s if case.window_bytes else link.bandwidth_Bps
    return link.rtt_s, min(link.bandwidth_Bps, window_Bps)


def benchmark(quick: bool) -> tuple[list[str], bool]:
    cases = [Case("Oregon", "Virginia"), Case("London", "Tokyo"), Case("Oregon", "Tokyo", WINDOW_BYTES)]
    if not quick:
        cases += [Case("Virginia", "London"), Case("Oregon", "London"), Case("Tokyo", "Virginia")]
    seconds = 6.0 if quick else 12.0
    control = Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text().strip()
    trace = load(TRACE)
    lines = [
        f"{TRACE} through the packet switch, MTU 1500, one TCP flow of {seconds:g} s, {control}",
        f"{'link':22}{'window':>9}{'rtt ms':>9}{'found':>9}{'Mbit/s':>9}{'found':>9}{'share':>7}{'cores':>7}",
    ]
    rows, missed = [], []
    for case in cases:
        link = trace.at(0.0, case.src, case.dst)
        rtt_s, rate_Bps = expected(case, link)
        found = measure(case, seconds)
        missed += missed_by(case, link, found)
        share = found.rate_Bps / rate_Bps
        window = f"{case.window_bytes // 1000} kB" if case.window_bytes else "tuned"
        lines.append(
            f"{case.src + ' -> ' + case.dst:22}{window:>9}{rtt_s * 1e3:9.1f}{found.rtt_s * 1e3:9.1f}"
            f"{rate_Bps * 8e-6:9.0f}{found.rate_Bps * 8e-6:9.0f}{share:7.2f}{found.cores:7.2f}"
        )
        rows.append(
            {
                "src": case.src,
                "dst": case.dst,
                "window_bytes": case.window_bytes,
                "rate_share": round(share, 3),
            }
            | {"rtt_ratio": round(found.rtt_s / rtt_s, 4), "cores": round(found.cores, 3)}
        )
    lines += missed or ["all goals reached"]
    lines.append(json.dumps({"benchmark": "links", "passed": not missed, "control": control, "links": rows}))
    return lines, bool(missed)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="three links instead of six, shorter flows")
    parser.add_argument("--out", type=Path, help="also write what is printed to this file")
    options = parser.parse_args(arguments)
    if reason := why_not():
        print(f"not measured: {reason}\n" + json.dumps({"benchmark": "links", "why_not": reason}))
        return 0
    lines, missed = benchmark(options.quick)
    return ended(lines, missed, options.out)


if __name__ == "__main__":
    sys.exit(main())
