"""What the commands print: their results go in, lines on stdout come out."""

import shlex
import sys
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import click
import msgspec
from msgspec import UNSET, to_builtins

from .errors import shown
from .host import console, events, terminal
from .job.settings import named
from .output import layout
from .output.counts import Counts, by_reason

if TYPE_CHECKING:  # for their types alone: importing them for good would make `batchgen --help` slow
    from .commands.doctor import Place, Report
    from .commands.init import Written
    from .commands.outlook import Outlook
    from .commands.plan import Forecast
    from .commands.replay import Replay
    from .commands.results import Results
    from .commands.status import Status, Worker
    from .commands.sweep import Forecast as SweepForecast
    from .commands.verify import Verdict
    from .metrics.summary import MeasuredSetting, Summary, Value
    from .runner.outcome import Outcome
    from .task.generate import Prompted
    from .task.segment_rows import SegmentRow

DEAD_SHOWN = 5  # dead workers that are listed, the latest first; a long job may have many
OWN_LINES = ("batchgen", "python", "vllm")  # versions that doctor does not list among the packages
LONGEST_DETAIL, LONGEST_RAW = 500, 200  # characters of a reject's detail and of its row
COLUMNS = 100  # of a terminal, for the tables that are wide
NARROWEST = 24  # columns for the last part of a line of such a table
ALIKE = "="  # marks what cannot be told from the best
LONGEST_TEXT = 500  # characters of a segment, and of its translation


def say(text: Any = "", **options: Any) -> None:
    """click.echo with nothing in the text that a terminal would obey. Raises OSError that names stdout."""
    echo(terminal.lines(str(text)), **options)


def echo(text: str, **options: Any) -> None:
    """click.echo of text that is safe on a terminal. Raises OSError that names stdout."""
    try:
        click.echo(text, **options)
    except OSError as error:
        raise type(error)(error.errno, error.strerror, "stdout") from None


def document(value: Any, on_a_line: bool = False) -> None:
    """A result as JSON: a struct, dataclass or dict. on_a_line: for one of several"""
    encoded = msgspec.json.encode(value)
    echo(terminal.document(encoded if on_a_line else msgspec.json.format(encoded, indent=2)))


def facts(values: Mapping[str, str], width: int) -> None:
    """A name and its value on each line."""
    for name, value in values.items():
        say(f"{name:{width}} {value}")


# --- init


def first_job(written: "Written") -> None:
    in_short(f"wrote {written.path}, going by the first {written.look.rows:,} rows:")
    for guess in written.guesses:
        in_short(f"  {guess}")
    look, then = f"batchgen plan {written.path} --show 2", f"batchgen run {written.path}"
    if written.is_sweep:
        look, then = f"batchgen sweep {written.path} --dry-run", f"batchgen sweep {written.path}"
    in_short(f"next: {look}, then {then}")


# --- run, retry, export


def outcome(done: "Outcome") -> None:
    lines = list(_outcome(done))
    if not events.style().as_json:
        in_short(*lines)
        return
    events.tell(events.Level.info, "outcome", *lines, **to_builtins(done.figures))


def in_short(*lines: str) -> None:
    """What a command has done, for people: -q leaves it out."""
    if not events.style().quiet:
        for line in lines:
            console.say(line)


