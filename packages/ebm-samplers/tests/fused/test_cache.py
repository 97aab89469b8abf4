import errno
import os
import stat
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch

from ebm_samplers.fused import cache, clear_cache, codegen, counts, fuse, native

PROGRAM = textwrap.dedent("""
    import sys
    import warnings
    warnings.simplefilter("error")
    import torch
    from ebm_samplers.fused import fuse, counts
    e, g = fuse(lambda x: (3 * x.square()).sum(1))(torch.ones(3, 2))
    assert e.tolist() == [6.0] * 3
    print(counts["compiled"], counts["cached"], int("numba.np.linalg" in sys.modules))
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


def source(n):
    text = f"""
def put(out: Reals, number: "float64"):
    out[0] = real(number) + real({n})
"""
    return codegen.PRELUDE.format(title="Test", dtype="float32") + text


def put(text, number=1.0):
    """What the compiled function writes, whether from disk, whether known before."""
    found, known = native.native(text, "put")
    out = np.zeros(1, np.float32)
    found.call(out.ctypes.data, number)
    return float(out[0]), found.cached, known


@pytest.fixture
def forgetful(monkeypatch):
    """Forgets what this process has loaded."""
    monkeypatch.setattr(native, "_known", {})
    return native._known


def test_processes_share_kernels_in_a_private_folder(tmp_path):
    folder = tmp_path / "kernels"
    for process in [start(folder) for _ in range(2)]:  # at once
        compiled, cached, _ = outcome(process)
        assert compiled + cached == 1
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert not list(folder.glob(".new_*"))
    # and without Numba's compiler, which takes a second to start
    assert outcome(start(folder)) == (0, 1, 0)


def test_functions_are_kept_by_what_they_depend_on(tmp_path, monkeypatch, forgetful):
    monkeypatch.setenv("EBM_SAMPLERS_CACHE_DIR", str(tmp_path / "kernels"))
    assert put(source(1)) == (2.0, False, False)
    assert put(source(1)) == (2.0, False, True)
    forgetful.clear()
    assert put(source(1)) == (2.0, True, False)
    assert put(source(2)) == (3.0, False, False)
    forgetful.clear()
    monkeypatch.setattr(cache, "environment", lambda: ("another CPU",))
    assert put(source(1)) == (2.0, False, False)


def test_a_folder_that_cannot_be_used_means_memory_and_one_warning(
    tmp_path, monkeypatch, forgetful
):
    file = tmp_path / "file"
    file.write_text("")
    monkeypatch.setenv("EBM_SAMPLERS_CACHE_DIR", str(file))
    with pytest.warns(RuntimeWarning, match="not kept on disk"):
        assert put(source(1))[0] == 2.0
    assert put(source(4))[0] == 5.0  # no second warning, which would be an error
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(0o777)
    monkeypatch.setenv("EBM_SAMPLERS_CACHE_DIR", str(folder))
    with pytest.warns(RuntimeWarning, match="written by others"):
        assert put(source(2))[0] == 3.0
    assert not list(folder.iterdir())


def test_full_or_read_only_folder(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setenv("EBM_SAMPLERS_CACHE_DIR", str(tmp_path / "kernels"))
    monkeypatch.setattr(cache.tempfile, "mkstemp", full)
    energy = fuse(lambda x: (7 * x.square()).sum(1))
    before = counts["compiled"]
    with pytest.warns(RuntimeWarning, match="No space left"):
        assert energy(torch.ones(3, 2))[0].tolist() == [14.0] * 3
    assert counts["compiled"] == before + 1


@pytest.mark.parametrize("damage", (b"", b"bad\n", "half", "one byte"))
def test_damaged_files_are_replaced(tmp_path, monkeypatch, forgetful, damage):
    folder = tmp_path / "kernels"
    monkeypatch.setenv("EBM_SAMPLERS_CACHE_DIR", str(folder))
    put(source(3))
    (path,) = folder.glob("*.bin")
    content = path.read_bytes()
    if damage == "half":
        damage = content[: len(content) // 2]
    elif damage == "one byte":
        damage = content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]
    path.write_bytes(damage)
    forgetful.clear()
    assert put(source(3)) == (4.0, False, False)
    assert cache.read(cache.key(source(3))) is not None


def test_code_that_calls_what_is_not_there_is_compiled_again(tmp_path, monkeypatch, forgetful):
    monkeypatch.setenv("EBM_SAMPLERS_CACHE_DIR", str(tmp_path / "kernels"))
    put(source(3))
    key = cache.key(source(3))
    about, code = cache.read(key)
    cache.write(key, about | {"calls": ["no_such_function_anywhere"]}, code)
    forgetful.clear()
    assert put(source(3)) == (4.0, False, False)


def test_clearing_clears_what_is_ours(tmp_path, monkeypatch, forgetful):
    folder = tmp_path / "kernels"
    monkeypatch.setenv("EBM_SAMPLERS_CACHE_DIR", str(folder))
    put(source(3))
    (folder / "other.txt").write_text("not ours")
    assert clear_cache() == 1
    assert [file.name for file in folder.iterdir()] == ["other.txt"]
