"""What a store answers instead of an object, in one line without secrets."""

from __future__ import annotations

import re
from urllib.parse import quote

from mineral_batch.errors import DataError
from mineral_batch.storage.interface import RETRIES
from mineral_batch.storage.urls import redact


class StoreError(DataError):
    """A store did not do what it was asked to, also after the tries that may help."""


class NoSuchObjectError(StoreError):
    """There is no such object, or no such bucket."""


class NoSuchBucketError(NoSuchObjectError):
    """There is no such bucket or container."""


class DeniedError(StoreError):
    """The credentials are missing, wrong, expired, or do not give the right to do it."""


class UnreachableError(StoreError):
    """The store does not answer, or answers with its own errors, after several tries: later it may."""


class ExhaustedError(StoreError):
    """The store has no room left for what is written."""


_ODD = "the key has an empty part, . or .. as a part, or a control character: rename the object"

# What the text or the class of obstore's errors tells -> what it means. The first that fits counts.
_SIGNS: tuple[tuple[tuple[str, ...], type[StoreError], str], ...] = (
    (
        ("NoSuchBucket", "ContainerNotFound", "The specified bucket does not exist"),
        NoSuchBucketError,
        "no such bucket",
    ),
    (("InvalidBucketName", "InvalidResourceName"), NoSuchBucketError, "not a valid bucket name"),
    (("NotFoundError", "FileNotFoundError"), NoSuchObjectError, "no such object"),
    (
        ("QuotaExceeded", "InsufficientStorage", "507 Insufficient", "No space left", "XMinioStorageFull"),
        ExhaustedError,
        "the store is full or its quota is used up; free some space",
    ),
    (("ExpiredToken", "TokenRefreshRequired"), DeniedError, "the credentials have expired; renew them"),
    (
        ("incorrectly configured region", "AuthorizationHeaderMalformed"),
        StoreError,
        "the bucket is in another region; set AWS_REGION to it",
    ),
    (("RequestTimeTooSkewed",), StoreError, "the store refuses requests from a wrong time; set this machine's clock"),
    (
        (
            "PermissionDeniedError",
            "UnauthenticatedError",
            "PermissionError",
            "InvalidAccessKeyId",
            "InvalidToken",
            "403 Forbidden",  # of a listing there is no class of its own
            "401 Unauthorized",
        ),
        DeniedError,
        "access denied; check the credentials and their rights",
    ),
    (("redential", "169.254."), DeniedError, "no credentials found; set them as for the cloud's own tools"),
    (("PreconditionError",), StoreError, "it has changed while it was read"),
    (("InvalidPathError",), StoreError, _ODD),
    (
        ("NotSupportedError", "UnknownConfigurationKeyError", "ValueError"),
        StoreError,
        "the store cannot do that, or it is set up wrongly by an environment variable",
    ),
)


# Other tries would get the same answer; not so after 408 and 429, which were tried again.
_REFUSED = re.compile(r"status code: (4(?!08|29)\d\d [A-Za-z ]+)")
_CODE = re.compile(r"<Code>(\w+)</Code>")

# In the texts of what may pass: no answer, and credentials that somebody renews.
_PASSING = ("more tries", "credentials have expired")


def may_pass(reason: str) -> bool:
    """Return whether another try, later, may read what failed for this reason, in the words of an error above."""
    return any(words in reason for words in _PASSING)


def odd_key_error(where: str) -> StoreError:
    """Return the error for a key that can be neither read nor written here."""
    return StoreError(f"{shown(where)}: {_ODD}")


def shown(where: str) -> str:
    """Return a URL for a message: without secrets, in one line."""
    return re.sub(r"[\0-\x1f\x7f]", lambda found: repr(found[0])[1:-1], redact(where))


def explained(error: Exception, where: str) -> StoreError:
    """Return one line for an error of obstore, whose own text holds addresses, headers and answers of the server."""
    if isinstance(error, StoreError):
        return error
    text = f"{type(error).__name__}: {_without_names(str(error), where)}"
    where = shown(where)
    for signs, kind, reason in _SIGNS:
        if any(sign in text for sign in signs):
            named = "/".join(where.split("/")[:3]) if kind is NoSuchBucketError else where
            return kind(f"{reason}: {named}" if issubclass(kind, NoSuchObjectError) else f"{named}: {reason}")
    if refused := _REFUSED.search(text):
        code = _CODE.search(text)
        return StoreError(f"{where}: the store refuses it ({refused[1]}{f', {code[1]}' if code else ''})")
    return UnreachableError(f"{where}: the store does not answer as it should, after {RETRIES} more tries")


def _without_names(text: str, where: str) -> str:
    """The text of an error without the bucket's name and the object's key, which may have any of the words above."""
    _, _, bucket, *parts = where.split("/")
    key = "/".join(parts)
    for form in (key, quote(key), quote(key, safe="")) if len(key) > 1 else ():
        text = text.replace(form, "")
    return re.sub(rf"\b{re.escape(bucket)}\b", "", text) if bucket else text
