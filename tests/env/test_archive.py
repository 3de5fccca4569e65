"""Archives: zips of zips, folders, what is missing, paths that lead outside."""

import io
import tarfile
import zipfile

import pytest

from mlagent_jax.env.archive import archive_hashes, find_file, find_files, unpack
from mlagent_jax.errors import TaskError


def zip_of(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


@pytest.fixture(name="nested")
def fixture_nested(tmp_path):
    images = {"train/a.jpg": b"A", "train/b.jpg": b"B", "__MACOSX/train/a.jpg": b"-"}
    outer = {"train.zip": zip_of(images), "train.csv.zip": zip_of({"train.csv": b"x"})}
    path = tmp_path / "kaggle.zip"
    path.write_bytes(zip_of(outer))
    return path


def test_zips_of_zips_are_unpacked_and_found_by_name(nested, tmp_path):
    raw = tmp_path / "raw"
    unpack(nested, raw)
    assert find_file(raw, "train.csv").read_bytes() == b"x"
    images = find_files(raw, "train", ".jpg")
    assert {name: path.read_bytes() for name, path in images.items()} == {
        "a.jpg": b"A",
        "b.jpg": b"B",
    }


def test_a_folder_is_read_as_its_zip_and_not_changed(nested, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "kaggle.zip").write_bytes(nested.read_bytes())
    raw = tmp_path / "raw"
    unpack(folder, raw)
    assert find_file(raw, "train.csv").read_bytes() == b"x"
    assert [path.name for path in folder.rglob("*")] == ["kaggle.zip"]


def test_tar_files_are_unpacked(tmp_path):
    path = tmp_path / "data.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        info = tarfile.TarInfo("cifar/batch")
        info.size = 1
        tar.addfile(info, io.BytesIO(b"1"))
    unpack(path, tmp_path / "raw")
    assert find_file(tmp_path / "raw", "batch").read_bytes() == b"1"


def test_missing_files_are_named_with_what_is_there(nested, tmp_path):
    with pytest.raises(TaskError, match="no such file or folder"):
        unpack(tmp_path / "none.zip", tmp_path / "raw")
    unpack(nested, tmp_path / "raw")
    with pytest.raises(TaskError, match=r"no file 'test.csv'; it has a.jpg, b.jpg"):
        find_file(tmp_path / "raw", "test.csv")
    with pytest.raises(TaskError, match=r"no files test/\*.jpg"):
        find_files(tmp_path / "raw", "test", ".jpg")


@pytest.mark.parametrize("name", ["../evil", "/evil", "a/../../evil"])
def test_paths_that_lead_outside_are_refused(name, tmp_path):
    path = tmp_path / "bad.zip"
    path.write_bytes(zip_of({name: b"x"}))
    with pytest.raises(TaskError, match="leads outside"):
        unpack(path, tmp_path / "raw")
    assert not (tmp_path / "evil").exists()


def test_damaged_archives_are_refused(tmp_path):
    path = tmp_path / "bad.zip"
    path.write_bytes(b"PK but no zip")
    with pytest.raises(TaskError, match="cannot be unpacked"):
        unpack(path, tmp_path / "raw")


def test_hashes_of_a_folder_name_its_files(nested, tmp_path):
    alone = archive_hashes(nested)
    assert list(alone) == ["kaggle.zip"]
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "k.zip").write_bytes(nested.read_bytes())
    assert archive_hashes(folder) == {"sub/k.zip": alone["kaggle.zip"]}
