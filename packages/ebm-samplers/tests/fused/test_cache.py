import os
import stat
import subprocess
import sys
import textwrap

import pytest

PROGRAM = textwrap.dedent("""
    import sys, warnings
    sys.path.insert(0, {src!r})
    warnings.simplefilter("error" if {strict} else "ignore")
    import torch
    from ebm_samplers.fused import fuse, counts
    e, g = fuse(lambda x: ({factor} * x.square()).sum(1))(torch.ones(3, 2))
    assert e.tolist() == [2 * {factor}] * 3
    print(counts["compiled"], counts["cached"])
""")
SRC = os.path.join(os.path.dirname(__file__), "..", "src")


def start(folder, factor=3.0, strict=True):
    code = PROGRAM.format(src=SRC, factor=factor, strict=strict)
    environment = {**os.environ, "EBM_SAMPLERS_CACHE_DIR": str(folder)}
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(*args, **kwargs):
    process = start(*args, **kwargs)
    out, err = process.communicate()
    assert process.returncode == 0, err
    return tuple(map(int, out.split()))


def test_second_process_finds_the_kernel_and_the_folder_is_private(tmp_path):
    folder = tmp_path / "kernels"
    assert run(folder) == (1, 0)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert run(folder) == (0, 1)
    assert run(folder, factor=4.0) == (1, 0)  # another number, another kernel


def test_processes_at_once(tmp_path):
    processes = [start(tmp_path / "kernels") for _ in range(3)]
    for process in processes:
        _, err = process.communicate()
        assert process.returncode == 0, err


def test_a_folder_that_cannot_be_used_means_memory_and_a_warning(tmp_path, monkeypatch):
    from ebm_samplers.fused import cache

    file = tmp_path / "file"
    file.write_text("")
    monkeypatch.setenv("EBM_SAMPLERS_CACHE_DIR", str(file))
    with pytest.warns(RuntimeWarning, match="not kept on disk"):
        module = cache.load("value = 1\n")
    assert module.value == 1
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(0o777)
    monkeypatch.setenv("EBM_SAMPLERS_CACHE_DIR", str(folder))
    with pytest.warns(RuntimeWarning, match="written by others"):
        assert cache.load("value = 2\n").value == 2


def test_damaged_files_are_replaced_and_clearing_clears(tmp_path, monkeypatch):
    from ebm_samplers.fused import cache, clear_cache

    monkeypatch.setenv("EBM_SAMPLERS_CACHE_DIR", str(tmp_path / "kernels"))
    cache.load("value = 3\n")
    (path,) = (tmp_path / "kernels").glob("*.py")
    path.write_text("value = 'bad'\n")
    cache._modules.clear()
    assert cache.load("value = 3\n").value == 3
    assert clear_cache() == 1
    assert not list((tmp_path / "kernels").glob("*.py"))