def _outcome(done: "Outcome") -> Iterator[str]:
    totals = done.totals
    if done.nothing:
        yield f"nothing to do yet: {done.nothing}"
        return
    if done.trial:
        yield f"trial: {done.trial} are done in {done.out}; without --limit the same command does the others"
    elif done.counts is None:
        yield f"nothing left to do here: other workers hold the last shards of {done.out}"
    else:
        state = "done" if totals.rows else "all done already"
        yield f"{state}: {done.counts} in {done.out}"
    rows = totals.rows + (totals.open_rows if done.trial else 0)  # of a trial the last shard is not finished
    if rows:
        kind = "response" if totals.response_tokens else "prompt"  # scores have no responses
        kept = f" ({totals.kept:,} responses from the journal)" if totals.kept else ""
        if not totals.prompt_tokens:
            yield f"this run: {rows:,} rows{kept} in {done.seconds:,.1f} s; the engine was asked for nothing"
        else:
            yield (
                f"this run: {rows:,} rows{kept}, {totals.prompt_tokens:,} prompt and "
                f"{totals.response_tokens:,} response tokens in {done.seconds:,.1f} s, engine start "
                f"{done.engine_start:,.1f} s; then {done.tokens_per_second:,.0f} {kind} tokens/s"
            )
    if done.first_reject:
        yield f"first reject: {done.first_reject}; all: batchgen rejects {shlex.quote(str(done.out))}"
    if done.counts and done.counts.endings:
        yield f"ended: {done.counts.endings}"
    if (done.counts and done.counts.responses) or done.trial:
        yield f"look: batchgen show {shlex.quote(str(done.out))}{_worth_a_look(done.counts)}"


def _worth_a_look(counts: Counts | None) -> str:
    """What of the answers went wrong, as `show` chooses them."""
    if not counts:
        return ""
    ended = counts.finish_reasons or {}
    wrong = {"length": ended.get("length"), "empty": counts.empty, "repetition": counts.repetitive}
    flags = [f"--only {what}" for what, number in wrong.items() if number]
    return f"; at what went wrong: {', '.join(flags)}" if flags else ""


def sweep_forecast(seen: "SweepForecast") -> None:
    job, settings = seen.job, seen.settings
    same = sum(len(setting.same) for setting in settings)
    rows = f"{job.plan.rows:,} of {sum(file.rows for file in job.plan.files):,}"
    once = seen.requests - seen.distinct
    facts(
        {
            "model": shown(job.model.name),
            "settings": f"{len(settings):,}{f'; {same:,} more mean the same as one of them' if same else ''}",
            "rows": f"{rows}; {seen.rejects.total():,} rejects{by_reason(dict(sorted(seen.rejects.items())))}",
            "requests": f"{seen.requests:,}{f', of which {once:,} have the answer of another one' if once else ''}",
            "tokens": f"{seen.prompt_tokens:,} of prompts, at most {seen.most_tokens:,} of responses",
            "output": shown(str(job.out)),
        },
        width=9,
    )
    for setting in settings:
        say(f"  {setting.number:4} {shown(setting.name)}")
        for changes in setting.same:
            say(f"       the same: {shown(named(changes))}")


def comparison(seen: "Summary", out: str) -> None:
    """The settings of a sweep, the best first."""
    if seen.best_setting is None:
        say(f"no setting was chosen out of {len(seen.settings):,}: no metric that could choose has a value")
    else:
        each = "1 response each" if seen.samples == 1 else f"up to {seen.samples:,} responses each"
        say(f"{shown(seen.best)} of {len(seen.settings):,} settings over {seen.rows:,} rows, {each}")
        _settings(seen, seen.settings[seen.best_setting])
    for note in seen.notes:
        say(f"note: {shown(note)}")
    say(f"in {shown(out)}: {', '.join(name for name in (layout.REPORT, layout.BEST, layout.SUMMARY, layout.METRICS))}")


def _settings(seen: "Summary", best: "MeasuredSetting") -> None:
    [better] = [metric.better for metric in seen.metrics if metric.name == seen.best]
    known = [each for each in seen.settings if each.values[seen.best].mean is not None]
    sign = -1 if better == "higher" else 1
    known.sort(key=lambda each: (each is not best, sign * (each.values[seen.best].mean or 0), each.number))
    titles = ("", "value", "95 % interval", "difference", "best in", "setting")
    lines = [_setting(each.values[seen.best], each is best, shown(each.name)) for each in known]
    widths = [max(map(len, column)) for column in zip(titles, *lines, strict=True)][:-1]
    for line in (titles, *lines):
        *values, name = line
        before = "".join(f"{part:{width}}  " for part, width in zip(values, widths, strict=True))
        room = max(COLUMNS - len(before), NARROWEST)
        for number, part in enumerate(textwrap.wrap(name, room, break_on_hyphens=False) or [""]):
            say(f"{' ' * len(before) if number else before}{part}")
    if any(line[0] == ALIKE for line in lines):
        say(f"{ALIKE} cannot be told from the best: the interval of the difference has 0 in it")


