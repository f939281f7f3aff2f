"""The loop: admit requests, step the engine, journal what it finished, commit what is complete."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress

from ..engine.types import Engine, Response
from ..errors import EngineDied, JobError, Reject, Stopped, Stopping, in_one_line
from ..host import clock
from ..input.plan import Shard
from ..output.claims import Claims
from ..output.heartbeat import Activity, Pace
from ..output.opening import Fence
from .admission import Admission
from .committer import Committer
from .first_look import FirstResponses, told
from .messages import Committed, FirstReject, Mark, PoisonItems, Report, Totals, Warn, Work
from .open_shard import OpenShard
from .poison import KILLS_ENGINES
from .prepare import Job
from .queue import Queue

REPORT_EVERY = 0.5  # seconds, when there is nothing new
STEPS_PER_TOKEN = 4  # steps without a response, per token of context, before it is a hang: the deepest pipeline we know


class Worker:
    """Generates shards of one job with one engine.

    The engine stays full across the boundaries of shards: the next one is claimed and read while the last one drains.
    """

    def __init__(
        self,
        job: Job,
        engine: Engine,
        claims: Claims,
        report: Callable[[Report], None] = lambda report: None,
        window: int | None = None,
        poison: PoisonItems | None = None,
        until: float | None = None,
        mark: Mark | None = None,
    ):
        """window: most requests in the engine, running and waiting; poison, until: see WorkerConfig; poison may
        change; mark: shows the row that is being prepared."""
        poison, fence = poison or PoisonItems(), Fence(job.out, job.record.fingerprint)
        self.totals = Totals()
        self._job, self._engine, self._claims, self._report = job, engine, claims, report
        self._poison, self._until = poison, until
        self._queue = Queue(
            job,
            claims,
            fence,
            engine.sampler,
            poison,
            mark or Mark(),
            self._stay_in_touch,
            warn=lambda text: report(Warn(text)),
        )
        self._first_responses = FirstResponses(job, warn=lambda text: report(Warn(text)))
        self._admission = Admission(engine.max_num_seqs, window, poison, until, job.model.width)
        self._committer = Committer(job, fence, engine)
        self._stop_at: float | None = None
        self._stopping = Stopping.NO
        self._has_rejects = False  # and has told of the first
        self._told = 0.0  # when the supervisor last heard of us
        self._empty_steps = 0  # in a row that finished no request
        self._last_response = clock.monotonic()
        self._resumed = 0  # responses that were found in journals of shards that are committed now
        self._rows_resumed = 0.0  # rows that are made of them
        self._pace = Pace(0, 0, 0)

    def stop(self, use_all_time: bool = False, why: Stopping = Stopping.AS_ASKED) -> None:
        """Admits no more requests. Those in the engine have `drain` seconds to finish, or all that is left of the run's
        time, if that is known. Safe in a signal handler."""
        if self._stopping is Stopping.NO:
            self._stopping = why
            drained = clock.monotonic() + self._job.spec.output.drain
            self._stop_at = self._until if use_all_time and self._until is not None else drained

    def run(self, shards: Iterable[Shard]) -> None:
        """Generates the shards that no other worker holds. Raises Stopped, JobError or EngineDied; anything else is
        a bug. In any case, all that has finished is in the journal."""
        try:
            self._run(shards)
        except Exception:
            with suppress(Exception):
                self._flush(at_once=True)
            raise

    def _run(self, shards: Iterable[Shard]) -> None:
        self._claims.tell(self.activity)
        self._queue.begin(shards)
        while not self._drain_is_over:
            self._admit()
            self._tell()
            if self._admission.in_engine:
                self._step()
            elif self._queue.is_waiting and self._stopping is Stopping.NO:
                clock.sleep(REPORT_EVERY)
            self._flush()  # before commits, which may take long
            self._commit()
            if not self._admission.in_engine and (self._stopping is not Stopping.NO or self._queue.is_done):
                break
        self._shut_down()
        if self._stopping is not Stopping.NO and (self._queue.open or not self._queue.is_done):
            raise Stopped(why=self._stopping)

    @property
    def _drain_is_over(self) -> bool:
        return self._stop_at is not None and clock.monotonic() > self._stop_at

    # --- the engine

    def _admit(self) -> None:
        """Fills the window if it has emptied enough and there is time left."""
        if self._stopping is Stopping.NO and self._admission.is_too_late:
            self.stop(use_all_time=True, why=Stopping.TIME_UP)
        if self._stopping is not Stopping.NO or not self._admission.is_due:
            return
        while self._admission.has_room and (following := self._queue.next()):
            opened, request = following
            name = str(request.name)
            if not opened.is_wanted(request):  # another request of its row failed
                self._queue.put_back(opened, opened.drop(request))
            elif name in self._poison.poisoned:
                self._queue.put_back(opened, opened.fail(request, Reject("engine_error", KILLS_ENGINES)))
            elif not self._admission.may_enter(name):
                self._queue.put_back(opened, [request])
                return
            else:
                self._admission.enter(name, request, opened)
                self._add(name)

    def _add(self, name: str) -> None:
        admitted = self._admission.in_engine[name]
        request, opened = admitted.request, admitted.shard
        try:
            with end_of_engine():
                asked = request.prompt_token_ids, request.sampling, request.seed, request.adapter, request.scored
                if request.images:
                    self._engine.add(name, *asked, images=request.images)
                else:
                    self._engine.add(name, *asked)
        except Reject as why:
            self._admission.leave(name)
            self._queue.put_back(opened, opened.fail(request, why))
        except EngineDied:
            self._tell()  # with the item that it died of
            raise

    def _step(self) -> None:
        """One step of the engine. Raises EngineDied, also if steps return nothing for ever; one that does not return is
        the supervisor's to notice.

        Every step advances the oldest request by at least a token of its prompt or response, so some request ends
        within as many steps as the context has tokens.
        """
        with end_of_engine():
            responses = self._engine.step()
        for response in responses:
            self._take(response)
        if responses:
            self._empty_steps, self._last_response = 0, clock.monotonic()
            return
        self._empty_steps += 1
        silent = clock.monotonic() - self._last_response > self._job.spec.output.stall
        if silent and self._empty_steps > STEPS_PER_TOKEN * self._job.context:
            raise EngineDied(f"no response in {self._empty_steps:,} steps")

    def _take(self, response: Response) -> None:
        admitted = self._admission.finish(response.request_id)
        request, opened = admitted.request, admitted.shard
        try:
            entry = response.as_entry(request.name)
        except Reject as why:
            self._queue.put_back(opened, opened.fail(request, why))
            return
        self.totals.responses += 1
        self.totals.prompt_tokens += len(request.prompt_token_ids)
        self.totals.response_tokens += len(response.token_ids)
        self.totals.by_length += response.finish_reason == "length"
        self._first_responses.take(request, entry)
        self._queue.put_back(opened, opened.answer(request, entry))

    # --- the disk

    def _flush(self, at_once: bool = False) -> None:
        """Journals what has finished: handed to the system at once, on disk within a second."""
        for opened in self._queue.open:
            opened.journal.flush()
        for opened in self._queue.open:
            opened.journal.keep(at_once)

    def _commit(self) -> None:
        for opened in [opened for opened in self._queue.open if opened.is_complete]:
            counts = self._committer.commit(opened)
            self.totals += Totals(
                rows=counts.rows,
                rejects=counts.rejects,
                tries=counts.tries,
                failed=counts.failed,
                finish_reasons=counts.finish_reasons,
                empty=counts.empty,
                repetitive=counts.repetitive,
            )
            self._tell_of_first_reject(opened)
            self._report(Committed(opened.shard.index, counts))
            self._resumed += opened.resumed
            self._rows_resumed += opened.rows_resumed
            self._queue.forget(opened)
            self._claims.beat()  # its rows moved from open to committed

    def _shut_down(self) -> None:
        self._flush(at_once=True)
        self._told = 0.0  # so that the last report is sent, with all that was done
        self._tell()
        for opened in self._queue.open:
            opened.journal.close()
        self._claims.close()

    # --- the supervisor

    def _tell(self) -> None:
        """Reports before every step, so that the supervisor knows which items were in the engine if it dies."""
        if self._admission.has_changed:
            self._send()
        else:
            self._stay_in_touch()

    def _stay_in_touch(self) -> None:
        """Reports even if nothing is new: the supervisor takes a long silence for a hang."""
        if clock.monotonic() - self._told >= REPORT_EVERY:
            self._send()

    def _send(self) -> None:
        self._count_open()
        for opened in self._queue.open:
            self._tell_of_first_reject(opened)
        self._report(Work(*self._admission.changes(), self.totals, *self._admission.running_and_waiting))
        self._told = clock.monotonic()

    def _tell_of_first_reject(self, opened: OpenShard) -> None:
        """Of those that nobody asked for."""
        if self._has_rejects or not opened.rejects:
            return
        line = next((line for line in opened.rejects.values() if line["reason"] != "skipped"), None)
        if line:
            self._has_rejects = True
            text = told(self._job.plan, line["row"], line["reason"], line["detail"])
            self._report(FirstReject(text, line["reason"]))

    def _count_open(self) -> None:
        """Updates in the totals what is finished in shards that are not committed yet."""
        open_shards = list(self._queue.open)
        self.totals.open_rows = sum(opened.rows_done for opened in open_shards)
        self.totals.open_rejects = sum(len(opened.rejects) for opened in open_shards)
        self.totals.kept = self._resumed + sum(opened.resumed for opened in open_shards)

    def activity(self) -> Activity:
        """For the heartbeat, on a thread of its own."""
        self._count_open()
        totals = self.totals
        rows = totals.rows + totals.open_rows
        resumed = self._rows_resumed + sum(opened.rows_resumed for opened in list(self._queue.open))
        generated = rows - resumed  # those from journals say nothing of the pace
        pace = self._pace.rates(generated, totals.prompt_tokens, totals.response_tokens)
        running, waiting = self._admission.running_and_waiting
        return Activity(
            state="running" if self._stopping is Stopping.NO else "draining",
            rows=rows,
            open_rows=totals.open_rows,
            prompt_tokens=totals.prompt_tokens,
            response_tokens=totals.response_tokens,
            rows_per_second=pace[0],
            prompt_tokens_per_second=pace[1],
            response_tokens_per_second=pace[2],
            running=running,
            waiting=waiting,
        )


@contextmanager
def end_of_engine() -> Iterator[None]:
    """Wraps calls of the engine: whatever vLLM raises on its own ends it. All other exceptions are ours, and a new
    engine would not help."""
    try:
        yield
    except (Reject, JobError):
        raise
    except Exception as error:
        raise EngineDied(in_one_line(error)) from error
