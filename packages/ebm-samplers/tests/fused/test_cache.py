import errno
import os
import stat
import subprocess
import sys
import textwrap

import pytest
import torch
from numba.core.caching import IndexDataCacheFile

from ebm_samplers.fused import cache, clear_cache, counts, fuse

PROGRAM = textwrap.dedent("""
    import warnings
    warnings.simplefilter("error")
    import torch
    from ebm_samplers.fused import fuse, counts
    e, g = fuse(lambda x: (3 * x.square()).sum(1))(torch.ones(3, 2))
    assert e.tolist() == [6.0] * 3
    print(counts["compiled"], counts["cached"])
""")


def start(folder):
    environment = {**os.environ, "EBM_SAMPLERS_CACHE_DIR": str(folder)}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def outcome(process):
    out, err = process.communicate()
    assert process.returncode == 0, err
    return tuple(map(int, out.split()))


def test_processes_share_kernels_in_a_private_folder(tmp_path):
    folder = tmp_path / "kernels"
    for process in [start(folder) for _ in range(2)]:  # at once
        assert sum(outcome(process)) == 1
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert not list(folder.glob(".new_*"))
    assert outcome(start(folder)) == (0, 1)
    (data,) = folder.glob("__pycache__/*chains*.nbc")
    assert data.stat().st_size > 0


def test_a_folder_that_cannot_be_used_means_memory_and_one_warning(tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.write_text("")
    monkeypatch.setenv("EBM_SAMPLERS_CACHE_DIR", str(file))
    with pytest.warns(RuntimeWarning, match="not kept on disk"):
        assert cache.load("value = 1\n").value == 1
    assert cache.load("value = 4\n").value == 4  # no second warning, which would be an error
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(0o777)
    monkeypatch.setenv("EBM_SAMPLERS_CACHE_DIR", str(folder))
    with pytest.warns(RuntimeWarning, match="written by others"):
        assert cache.load("value = 2\n").value == 2


def test_read_only_folder(tmp_path, monkeypatch):
    folder = tmp_path / "kernels"
    monkeypatch.setenv("EBM_SAMPLERS_CACHE_DIR", str(folder))
    cache.load("value = 5\n")
    cache._modules.clear()
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.warns(RuntimeWarning, match="read-only"):
        assert cache.load("value = 5\n").value == 5


def test_full_folder(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setenv("EBM_SAMPLERS_CACHE_DIR", str(tmp_path / "kernels"))
    monkeypatch.setattr(IndexDataCacheFile, "save", full)
    energy = fuse(lambda x: (7 * x.square()).sum(1))
    before = counts["compiled"]
    with pytest.warns(RuntimeWarning, match="No space left"):
        assert energy(torch.ones(3, 2))[0].tolist() == [14.0] * 3
    assert counts["compiled"] == before + 1


def test_damaged_files_are_replaced_and_clearing_clears(tmp_path, monkeypatch):
    folder = tmp_path / "kernels"
    monkeypatch.setenv("EBM_SAMPLERS_CACHE_DIR", str(folder))
    cache.load("value = 3\n")
    (path,) = folder.glob("*.py")
    path.write_text("value = 'bad'\n")
    cache._modules.clear()
    assert cache.load("value = 3\n").value == 3
    (folder / "other.txt").write_text("not ours")
    assert clear_cache() == 1
    assert [file.name for file in folder.iterdir()] == ["other.txt"]
