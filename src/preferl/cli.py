"""The command line. Help is static and a subcommand's parser is built only when it runs, so that
``preferl --help`` never loads torch."""

import itertools
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from preferl import __version__
from preferl.runs import distributed, shipped, signals
from preferl.runs.disks import REMEDY, what_is_wrong
from preferl.runs.errors import (
    DATA,
    INTERRUPTED,
    USAGE,
    DivergedError,
    Interrupted,
    StoppedElsewhere,
    UsageError,
)

HELP = f"""\
preferl {__version__}: RLHF, from preferences to policy.

  preferl demo                     the whole pipeline on the embedded world, in minutes on a laptop
  preferl run --config F.yaml      the same pipeline on any model and data set; `--seeds 3` for intervals
  preferl sweep --config F.yaml    a grid over any keys, several seeds: one table and one report

One stage at a time (each takes the previous stage's directory):
  preferl sft                      fine-tune a language model on demonstrations
  preferl collect                  sample responses and let an annotator compare them
  preferl reward                   train a reward model on preferences
  preferl best_of                  keep the best of N responses by a reward, as demonstrations for sft
  preferl dpo                      fine-tune the policy on the labels themselves (dpo, ipo, kto)
  preferl rl                       fine-tune the policy against the reward (ppo, rloo, grpo, rebel, …)
  preferl audit                    any reward on labelled pairs: RewardBench, RM-Bench, LLMBar, your own
  preferl evaluate                 compare the policy with its SFT model and with best-of-N
  preferl report DIR [DIR …]       one HTML file of a run or of stages, or of several runs side by side
  preferl chat RUN_OR_MODEL        talk with a policy; `--compare A B`: two of them, with their rewards
  preferl serve RUN_OR_MODEL       the same behind OpenAI's API, by `transformers serve`
  preferl card RUN                 a model card of a run: what it is, how it was made, what came out
  preferl push RUN NAME            the model, its card and its report to the Hugging Face Hub, privately;
                                   `run --push_to_hub NAME` does so after the last stage
  preferl label --items F          web pages in which people compare responses; `label --help` says more
  preferl design-reward "TEXT"     protocol, guidelines and criteria for a target behaviour

  preferl data validate IN         check every row of a data set
  preferl data convert IN OUT      between formats; `world` as IN writes the embedded world
  preferl doctor                   versions, devices, disk, known problems; with --config FILE the
                                   memory and hours that its training stages will take
  preferl completion SHELL         what completes commands and options in bash, zsh or fish

sft, reward, dpo and rl also train with several processes: torchrun --nproc_per_node N -m preferl rl …

`preferl COMMAND --help` lists a command's options. Options come from defaults, then YAML files
(--config, several allowed), then flags; --print_config shows the result. The same command again goes on
where it was interrupted; --fresh starts anew; --keep_stale takes a stage whose inputs have changed since
as it is; --debug shows tracebacks.
Ctrl+C, SIGTERM and SIGHUP end and save what was begun first, within ten seconds; twice means now.
Exit codes: 0 done, 2 usage, 3 data, 4 diverged, 75 interrupted (run the same command again).
"""


