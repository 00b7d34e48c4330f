"""How many queries a second the search page's server answers, and how long the slowest of twenty waits.

    make demo
    python benchmarks/serve.py demo_run/index                          # text queries, four visitors at once
    python benchmarks/serve.py demo_run/index --compare demo_run/index_base

The server is a process of its own, `search_clip.py serve`, as a user starts it; the visitors are threads of this one and
take a query each from the captions that the index holds. Printed are queries a second, the median and the 95th
percentile of the time that a query takes, measured at the visitor.
"""

import argparse
import http.client
import json
import re
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from urllib.parse import quote

ROOT = Path(__file__).resolve().parent.parent
WORDS = [
    "red leather ankle boots",
    "blue wool dress",
    "bag",
    "striped shirt with buttons",
    "long dark coat",
    "white sneakers",
]


def main():
    """Start the server, ask for some seconds, print."""
    args = parse_arguments()
    command = [sys.executable, str(ROOT / "search_clip.py"), "serve", args.index, "--port", "0"]
    if args.compare:
        command += ["--compare", args.compare]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            address = next(found[1] for line in server.stdout if (found := re.match(r"http://(\S+)/ ", line)))
            ask(address, 1, args.visitors)  # the first queries allocate
            seconds = ask(address, args.seconds, args.visitors)
        finally:
            server.terminate()
    times = sorted(seconds)
    print(f"{len(times) / args.seconds:.0f} queries a second from {args.visitors} visitors", end="; ")
    print(f"median {1000 * statistics.median(times):.0f} ms, p95 {1000 * times[int(0.95 * len(times))]:.0f} ms")


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("index", help="a folder that search_clip.py index wrote")
    parser.add_argument("--compare", help="another one, asked with every query")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--visitors", type=int, default=4)
    return parser.parse_args()


def ask(address, seconds, visitors):
    """Queries for some seconds -> what each of them took, in seconds."""
    taken, end = [], time.perf_counter() + seconds

    def visit(number):
        connection = http.client.HTTPConnection(address, timeout=30)
        while (begin := time.perf_counter()) < end:
            number += 1
            connection.request("GET", f"/search?q={quote(WORDS[number % len(WORDS)])}&top=20")
            response = connection.getresponse()
            answer = json.loads(response.read())
            if response.status != 200 or not answer["answers"][-1]["results"]:
                raise SystemExit(f"the server answers {response.status}: {answer}")
            taken.append(time.perf_counter() - begin)

    threads = [threading.Thread(target=visit, args=(number,)) for number in range(visitors)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return taken


if __name__ == "__main__":
    main()
