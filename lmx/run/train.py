"""`lmx train`: from a config and a workdir to a trained model; resumes."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Generator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from lmx.core import config as configs
from lmx.core.errors import DataError, Preempted, UserError
from lmx.core.schema import ExperimentConfig
from lmx.core.workdir import claim, write_atomic
from lmx.data.built import TEMPLATE
from lmx.data.seen import Seen
from lmx.run.evaluator import evaluator
from lmx.run.start import adopted

Say = Callable[[str], None]
SUMMARY = "summary.json"


def train(config: ExperimentConfig, workdir: str | Path, *, say: Say = print) -> dict:
    """Trains `config` in `workdir` and returns its summary; resumes what is there.

    Raises:
      UserError: with the exit code of what went wrong (see `core/errors.py`).
    """
    from lmx.training.checkpoints import Checkpoints
    from lmx.training.preemption import Preemption

    config = adopted(config)
    with (
        claim(workdir) as folder,
        Preemption() as preemption,
        Checkpoints(
            folder / "checkpoints", config=config.checkpoint, report=say
        ) as checkpoints,
    ):
        step = checkpoints.recover()
        if step is not None:
            check_resumable(config, folder, say=say)
        summary = read_summary(folder)
        done = min(step or 0, summary["step"] if summary else 0)
        if summary is not None and done >= config.steps:
            say(finished_message(done, folder))
            return summary
        return _run(config, folder, checkpoints, preemption, step, say)


def _run(config, folder: Path, checkpoints, preemption, step: int | None, say: Say):
    """Builds everything, trains what is left, evaluates and writes the results."""
    from lmx.run.build import build
    from lmx.run.finish import finish
    from lmx.training.loop import train as train_loop
    from lmx.training.metrics import MetricsWriter
    from lmx.training.progress import Progress

    experiment = build(config, report=say)
    if step is not None:
        facts = checkpoints.facts(step)
        if experiment.facts["tokenizer"] != facts["tokenizer"]:
            experiment = build_with_tokenizer(config, folder / "tokenizer", say=say)
        check_data(experiment, facts)
        experiment = on_its_base(experiment, facts, folder)
    config = experiment.config
    describe(experiment, say)
    seen = Seen(experiment.corpus)
    if step is not None:
        seen.resume(step, facts.get("seen"))
    write_atomic(folder / "config.json", configs.to_json(config))
    experiment.corpus.tokenizer.save(folder / "tokenizer")
    if (template := experiment.corpus.chat_template) is not None:
        write_atomic(folder / TEMPLATE, template)
    if step is None:
        state = experiment.init()
    else:
        say(f"resuming from step {step}")
        state = experiment.restore(checkpoints, step)
    start = step or 0
    with (
        MetricsWriter(folder, writers=config.log.writers, start_step=start) as metrics,
        Progress(config.steps, start, saved_age=checkpoints.age_seconds) as progress,
    ):
        watch = CompileWatch(say=progress.say)
        progress.status("compiling the training step")
        parts = _parts(
            experiment, seen, checkpoints, metrics, progress, preemption, watch
        )
        with watch:
            state = train_loop(state, parts, config)
    if preemption.requested:
        raise Preempted("stopped before the last evaluation; run it again")
    return finish(experiment, state, folder, say=say)


def _parts(experiment, seen, checkpoints, metrics, progress, preemption, watch):
    """Returns what the loop calls, made from the experiment."""
    from lmx.models.counting import flops_per_token
    from lmx.parallel.devices import peak_flops
    from lmx.training.loop import Parts
    from lmx.training.schedules import make_schedule

    config = experiment.config
    lengths = experiment.corpus.row_lengths
    return Parts(
        step=watch.counted(
            experiment.step_function(),
            stage=lambda state, batch: f"rows of {batch.tokens.shape[1]} tokens",
        ),
        batches=partial(placed_batches, experiment, seen, checkpoints),
        evaluate=evaluator(experiment),
        schedule=make_schedule(config.optim, config.steps),
        checkpoints=checkpoints,
        metrics=metrics,
        progress=progress,
        preemption=preemption,
        flops_per_token=lambda step: flops_per_token(
            experiment.model, length=lengths.at(step - 1)
        ),
        peak_flops=peak_flops(experiment.partition.mesh.devices.flat),
    )


def placed_batches(
    experiment, seen: Seen, checkpoints, start: int, stop: int
) -> Generator[Any, None, None]:
    """Yields the training batches of steps start..stop on the devices.

    What has been seen when a batch is asked for is what checkpoints then remember.
    Raises a `DataError` for a batch without a token to learn from.
    """
    checkpoints.remember({**experiment.facts, "seen": seen.facts})
    batches = experiment.corpus.train_batches().iterate(start, stop)
    try:
        for step, batch in enumerate(batches, start):
            if not seen.add(step, batch):
                raise DataError(
                    f"step {step + 1}: none of the {batch.tokens.size:,} positions of "
                    "its batch has a loss, so there is nothing to learn; look at it "
                    f"with `lmx data show --config=… --step={step + 1}`"
                )
            checkpoints.remember({**experiment.facts, "seen": seen.facts})
            yield experiment.partition.place_batch(batch)
    finally:
        batches.close()


class CompileWatch:
    """Reports a compilation after the second training step: it should not happen.

    One at the start of a stage of other shapes should, and is said.
    """

    def __init__(self, *, say: Say):
        self._say = say
        self._steps: Counter[str] = Counter()
        self._seconds = 0.0

    def __enter__(self) -> CompileWatch:
        import jax.monitoring

        jax.monitoring.register_event_duration_secs_listener(self._heard)
        return self

    def __exit__(self, *exception: object) -> None:
        import jax.monitoring

        jax.monitoring.unregister_event_duration_listener(self._heard)

    def _heard(self, event: str, duration_secs: float, **_: str | int) -> None:
        if event.endswith("backend_compile_duration"):
            self._seconds += duration_secs

    def counted(
        self, step: Callable, *, stage: Callable[..., str] = lambda *args: ""
    ) -> Callable:
        """Returns `step`, which tells when it compiled although it had before.

        `stage` names the shapes of its arguments; each name is compiled for once.
        """

        def call(*args):
            self._seconds = 0.0
            result = step(*args)
            name = stage(*args)
            self._steps[name] += 1
            took = f"({self._seconds:.1f} s)"
            if self._steps[name] > 2 and self._seconds:
                self._say(
                    f"the training step was compiled again after "
                    f"{self._steps.total() - 1} steps {took}: a shape or a placement "
                    "changed"
                )
            elif self._steps[name] == 1 < len(self._steps):
                self._say(f"the training step was compiled for {name} {took}")
            return result

        return call


def check_resumable(config: ExperimentConfig, folder: Path, *, say: Say) -> None:
    """Raises a `UserError` if `folder` holds a run of another experiment."""
    path = folder / "config.json"
    try:
        saved = configs.from_json(path.read_text(encoding="utf8"))
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read ({error}); restore it, or choose another --workdir"
        ) from error
    changes = configs.difference(saved, with_derived(config, saved))
    fixed = {k: v for k, v in changes.items() if not k.startswith(configs.RESUMABLE)}
    if fixed:
        shown = [f"  {key}: {old!r} → {new!r}" for key, (old, new) in fixed.items()]
        more = [f"  and {len(shown) - 2} more"] if len(shown) > 3 else []
        raise UserError(
            "\n".join(
                [
                    f"{folder} holds a run of another experiment:",
                    *(shown[:2] if more else shown),
                    *more,
                    "choose another --workdir, or change these back",
                ]
            )
        )
    for key, (old, new) in changes.items():
        say(f"changed since this run was started: {key}: {old!r} → {new!r}")


def with_derived(config: ExperimentConfig, saved: ExperimentConfig) -> ExperimentConfig:
    """Returns `config` with the numbers that it leaves to lmx taken from `saved`."""
    from lmx.models.sizes import resolve

    derived = resolve(config.model, vocab_size=saved.model.vocab_size)
    return dataclasses.replace(config, model=derived)


def build_with_tokenizer(config: ExperimentConfig, tokenizer: Path, *, say: Say):
    """Returns the experiment with a run's own tokenizer instead of a new one.

    Training a tokenizer anew may give another one: unigram training is not repeatable.
    """
    from lmx.run.build import build

    data = dataclasses.replace(config.data, tokenizer=str(tokenizer))
    experiment = build(dataclasses.replace(config, data=data), report=say)
    kept = dataclasses.replace(experiment.config, data=config.data)
    return dataclasses.replace(experiment, config=kept)


def check_data(experiment, facts: Mapping[str, Any]) -> None:
    """Raises a `DataError` if a checkpoint was trained with other tokens."""
    for name, what in (("tokenizer", "another tokenizer"), ("data", "other text")):
        if experiment.facts[name] != facts[name]:
            raise DataError(
                f"the checkpoint was trained with {what} ({facts[name][:12]}, now "
                f"{experiment.facts[name][:12]}): {experiment.config.data.path} or how "
                "it is read has changed; restore it, or choose another --workdir"
            )


def on_its_base(experiment, facts: Mapping[str, Any], folder: Path):
    """Returns the experiment beside the models that a checkpoint was trained beside.

    They are what an adapter changes, what preferences are compared with, a teacher. A
    run that was one may have gone on since: the step that was taken is meant. Raises a
    `DataError` if its weights are no longer those.
    """
    from lmx.finetune.base import base_facts, check_base

    config = experiment.config
    if experiment.adapter is not None:
        check_base(config.model.init_from, facts["base"], where=folder)
    for name, key in (
        (config.model.init_from, "base"),
        (config.objective.teacher, "teacher"),
    ):
        if key in facts and name is not None:
            found = base_facts(name, step=facts[key]["step"])
            if found["digest"] != facts[key]["digest"]:
                raise DataError(
                    f"{folder} was trained beside {name}, whose weights have changed "
                    "since; restore them, or choose another --workdir"
                )
    return dataclasses.replace(
        experiment, base=facts.get("base"), teacher_base=facts.get("teacher")
    )


def describe(experiment, say: Say) -> None:
    """Says what is about to be trained, on what."""
    from lmx.models.counting import parameter_count

    config, mesh = experiment.config, experiment.partition.mesh
    model, data = experiment.model, config.data
    devices = mesh.devices.flat[0].device_kind
    tokens = data.batch_size * model.context_length
    train = experiment.corpus.summary["train"]
    say(
        f"model   {parameter_count(model) / 1e6:.2f}M parameters: {model.num_layers} "
        f"layers, width {model.width}, {model.num_heads} heads "
        f"({model.num_kv_heads} key/value), MLP {model.mlp_dim}, "
        f"vocabulary {model.vocab_size:,}, context {model.context_length}"
    )
    if experiment.adapter is not None:
        count, total = experiment.adapter.counts()
        say(
            f"adapter {config.adapter.method or 'no low rank'}: {count:,} parameters "
            f"train ({count / total:.2%} of the model's), the rest is that of "
            f"{config.model.init_from}"
        )
    epochs = config.steps * tokens / max(1, train["tokens"])
    say(
        f"data    {train['documents']:,} documents, {train['bytes'] / 1e6:.1f} MB, "
        f"{train['tokens']:,} tokens; {config.steps:,} steps of {tokens:,} tokens are "
        f"{epochs:.2f} epochs"
    )
    if line := packing_line(experiment.corpus):
        say(line)
    if config.data.row_lengths:
        say(lengths_line(experiment.corpus.row_lengths))
    if len(experiment.corpus.sources) > 1:
        say("\n".join(mixture_lines(experiment.corpus, config.steps)))
    shape = " · ".join(f"{axis} {n}" for axis, n in mesh.shape.items() if n > 1)
    pieces = experiment.micro_batches
    say(
        f"devices {mesh.size} × {devices}{f' ({shape})' if shape else ''}"
        f"{f', {pieces} micro-batches a step' if pieces > 1 else ''}"
    )


def packing_line(corpus) -> str:
    """Returns how full the rows are and what was cut; nothing where all is full."""
    rows = corpus.train_batches().rows
    positions, waste = len(rows) * corpus.context_length, rows.waste
    if corpus.config.packing == "concat":
        return ""
    told = f", {waste.cut:,} longer than a row are cut" if waste.cut else ""
    if waste.left_out:
        told += f", {waste.left_out:,} pairs longer than a row are left out"
    return (
        f"        {len(rows):,} rows of {corpus.config.packing!r} packing, "
        f"{1 - waste.padding / positions:.1%} full{told}"
    )


def lengths_line(lengths) -> str:
    """Returns how long rows are, and from which step on."""
    (_, length), *later = lengths.stages
    more = [f", of {length} from step {start + 1:,} on" for start, length in later]
    return f"        rows of {length} tokens{''.join(more)}"


def mixture_lines(corpus, steps: int) -> list[str]:
    """Returns a line for each source: its share of the rows, and its epochs."""
    batches = corpus.train_batches()
    counts = batches.mixture.counts(steps * batches.batch_size)
    total = max(1, sum(counts.values()))
    width = max(map(len, counts))
    lines = []
    for source in corpus.sources:
        share = counts[source.name] / total
        epochs = counts[source.name] / max(1, batches.rows.counts[source.name])
        lines.append(
            f"        {source.name:<{width}} {share:6.1%} of the rows, "
            f"{epochs:.2f} epochs, {source.licence}"
        )
    return lines


def read_summary(folder: Path) -> dict | None:
    """Returns what a finished run left, or None."""
    try:
        return json.loads((folder / SUMMARY).read_text(encoding="utf8"))
    except (OSError, ValueError):
        return None


def finished_message(step: int, folder: Path) -> str:
    """Returns what to say of a run that has nothing left to do."""
    return (
        f"{folder} is finished at step {step}.\n"
        f"To train longer: the same command with --config.steps={step * 2}.\n"
        f'To use it: lmx generate --workdir={folder} --prompt="..."'
    )


def default_workdir(spec: str) -> Path:
    """Returns runs/NAME for `experiments/NAME.py`, runs/NAME-arg for `NAME.py:arg`."""
    path, _, arg = spec.partition(":")
    suffix = "".join(f"-{part.replace('=', '-')}" for part in arg.split(",") if part)
    return Path("runs") / f"{Path(path).stem}{suffix}"
