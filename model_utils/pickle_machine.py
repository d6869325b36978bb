"""A pickle machine that builds data and runs nothing.

A pickle is a program for a stack machine, and Python's own machine lets that program call anything. This one
knows the instructions that build containers, numbers and texts, and calls only functions of our own: those
that its caller has admitted under the names in the file.
"""

import contextlib
import pickletools
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path

from model_utils import file_kind, paths
from model_utils.errors import UserError

MOST_INSTRUCTIONS = 500_000  # HarDNet-68DS takes 28,000; each makes at most one small object

_VALUES = {
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINSTRING", "SHORT_BINSTRING"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_IGNORED = {"PROTO", "FRAME"}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_GET = {"GET", "BINGET", "LONG_BINGET"}
_PUT = {"PUT", "BINPUT", "LONG_BINPUT"}


class Refused(Exception):
    """What the file asks for is not allowed; the text completes 'FILE …', `mend` says what to do then."""

    def __init__(self, text, mend=None):
        super().__init__(text)
        self.mend = mend


class Name:
    """A function or class that a pickle names and that is admitted, with what stands for it here."""

    def __init__(self, name, function=None):
        self.name, self.function = name, function


class Unbuilt:
    """An object a pickle makes in two steps; `finish(state)` gives it, and then it is `value`."""

    def __init__(self, finish):
        self.finish, self.value = finish, None


class Machine:
    """Runs one pickle.

    Args:
        admitted: {"module.name": Name}.
        weights_alone: how to save the weights without anything else, for messages.
        storage_of: function from a persistent id, a tuple, to an object; None where there are none.
    """

    def __init__(self, admitted, storage_of=None, weights_alone=None):
        self.admitted, self.storage_of, self.weights_alone = admitted, storage_of, weights_alone
        self.stack, self.marks, self.memo = [], [], {}

    def run(self, stream):
        """The object pickled at the stream's position, which ends up behind it."""
        for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
            name = opcode.name
            if count >= MOST_INSTRUCTIONS:
                raise Refused(f"holds more than {MOST_INSTRUCTIONS:,} instructions")
            if name in _VALUES:
                self.stack.append(argument)
            elif name in _CONSTANTS:
                self.stack.append(_CONSTANTS[name])
            elif name in _TUPLES:
                self._top(_TUPLES[name])
            elif name in _GET:
                self.stack.append(_finished(self.memo[int(argument)]))
            elif name in _PUT:
                self.memo[int(argument)] = self.stack[-1]
            elif name == "STOP":
                return _built(self.stack.pop())
            elif name not in _IGNORED:
                self._other(name, argument)
        raise EOFError

    def _other(self, name, argument):
        if name == "GLOBAL":
            self.stack.append(self._find(argument.replace(" ", ".", 1)))
            return
        step = getattr(self, f"_do_{name.lower()}", None)
        if step is None:
            raise Refused(f"uses the pickle instruction {name}, which weights don't need")
        step()

    def _find(self, name):
        if name not in self.admitted:
            place = self._place()
            if not self.stack and not self.marks:  # the first thing in the file
                what = f"is an object of the type or function {shown(name)}, not a collection of weights"
            else:
                what = f"holds {shown(name)}{place} beside its weights"
            raise Refused(f"{what}; nothing of it was run, nor anything else read", self.weights_alone)
        return self.admitted[name]

    def _place(self):
        """Under which key of its dictionary the next object stands, in words; "" where that can't be told."""
        begin = self.marks[-1] if self.marks else len(self.stack)
        pending = self.stack[begin:]
        if len(pending) % 2 and isinstance(pending[-1], str):
            return f" (under {shown(pending[-1])})"
        return ""

    def _top(self, count):
        """Make a tuple of the topmost `count` objects."""
        if len(self.stack) < count:
            raise IndexError
        self.stack[-count:] = [tuple(_built(item) for item in self.stack[-count:])]

    def _since_mark(self):
        start = self.marks.pop()
        items = [_built(item) for item in self.stack[start:]]
        del self.stack[start:]
        return items

    def _do_mark(self):
        self.marks.append(len(self.stack))

    def _do_pop(self):
        self.stack.pop()

    def _do_memoize(self):
        self.memo[len(self.memo)] = self.stack[-1]

    def _do_stack_global(self):
        name, module = self.stack.pop(), self.stack.pop()
        if not (isinstance(name, str) and isinstance(module, str)):
            raise TypeError
        self.stack.append(self._find(f"{module}.{name}"))

    def _do_empty_list(self):
        self.stack.append([])

    def _do_empty_dict(self):
        self.stack.append({})

    def _do_tuple(self):
        self.stack.append(tuple(self._since_mark()))

    def _do_list(self):
        self.stack.append(self._since_mark())

    def _do_dict(self):
        items = self._since_mark()
        self.stack.append({})
        self._fill(items)

    def _do_append(self):
        self._extend([_built(self.stack.pop())])

    def _do_appends(self):
        self._extend(self._since_mark())

    def _extend(self, items):
        if type(self.stack[-1]) is not list:
            raise TypeError
        self.stack[-1].extend(items)

    def _do_setitem(self):
        value, key = _built(self.stack.pop()), self.stack.pop()
        self._fill([key, value])

    def _do_setitems(self):
        self._fill(self._since_mark())

    def _fill(self, items):
        target = self.stack[-1]
        if not isinstance(target, dict) or len(items) % 2:
            raise TypeError
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str | int | bytes):  # a tuple's hash could take for ever
                raise Refused("has a dictionary key that is no text or number")
            target[key] = value

    def _do_binpersid(self):
        if self.storage_of is None:
            raise Refused("refers to data outside its pickle")
        self.stack.append(self.storage_of(self.stack.pop()))

    def _do_reduce(self):
        arguments, target = self.stack.pop(), self.stack.pop()
        if not isinstance(target, Name) or target.function is None or type(arguments) is not tuple:
            raise Refused("calls something that is no function for weights")
        self.stack.append(target.function(*arguments))

    def _do_build(self):
        state, target = _built(self.stack.pop()), self.stack[-1]
        if isinstance(target, Unbuilt) and target.value is None:
            target.value = target.finish(state)
            self.stack[-1] = target.value
        elif not (type(target) is OrderedDict and type(state) is dict and set(state) <= {"_metadata"}):
            raise Refused("sets attributes of something that is no weight")
        # `_metadata` of a state_dict are the version numbers of its layers; no weight is in there.


def _finished(value):
    """What the memo holds, in its final form; it may have been stored before its second step."""
    return value.value if isinstance(value, Unbuilt) and value.value is not None else value


def _built(value):
    """What goes into a container: nothing that still waits for its second step."""
    if isinstance(value, Unbuilt):
        raise Refused("leaves an array unfinished")
    return value


def shown(name):
    """A name from the file, fit for a message."""
    return repr(name[:80])


@contextlib.contextmanager
def refusing(path, kind):
    """Every way in which a damaged or hostile file fails, as one line."""
    path = Path(paths.expanded(path, "file"))
    if not path.is_file():
        raise UserError(f"{path} does not exist or is no file; give {kind}")
    try:
        yield path
    except Refused as error:
        raise UserError(f"{path} {error}; {error.mend or f'give {kind} you trust'}") from error
    except (
        *(ValueError, TypeError, LookupError, OverflowError, MemoryError, RecursionError, EOFError),
        *(struct.error, zipfile.BadZipFile, NotImplementedError),
    ) as error:
        what = f"is damaged, cut short or not {kind}; use another one"
        raise UserError(f"{path} {what}{file_kind.suffix(path)}") from error
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}; give {kind}") from error
