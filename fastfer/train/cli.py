# SPDX-License-Identifier: Apache-2.0
"""The trainer's command line: options, a recipe, --config YAML, --help (jsonargparse).

A value comes from the first of these that gives it: the command line, --config (with --resume: the run's own
config.yaml), the recipe, the default.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace

from fastfer.data import Augment, DataOptions
from fastfer.data.options import parse_split
from fastfer.recipes import load_recipe
from fastfer.train.config import CONFIG_FILE, InputError, TrainConfig
from fastfer.train.options import Distill, EarlyStop, Input, InverseTime, LossOptions, Plateau, Stage

_SWITCHES = ("resume", "overwrite", "print_config")
_OTHER = ("config", "help", *_SWITCHES)
_DEEPEST = 16  # groups within groups; options have three
_LONGEST = 1 << 20  # bytes of a file of options, which takes three thousand
_OPEN = ("model_options",)  # groups whose keys the network knows


@dataclass(frozen=True)
class Invocation:
    """A command line: the run's options, and what to do with them and with a folder that holds a run already."""

    config: TrainConfig
    resume: bool = False
    overwrite: bool = False
    print_config: bool = False


def parse_args(argv: Sequence[str]) -> Invocation:
    """Parse the command line; options not given come from --config, or with --resume from the run in ``out``.

    Raises InputError for bad options; --help exits as argparse does.
    """
    arguments = [_underscored(argument) for argument in argv]
    try:
        _check_keys(_option_names(arguments), "option")
        invocation = _parse(arguments)
        if invocation.resume and invocation.overwrite:
            raise ValueError("resume and overwrite: expected one of them, got both")
        out = str(invocation.config.out)
        saved = Path(out, CONFIG_FILE)
        if invocation.resume and saved.is_file():
            check_yaml(saved)
            again = _parse(["--config", str(saved), *arguments], with_recipe=False)
            return replace(again, config=replace(again.config, out=out))
        return invocation
    except (ArgumentError, TypeError, ValueError, ArithmeticError, RecursionError) as error:
        raise InputError(str(error)) from None


def configure(
    recipe: str | None = None, argv: Sequence[str] = (), over: Mapping[str, Any] | None = None, **options: Any
) -> TrainConfig:
    """The configuration of ``options``, nested groups as mappings, over ``recipe``; arguments ``argv`` come first.

    ``over`` are values that stand where nothing else gives one, as those of a recipe do.

    Raises InputError for bad values, and for names that are no options, telling the known ones.

    >>> configure("best", model="sepconv_attention", data="fer2013", root="fer2013.csv", augment={"flip": 0.0})
    """
    model, data = (options.get(key, getattr(TrainConfig(), key)) for key in ("model", "data"))
    arguments = [_underscored(argument) for argument in argv]
    parser = _parser()
    try:
        _check_keys(_flat(options), "option")
        _check_keys(_option_names(arguments), "option")
        if over is not None:
            _apply(parser, over, "option")
        if recipe is not None:
            _apply(parser, load_recipe(recipe, model, data), f"recipe {recipe} of {model}: key")
            parser.set_defaults({"recipe": recipe})
        _apply(parser, options, "option")
        return _settled(_config(parser.parse_args(arguments)), {*_flat(options), *_option_names(arguments)})
    except (ArgumentError, TypeError, ValueError, ArithmeticError, RecursionError) as error:
        raise InputError(str(error)) from None


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="python -m fastfer.train",
        description="Train a network on faces. Options may be spelt with - for _.",
        exit_on_error=False,
        print_config=None,  # jsonargparse's own knows nothing of recipes
    )
    parser.add_argument("--config", action="config", help="YAML file of options, e.g. the config.yaml of another run")
    parser.add_argument("--resume", action="store_true", help="continue the run in the output folder, bit for bit")
    parser.add_argument("--overwrite", action="store_true", help="discard the run in the output folder")
    parser.add_argument(
        "--print_config", action="store_true", help="print what --config would read, recipe and all, and train nothing"
    )
    parser.add_class_arguments(TrainConfig)
    return parser


def _parse(arguments: Sequence[str], with_recipe: bool = True) -> Invocation:
    parser = _parser()
    parsed = parser.parse_args(arguments)
    if with_recipe and parsed.recipe is not None:
        values = load_recipe(parsed.recipe, parsed.model, parsed.data)
        _apply(parser, values, f"recipe {parsed.recipe} of {parsed.model}: key")
        parsed = parser.parse_args(arguments)
    config = _settled(_config(parsed), set(_option_names(arguments)))
    return Invocation(config.resolved(), *(bool(parsed[switch]) for switch in _SWITCHES))


