"""Names and the things they build: one mechanism for models, backbones, likelihoods, corruptions, optimisers, data.

A *spec* is how a user says one piece, and every axis takes the same four forms:

    "gaussian"                              a name
    "gaussian(sigma=0.3)"                   a name with keywords (literals only), handy on the command line
    {"name": "gaussian", "sigma": 0.3}      the same in YAML or JSON
    Gaussian(sigma=0.3)                     the piece itself

The classes behind the names are `Recorded`: their constructor keywords are checked against the whole signature (with the
nearest right spelling in the error) and kept, so that a piece can be written to JSON and built again.
"""

from __future__ import annotations

import ast
import difflib
import fnmatch
import inspect
import typing
from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from typing import Any, Generic, TypeVar

T = TypeVar("T")


def nearest(name: str, allowed: Iterable[str]) -> str:
    """`" Did you mean 'x'?"`, or an empty string where nothing is near. Case, - and _ make no difference."""
    options = {str(a).lower().replace("-", "_"): str(a) for a in allowed}
    close = difflib.get_close_matches(str(name).lower().replace("-", "_"), options, n=1, cutoff=0.6)
    return f" Did you mean {options[close[0]]!r}?" if close else ""


def choice(kind: str, value: Any, allowed: Iterable[str]) -> str:
    """Returns `value` if it is one of `allowed`; else raises ValueError naming the value, the choices and the nearest."""
    allowed = list(allowed)
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{kind}={value!r} is not known; allowed: {', '.join(allowed)}.{nearest(value, allowed)}")
    return value


def signature(cls: type) -> inspect.Signature:
    """The full explicit signature of a class: where a constructor ends in `**base`, the base class's keywords follow.

    Annotations are resolved, so `signature(VAE).parameters["latent_dim"].annotation is int`."""
    merged: dict[str, inspect.Parameter] = {}
    for owner in cls.__mro__:
        init = owner.__dict__.get("__init__")
        if init is None:
            continue
        try:
            hints = typing.get_type_hints(init)
        except NameError:  # a name imported for type checkers only
            hints = {}
        parameters = list(inspect.signature(init).parameters.values())[1:]
        for p in parameters:
            if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL):
                merged.setdefault(p.name, p.replace(annotation=hints.get(p.name, p.annotation)))
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return inspect.Signature(sorted(merged.values(), key=lambda p: (p.kind, p.default is not p.empty)))


class Recorded(type):
    """Metaclass of everything that a name can build. Checks constructor keywords and keeps them in `.config`.

    `help(cls)` and `inspect.signature(cls)` show the merged signature, so a subclass may end in `**base` without hiding or
    swallowing anything."""

    def __init__(cls, *args: Any) -> None:
        super().__init__(*args)
        cls.__signature__ = signature(cls)

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        allowed = cls.__signature__.parameters
        for key in kwargs:
            if key not in allowed:
                hint = nearest(key, allowed) or belongs_to(key, allowed)
                raise TypeError(f"{cls.__name__} takes no keyword {key!r}; allowed: {', '.join(allowed)}.{hint}")
        try:
            bound = cls.__signature__.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{cls.__name__}: {error}; its signature is {cls.__name__}{cls.__signature__}") from None
        bound.apply_defaults()
        built = super().__call__(*args, **kwargs)
        object.__setattr__(built, "config", dict(bound.arguments))
        return built


def belongs_to(key: str, parameters: Iterable[str]) -> str:
    """A hint where `key` is an option of a piece that is given by spec, e.g. `widths` of a model's backbone."""
    for registry in Registry.everything:
        for name in registry if registry.kind in parameters else ():
            if key in getattr(registry.entries[name], "__signature__", _NONE).parameters:
                return f' {key!r} belongs to the {registry.kind}: {registry.kind}="{name}({key}=...)".'
    return ""


_NONE = inspect.Signature()


