"""The interface to object stores and web servers, against servers on this machine."""

from http.server import BaseHTTPRequestHandler

import pytest

from mineral_batch.storage.errors import DeniedError, NoSuchObjectError, StoreError, UnreachableError
from mineral_batch.storage.store import open_store

from ...fakes.web_server import address, serving


@pytest.mark.slow
def test_objects_are_put_listed_read_and_deleted(s3):
    store = open_store("s3://photos")
    for key in ("b/2.jpg", "b/1.jpg", "ba.jpg", "a b/ü%20#.jpg"):
        assert store.put(key, key.encode())
    assert [entry.key for entry in store.list()] == ["a b/ü%20#.jpg", "b/1.jpg", "b/2.jpg", "ba.jpg"]
    assert [entry.key for entry in store.list("b/")] == ["b/1.jpg", "b/2.jpg"]
    assert [entry.key for entry in store.list("ba")] == ["ba.jpg"]
    assert [entry.key for entry in store.list("b/", after="b/1.jpg")] == ["b/2.jpg"]
    assert store.get("a b/ü%20#.jpg") == "a b/ü%20#.jpg".encode()
    assert store.head("b/1.jpg") == next(iter(store.list("b/")))
    with store.open("b/2.jpg") as file:
        assert file.read() == b"b/2.jpg"
    store.delete("ba.jpg")
    store.delete("ba.jpg")
    with pytest.raises(NoSuchObjectError, match=r"no such object: s3://photos/ba\.jpg"):
        store.get("ba.jpg")


ODD = ["/lead.jpg", "a//b.jpg", "a/../c.jpg", "a/./d.jpg", "a/tab\t.jpg"]


@pytest.mark.slow
def test_keys_of_any_kind_are_listed_and_read_and_never_taken_for_others(s3):
    boto3 = pytest.importorskip("boto3")
    client = boto3.client("s3", endpoint_url=s3)
    keys = sorted([*ODD, "a/1.jpg", "a/folder/", "b.jpg", "lead.jpg", "z/2.jpg"])
    for key in keys:
        client.put_object(Bucket="photos", Key=key, Body=key.encode())
    store = open_store("s3://photos")
    listed = list(store.list())
    assert [entry.key for entry in listed] == [key for key in keys if not key.endswith("/")]
    assert [entry.key for entry in store.list("a//")] == ["a//b.jpg"]
    assert [entry.key for entry in store.list("a/", after="a/1.jpg")] == ["a/tab\t.jpg"]
    for entry in listed:
        assert store.get(entry.key) == entry.key.encode()
        assert store.head(entry.key) == entry
    with pytest.raises(NoSuchObjectError, match=r"no such object: s3://photos//none\\n\.jpg"):
        store.get("/none\n.jpg")
    with pytest.raises(NoSuchObjectError, match="no such bucket: s3://nowhere"):
        next(open_store("s3://nowhere").list("a//"))


@pytest.mark.parametrize("key", ODD)
@pytest.mark.parametrize("root", ["s3://bucket", "gs://bucket"])
def test_nothing_is_written_to_a_key_that_would_become_another(root, key, tmp_path, monkeypatch):
    pytest.importorskip("obstore")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    store = open_store(root)
    for act in (lambda: store.put(key, b"1"), lambda: store.put_file(key, tmp_path), lambda: store.delete(key)):
        with pytest.raises(StoreError, match="the key has an empty part"):
            act()


@pytest.mark.slow
def test_create_only_leaves_what_is_there(s3):
    store = open_store("s3://photos")
    assert store.put("part", b"first", create_only=True)
    assert not store.put("part", b"second", create_only=True)
    assert store.get("part") == b"first"


@pytest.mark.slow
def test_a_file_is_put_in_chunks_and_whole(s3, tmp_path, monkeypatch):
    from mineral_batch.storage import store as module

    monkeypatch.setattr(module, "_CHUNK", 5 * 2**20)
    store = open_store("s3://photos")
    for name, size in {"small": 10, "empty": 0, "large": 12 * 2**20 + 5}.items():
        file = tmp_path / name
        file.write_bytes(bytes(range(256)) * (size // 256) + b"x" * (size % 256))
        store.put_file(f"t/{name}", file)
        assert store.get(f"t/{name}") == file.read_bytes()
    assert store.head("t/large").etag.endswith('-3"')  # three chunks, as S3 marks them


@pytest.mark.slow
def test_a_missing_bucket_is_one_line(s3):
    with pytest.raises(NoSuchObjectError, match="no such bucket: s3://nowhere"):
        next(open_store("s3://nowhere").list())


class _Answers(BaseHTTPRequestHandler):
    """Answers with the status that the path names; `flaky` is 503 twice, then well."""

    tries = 0

    def do_GET(self):
        name = self.path[1:].split("?")[0]
        if name == "flaky":
            _Answers.tries += 1
            status = 503 if _Answers.tries <= 2 else 200
        else:
            status = int(name)
        self.send_response(status)
        self.send_header("Content-Length", "2")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(b"ok")

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


@pytest.fixture
def web():
    with serving(_Answers) as server:
        yield address(server)


@pytest.mark.parametrize(
    ("status", "kind"), [(404, NoSuchObjectError), (403, DeniedError), (401, DeniedError), (400, StoreError)]
)
def test_what_does_not_pass_is_not_tried_again_and_shows_no_signature(web, status, kind):
    pytest.importorskip("urllib3")
    with pytest.raises(kind) as error:
        open_store(web).get(f"{status}?X-Amz-Signature=secret")
    assert "secret" not in str(error.value)
    assert not isinstance(error.value, UnreachableError)


def test_what_passes_is_tried_again(web):
    pytest.importorskip("urllib3")
    _Answers.tries = 0
    assert open_store(web).get("flaky") == b"ok"
    assert _Answers.tries == 3


def test_a_server_that_refuses_head_says_nothing(web):
    pytest.importorskip("urllib3")
    assert open_store(web).head("403").size == -1
