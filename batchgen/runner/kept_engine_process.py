"""The process of a kept engine: requests come in on stdin, answers go out on stdout."""

import os
import queue
import sys
import threading
from typing import IO

from ..engine.choice import engine_class
from ..engine.types import Engine
from ..errors import JobError, Reject, in_one_line
from ..host import garbage
from ..host.lifeline import die_with_process
from ..model.model import load_model
from . import kept_engine
from .kept_engine import Answers, Ask, Failed, Ready, Refused, Setup
from .process import harden


def main() -> None:
    told, tell = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever vLLM prints goes to the log
    harden(die_with_process)  # the thread that made the first call may end long before the last one
    garbage.collect_rarely()
    setup = kept_engine.read(told, Setup)
    if setup is None or os.getppid() != setup.supervisor:
        return  # it is gone already
    try:
        engine = _engine(setup)
        kept_engine.write(tell, Ready(engine.max_num_seqs))
        _serve(engine, told, tell)
    except JobError as error:
        kept_engine.write(tell, Failed(str(error), is_ours=True))
    except Exception as error:
        kept_engine.write(tell, Failed(in_one_line(error), is_ours=False))
        raise
    sys.stderr.flush()
    os._exit(0)  # not by atexit handlers: an engine's may wait for ever


def _engine(setup: Setup) -> Engine:
    spec = setup.spec
    model = load_model(spec.model.path, spec.model.revision, spec.prompt.format, spec.model.adapter)
    return engine_class()(model, spec.engine_args, setup.context)


def _serve(engine: Engine, told: IO[bytes], tell: IO[bytes]) -> None:
    """Adds requests as they come and steps while there are any, until the other side closes its end."""
    asked: queue.SimpleQueue[Ask | None] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(told, asked), daemon=True).start()
    running = 0
    while True:
        while not running or not asked.empty():
            if (request := asked.get()) is None:
                return
            try:
                of_it = request.sampling, request.seed, request.adapter, request.scored
                engine.add(request.name, request.prompt, *of_it)
                running += 1
            except Reject as why:
                kept_engine.write(tell, Refused(request.name, why.reason, why.detail))
        if responses := engine.step():
            running -= len(responses)
            kept_engine.write(tell, Answers(responses))


def _listen(told: IO[bytes], asked: "queue.SimpleQueue[Ask | None]") -> None:
    while (request := kept_engine.read(told, Ask)) is not None:
        asked.put(request)
    asked.put(None)


if __name__ == "__main__":
    main()
elif __name__ == "__mp_main__":  # a process that vLLM spawned from ours
    harden()
