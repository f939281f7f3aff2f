"""Checks that may take any amount of time and memory run in a process of their own: compiling a row's schema, and
making its prompt with a template and tokenizer that are not ours. A check that costs too much is ended, and its row
rejected.

This is the last resort: what a row may ask for is limited before (task/limits.py). The limit is CPU time, so that the
outcome is the same on another machine, or on a busy one. The process loads what the checks need and then forks; checks
run in the copy, and when one has to be ended, the next copy is there at once.
"""

import os
import resource
import signal
import socket
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, cast

import msgspec

from ..errors import JobError, MachineError, Reject, RejectReason, in_one_line
from ..host import environment
from ..host.lifeline import die_with_parent
from ..host.trial import addresses
from ..input.conversation import Conversation
from ..job.sampling import Sampling
from ..job.spec import LimitsTable
from ..model.hf_tokenizer import HfTokenizer, load_theirs
from ..model.model import Model
from ..model.tokenizer import Tokenizer
from ..model.vllm_tokenizer import VllmTokenizer
from . import fit as fitting
from . import formats, pictures, structured_outputs
from .fit import Fitted
from .pictures import Decoded

PATIENCE = 20  # wall-clock limit as a multiple of the CPU limit: a check may sleep, or wait for a processor
REMEMBERED = 1024  # schemas whose result is cached: rows mostly share a few
IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)  # meant for the run, which ends this process
# Fewer threads: each has a stack and an arena, which count as memory.
ENVIRONMENT = {"TOKENIZERS_PARALLELISM": "false", "MALLOC_ARENA_MAX": "2"}


class PromptSetup(msgspec.Struct):
    """How prompts are made.

    Attributes:
        format: prompt format.
        policy: on_overlength, see fit.fit.
        date, control_tokens, has_images: see HfTokenizer.
    """

    format: str
    policy: str
    date: str
    control_tokens: str
    has_images: bool = False


class PictureSetup(msgspec.Struct):
    """How images are read: see pictures.looked_at."""

    square: int | None
    most: int


class Setup(msgspec.Struct, kw_only=True):
    """What the process needs to know.

    Attributes:
        folder: the model's.
        generation_config: the model's.
        series: whether the tokenizer is our own.
        vocab_size: of the weights.
        any_whitespace: see structured_outputs.problem.
        seconds: CPU time that one check may take.
        mb: memory that one check may take on top of what is loaded.
        prompts: how prompts are made, if it checks prompts rather than grammars.
        pictures: how images are read, if it does that.
    """

    folder: str
    generation_config: dict[str, Any]
    series: bool
    vocab_size: int
    any_whitespace: bool
    seconds: float
    mb: int
    prompts: PromptSetup | None = None
    pictures: PictureSetup | None = None


class ToFit(NamedTuple):
    """A conversation, and the prefix before it, whose prompt may have at most `limit` tokens."""

    conversation: Conversation
    prefix: Conversation
    limit: int


def fit(
    asked: ToFit,
    render: formats.Render,
    tokenizer: Tokenizer | HfTokenizer,
    policy: str,
    format: str,
    encode: fitting.Encode | None = None,
) -> Fitted:
    """The prompt of a conversation, in this process. encode: in place of the tokenizer's. Raises Reject."""
    talk, prefix, limit = asked
    verbatim = format != "chat-template"
    return fitting.fit(talk, prefix, render, encode or tokenizer.encode, limit, policy, tokenizer.exceeds, verbatim)


class Ready(msgspec.Struct, tag=True):
    """Everything is loaded; checks begin."""


class Fits(msgspec.Struct, tag=True):
    """The prompt of a conversation."""

    fitted: Fitted


class Checked(msgspec.Struct, tag=True):
    """What is wrong with structured outputs; "" if nothing is."""

    problem: str


class Seen(msgspec.Struct, tag=True):
    """An image, read."""

    picture: Decoded


class Refused(msgspec.Struct, tag=True):
    """The row's Reject, by its parts."""

    reason: RejectReason
    detail: str


