"""Work in processes of their own: each has the card's memory to itself, and a failed one takes nothing along.

They are forked from a server that has imported the libraries, which takes 10 to 20 seconds otherwise.
"""

import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from measure import QUIET


HERE = Path(__file__).parent
# What the server imports; none of it may touch CUDA, which a forked process could not use then.
LIBRARIES = (
    "torch",
    "datasets",
    "peft",
    "transformers.models.qwen3.modeling_qwen3",
    "transformers.trainer",
    "trl.trainer.distillation_trainer",
    "trl.trainer.grpo_trainer",
    "trl.trainer.sft_trainer",
    "trl.experimental.sdft",
    "opd_trl.trainers.opsd_trainer",
    "opd_trl.planning.inputs",
    "opd_trl.scripts.opd",
    "preloaded",
)
ENVIRONMENT = QUIET | {
    "PYTHONUNBUFFERED": "1",
    "PYTHONWARNINGS": "ignore:resource_tracker",  # locks of tqdm that a child leaves
    "TORCHINDUCTOR_COMPILE_THREADS": "1",  # in the child itself
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # torch.cuda.is_available() without CUDA
}
FOREVER = 1e6  # seconds
OUT_OF_MEMORY = "out of memory"
# Of errors that have no class of their own: cuBLAS's, and a CUDA error inside a Triton kernel.
SIGNS_OF_MEMORY = ("CUBLAS_STATUS_ALLOC_FAILED", "CUDA error: out of memory", "[CUDA]: out of memory")

Send = Callable[[Any], None]


class ChildError(RuntimeError):
    """A child did not finish; the message says how it ended."""


class Children:
    """Starts processes, each with its own memory. The server starts with the first of them.

    Args:
        logs: folder for what they print.
        device: that they use.
    """

    def __init__(self, logs: Path, device: str):
        self.logs, self.device = logs, device
        self._method: str | None = None

    def run(self, function: Callable, *arguments: Any, name: str, seconds: float = FOREVER) -> Iterator[Any]:
        """Call `function(send, *arguments)` in a child and yield what it sends.

        The child waits in `send` until the next thing is asked for, so that children can take turns.

        Raises:
            ChildError: it fails, dies, or takes longer than `seconds`; what it sent until then is yielded before.
        """
        if self._method is None:
            self._start()
        context, until = multiprocessing.get_context(self._method), time.time() + seconds
        here, there = context.Pipe()
        log = self.logs / f"{name}.txt"
        child = context.Process(target=work, args=(there, log, function, arguments), daemon=True)
        child.start()
        there.close()
        patience = 0
        try:
            while here.poll(max(0.0, until - time.time())):
                kind, content = here.recv()
                if kind == "sent":
                    yield content
                    here.send(None)
                    continue
                patience = 10
                if kind == "failed":
                    raise ChildError(content)
                return
            raise ChildError("it took too long")
        except (EOFError, ConnectionError):
            child.join(10)
            raise ChildError(f"the process ended with status {child.exitcode}, see {log}") from None
        finally:
            child.join(patience)
            if child.is_alive():
                child.kill()
                child.join()

    def call(self, function: Callable, *arguments: Any, **options: Any) -> Any:
        """The one thing that a function sends."""
        (content,) = self.run(function, *arguments, **options)
        return content

    def _start(self) -> None:
        """Start the server, and see whether what it forks can use the device; else each child imports for itself."""
        self.logs.mkdir(parents=True, exist_ok=True)
        os.environ.update({name: os.environ.get(name, value) for name, value in ENVIRONMENT.items()})
        path = [str(HERE), str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        os.environ["PYTHONPATH"] = os.pathsep.join(path)
        # What accelerate would import in every child; on a card it may touch CUDA.
        more = ["deepspeed"] if self.device == "cpu" else []
        multiprocessing.set_forkserver_preload([*LIBRARIES, *more])
        self._method = "forkserver"
        try:
            self.call(probe, self.device, name="probe", seconds=150)
        except ChildError as error:
            print(f"processes cannot be forked here, which costs seconds each: {error}", file=sys.stderr)
            self._method = "spawn"


def work(pipe: Any, log: Path, function: Callable, arguments: tuple) -> None:
    """In the child: call the function, print into the log, say how it ended."""
    with open(log, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        try:
            function(lambda content: (pipe.send(("sent", content)), pipe.recv()), *arguments)
            pipe.send(("end", None))
        except Exception as error:
            traceback.print_exc()
            pipe.send(("failed", what_failed(error)))


def what_failed(error: Exception) -> str:
    """`out of memory`, or the error in short."""
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, torch.OutOfMemoryError) or any(sign in text for sign in SIGNS_OF_MEMORY):
        return OUT_OF_MEMORY
    return text if len(text) < 300 else f"{text[:300]} ..."


def probe(send: Send, device: str) -> None:
    """Compute something."""
    send(torch.ones(2, 2, device=device).sum().item())