def _apply(parser: ArgumentParser, values: Mapping[str, Any], what: str) -> None:
    """Make ``values`` the parser's defaults. ValueError for a key that no option has."""
    _check_keys(_flat(values), what)
    for group in _OPEN:
        if group in values:
            parser.set_defaults({group: {**parser.get_default(group), **values[group]}})
    parser.set_defaults({key: value for key, value in _flat(values).items() if key not in _OPEN})


def _config(parsed: Namespace) -> TrainConfig:
    values = parsed.as_dict()
    for key in _OTHER:
        values.pop(key, None)
    return TrainConfig(**{**values, **_groups(values)})


def _settled(config: TrainConfig, given: set[str]) -> TrainConfig:
    """Folds or another split: what the user has ``given`` decides against a recipe's; both given stay as they are."""
    rule = None if config.data_options.split is None else parse_split(config.data_options.split)
    if not config.folds or rule is None or (rule.kind == "folds" and rule.folds in (None, config.folds)):
        return config
    if "data_options.split" not in given:
        return replace(config, data_options=replace(config.data_options, split=None))
    return config if "folds" in given else replace(config, folds=0)


def _groups(values: Mapping[str, Any]) -> dict[str, Any]:
    """The nested options of TrainConfig, built."""
    stage = values["fine_tune"]
    shared = {"plateau": Plateau, "inverse_time": InverseTime, "stop": EarlyStop}
    return {
        **{name: group(**values[name]) for name, group in shared.items()},
        "fine_tune": Stage(**{**stage, **{name: group(**stage[name]) for name, group in shared.items()}}),
        "data_options": DataOptions(**values["data_options"]),
        "input": Input(**values["input"]),
        "distill": Distill(**values["distill"]),
        "loss": LossOptions(**values["loss"]),
        "augment": Augment(**values["augment"]),
    }


def _flat(options: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"augment": {"flip": 0}} -> {"augment.flip": 0}."""
    flat: dict[str, Any] = {}
    for key, value in options.items():
        name = prefix + key
        flat.update(_flat(value, f"{name}.") if isinstance(value, Mapping) and name not in _OPEN else {name: value})
    return flat


def _check_keys(names: Iterator[str] | Mapping[str, Any], what: str) -> None:
    """ValueError for a name that is no option, naming the known ones that are like it, or else all."""
    known = _known_keys()
    for name in names:
        if name in known or name.split(".")[0] in _OPEN:
            continue
        group = name.rpartition(".")[0]
        siblings = sorted(k for k in known if k.rpartition(".")[0] == group) if group in known else []
        siblings = siblings or sorted(k for k in known if "." not in k)
        close = difflib.get_close_matches(name, known, n=1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        raise ValueError(f"{what} {name}: expected one of {', '.join(siblings)}{hint}")


@functools.cache
def _known_keys() -> frozenset[str]:
    """Every option, and every group of options."""
    known = {*_flat(_parser().get_defaults().as_dict()), *_OTHER}
    groups = {name[:at] for name in known for at, letter in enumerate(name) if letter == "."}
    return frozenset(known | groups)


def _option_names(arguments: Sequence[str]) -> Iterator[str]:
    """Names of the options on the command line and in its --config files."""
    for position, argument in enumerate(arguments):
        if not argument.startswith("--"):
            continue
        name, equals, value = argument[2:].partition("=")
        yield name.removesuffix("+")
        if name == "config":
            value = value if equals else "".join(arguments[position + 1 : position + 2])
            check_yaml(Path(value))
            yield from _keys_of(Path(value))


def check_yaml(path: Path) -> None:
    """ValueError for a file that is more than options: of aliases, ten lines of which can stand for 10⁹ values."""
    try:
        if path.stat().st_size > _LONGEST:
            raise ValueError(f"config: {path}: expected at most {_LONGEST:,} bytes")
        depth = 0
        with path.open(encoding="utf-8") as file:
            for event in yaml.parse(file, yaml.SafeLoader):  # piece by piece: the reader's time grows with the depth
                depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
                if isinstance(event, yaml.AliasEvent):
                    raise ValueError(f"config: {path}: expected options without aliases (*name)")
                if depth > _DEEPEST:
                    raise ValueError(f"config: {path}: expected options, got groups nested too deeply")
    except UnicodeDecodeError as error:
        raise ValueError(f"config: {path}: expected UTF-8, got {error}") from None
    except yaml.YAMLError as error:
        raise ValueError(f"config: {path}: expected YAML, got {str(error)[:300]}") from None
    except OSError:  # the parser says of a missing file what it expects
        return


def _keys_of(path: Path) -> list[str]:
    """Options in a YAML file; none for what the parser itself will complain about."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return []
    return list(_flat(content)) if isinstance(content, dict) else []


def _underscored(argument: str) -> str:
    """--batch-size=64 -> --batch_size=64, both spellings work; --from -> --from_weights."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument[2:].partition("=")
    return "--" + ("from_weights" if name == "from" else name.replace("-", "_")) + equals + value
