"""Files are cut short or changed, and disks fill up."""

import os
import subprocess

import pytest

from attncompare.benchmark.run import Run, run_benchmark
from attncompare.errors import StorageError


def cut_in_half(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flip_a_bit(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize("harm", [cut_in_half, flip_a_bit])
def test_a_damaged_file_is_set_aside_with_the_reason_and_made_again(tmp_path, harm, spec, undisturbed, same_as):
    run_benchmark(spec, tmp_path)
    path = sorted((tmp_path / "records").iterdir())[5]
    path.write_bytes(harm(path.read_bytes()))
    again = run_benchmark(spec, tmp_path)
    assert (again.computed, again.reused) == (1, 15)
    assert (tmp_path / "quarantine" / path.name).exists()
    assert (tmp_path / "quarantine" / f"{path.stem}.reason.txt").read_text().strip()
    same_as(again, undisturbed)


@pytest.fixture
def small_disk(tmp_path):
    """A disk with room for a few cells only."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=48k", "tmpfs", str(folder)]
    try:
        made = subprocess.run(mount, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("a full disk needs the mount command")
    if made.returncode:
        pytest.skip(f"a full disk needs the right to mount one: {made.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_the_run_goes_on_once_there_is_room(
    small_disk, bench, spec, spec_file, undisturbed, same_as
):
    out = small_disk / "run"
    full = bench(spec_file, "--out", out)
    _, errors = full.communicate(timeout=600)
    lines = [line for line in errors.splitlines() if line.startswith("error")]
    assert full.returncode == 1 and "Traceback" not in errors
    assert len(lines) == 1 and f"no space left for {out}" in lines[0] and "run the same command again" in lines[0]
    assert not list(out.rglob("*.tmp"))
    kept = len(list((out / "records").iterdir()))
    assert 0 < kept < 16
    with pytest.raises(StorageError, match="no space left for"):  # still full: the same again
        run_benchmark(spec, out)
    subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
    again = run_benchmark(spec, out)
    assert (again.computed, again.reused) == (16 - kept, kept)
    same_as(Run(out), undisturbed)
    assert set(os.listdir(out)) == {"run.json", "records"}
