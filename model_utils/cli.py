"""What train.py, eval.py, export.py and create_mnistm.py share: how errors reach the user."""

import errno
import sys
import warnings

from model_utils.errors import UserError


def _one_line_warning(message, category, filename, lineno, file=None, line=None):
    print(f"warning: {message}", file=file or sys.stderr)


def _mend(error):
    """One line for the operating system's refusals a user can mend, or None for the others."""
    where = f" ({error.filename})" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk is full{where}: free some space or choose another --output_dir, then --resume"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"not allowed to write or read{where}: choose a folder you own"
    return None


def run(main, check_versions=True):
    """Run `main()`, a command's body, and leave the process with its exit status.

    Status 0 or what `main` returns; 2 and one line on standard error for a `UserError` (and for a
    full disk or a refused permission); any other exception is a bug and keeps its traceback, status 1.
    """
    warnings.showwarning = _one_line_warning
    try:
        if check_versions:
            from model_utils import versions

            versions.check()
        status = main() or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        status = 2
    except BrokenPipeError:
        # The reader of our output went away (`| head`): not an error of ours, nothing left to tell.
        sys.stderr.close()
        status = 0
    except OSError as error:
        line = _mend(error)
        if line is None:
            raise
        print(f"error: {line}", file=sys.stderr)
        status = 2
    sys.exit(status)
