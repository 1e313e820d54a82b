"""Options of the command line, made from the settings classes in which they are declared.

A command takes settings objects as parameters:

    @settings_options
    def run(settings: RunSettings, json: Json = False) -> None: ...

Each field of the class becomes a flag of the command: its name, type, range, choices and default
are the field's, and its help is the field's description. A field without a default becomes a
positional argument. Fields that are settings classes themselves contribute their own fields.
`Flag` in a field's annotation gives what does not follow from the field.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, TypeVar, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from rich.markup import escape

from wordmask.schemas.settings import Flag, RunSettings

R = TypeVar("R")
S = TypeVar("S", bound=BaseModel)

# From a settings class to one of its fields: ("segment", "columns", "image").
Path = tuple[str, ...]


@dataclass(frozen=True)
class Fields:
    """Choice among the fields of a settings class: `Annotated[RunSettings, Fields(...)]`.

    Args:
        only: names of options; none means all.
        without: names of options that the command does not have.
        help: texts that replace the fields' descriptions in this command.
        hidden: the command accepts the options and does not list them.
    """

    only: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    help: Mapping[str, str] = field(default_factory=dict)
    hidden: bool = False

    def choose(self, options: Iterable[SettingOption]) -> Iterator[SettingOption]:
        """Yield the chosen ones of a class's options.

        Raises:
            ValueError: the class has no option of a name given here.
        """
        by_name = {option.name: option for option in options}
        unknown = {*self.only, *self.without, *self.help} - by_name.keys()
        if unknown:
            raise ValueError(f"no such options: {', '.join(sorted(unknown))}")
        for name, option in by_name.items():
            if name in self.without or (self.only and name not in self.only):
                continue
            yield replace(option, help=self.help.get(name, option.help), hidden=self.hidden)


@dataclass(frozen=True)
class SettingOption:
    """One option of the command line, made from one field."""

    path: Path
    info: FieldInfo
    flag: Flag
    help: str
    hidden: bool = False

    @property
    def flag_name(self) -> str:
        """Return the flag, such as "--shard-rows"."""
        if self.flag.name is not None:
            return self.flag.name
        return "--" + self.path[-1].replace("_", "-")

    @property
    def name(self) -> str:
        """Return the name of the parameter, which no two options of a command share."""
        return self.flag_name.removeprefix("--").replace("-", "_")

    @property
    def default(self) -> Any:
        """Return the field's default; None instead of an empty tuple, which help would show."""
        value = self.info.get_default(call_default_factory=True)
        if value == ():
            return None
        return value

    @property
    def declarations(self) -> tuple[str, ...]:
        """Return the flag's names: a switch that is on by default has one for off, too."""
        if self.default is True:
            off = self.flag_name.replace("--", "--no-", 1)
            return (f"{self.flag_name}/{off}",)
        return (self.flag_name,)

    @property
    def type(self) -> Any:
        """Return the type in typer's terms: a tuple of any length is a list there."""
        item = item_type(self.info.annotation)
        if item is None:
            return self.info.annotation
        return list[item] | None  # type: ignore[valid-type]  # a type that is computed

    def parameter_info(self) -> Any:
        """Return the option in typer's terms, but for its type and its default."""
        limits = {"min": self.limit("ge"), "max": self.limit("le")}
        help = escape(self.help)
        if self.info.is_required():
            metavar = self.flag.metavar or self.name.upper()
            return typer.Argument(metavar=metavar, help=help, show_default=False, **limits)
        return typer.Option(
            *self.declarations,
            metavar=self.flag.metavar,
            envvar=self.flag.envvar,
            help=help,
            hidden=self.hidden,
            **limits,
        )

    def parameter(self) -> inspect.Parameter:
        """Return the parameter that typer finds in the command's signature."""
        default = inspect.Parameter.empty if self.info.is_required() else self.default
        return inspect.Parameter(
            self.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=default,
            annotation=Annotated[self.type, self.parameter_info()],
        )

    def limit(self, name: str) -> Any:
        """Return the field's constraint "ge" or "le", if it has it."""
        for constraint in self.info.metadata:
            if hasattr(constraint, name):
                return getattr(constraint, name)
        return None


