"""Nothing is left out because it cannot be imported."""

import pathlib
import shutil
import subprocess
import sys

TESTS = pathlib.Path(__file__).parent


def test_a_file_that_cannot_be_imported_is_an_error(tmp_path):
    (tmp_path / "tests").mkdir()
    for name in ("__init__.py", "conftest.py", "compiling.py"):
        shutil.copy(TESTS / name, tmp_path / "tests")
    shutil.copy(TESTS.parent / "pyproject.toml", tmp_path)
    broken = "import byzjax.nothing_there\n\n\ndef test_it():\n    pass\n"
    (tmp_path / "tests" / "test_broken.py").write_text(broken, encoding="utf-8")
    found = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode != 0
    assert "not importable" in found.stdout