class Ended(msgspec.Struct, tag=True):
    """The check ended its process, by this signal; 0 if it ran out of memory."""

    signal: int


class Broken(msgspec.Struct, tag=True):
    """The process cannot check anything, which is not a row's fault."""

    why: str


NOT_BEGUN = -1  # in place of a signal: the process ended before any check
COSTLY = (0, signal.SIGPROF)  # the check itself is to blame; any other signal may have come from elsewhere
DOES_NOT_START = "the process that checks rows does not start; is memory short?"
Answer = Ready | Fits | Checked | Seen | Refused | Ended | Broken
_encode = msgspec.msgpack.encode
_answer_in = msgspec.msgpack.Decoder(Answer).decode


class Checker:
    """The checks of one job: prompts in one process, grammars in another, images in a third, each started when first
    needed.

    Attributes:
        has_prompts: whether prompts are made in a process; those of our own tokenizer need none.
        thinks: whether the job has a reasoning parser.
    """

    def __init__(self, model: Model, any_whitespace: bool, limits: LimitsTable, thinks: bool = False):
        self.has_prompts = isinstance(model.tokenizer, HfTokenizer)  # ours takes linear time
        self._setup = Setup(
            folder=str(model.folder),
            generation_config=model.generation_config,
            series=not self.has_prompts,
            vocab_size=model.vocab_size,
            any_whitespace=any_whitespace,
            seconds=limits.check_seconds,
            mb=limits.check_mb,
        )
        self._prompts, self._grammars, self._pictures = (_Process(self._setup) for _ in range(3))
        self._vocab_size, self._thinks = model.vocab_size, thinks
        self._problems: dict[str, str] = {}

    def set_up_prompts(
        self, format: str, policy: str, date: str, control_tokens: str, has_images: bool = False
    ) -> None:
        """Sets how prompts are made. Call it before the first one."""
        asked = PromptSetup(format, policy, date, control_tokens, has_images)
        self._prompts = _Process(msgspec.structs.replace(self._setup, prompts=asked))

    def set_up_pictures(self, square: int | None, most: int) -> None:
        """Sets how images are read. Call it before the first one."""
        self._pictures = _Process(msgspec.structs.replace(self._setup, pictures=PictureSetup(square, most)))

    def start(self) -> None:
        """Starts the process for prompts, if they need one, so that it loads in the meantime."""
        if self.has_prompts:
            self._prompts.start()

    def check(self, params: Sampling) -> None:
        """Checks what the parameters' ranges do not: token ids, structured outputs, and what they need of the model.
        Raises ValueError, or Reject(too_costly)."""
        params.check_ids(self._vocab_size)
        if params.thinking_token_budget is not None and not self._thinks:
            raise ValueError("thinking_token_budget: only [model] reasoning_parser can tell where the model thinks")
        wanted = params.structured_outputs
        if wanted and (problem := self._problem(structured_outputs.as_json(wanted))):
            raise ValueError(f"structured_outputs: {problem}")

    def fit(self, wanted: list[ToFit]) -> Iterator[Fitted | Reject]:
        """The prompts of conversations, or why there is none, in order. They are made while the caller goes on."""
        answers = self._prompts.ask(wanted, "the prompt")
        return (answer.fitted if isinstance(answer, Fits) else answer for answer in answers)

    def look_at(self, content: bytes) -> Decoded:
        """What is in the file of an image. Raises Reject."""
        answer = next(self._pictures.ask([content], "an image"))
        if isinstance(answer, Reject):
            raise answer
        return cast(Decoded, answer.picture)

    def _problem(self, wanted_json: str) -> str:
        """What is wrong with structured outputs, given as JSON; "" if nothing is."""
        if wanted_json not in self._problems:
            answer = next(self._grammars.ask([wanted_json], "structured_outputs"))
            if isinstance(answer, Reject):
                raise answer
            if len(self._problems) == REMEMBERED:
                del self._problems[next(iter(self._problems))]
            self._problems[wanted_json] = answer.problem
        return self._problems[wanted_json]