def _setting(value: "Value", is_best: bool, name: str) -> tuple[str, ...]:
    to_best = value.to_best
    interval = "" if value.low is None else f"{value.low:.4g} to {value.high:.4g}"
    difference = ""
    if to_best:
        between = "" if to_best.low is None else f" ({to_best.low:+.3g} to {to_best.high:+.3g})"
        difference = f"{to_best.mean:+.3g}{between}"
    share = "" if value.best_share is None else f"{value.best_share:.0%}"
    mark = "*" if is_best else ALIKE if to_best and not to_best.is_told_apart else ""
    return mark, f"{value.mean:.4g}", interval, difference, share, name


def exported(results: "Results", to: object) -> None:
    missing = f", {results.missing:,} shards missing" if results.missing else ""
    in_short(f"exported: {results.counts}{missing} to {to}")


# --- plan


def forecast(seen: "Forecast") -> None:
    job, tokens = seen.job, seen.tokens
    new = "" if seen.new_rows is None else f", {seen.new_rows:,} of them new"
    first = f"; what follows is of the first {job.rows:,}" if job.rows < job.plan.rows else ""
    lengths = ", ".join(f"{name} {value:,}" for name, value in seen.percentiles().items())
    facts(
        {
            "rows": f"{job.plan.rows:,} in {len(job.plan.latest):,} files{new}{first}",
            "rejects": f"{seen.rejects.total():,}{by_reason(dict(sorted(seen.rejects.items())))}",
            **({} if seen.texts else {"shapes": _counted(seen.shapes) or "none"}),
            **({"quantization": shown(seen.quantization)} if seen.quantization else {}),
            **_texts(seen),
            **_adapters(seen),
            "prompt tokens": f"{tokens:,}; {lengths}",
            **_images(seen),
            "over-length": f"{seen.over_length:,} rows, on_overlength = {job.spec.prompt.on_overlength}",
            **_forged(seen),
            "shared": f"{seen.shared / max(tokens, 1):.0%} of the prompt tokens are in common prefixes",
            "prompt format": f"{job.generate.format}, context {job.context:,} tokens",
            "shards": f"{len(job.plan.shards):,} of {job.spec.output.shard_rows:,} rows",
            **({"workers": seen.workers} if seen.workers else {}),
            **(_outlook(seen.outlook) if seen.outlook else {}),
            "fingerprint": job.record.fingerprint,
        },
        width=14,
    )
    bars = seen.histogram()
    most = max((count for _, _, count in bars), default=1)
    for start, end, count in bars:
        say(f"{start:7,} -{end:6,} {'#' * round(40 * count / most):40} {count:,}")


def _outlook(seen: "Outlook") -> dict[str, str]:
    if not seen.requests:
        return {}
    most = "" if seen.is_measured else "at most "
    work = f"{seen.requests:,} requests, {most}{seen.tokens:,} tokens"
    if seen.seconds is None:
        time = f"{work}; at what pace, --tokens-per-second says, or a run"
    else:
        time = f"{most}{_duration(seen.seconds)}: {work} at {seen.tokens_per_second:,.0f} tokens/s"
    free = "" if seen.free is None else f"; {_gib(seen.free)} are free there"
    return {"time": time, "disk": f"about {_size(seen.bytes)}{free}"}


def _size(size: int) -> str:
    return _gib(size) if size >= 1 << 29 else f"{size / (1 << 20):,.1f} MiB"


