"""Configuration keys: their type, meaning, allowed values, and what may be done with them."""

import dataclasses
import reprlib

from model_utils import paths
from model_utils.errors import UserError

TRUE, FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


@dataclasses.dataclass(frozen=True)
class Key:
    """One configuration key: its default (which fixes its type), meaning and allowed values.

    Attributes:
        default: of the type that every value has.
        help: what it means, in words.
        low, high: inclusive bounds; for a tuple they hold for each element.
        above, below: exclusive bounds.
        choices: the allowed values of a text key, compared without regard to case.
        path: whether it names a file or folder; a leading ~ is then replaced by the home folder.
        volatile: whether it may differ between a run and its continuation, because it changes no number.
    """

    default: object
    help: str
    low: float | None = None
    high: float | None = None
    above: float | None = None
    below: float | None = None
    choices: tuple = ()
    path: bool = False
    volatile: bool = False

    def allowed(self):
        """What a value may be, in words, for messages and --help."""
        if self.choices:
            return " | ".join(self.choices)
        kind = {bool: "true | false", int: "a whole number", float: "a number"}
        words = kind.get(type(self.default), "a list of numbers, as 1,2,3")
        if isinstance(self.default, str):
            words = "a path" if self.path else "text"
        bounds = [(">=", self.low), (">", self.above), ("<=", self.high), ("<", self.below)]
        limits = [f"{sign} {bound}" for sign, bound in bounds if bound is not None]
        return " ".join([words, *([" and ".join(limits)] if limits else [])])

    def parse(self, name, value, where):
        """`value` (from YAML or as text) in this key's type, or a UserError that says what is allowed."""
        try:
            parsed = self._convert(value)
        except (TypeError, ValueError, OverflowError):
            parsed = None
        if parsed is None or not self._inside(parsed):
            # Shortened: a few lines of YAML aliases can stand for a value of gigabytes.
            shown = reprlib.repr(value)[:100]
            raise UserError(f"{name}: {shown} ({where}) is not allowed; allowed: {self.allowed()}")
        return paths.expanded(parsed, f"{name} ({where})") if self.path else parsed

    def _convert(self, value):
        if isinstance(value, list | dict | tuple) and not isinstance(self.default, tuple):
            return None
        if isinstance(self.default, bool):
            text = str(value).lower()
            return True if text in TRUE else False if text in FALSE else None
        if isinstance(value, bool) or value is None and not isinstance(self.default, str):
            return None
        if isinstance(self.default, int):
            return int(value) if not isinstance(value, float) or value.is_integer() else None
        if isinstance(self.default, float):
            number = float(value)
            return number if abs(number) != float("inf") and number == number else None
        if isinstance(self.default, tuple):
            items = value if isinstance(value, list | tuple) else str(value).strip("[]() ").split(",")
            element = Key(self.default[0] if self.default else 0.0, "")
            parsed = tuple(element._convert(item) for item in items if str(item).strip())
            return None if None in parsed else parsed
        return self._text("" if value is None else str(value))

    def _text(self, text):
        if "\0" in text:  # no path or name may hold it
            return None
        if self.choices:
            return {choice.lower(): choice for choice in self.choices}.get(text.lower())
        return text

    def _inside(self, value):
        numbers = value if isinstance(value, tuple) else (value,)
        for number in numbers:
            if isinstance(number, str | bool):
                continue
            if (self.low is not None and number < self.low) or (self.high is not None and number > self.high):
                return False
            if (self.above is not None and number <= self.above) or (
                self.below is not None and number >= self.below
            ):
                return False
        return True


@dataclasses.dataclass(frozen=True)
class Alias:
    """Another name of a key, where the values have other names as well.

    Attributes:
        key: the key it stands for.
        values: {value as text, in lower case: the key's value}, or a function of the value.
    """

    key: str
    values: object

    def convert(self, name, value, where):
        """The key's value for this one; UserError that lists what is allowed."""
        if callable(self.values):
            return self.values(value)
        text = str(value).lower()
        if text not in self.values:
            allowed = " | ".join(self.values)
            raise UserError(
                f"{name}: {reprlib.repr(value)[:100]} ({where}) is not allowed; allowed: {allowed}"
            )
        return self.values[text]