# What several processes can do together; each of them trains.
IN_PARALLEL = ("sft", "reward", "dpo", "rl")


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns the exit code. SIGINT, SIGTERM and SIGHUP end it with what is saved."""
    with signals.handled():
        return command_line(argv)


def command_line(argv: list[str] | None) -> int:
    """``main``, whoever handles the signals."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [a for a in arguments if a != "--debug"]
    arguments = ["--print_config" if a == "--print-config" else a for a in arguments]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0
    if arguments[0] in ("-V", "--version"):
        print(f"preferl {__version__}")
        return 0
    name, rest = arguments[0], arguments[1:]
    if name not in COMMANDS:
        return fail(f"unknown command '{name}'{nearest(name)}; see `preferl --help`", USAGE)
    if distributed.launched() > 1 and name not in IN_PARALLEL:
        distributed.let_main_speak()
        return fail(
            f"'{name}' runs in one process; start it without torchrun (several can {', '.join(IN_PARALLEL)})",
            USAGE,
        )
    here = str(Path.cwd())
    if "" not in sys.path and here not in sys.path:
        sys.path.insert(0, here)  # functions of a person's own, as module:function
    try:
        return COMMANDS[name](shipped.with_files(rest))
    except Interrupted as error:
        return fail(str(error), error.exit_code) if distributed.is_main() else error.exit_code
    except KeyboardInterrupt:
        return fail("interrupted; the same command goes on inside the unfinished stage", INTERRUPTED)
    except StoppedElsewhere as error:
        return error.exit_code
    except (UsageError, DivergedError) as error:
        if debug:
            traceback.print_exc()
        return fail(str(error), error.exit_code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:  # noqa: BLE001 - the last resort: said aloud, exit code 1 or 3
        if debug:
            traceback.print_exc()
        if is_data_error(error):
            return fail(str(error), DATA)
        wrong = what_is_wrong(error)
        if wrong:
            return fail(f"{wrong}; what was there before is whole; {REMEDY}", USAGE)
        if isinstance(error, OSError):
            return fail(f"{error.strerror or error}: {error.filename or ''}; check path and rights", USAGE)
        if is_out_of_memory(error):
            return fail(
                f"{error}: out of memory; lower micro_batch_size, sampling_batch_size or max_length, or "
                f"take a smaller model",
                USAGE,
            )
        return fail(f"{type(error).__name__}: {error} (a defect of preferl; --debug shows where)", 1)


def is_out_of_memory(error: Exception) -> bool:
    """Whether the machine or its GPU has no memory left: Python, torch and CUDA say it differently."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(names & {"MemoryError", "OutOfMemoryError"}) or "not enough memory" in str(error)


def fail(message: str, code: int) -> int:
    """Says what is wrong, in one line that no name in it can break or colour; returns the exit code."""
    from preferl.runs.progress import printable

    print(f"preferl: error: {printable(message.replace(chr(10), ' '))}", file=sys.stderr)
    return code


def is_data_error(error: Exception) -> bool:
    from preferl.data.records import DataError

    return isinstance(error, DataError)


def nearest(name: str) -> str:
    import difflib

    near = difflib.get_close_matches(name, COMMANDS, n=1)
    return f"; did you mean '{near[0]}'?" if near else ""


def take_flag(arguments: list[str], flag: str) -> tuple[list[str], bool]:
    return [a for a in arguments if a != flag], flag in arguments


def take_option(arguments: list[str], flag: str) -> tuple[list[str], str | None]:
    """``--flag VALUE`` or ``--flag=VALUE``, taken out.

    Raises:
        UsageError: no value follows.
    """
    for i, argument in enumerate(arguments):
        if argument.startswith(f"{flag}="):
            return arguments[:i] + arguments[i + 1 :], argument.removeprefix(f"{flag}=")
        if argument == flag:
            if i + 1 == len(arguments):
                raise UsageError(f"{flag} needs a value after it")
            return arguments[:i] + arguments[i + 2 :], arguments[i + 1]
    return arguments, None


def stage_command(name: str) -> Callable[[list[str]], int]:
    """``preferl NAME``: a stage by itself."""

    def command(arguments: list[str]) -> int:
        from preferl import pipeline
        from preferl.options.help import asks_for_help, taken_from, usual
        from preferl.runs.config import declared, instantiate, parser_for

        arguments, fresh = take_flag(arguments, "--fresh")
        arguments, keep_stale = take_flag(arguments, "--keep_stale")
        arguments, only_print = take_flag(arguments, "--print_config")
        with distributed.process_group():
            config_class = pipeline.config_class(name, declared(arguments))
            arguments, is_short = taken_from(arguments)
            about = description(name) if asks_for_help(arguments) else ""
            parser = parser_for(config_class, f"preferl {name}", about, arguments)
            if is_short:
                print(usual(name, config_class, parser, about), end="")
                return 0
            config = instantiate(parser, config_class, parser.parse_args(arguments))
            if only_print:
                from preferl import resolved

                print(resolved.stage_yaml(name, config), end="")
                return 0

            from preferl.runs.found import found_now, kept_though_stale

            path = Path(config.output_dir)
            if not (keep_stale and kept_though_stale(name, found_now(name, config))):
                path = pipeline.stage_module(name).run(config, fresh=fresh)
            if distributed.is_main():
                print(path)
        return 0

    return command


def description(stage: str) -> str:
    """What a stage says of itself, read from its file: importing it would load torch."""
    import ast

    text = (Path(__file__).parent / "stages" / f"{stage}.py").read_text(encoding="utf-8")
    return ast.get_docstring(ast.parse(text)) or ""


def run_command(arguments: list[str]) -> int:
    """``preferl run``: the pipeline from a configuration, or all its points where it holds a sweep."""
    return run_or_sweep(arguments, "run")


def sweep_command(arguments: list[str]) -> int:
    """``preferl sweep``: a run for every point and every seed."""
    return run_or_sweep(arguments, "sweep")


def run_or_sweep(arguments: list[str], name: str, *files: str) -> int:
    """Both commands take the same configurations; ``--seeds N`` runs each point with N seeds."""
    from preferl import pipeline, sweep
    from preferl.options.help import taken_from, usual
    from preferl.runs.config import declared, parser_for
    from preferl.runs.progress import say
    from preferl.stage_choice import with_stages
    from preferl.sweep.plan import SweepConfig, SweepOptions
    from preferl.sweep.run import run as run_sweep

    arguments, fresh = take_flag(arguments, "--fresh")
    arguments, keep_stale = take_flag(arguments, "--keep_stale")
    arguments, only_print = take_flag(arguments, "--print_config")
    arguments, count = take_option(arguments, "--seeds")
    arguments, repository = take_option(arguments, "--push_to_hub")
    if count is not None:
        if not (count.isdigit() and int(count)):
            raise UsageError(f"--seeds is {count}; give the number of seeds, at least 1")
        arguments += [f"--sweep.seeds={list(range(int(count)))}"]
    arguments = [*(f"--config={file}" for file in files), *arguments]
    module = sweep if name == "sweep" else pipeline
    doc = (module.__doc__ or "").strip()
    arguments, is_short = taken_from(arguments)
    if is_short:
        own = parser_for(pipeline.RunOptions, f"preferl {name}", doc, arguments)
        print(usual("run", pipeline.RunOptions, own, doc), end="")
        return 0
    parser = pipeline.parser_for_run(arguments, f"preferl {name}", doc, sweep=SweepOptions)
    given = pipeline.given_in(parser, arguments)
    varied = given.pop("sweep", {})
    if count is not None and not varied.get("grid"):
        varied.setdefault("points", [{}])
    run_config, chosen = with_stages(pipeline.RunConfig(**given))
    if chosen:
        say(f"{name}: {chosen}")
    if name != "sweep" and not (varied.get("grid") or varied.get("points")):
        if only_print:
            from preferl import resolved

            print(resolved.run_yaml(run_config), end="")
            return 0
        for stage in declared(arguments, files=False):  # a file may hold more stages than are run this time
            if stage in run_config.kinds and stage not in run_config.stages:
                say(f"{name}: the options of {stage} are not used: it is no stage of this run")
        if repository is not None:
            return run_and_push(run_config, fresh, keep_stale, repository)
        pipeline.run(run_config, fresh, keep_stale)
        return 0
    if repository is not None:
        raise UsageError("--push_to_hub is for one run; of a sweep push one with `preferl push RUN NAME`")
    config = SweepConfig(**run_config.given, sweep=varied)
    if only_print:
        from preferl import resolved

        print(resolved.run_yaml(config.base, leave_open=True) + config.varied_yaml(), end="")
        return 0
    outcome = run_sweep(config, fresh, keep_stale)
    if not outcome.errors:
        return 0
    return fail(
        f"{len(outcome.errors)} of {outcome.runs} runs failed (first: {outcome.errors[0]}); "
        f"the same command tries them again",
        outcome.exit_code,
    )


def run_and_push(config: Any, fresh: bool, keep_stale: bool, name: str) -> int:
    """A run, and after its last stage what ``preferl push RUN NAME --yes`` does; whether the Hub will take it
    is asked before the first one."""
    from preferl import pipeline
    from preferl.share import push
    from preferl.share.subject import WITH_MODEL

    push.check(name)
    if not set(config.kinds.values()) & set(WITH_MODEL):
        raise UsageError(f"--push_to_hub {name}: no stage of this run makes a model")
    pipeline.run(config, fresh, keep_stale)
    try:
        push.push(Path(config.output_dir), name, push.PushOptions(yes=True))
    except UsageError as error:
        again = f"the run is whole, and `preferl push {config.output_dir} {name}` tries again"
        raise UsageError(f"{error} ({again})") from error
    return 0


def demo_command(arguments: list[str]) -> int:
    """``preferl demo``: the embedded world. Takes the same options as ``run``."""
    from preferl import pipeline

    return run_or_sweep(arguments, "demo", str(pipeline.demo_file()))


def report_command(arguments: list[str]) -> int:
    """``preferl report RUN`` and ``preferl report RUN RUN …``."""
    arguments, out = take_option(arguments, "--output")
    arguments, form = take_option(arguments, "--format")
    arguments, fresh = take_flag(arguments, "--fresh")
    if form not in (None, "html", "md"):
        raise UsageError(f"--format {form} is unknown; use html, or md for a summary in Markdown")
    if arguments in (["--help"], ["-h"]):
        print(REPORT_USAGE, end="")
        return 0
    if not arguments or any(argument.startswith("-") for argument in arguments):
        print(REPORT_USAGE, end="", file=sys.stderr)
        return USAGE
    from preferl.runs.progress import say
    from preferl.runs.record import is_sweep
    from preferl.stages import report

    directories = [Path(argument) for argument in arguments]
    path = Path(out) if out else None
    if path is not None and path.is_dir():
        raise UsageError(f"--output {out} is a folder; name a file in it, as {path / 'report.html'}")
    if path is not None:
        refuse_existing([path], fresh)
    if form == "md":
        return report_in_markdown(directories, path)
    if len(directories) == 1 and is_sweep(directories[0]):
        from preferl.reporting import sweeps

        sweeps.page(directories[0], path)
        return 0
    found = report.read(directories)
    if path is None:
        path = report.usual_place(directories)
        refuse_existing([path] if report.is_foreign(path) else [], fresh)
    page = report.write_gathered(found, path)
    for line in report.lines(found):
        say(f"report: {line}")
    print(page)
    return 0


def report_in_markdown(directories: Sequence[Path], path: Path | None) -> int:
    """Prints the summary, or writes it where a file is named."""
    from preferl.runs.files import write_atomically
    from preferl.runs.record import is_sweep
    from preferl.stages import report

    if len(directories) == 1 and is_sweep(directories[0]):
        from preferl.reporting import sweeps

        text = sweeps.markdown(directories[0])
    else:
        text = report.markdown(report.read(directories))
    if path is None:
        print(text, end="")
    else:
        write_atomically(path, text)
        print(path)
    return 0


REPORT_USAGE = """\
usage: preferl report DIR [--output FILE]        one page of a run or of one stage, by default
                                                 DIR/report.html; of a sweep, or of one of its points, as
                                                 SWEEP/POINT/seed-0
       preferl report DIR DIR … [--output FILE]  of several, by default comparison.html beside the first:
                                                 stages that were made from each other are one run, wherever
                                                 they lie; runs, and what does not belong together, stand
                                                 side by side
--format md prints verdict and first tables in Markdown instead, for a pull request, or writes them to FILE.
--fresh overwrites a FILE that is there already.
"""


DATA_USAGE = """\
usage: preferl data validate IN [options]  check every row; says file, line and reason
       preferl data describe IN [options]  what the rows are read as, and how they are split
       preferl data convert IN OUT [LAYOUT] [options]  write .jsonl, .jsonl.gz or .parquet
       preferl data layouts                the layouts of data sets that are known
IN is a file, a folder or a Hub name: name:config[split]@revision, or --config_name and --revision.
`data convert world OUT_FOLDER` writes the embedded world.
LAYOUT of preferences: explicit (default; TRL's prompt, chosen, rejected), implicit, hh (hh-rlhf's dialogues),
ranking (responses, ranks), comparison (response_a, response_b, z).
options, the same wherever data is read (docs/data.md):
  --dataset_format KIND   --columns ROLE=COLUMN,…   --winner COLUMN[:CODING]   --layout NAME|FILE
  --bad_rows skip|error   --split NAME (the rows of one split alone)
--fresh overwrites OUT.
"""


def data_command(arguments: list[str]) -> int:
    """``preferl data validate|describe|convert|layouts``."""
    if arguments in (["--help"], ["-h"]):
        print(DATA_USAGE, end="")
        return 0
    from preferl import data_commands
    from preferl.data import world_files
    from preferl.data.containers import named
    from preferl.options.shared import DataCommandOptions
    from preferl.runs.config import instantiate, parser_for

    arguments, fresh = take_flag(arguments, "--fresh")
    words = list(itertools.takewhile(lambda argument: not argument.startswith("-"), arguments))
    rest = arguments[len(words) :]
    parser = parser_for(DataCommandOptions, "preferl data", DATA_USAGE, rest)
    how = instantiate(parser, DataCommandOptions, parser.parse_args(rest))
    if len(words) > 1:
        words[1] = named(words[1], config=how.config_name, revision=how.revision)
    match words:
        case ["validate", name]:
            return DATA if data_commands.validate(name, how) else 0
        case ["describe", name]:
            data_commands.describe(name, how)
            return 0
        case ["layouts"]:
            data_commands.layouts(how)
            return 0
        case ["convert", "world", out]:
            refuse_existing(world_files.world_files(Path(out)), fresh)
            for path in world_files.write_world(Path(out)):
                print(path)
            return 0
        case ["convert", name, out, *layout] if len(layout) < 2:
            refuse_existing([Path(out)], fresh)
            data_commands.convert(name, Path(out), *layout, how=how)
            return 0
    print(DATA_USAGE, end="", file=sys.stderr)
    return USAGE


def refuse_existing(outputs: Sequence[Path], fresh: bool) -> None:
    """Refuses files that are there already.

    Raises:
        UsageError: one is, and ``fresh`` is not set.
    """
    there = [path for path in outputs if path.exists() or path.is_symlink()]
    if there and not fresh:
        raise UsageError(f"{there[0]} is there already; name another file, or overwrite it with --fresh")


SHARE_USAGE = """\
usage: preferl card RUN [--output FILE]  prints the card of the run's model, or writes it
       preferl push RUN NAME             uploads the model as safetensors, with its card and its report, to
                                         NAME on the Hugging Face Hub; shows the list of files first, and
                                         asks (elsewhere than on a terminal it needs --yes)
RUN is the directory of a run or of a stage; NAME is owner/name, or a name of your own.
--stage NAME      whose model; by default that of the policy that was evaluated, or else of the last one
--part PART       model, or what else the stage wrote: adapter (LoRA weights alone), value_model
--license ID      the licence of the model; by default that of base and data where it is one and known
--public          everybody may see it; by default nobody but you
--with_data       also the data, as NAME-data, with pseudonyms for the people who labelled
--dry_run         only shows the list; needs no network
--yes             uploads without asking
Local paths, names of machine and people, keys, logs and samples stay here. Nothing on the Hub is deleted.
"""


def card_command(arguments: list[str]) -> int:
    """``preferl card RUN``."""
    from preferl.runs.files import write_atomically
    from preferl.runs.progress import printable

    arguments, out = take_option(arguments, "--output")
    arguments, fresh = take_flag(arguments, "--fresh")
    words, options = share_options(arguments)
    if words is None:
        return 0
    if len(words) != 1:
        print(SHARE_USAGE, end="", file=sys.stderr)
        return USAGE
    if out:
        refuse_existing([Path(out)], fresh)
    from preferl.share.card import model_card
    from preferl.share.subject import read

    text = str(model_card(read(Path(words[0]), options.stage, options.part), license=options.license))
    if out:
        write_atomically(Path(out), text)
        print(out)
    elif sys.stdout.isatty():
        print("\n".join(map(printable, text.split("\n"))), end="")
    else:
        print(text, end="")
    return 0


def push_command(arguments: list[str]) -> int:
    """``preferl push RUN NAME``."""
    words, options = share_options(arguments)
    if words is None:
        return 0
    if len(words) != 2:
        print(SHARE_USAGE, end="", file=sys.stderr)
        return USAGE
    from preferl.share.push import push

    push(Path(words[0]), words[1], options)
    return 0


def share_options(arguments: list[str]) -> tuple[list[str] | None, Any]:
    """The words of ``card`` and ``push``, and their options; no words where help was asked for and shown.

    Raises:
        UsageError: there is no such option.
    """
    from preferl.share.options import PushOptions

    given: dict[str, Any] = {}
    for field in fields(PushOptions):
        if field.default is False:
            arguments, given[field.name] = take_flag(arguments, f"--{field.name}")
        else:
            arguments, value = take_option(arguments, f"--{field.name}")
            given |= {} if value is None else {field.name: value}
    if any(argument in ("--help", "-h") for argument in arguments):
        print(SHARE_USAGE, end="")
        return None, None
    unknown = next((argument for argument in arguments if argument.startswith("-")), None)
    if unknown is not None:
        raise UsageError(f"there is no option {unknown}; `preferl push --help` lists them")
    return arguments, PushOptions(**given)


def label_command(arguments: list[str]) -> int:
    """``preferl label``: the labelling service."""
    try:
        from preferl.label import commands
    except ModuleNotFoundError as error:
        raise UsageError(
            f"the labelling service needs {error.name}; install it: pip install 'preferl[label]'"
        ) from error
    with signals.released():  # the server ends in a way of its own
        return commands.main(arguments)


CHAT_ABOUT = """\
Talk with a policy: of a run that of rl, else dpo, else sft; a stage, the folder of a model or a Hub name.
`--compare A B` lets two answer each prompt. In the dialogue: /better a|b, /again, /reset, /help, /quit."""
SERVE_ABOUT = """\
Serve a policy at 127.0.0.1 behind OpenAI's API, by `transformers serve`; pip install 'preferl[serve]'."""


def chat_command(arguments: list[str]) -> int:
    """``preferl chat MODEL`` and ``preferl chat --compare A B``."""
    from preferl.options.chat import ChatConfig
    from preferl.runs.inputs import names_in
    from preferl.runs.pair_files import check_pair_file
    from preferl.runs.policies import find_policy, refuse_missing

    arguments, compared = take_two(arguments, "--compare")
    config, names = options_and_names(ChatConfig, "chat", "MODEL | --compare A B", CHAT_ABOUT, arguments)
    if config is None:
        return 0
    if bool(names) == bool(compared) or len(names) > 1:
        raise UsageError("chat takes one model, as `preferl chat runs/mine`, or two with --compare A B")
    found = [find_policy(name) for name in names or compared]
    for name in names_in(config.reward_model or ""):
        if "/" in name and ":" not in name:  # a path: no function, and no address of a judge
            refuse_missing(name)
    check_pair_file(Path(config.preferences))
    text = config.prompt
    if text is None and not sys.stdin.isatty():
        text = sys.stdin.read().strip()
    if text is not None and not text.strip():
        raise UsageError("there is nothing to answer: --prompt, or what came on standard input, is empty")
    refuse_unknown_to_hub(found)
    try:
        with signals.released():  # Ctrl+C ends an answer and not the dialogue
            from preferl import chat

            return chat.run(found, config, text)
    except KeyboardInterrupt:
        return INTERRUPTED


def serve_command(arguments: list[str]) -> int:
    """``preferl serve MODEL``."""
    from preferl import serve
    from preferl.options.chat import ServeConfig
    from preferl.runs.policies import find_policy

    config, names = options_and_names(ServeConfig, "serve", "MODEL", SERVE_ABOUT, arguments)
    if config is None:
        return 0
    if len(names) != 1:
        raise UsageError("serve takes one model, as `preferl serve runs/mine`")
    found = find_policy(names[0])
    refuse_unknown_to_hub([found])
    with signals.released():  # the server has its own
        serve.run(found, config)


def refuse_unknown_to_hub(found: Sequence[Any]) -> None:
    """Asks the Hub for what is no folder here, before torch is loaded."""
    for model in found:
        if model.folder is None:
            from preferl.models.hub import check_hub

            check_hub(model.path)


def options_and_names(
    options: type, name: str, takes: str, about: str, arguments: list[str]
) -> tuple[Any, list[str]]:
    """Options of a command that takes names, and these names, which stand before the options; None for the
    options where its help was asked for, and is printed."""
    from preferl.options.help import taken_from, usual
    from preferl.runs.config import instantiate, parser_for

    names = list(itertools.takewhile(lambda argument: not argument.startswith("-"), arguments))
    rest, is_short = taken_from(arguments[len(names) :])
    parser = parser_for(options, f"preferl {name}", about, rest)
    if is_short:
        print(usual(name, options, parser, about, takes), end="")
        return None, names
    return instantiate(parser, options, parser.parse_args(rest)), names


def take_two(arguments: list[str], flag: str) -> tuple[list[str], list[str]]:
    """``--flag A B``, taken out; no names where the flag is not given.

    Raises:
        UsageError: two names do not follow.
    """
    if flag not in arguments:
        return arguments, []
    place = arguments.index(flag)
    names = arguments[place + 1 : place + 3]
    if len(names) < 2 or any(name.startswith("-") for name in names):
        raise UsageError(f"{flag} needs two models after it, as {flag} runs/a runs/b")
    return arguments[:place] + arguments[place + 3 :], names


def design_command(arguments: list[str]) -> int:
    """``preferl design-reward``."""
    from preferl.design import designer

    return designer.main(arguments)


def doctor_command(arguments: list[str]) -> int:
    """``preferl doctor``, and ``preferl doctor --config FILE [--stage NAME]``."""
    from preferl import doctor

    arguments, file = take_option(arguments, "--config")
    arguments, stage = take_option(arguments, "--stage")
    if arguments:
        raise UsageError(f"doctor takes --config FILE and --stage NAME, and no {arguments[0]}")
    if file is None:
        return doctor.main()
    return doctor.main_plan(Path(file), stage)


def completion_command(arguments: list[str]) -> int:
    """``preferl completion SHELL``."""
    from preferl import completion

    if len(arguments) != 1 or arguments[0] in ("-h", "--help"):
        asked = arguments[:1] in (["-h"], ["--help"])
        print(completion.USAGE, end="", file=sys.stdout if asked else sys.stderr)
        return 0 if asked else USAGE
    print(completion.script(arguments[0], {name: about(name) for name in COMMANDS}))
    return 0


def about(command: str) -> str:
    """What the help says of a command, in its first words."""
    lines = re.findall(rf"^  preferl {command}\b.*?  +(\S.*)$", HELP, flags=re.MULTILINE)
    return lines[0] if lines else command


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "demo": demo_command,
    "run": run_command,
    "sweep": sweep_command,
    **{
        name: stage_command(name)
        for name in ("sft", "collect", "reward", "best_of", "audit", "dpo", "rl", "evaluate")
    },
    "report": report_command,
    "card": card_command,
    "push": push_command,
    "data": data_command,
    "chat": chat_command,
    "serve": serve_command,
    "label": label_command,
    "design-reward": design_command,
    "doctor": doctor_command,
    "completion": completion_command,
}
