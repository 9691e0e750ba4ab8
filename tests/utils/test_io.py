"""Files are replaced whole or not at all; versioned JSON says what is wrong with it."""

import json
import os
import threading

import pytest

from hf_autosparse.utils import io


def test_a_text_is_written_into_a_new_directory(tmp_path):
    io.write_text(tmp_path / "new" / "file.txt", "é\n")
    assert (tmp_path / "new" / "file.txt").read_bytes() == "é\n".encode()
    assert os.listdir(tmp_path / "new") == ["file.txt"]


def test_an_interrupted_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(KeyError), io.replacing(path) as draft:
        draft.write_text("half")
        assert draft.parent == tmp_path and draft.name.startswith(".file.txt.") and draft.name.endswith(".tmp")
        raise KeyError
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["file.txt"]


def test_two_threads_write_drafts_of_their_own(tmp_path):
    meet, drafts = threading.Barrier(2, timeout=10), set()

    def write(text):
        with io.replacing(tmp_path / "file.txt") as draft:
            draft.write_text(text)
            drafts.add(draft)
            meet.wait()

    threads = [threading.Thread(target=write, args=(text,)) for text in ("a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(drafts) == 2 and (tmp_path / "file.txt").read_text() in {"a", "b"}


def test_a_flushed_draft_is_on_disk_before_it_replaces_the_file(tmp_path, monkeypatch):
    events = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda number: (events.append("fsync"), fsync(number)))
    monkeypatch.setattr(os, "replace", lambda *paths: (events.append("replace"), replace(*paths)))
    io.write_versioned_json(tmp_path / "a.json", 3, {"x": 1}, flush=True)
    assert events == ["fsync", "replace"]
    io.write_versioned_json(tmp_path / "a.json", 3, {"x": 1})
    assert events == ["fsync", "replace", "replace"]


def test_versioned_json_there_and_back(tmp_path):
    path = tmp_path / "a.json"
    io.write_versioned_json(path, 3, {"x": [1, None]})
    assert json.loads(path.read_text()) == {"format_version": 3, "x": [1, None]}
    assert list(json.loads(path.read_text())) == ["format_version", "x"]
    assert io.read_versioned_json(path, 3) == {"x": [1, None]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"a\.json is not valid JSON: "),
        ("[" * 100_000, r"a\.json is not valid JSON: "),
        ("\x80", r"a\.json is not valid JSON: "),
        ("[]", r"a\.json holds a list, expected a JSON object"),
        ('{"x": 1}', r"a\.json has format_version None, this release reads 3: upgrade hf-autosparse"),
        ('{"format_version": 4}', r"a\.json has format_version 4, this release reads 3: upgrade hf-autosparse"),
    ],
)
def test_damaged_versioned_json(tmp_path, text, message):
    (tmp_path / "a.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=message):
        io.read_versioned_json(tmp_path / "a.json", 3)


def test_the_version_is_no_content(tmp_path):
    with pytest.raises(ValueError, match="content has a key 'format_version', which is reserved"):
        io.write_versioned_json(tmp_path / "a.json", 3, {"format_version": 3})
    assert not (tmp_path / "a.json").exists()


def test_a_size_limit(tmp_path):
    (tmp_path / "a.json").write_text("{}  ")
    assert io.read_json_object(tmp_path / "a.json", 4) == {}
    with pytest.raises(ValueError, match=r"a\.json has 4 bytes, expected at most 3"):
        io.read_json_object(tmp_path / "a.json", 3)


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        io.read_versioned_json(tmp_path / "a.json", 3)