class _Process:
    """The process that checks, started when first asked and again whenever it has ended."""

    def __init__(self, setup: Setup):
        self._setup = setup
        self._connection: Connection | None = None
        self._end: Callable[[], Any] = lambda: None
        self._unread: Iterator[Any] = iter(())

    def ask(self, questions: list[Any], what: str) -> Iterator[Any]:
        """The answers to the questions, in order: a Reject if a check refused or had to be ended. The checks begin
        immediately, not when the answers are read. Raises JobError or MachineError."""
        for _ in self._unread:  # answers to earlier questions that nobody read
            continue
        self._send(_encode(questions))
        self._unread = self._read(questions, what)
        return self._unread

    def _read(self, questions: list[Any], what: str) -> Iterator[Any]:
        done = starts = 0
        again = -1  # a question whose check ended once for an unclear reason
        while True:
            for answer in self._answers(len(questions) - done):
                if isinstance(answer, Ended):
                    break
                yield Reject(answer.reason, answer.detail) if isinstance(answer, Refused) else answer
                done += 1
            else:
                return
            starts = starts + 1 if answer.signal == NOT_BEGUN else 0
            if starts > 1:
                raise MachineError(DOES_NOT_START)
            if not starts and (answer.signal in COSTLY or again == done):
                yield Reject("too_costly", f"{what} {self._cost(answer)}")
                done += 1
            elif not starts:
                again = done
            if done == len(questions):
                return
            self._send(_encode(questions[done:]))

    def _cost(self, ended: Ended) -> str:
        setup = self._setup
        if ended.signal == signal.SIGPROF:
            return f"takes more than {setup.seconds:g} s to check ([limits] check_seconds)"
        if not ended.signal:
            return f"takes more than {setup.mb:,} MB to check ([limits] check_mb)"
        return f"ends the process that checks it, by signal {ended.signal}"

    def _answers(self, most: int) -> Iterator[Any]:
        """Up to `most` answers; fewer if a check ends its process."""
        assert self._connection
        allowed = max(30.0, PATIENCE * self._setup.seconds)
        begun = False
        try:
            for _ in range(most + 1):
                # Asked twice, because the machine may have been suspended in between.
                if begun and not self._connection.poll(allowed) and not self._connection.poll(allowed):
                    self.close()
                    yield Ended(signal.SIGPROF)
                    return
                answer = _answer_in(self._connection.recv_bytes())
                if isinstance(answer, Broken):
                    raise JobError(answer.why)
                if isinstance(answer, Ended) and not begun:  # apparently killed while it was idle
                    raise EOFError
                if not isinstance(answer, Ready):
                    yield answer
                begun = True
        except (EOFError, OSError):
            self.close()
            yield Ended(signal.SIGKILL if begun else NOT_BEGUN)

    def _send(self, message: bytes) -> None:
        for _ in range(2):
            with suppress(OSError):  # it may have ended since the last question
                self.start()
                assert self._connection
                self._connection.send_bytes(message)
                return
            self.close()
        raise MachineError(DOES_NOT_START)

    def start(self) -> None:
        if self._connection:
            return
        ours, theirs = socket.socketpair()
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "batchgen.prompt.checker", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # a panic in a tokenizer becomes a row's reject, not a message
                pass_fds=[theirs.fileno()],
                env={**environment.of_worker([]), **environment.OFFLINE, **ENVIRONMENT},
            )
        self._connection = Connection(ours.detach())
        self._end = weakref.finalize(self, _end, process, self._connection)
        self._connection.send_bytes(_encode(self._setup))

    def close(self) -> None:
        self._end()
        self._connection = None


def _end(process: "subprocess.Popen[bytes]", connection: Connection) -> None:
    connection.close()
    process.kill()  # its copy ends too: the connection is closed, and its parent is gone
    process.wait()


# --- in the process