def _counted(counted: "Counter[str]") -> str:
    return ", ".join(f"{name} {number:,}" for name, number in counted.most_common())


def _adapters(seen: "Forecast") -> dict[str, str]:
    if not seen.job.model.adapters:
        return {}
    named = [f"{adapter.name} {seen.adapters[adapter.name]:,}" for adapter in seen.job.model.adapters]
    return {"adapters": ", ".join([*named, f"the model alone {seen.adapters['']:,}"])}


def _images(seen: "Forecast") -> dict[str, str]:
    if not (found := seen.images):
        return {}
    share = f", {found.tokens / max(seen.tokens, 1):.0%} of the prompt tokens" if found.tokens else ""
    more = f"; of {found.animated:,} animated ones the first image is taken" if found.animated else ""
    return {"images": f"{found.images:,} in {found.rows:,} rows, {len(found.distinct):,} of them distinct{share}{more}"}


def _texts(seen: "Forecast") -> dict[str, str]:
    texts = seen.texts
    if not texts:
        return {}
    fields = ", ".join(f"{shown(path)} {number:,}" for path, number in texts.fields.items())
    missing = ", ".join(f"{shown(path)} in {number:,} rows" for path, number in texts.missing.items())
    mistyped = ", ".join(f"{shown(path)} in {number:,} rows" for path, number in texts.mistyped.items())
    return {
        "texts": f"{texts.texts:,}, {texts.distinct_texts:,} of them distinct; {fields}",
        **({"missing": missing} if missing else {}),
        **({"no texts": mistyped} if mistyped else {}),
        "segments": f"{texts.segments:,}, {texts.distinct_segments:,} of them distinct, of which the memory has "
        f"{texts.remembered:,}; {texts.cut:,} cut inside a sentence, {texts.protected:,} with protected spans",
    }


def _forged(seen: "Forecast") -> dict[str, str]:
    if not seen.first_forged:
        return {}
    row, what = seen.first_forged
    return {"forged turns": f"in the text of {seen.forged:,} rows; the first is row {row:,}, with {shown(what)}"}


def prompts(items: "Iterable[Prompted]") -> None:
    for made in items:
        say(f"\nrow {made.row}, id {shown(made.id)}, {len(made.prompt_token_ids)} tokens\n{made.prompt}")
        say(f"{made.prompt_token_ids}")


# --- status


def status_line(seen: "Status") -> None:
    shards = seen.shards
    say(
        f"{seen.state}: {seen.rows_done:,} of {seen.rows:,} rows, {shards.done:,} of {shards.total:,} shards, "
        f"{len(seen.live):,} workers, {seen.response_tokens_per_second:,.0f} tokens/s, ETA {_duration(seen.eta)}"
    )


def status(seen: "Status") -> None:
    shards, finished, overall = seen.shards, seen.finished, seen.response_tokens_per_second_overall
    unreadable = f"; those of {finished.unreadable:,} shards cannot be read" if finished.unreadable else ""
    facts(
        {
            "job": f"{seen.state}, {shown(seen.out)}",
            "shards": f"{shards.done:,} done, {shards.running:,} running, {shards.left:,} left of {shards.total:,}",
            "rows": f"{seen.rows_done:,} of {seen.rows:,} ({seen.rows_done / max(seen.rows, 1):.1%})",
            "in finished": f"{finished.answers}, {finished.rejected:,} rejects{by_reason(finished.rejects)}, "
            f"{finished.prompt_tokens:,} prompt and {finished.response_tokens:,} response tokens{unreadable}",
            **({"ended": finished.endings} if finished.endings else {}),
            **_segments(finished),
            **({"in journals": f"{seen.journaled:,} answers of unfinished shards"} if seen.journaled else {}),
            **({"first reject": shown(seen.first_reject)} if seen.first_reject else {}),
            "tokens/s": f"prompt {seen.prompt_tokens_per_second:,.0f}, response "
            f"{seen.response_tokens_per_second:,.0f}; "
            f"overall {'unknown' if overall is None else f'{overall:,.0f}'}, pauses included",
            "ETA": _duration(seen.eta),
        },
        width=12,
    )
    _workers(seen)