def item_type(annotation: Any) -> Any:
    """Return the type of the items of a tuple of any length, None for other types."""
    if get_origin(annotation) is not tuple:
        return None
    item, *rest = get_args(annotation)
    if rest != [...]:
        return None
    return item


def options_of(settings: type[BaseModel]) -> Iterator[SettingOption]:
    """Yield the options of a settings class in the order of its fields."""
    for option in fields_of(settings):
        if option.flag.offered:
            yield option


def fields_of(settings: type[BaseModel], path: Path = ()) -> Iterator[SettingOption]:
    """Yield all fields of a settings class, also those that the command line does not offer."""
    for name, info in settings.model_fields.items():
        here = (*path, name)
        nested = _settings_class(info.annotation)
        if nested is None:
            yield SettingOption(here, info, _flag_of(info), info.description or "")
        else:
            yield from fields_of(nested, here)


def _flag_of(info: FieldInfo) -> Flag:
    for each in info.metadata:
        if isinstance(each, Flag):
            return each
    return Flag()


def option_of(settings: type[BaseModel], name: str) -> Any:
    """Return one option, for a command that takes no other of the class.

    For use in an annotation: `Annotated[str, option_of(RunSettings, "output")]`.
    """
    (option,) = Fields(only=(name,)).choose(options_of(settings))
    return option.parameter_info()


def build(settings: type[S], values: Mapping[str, Any]) -> S:
    """Make a settings object of the values of options by their names; None is a default.

    Raises:
        pydantic.ValidationError: a value does not fit its field.
    """
    by_path = {option.path: values.get(option.name) for option in options_of(settings)}
    return _build(settings, by_path, ())


def _build(settings: type[S], values: Mapping[Path, Any], path: Path) -> S:
    arguments: dict[str, Any] = {}
    for name, info in settings.model_fields.items():
        here = (*path, name)
        nested = _settings_class(info.annotation)
        if nested is not None:
            arguments[name] = _build(nested, values, here)
        elif values.get(here) is not None:
            arguments[name] = _value(values[here])
    return settings.model_validate(arguments)


def _value(value: Any) -> Any:
    """Return a value as the field has it: typer gives lists where settings have tuples."""
    if isinstance(value, list):
        return tuple(value)
    return value


def settings_options(command: Callable[..., R]) -> Callable[..., R]:
    """Give a command the options of the settings classes among its parameters."""
    signature = inspect.signature(command, eval_str=True)
    parameters: list[inspect.Parameter] = []
    groups: dict[str, _OptionGroup] = {}
    for parameter in signature.parameters.values():
        group = _OptionGroup.of(parameter.annotation)
        if group is None:
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
        else:
            groups[parameter.name] = group
            parameters += [option.parameter() for option in group.options]

    @functools.wraps(command)
    def with_options(**values: Any) -> R:
        built = {name: group.take(values) for name, group in groups.items()}
        return command(**values, **built)

    # Typer reads the signature and the annotations; functools.wraps has copied the command's.
    vars(with_options)["__signature__"] = signature.replace(parameters=parameters)
    with_options.__annotations__ = {each.name: each.annotation for each in parameters}
    return with_options


@dataclass(frozen=True)
class _OptionGroup:
    """The options of one parameter of a command."""

    settings: type[BaseModel]
    options: tuple[SettingOption, ...]

    @classmethod
    def of(cls, annotation: Any) -> _OptionGroup | None:
        """Return the group of a parameter whose annotation is a settings class, else None."""
        fields = Fields()
        if get_origin(annotation) is Annotated:
            annotation, *metadata = get_args(annotation)
            fields = next((each for each in metadata if isinstance(each, Fields)), fields)
        settings = _settings_class(annotation)
        if settings is None:
            return None
        return cls(settings, tuple(fields.choose(options_of(settings))))

    def take(self, values: dict[str, Any]) -> BaseModel:
        """Take the group's values out of all values of a command, and make the settings of them."""
        taken = {option.name: values.pop(option.name) for option in self.options}
        return build(self.settings, taken)


def _settings_class(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return None


Json = Annotated[bool, typer.Option("--json", help="Print one JSON document for machines.")]
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="Show Prefect's and Dask's own logs.")
]
Output = Annotated[str, option_of(RunSettings, "output")]
