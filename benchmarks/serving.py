"""What a served teacher costs beside a forward of the same rows in this process.

    python benchmarks/serving.py
    python benchmarks/serving.py --model runs/demo/model --clients 1 8 32 --tokens 320 --shared 256 --requests 32

A server of `opd-trl serve-teacher` with its default limits, and clients that ask for hidden states, each again as soon
as it has its answer: threads of this process, with the code that a training uses. A round is a number of plain
forwards here, of the rows of one request each, and then as many requests there, so that the noise of the machine is
in both. Ratios are those of a round: of seconds, and of the processor's seconds that the forwards here and the server
took, which other work on the machine changes less. Tokens are those that are sent, so that what the server does not
compute twice counts. A client that is refused (HTTP 503) waits for a second, as the server asks. The overhead of one
client is the median over pairs of a forward and a request that follow each other.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import psutil
import torch
from measure import QUIET, conditions, write_json

from opd_trl.data import toy_task
from opd_trl.reproduce.tables import markdown
from opd_trl.serving.scorer import Scorer, load_scorer
from opd_trl.teachers.server import TeacherServer
from opd_trl.teachers.transport import TeacherServerError


PAUSE = 1.0  # seconds; the server's Retry-After
VARIANTS = 97  # requests, one after another


@dataclass
class Round:
    """What was seen of some clients: seconds of each answered request, refusals, and in all.

    `elapsed` and `direct` are seconds of all requests and of the forwards here, `cpu` and `direct_cpu` the processor's
    of the server and of the forwards here.
    """

    seconds: list[float] = field(default_factory=list)
    refused: int = 0
    elapsed: float = 0.0
    direct: float = 0.0
    cpu: float = 0.0
    direct_cpu: float = 0.0


class Load:
    """The rows of requests, no two alike behind what they share, and both ways to score them."""

    def __init__(self, url: str, pid: int, scorer: Scorer, *, sequences: int, tokens: int, shared: int):
        self.url, self.process, self.scorer, self.next = url, psutil.Process(pid), scorer, count()
        self.num_tokens, self.num_scored = sequences * tokens, [(tokens - shared) // 2] * sequences
        ids = torch.randint(scorer.num_ids, (VARIANTS, sequences, tokens), generator=torch.Generator().manual_seed(0))
        ids[:, :, :shared] = ids[0, 0, :shared]
        self.rows = ids.tolist()

    def take(self) -> list[list[int]]:
        """The sequences of one request."""
        return self.rows[next(self.next) % VARIANTS]

    def client(self) -> TeacherServer:
        """A client that is told of refusals."""
        return TeacherServer(self.url, retries=0)

    def here(self) -> float:
        """Seconds of a forward in this process."""
        start = time.perf_counter()
        with torch.no_grad():
            self.scorer.model.base_model(input_ids=torch.tensor(self.take()), use_cache=False)
        return time.perf_counter() - start

    def there(self, client: TeacherServer, seen: Round) -> None:
        """One request, again after each refusal."""
        rows = self.take()
        while True:
            start = time.perf_counter()
            try:
                client.hidden_states(rows, self.num_scored, hidden_size=self.scorer.head.weight.size(1))
            except TeacherServerError as error:
                if "HTTP 503" not in str(error):
                    raise
                seen.refused += 1
                time.sleep(PAUSE)
            else:
                seen.seconds.append(time.perf_counter() - start)
                return

    def round(self, clients: list[TeacherServer], requests: int) -> Round:
        """`requests` forwards here, then as many requests by all clients together."""
        start = time.thread_time()
        seen = Round(direct=sum(self.here() for _ in range(requests)))
        seen.direct_cpu, seen.cpu = time.thread_time() - start, -self.server_seconds()
        left = iter(range(requests))

        def work(client: TeacherServer) -> None:
            for _ in left:
                self.there(client, seen)

        threads = [threading.Thread(target=work, args=(client,)) for client in clients]
        start = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seen.elapsed = time.perf_counter() - start
        seen.cpu += self.server_seconds()
        return seen

    def server_seconds(self) -> float:
        """Seconds of the processor that the server has taken."""
        return sum(self.process.cpu_times()[:2])

    def overhead(self, pairs: int) -> list[float]:
        """Seconds by which a request of one client takes longer than the forward before it."""
        client, found = self.client(), []
        for _ in range(pairs):
            here, seen = self.here(), Round()
            self.there(client, seen)
            found.append(seen.seconds[0] - here)
        return found


def line_of(clients: int, rounds: list[Round], num_tokens: int) -> dict[str, Any]:
    """One line of the table: medians over the rounds, and of the latency over all requests of `num_tokens`."""
    seconds = sorted(x for seen in rounds for x in seen.seconds)
    served = statistics.median(num_tokens * len(seen.seconds) / seen.elapsed for seen in rounds)
    ratio = statistics.median(seen.direct / seen.elapsed for seen in rounds)
    return {
        "clients": str(clients),
        "served, tokens/s": f"{served:.0f}",
        "plain forward, tokens/s": f"{served / ratio:.0f}",
        "ratio": f"{ratio:.2f}",
        "ratio, CPU": f"{statistics.median(seen.direct_cpu / seen.cpu for seen in rounds):.2f}",
        "latency, median ms": f"{1e3 * statistics.median(seconds):.1f}",
        "95 %, ms": f"{1e3 * seconds[int(0.95 * (len(seconds) - 1))]:.1f}",
        "refused": f"{sum(seen.refused for seen in rounds)} of {len(seconds)}",
    }


@contextmanager
def server(model: str) -> Iterator[tuple[str, int]]:
    """Yield address and number of a server in a process of its own, on one core."""
    command = [sys.executable, "-m", "opd_trl.cli.main", "serve-teacher", "--model", model, "--port", "0"]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)
    try:
        # It says its address, the recipe's line last, and nothing after it.
        yield next(line.split()[-1] for line in process.stdout if "teacher_server_url" in line), process.pid
    finally:
        process.terminate()
        process.wait()


def main(argv: list[str] | None = None) -> None:
    """Measure on this machine, print a table and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="path. Default: a tiny Qwen3 with random weights")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32, 48])
    parser.add_argument("--sequences", type=int, default=1, help="in a request")
    parser.add_argument("--tokens", type=int, default=64, help="of a sequence")
    parser.add_argument("--shared", type=int, default=0, help="that all begin with; half of the others are scored")
    parser.add_argument("--requests", type=int, default=192, help="in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, default=Path("runs/bench/serving.json"))
    setting = vars(parser.parse_args(argv))
    path = setting.pop("json")
    os.environ |= QUIET
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        model = setting["model"] or folder
        if setting["model"] is None:
            toy_task.save(Path(folder), seed=0)
        with server(model) as (url, pid):
            sizes = {name: setting[name] for name in ("sequences", "tokens", "shared")}
            load = Load(url, pid, load_scorer(model, device="cpu"), **sizes)
            load.overhead(10)  # warm
            overhead = [1e3 * x for x in load.overhead(setting["requests"])]
            clients = [load.client() for _ in range(max(setting["clients"]))]
            rounds: dict[int, list[Round]] = {number: [] for number in setting["clients"]}
            for _ in range(setting["rounds"]):
                for number, seen in rounds.items():
                    seen.append(load.round(clients[:number], setting["requests"]))
    lines = [line_of(number, seen, load.num_tokens) for number, seen in rounds.items()]
    where = conditions("cpu")
    print(", ".join(where.values()))
    low, median, high = statistics.quantiles(overhead, n=4)
    print(f"\noverhead of one client: median {median:.1f} ms, quartiles {low:.1f} and {high:.1f}\n\n{markdown(lines)}")
    write_json(path, conditions=where, setting=setting, overhead_ms=[low, median, high], lines=lines)


if __name__ == "__main__":
    main()