def _segments(finished: Counts) -> dict[str, str]:
    """Of a translation."""
    if finished.segments is UNSET:
        return {}
    failed = f"{finished.failed_segments or 0:,} in {finished.failed or 0:,} records that no try got right"
    return {"segments": f"{finished.segments:,}; {failed}; {finished.tries or 0:,} further tries"}


def _workers(seen: "Status") -> None:
    """A line for each worker; those that died long ago are only counted."""
    dead = sorted((worker for worker in seen.workers if not worker.is_alive), key=lambda worker: worker.heartbeat_age)
    lines = [_worker(worker) for worker in [*seen.live, *dead[:DEAD_SHOWN]]]
    if lines:
        titles = ("worker", "state", "Slurm", "heartbeat", "shards", "running", "waiting", "rows", "tokens/s")
        widths = [max(map(len, column)) for column in zip(titles, *lines, strict=True)]
        for line in (titles, *lines):
            say("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())
    if len(dead) > DEAD_SHOWN:
        say(f"and {len(dead) - DEAD_SHOWN:,} more that are dead")
    if seen.clock == "this host":
        say(f"heartbeats are timed by this host's own clock: {shown(seen.out)} cannot be written to")


def _worker(worker: "Worker") -> tuple[str, ...]:
    return (
        shown(worker.worker),
        shown(worker.state),
        shown(worker.slurm_task) or "-",
        f"{worker.heartbeat_age:,.0f} s ago",
        ",".join(map(str, worker.shards)) or "-",
        f"{worker.running:,}",
        f"{worker.waiting:,}",
        f"{worker.rows:,}",
        f"{worker.response_tokens_per_second:,.0f}",
    )


def _duration(seconds: float | None) -> str:
    return "unknown" if seconds is None else str(timedelta(seconds=round(seconds)))


# --- verify, rejects


def verdict(found: "Verdict", out: object) -> None:
    console.say(f"verified: {found.counts.summary}")
    if found.alone:
        console.say(f"{found.alone:,} shards were not compared with their input, which is gone ([input] keep = false)")
    if found.closed:
        console.say(f"_SUCCESS was missing; wrote {out}/_SUCCESS")
    elif not found.is_closed:
        console.say(f"_SUCCESS is missing; `batchgen verify {out} --close` writes it")
    console.say(f"digest of all shards: {found.digest}")


def replay(again: "Replay") -> None:
    console.say(f"replayed: {again.matches} of {again.items} {again.what} are the same")
    for drew, count in sorted(again.left_out.items(), key=str):
        why = f"they were sampled with {drew}, here it is {again.here}"
        console.say(f"left out: {count} {again.what}: {why}, so their seeds mean other tokens")
    if again.remembered:
        console.say(f"left out: {again.remembered} segments: they are of the memory, so this job did not generate them")
    if again.spaced:
        why = "they are JSON with the white space that vLLM gave it then, today batchgen gives it none"
        console.say(f"left out: {again.spaced} responses: {why}")
    if again.first:
        console.say(f"first difference: {again.first}")


def rejects(lines: Iterable[tuple[str, dict[str, Any]]]) -> None:
    """lines: where each row is in the input, and its line of `_rejects/`"""
    count = 0
    for place, line in lines:
        count += 1
        detail, raw = _cut(line["detail"], LONGEST_DETAIL), _cut(line["raw"], LONGEST_RAW)
        say(f"{shown(place)}: {shown(line['reason'])}: {shown(detail)}\n    {shown(raw)}")
    say(f"{count:,} rejected rows")


def segments(failed: "Iterable[tuple[str, SegmentRow]]", rejected: Iterable[Any]) -> None:
    """failed: where the row of each is in the input, and the segment; rejected: rows that were rejected for one, with
    all their segments"""
    checks: Counter[str] = Counter()
    count = 0
    for place, row in failed:
        count += 1
        checks.update(row.failed_checks)
        names, times = ", ".join(row.failed_checks), "1 try" if row.tries == 1 else f"{row.tries:,} tries"
        uses = f", used {row.uses:,} times" if row.uses > 1 else ""
        say(f"{shown(place)}: {shown(row.path)}: {shown(names)} ({times}{uses})")
        say(f"    source  {shown(_cut(row.source, LONGEST_TEXT))}")
        say(
            "    no try gave an answer"
            if row.answer is None
            else f"    best    {shown(_cut(row.answer, LONGEST_TEXT))}"
        )
    rows = sum(1 for _ in rejected)
    more = f"; {rows:,} rows were rejected for theirs, which batchgen rejects shows" if rows else ""
    say(f"{count:,} segments that no try got right{by_reason(checks)}{more}")


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[:length] + "..."


# --- doctor


def doctor(seen: "Report") -> None:
    shared = "no /dev/shm" if seen.shared_memory is None else f"/dev/shm of {_gib(seen.shared_memory)}"
    packages = [f"{name} {version}" for name, version in seen.versions.items() if name not in OWN_LINES]
    lines = {
        "batchgen": f"{seen.versions['batchgen']}, Python {seen.versions['python']} ({seen.python}), {seen.platform}",
        "vLLM": _vllm(seen),
        "packages": ", ".join(packages),
        "GPUs": _gpus(seen),
        "machine": f"{seen.cores:,} core{'s' if seen.cores > 1 else ''}, {_gib(seen.memory)} of memory free",
        "sampling": seen.sampler or "none",
        "model cache": _place(seen.places["models"]),
        "vLLM's cache": _place(seen.places["vllm"]),
        "temporary": f"{_place(seen.places['temporary'])}; {shared}",
        "Slurm": seen.slurm or "none",
    }
    if seen.engine_start is not None:
        lines["engine"] = f"started in {seen.engine_start:,.1f} s and generated a row of the demo"
    facts({name: shown(value) for name, value in lines.items()}, width=13)


def _vllm(seen: "Report") -> str:
    if seen.vllm_build is None:
        return "not installed"
    lacks = f"; lacks {', '.join(seen.vllm_lacks)}" if seen.vllm_lacks else ""
    return f"{seen.versions['vllm']} (of {seen.vllm_range}), built for {seen.vllm_build.upper()}s{lacks}"


def _gpus(seen: "Report") -> str:
    """Equal ones are counted."""
    if not seen.gpus:
        return "none"
    counted = Counter(f"{gpu.name}{'' if gpu.memory is None else f' ({_gib(gpu.memory)})'}" for gpu in seen.gpus)
    listed = ", ".join(f"{count} {name}" for name, count in counted.items())
    return f"{listed}, driver {seen.gpus[0].driver}; {len(seen.gpus_visible):,} for jobs"


def _place(place: "Place") -> str:
    if place.refusal:
        return f"{place.path}, cannot be written to: {place.refusal}"
    return place.path if place.free is None else f"{place.path}, {_gib(place.free)} free"


def _gib(size: int) -> str:
    return f"{size / (1 << 30):,.1f} GiB"


# --- manual


def page(text: str) -> None:
    if sys.stdout.isatty():
        click.echo_via_pager(text)
    else:
        say(text, nl=False)


# --- bench


def figures(values: dict[str, Any]) -> None:
    facts({name: _figure(value) for name, value in values.items()}, width=28)


def _figure(value: Any) -> str:
    """What fits on a line: tables are only in the JSON."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {_figure(part)}" for name, part in value.items() if not _is_table(part)) or "none"
    if isinstance(value, list):
        return " ".join(map(_figure, value))
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4f}" if abs(value) < 10 else f"{value:,.1f}"


def _is_table(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)