class Registry(Generic[T]):
    """Classes or functions by name."""

    everything: typing.ClassVar[list[Registry]] = []

    def __init__(self, kind: str):
        self.kind = kind
        self.entries: dict[str, Any] = {}
        Registry.everything.append(self)

    def register(self, name: str) -> Any:
        """Decorator. Raises ValueError if another class has the name already (the same one may be reloaded)."""

        def keep(entry: Any) -> Any:
            old = self.entries.get(name)
            if old is not None and (old.__module__, old.__qualname__) != (entry.__module__, entry.__qualname__):
                raise ValueError(f"the {self.kind} name {name!r} is taken by {old.__module__}.{old.__qualname__}")
            if isinstance(entry, type):
                entry.name = name  # type: ignore[attr-defined]
            self.entries[name] = entry
            return entry

        return keep

    def __iter__(self) -> typing.Iterator[str]:
        return iter(sorted(self.entries))

    def __contains__(self, name: object) -> bool:
        return name in self.entries

    def __getitem__(self, name: str) -> Any:
        choice(self.kind, name, self)
        return self.entries[name]

    def matching(self, pattern: str = "*") -> list[str]:
        return [name for name in self if fnmatch.fnmatch(name, pattern)]

    def build(self, spec: Any) -> T:
        """Builds what a spec says (see the module's docstring); an instance is returned as it is."""
        if isinstance(spec, (str, Mapping)):
            name, keywords = parse_spec(self.kind, spec)
            return self[name](**keywords)
        if type(spec) in self.entries.values():
            return spec
        raise TypeError(
            f"{self.kind} must be a name, 'name(key=value)', a dict with a 'name', or one of its classes; got {spec!r}"
        )


def parse_spec(kind: str, spec: str | Mapping) -> tuple[str, dict[str, Any]]:
    """Splits a spec in text or dict form into its name and keywords. Raises ValueError where it is neither."""
    if isinstance(spec, Mapping):
        keywords = dict(spec)
        if "name" not in keywords:
            raise ValueError(f"{kind}={dict(spec)!r} has no 'name'; write it like {{'name': ..., 'key': value}}")
        return keywords.pop("name"), keywords
    if "(" not in spec:
        return spec.strip(), {}
    try:
        call = ast.parse(spec.strip(), mode="eval").body
        if not isinstance(call, ast.Call) or call.args or not isinstance(call.func, ast.Name):
            raise SyntaxError
        return call.func.id, {str(k.arg): ast.literal_eval(k.value) for k in call.keywords}
    except (SyntaxError, ValueError):
        raise ValueError(f"{kind}={spec!r} cannot be read; write it like \"name(key=0.3, other='text')\"") from None


def plain(value: Any) -> Any:
    """A recorded value as JSON can hold it: pieces become their dict specs, tuples become lists.

    Raises TypeError for what JSON cannot hold (a module of the user's own, say)."""
    if isinstance(type(value), Recorded):
        return {"name": value.name, **{k: plain(v) for k, v in value.config.items()}}
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if isinstance(value, Real):  # NumPy's numbers
        return int(value) if isinstance(value, Integral) else float(value)
    raise TypeError(
        f"{value!r} ({type(value).__name__}) cannot be written to config.json; give it by its registered name"
    )


MODELS: Registry = Registry("model")


def register(name: str) -> Any:
    """Class decorator: `@aezoo.register("my_ae")` adds a `BaseAE` subclass to the zoo under `name`."""
    return MODELS.register(name)


def list_models(pattern: str = "*", pretrained: bool = False) -> list[str]:
    """Sorted names of the models whose name fits the fnmatch `pattern`.

    With `pretrained=True` only those for which weights are published; their classes say so in `pretrained`."""
    return [name for name in MODELS.matching(pattern) if not pretrained or MODELS[name].pretrained]


def create_model(name: str, input_shape: Any = None, **keywords: Any) -> Any:
    """Builds a model by its registered name.

    Args: `input_shape`: the shape of one sample without the batch axis, rank 1 to 4. The other keywords are those of the
    model's class (`aezoo info NAME` lists them). Returns a `BaseAE`.
    Raises ValueError for an unknown name or a value out of range, TypeError for an unknown keyword; each names the nearest
    right spelling."""
    cls = MODELS[name]
    if input_shape is None:
        raise TypeError(
            f"create_model({name!r}) needs input_shape, the shape of one sample, e.g. input_shape=(1, 28, 28)"
        )
    return cls(input_shape=input_shape, **keywords)
