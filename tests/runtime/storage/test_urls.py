"""URLs are recognized, taken apart, and shown without secrets."""

from pathlib import Path

import pytest

from mineral_batch.errors import DataError
from mineral_batch.storage.urls import Url, expand_ranges, is_url, local_path, parse, redact, restored


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("s3://bucket/a/b.jpg", Url("s3", "s3://bucket", "a/b.jpg")),
        ("s3://bucket", Url("s3", "s3://bucket", "")),
        ("s3a://bucket/x/", Url("s3", "s3://bucket", "x/")),
        ("gs://bucket/ä ö.jpg", Url("gs", "gs://bucket", "ä ö.jpg")),
        ("HTTPS://example.org:8443/a.jpg?X=1", Url("https", "https://example.org:8443", "a.jpg?X=1")),
    ],
)
def test_urls_are_taken_apart(text, expected):
    assert parse(text) == expected


@pytest.mark.parametrize("text", ["s3:///x", "https:///a", "https://host:port/a", "s3://a b/x", "ftp://h/x", "plain"])
def test_what_is_no_url_is_refused_in_one_line(text):
    with pytest.raises(DataError) as error:
        parse(text)
    assert "\n" not in str(error.value)


def test_a_path_made_of_a_url_is_mended():
    assert restored(Path("s3://bucket/x")) == "s3://bucket/x"
    assert is_url(Path("https://example.org/x"))
    assert not is_url("C:/photos")
    assert not is_url("photos/s3:/x")


def test_secrets_are_not_shown():
    url = "https://me:secret@example.org/a.jpg?X-Amz-Signature=abc&X-Amz-Credential=def"
    assert redact(f"cannot read {url} today") == "cannot read https://example.org/a.jpg today"
    assert str(parse(url)) == "https://example.org/a.jpg"


def test_ranges_of_shards():
    assert list(expand_ranges("s3://b/{008..011}.tar")) == [f"s3://b/{n}.tar" for n in ("008", "009", "010", "011")]
    assert list(expand_ranges("a.tar")) == ["a.tar"]
    with pytest.raises(DataError, match="must rise"):
        list(expand_ranges("{3..1}.tar"))


def test_file_urls_are_paths():
    assert local_path("file:///a%20b/c.jpg") == Path("/a b/c.jpg")
    assert local_path("s3://bucket/x") is None
    with pytest.raises(DataError, match="another machine"):
        local_path("file://server/x")