def main() -> None:
    die_with_parent()
    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)
    connection = Connection(int(sys.argv[1]))
    try:
        setup = msgspec.msgpack.decode(connection.recv_bytes(), type=Setup)
        check: Check | str = _load(setup)
    except EOFError:
        return
    except Exception as error:
        check = f"cannot load what is needed to check rows: {in_one_line(error)}"
    while True:
        copy = os.fork()
        if not copy:
            _serve(connection, setup, check)
        _, status = os.waitpid(copy, 0)
        code = os.waitstatus_to_exitcode(status)
        if code == DONE:
            return
        connection.send_bytes(_encode(Ended(max(0, -code))))


DONE, NO_MEMORY = 0, 3  # exit codes of a copy
Check = Callable[[Any], Answer]


def _load(setup: Setup) -> Check:
    if setup.pictures:
        pictures.load()
        return partial(_look_at, setup.pictures)
    if setup.prompts is None:
        return _grammars(setup)
    tokenizer = HfTokenizer.tried(Path(setup.folder), setup.generation_config)
    tokenizer.date, tokenizer.has_images = setup.prompts.date, setup.prompts.has_images
    tokenizer.prepare_guard()
    render = formats.renderer(setup.prompts.format, tokenizer, setup.prompts.control_tokens)
    return partial(_fit, render, tokenizer, setup.prompts)


def _look_at(setup: PictureSetup, content: bytes) -> Answer:
    return Seen(pictures.looked_at(content, setup.square, setup.most))


def _fit(render: formats.Render, tokenizer: HfTokenizer, setup: PromptSetup, question: Any) -> Answer:
    return Fits(fit(msgspec.convert(question, ToFit), render, tokenizer, setup.policy, setup.format))


def _grammars(setup: Setup) -> Check:
    """As vLLM compiles them, for the model's own vocabulary."""
    try:
        from xgrammar import GrammarCompiler, TokenizerInfo
    except ImportError:  # vLLM is not installed either; where it is, the check is made again
        return lambda wanted_json: Checked("")

    tokenizer = VllmTokenizer.from_pretrained(setup.folder) if setup.series else load_theirs(Path(setup.folder))
    compiler = GrammarCompiler(
        TokenizerInfo.from_huggingface(tokenizer, vocab_size=setup.vocab_size), max_threads=1, cache_enabled=False
    )
    return lambda wanted_json: Checked(structured_outputs.problem(wanted_json, compiler, setup.any_whitespace))


def _serve(connection: Connection, setup: Setup, check: Check | str) -> NoReturn:
    """Answers questions until the other side closes the connection, or a check ends this copy."""
    die_with_parent()
    while True:
        try:
            questions = msgspec.msgpack.decode(connection.recv_bytes())
            connection.send_bytes(_encode(Ready() if callable(check) else Broken(check)))
            for question in questions:
                connection.send_bytes(_encode(_answer(check, question, setup)))  # type: ignore[arg-type]
        except (EOFError, OSError):
            os._exit(DONE)


def _answer(check: Check, question: Any, setup: Setup) -> Answer:
    try:
        with _limited(setup):
            return check(question)
    except Reject as why:
        return Refused(why.reason, why.detail)
    except MemoryError:
        os._exit(NO_MEMORY)
    except BaseException as error:  # the tokenizers' PanicException is not an Exception
        return Refused("too_costly", f"its check failed: {in_one_line(error)}")


@contextmanager
def _limited(setup: Setup) -> Iterator[None]:
    """Has SIGPROF end the process after the allowed CPU time, and limits memory beyond what is loaded."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    given = [limit for limit in before if limit != resource.RLIM_INFINITY]  # set by `ulimit -v`
    resource.setrlimit(resource.RLIMIT_AS, (min([addresses() + setup.mb * 1_000_000, *given]), before[1]))
    signal.setitimer(signal.ITIMER_PROF, setup.seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        resource.setrlimit(resource.RLIMIT_AS, before)


if __name__ == "__main__":
    main()
