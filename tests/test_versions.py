"""Versions known to break are refused before MindSpore is imported; untested ones give a line of warning."""

import re
import subprocess
import sys
import warnings
from importlib import metadata

import pytest
from helpers import ROOT, environment, refused

from model_utils import versions
from model_utils.errors import UserError


@pytest.fixture
def installed(monkeypatch):
    """{package: version} that metadata reports; to be filled by the test."""
    packages = {"mindspore": versions.TESTED_MINDSPORE[-1], "numpy": "1.26.4"}

    def version(name):
        if name not in packages:
            raise metadata.PackageNotFoundError(name)
        return packages[name]

    monkeypatch.setattr(metadata, "version", version)
    return packages


def warned():
    """The warnings that a check gives."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        versions.check()
    return [str(warning.message) for warning in caught]


@pytest.mark.parametrize("version", versions.TESTED_MINDSPORE)
def test_a_tested_version_passes_in_silence(installed, version):
    installed["mindspore"] = version
    assert warned() == []


@pytest.mark.parametrize("package", ["mindspore", "mindspore-dev"])
@pytest.mark.parametrize("version", ["2.7.1", "2.10.0rc1", "2.11.0", "3.0"])
def test_an_untested_version_gives_one_line_of_warning(installed, package, version):
    del installed["mindspore"]
    installed[package] = version
    (line,) = warned()
    assert "\n" not in line and version in line and "not tested" in line
    assert all(tested in line for tested in versions.TESTED_MINDSPORE)


@pytest.mark.parametrize("version", ["1.10.1", "2.2.14", "2.6.0", "2.6.99rc1"])
def test_a_mindspore_that_is_too_old_is_refused(installed, version):
    installed["mindspore"] = version
    with pytest.raises(UserError, match=rf"{re.escape(version)} is too old: pip install mindspore=="):
        versions.check()


def test_no_mindspore_is_said_in_one_line(installed):
    del installed["mindspore"]
    with pytest.raises(UserError, match="not installed: pip install -r requirements.txt"):
        versions.check()


@pytest.mark.parametrize("version", ["2.0.0", "2.0.0rc1", "2.3.1", "2rc1", "3.0"])
def test_a_numpy_that_breaks_mindspore_is_refused(installed, version):
    installed["numpy"] = version
    with pytest.raises(UserError, match=rf'numpy {re.escape(version)} breaks .*pip install "numpy>=1.26,<2"'):
        versions.check()


def test_an_old_python_is_refused(installed, monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 9, 18, "final", 0))
    with pytest.raises(UserError, match="too old: use Python 3.10, 3.11 or 3.12"):
        versions.check()


def test_what_is_installed_here_passes_in_silence():
    assert warned() == []


def test_requirements_admit_what_was_tested_and_nothing_that_breaks():
    text = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    oldest, newest = versions.TESTED_MINDSPORE[0], versions.TESTED_MINDSPORE[-1]
    assert f"\nmindspore>={oldest},<={newest}\n" in text
    assert re.search(r"\nnumpy>=1\.\d+,<2\n", text)


def command(package, version):
    """train.py where `package` says it has `version`; status 77: it came to import MindSpore."""
    code = (
        "import runpy, sys\n"
        "from importlib import metadata\n"
        "real = metadata.version\n"
        f"metadata.version = lambda name: {version!r} if name == {package!r} else real(name)\n"
        "class Watch:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'mindspore':\n"
        "            sys.exit(77)\n"
        "sys.meta_path.insert(0, Watch())\n"
        "sys.argv = ['train.py', '--device_target=CPU']\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        f"runpy.run_path({str(ROOT / 'train.py')!r}, run_name='__main__')\n"
    )
    return subprocess.run(
        [sys.executable, "-c", code],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(("package", "version"), [("numpy", "2.1.0"), ("mindspore", "2.6.0")])
def test_a_command_refuses_before_it_imports_mindspore(package, version):
    refused(command(package, version), package if package == "numpy" else "MindSpore", version, "pip install")


def test_a_command_warns_of_an_untested_version_in_one_line_and_goes_on():
    done = command("mindspore", "2.11.0")
    assert done.returncode == 77
    assert done.stderr.startswith("warning: MindSpore 2.11.0 was not tested") and done.stderr.count("\n") == 1
