import re
import shutil
import subprocess

import pytest

from attncompare.environment import NAMES_A_REPOSITORY, commit

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


def git(folder, *words):
    settings = ("-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false")
    done = subprocess.run(["git", "-C", folder, *settings, *words], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture(autouse=True)
def plain_git(monkeypatch, tmp_path):
    """No repository above the test's folder, and none that a hook would name."""
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    for name in NAMES_A_REPOSITORY:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def package(tmp_path):
    """A package in a repository of one commit."""
    folder = tmp_path / "repository" / "package"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    (folder.parent / "README.md").write_text("")
    git(folder.parent, "init", "-q")
    git(folder.parent, "add", ".")
    git(folder.parent, "commit", "-q", "-m", "first")
    return folder


def test_the_commit_of_a_checkout_is_that_of_its_head(package):
    found = commit(package)
    assert re.fullmatch("[0-9a-f]{12}", found) and git(package, "rev-parse", "HEAD").startswith(found)


def test_a_changed_file_of_the_package_is_marked_and_others_are_not(package):
    clean = commit(package)
    (package.parent / "README.md").write_text("changed")
    (package / "untracked.py").write_text("")
    assert commit(package) == clean
    (package / "__init__.py").write_text("changed = True")
    assert commit(package) == f"{clean}+dirty"
    git(package, "add", ".")
    assert commit(package) == f"{clean}+dirty"
    git(package, "commit", "-q", "-m", "second")
    assert commit(package) not in ("", clean) and "dirty" not in commit(package)


def test_a_repository_that_only_holds_the_installation_is_not_the_packages(package):
    installed = package.parent / ".venv" / "lib" / "attncompare"
    installed.mkdir(parents=True)
    (installed / "__init__.py").write_text("")
    assert commit(installed) == ""


def test_a_hooks_repository_is_not_the_packages(package, monkeypatch, tmp_path):
    git(tmp_path, "init", "-q", "other")
    (tmp_path / "other" / "__init__.py").write_text("")
    git(tmp_path / "other", "add", ".")
    git(tmp_path / "other", "commit", "-q", "-m", "of the other repository")
    expected = commit(package)
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "other" / ".git"))
    assert commit(package) == expected


def test_without_a_repository_a_commit_or_git_there_is_none(package, monkeypatch, tmp_path):
    assert commit(tmp_path) == commit(tmp_path / "no such folder") == ""
    (tmp_path / "__init__.py").write_text("")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "__init__.py")
    assert commit(tmp_path) == ""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert commit(package) == ""


def test_git_that_hangs_stops_nothing(package, monkeypatch):
    def hang(command, timeout, **rest):
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(subprocess, "run", hang)
    assert commit(package) == ""
