"""Causes of what a bucket's client raises, by status, code and kind; its text is not shown: it may hold secrets."""

from __future__ import annotations

import re

from lowcomm.store.objects import Cause, StoreDownError, StoreError, StoreRefusedError

STATUS = re.compile(r"status code: (\d{3})")
CODE = re.compile(r"<Code>(\w{1,64})</Code>")
KIND = re.compile(r"kind: (Timeout|Connect|Interrupted|Request|Decode)\b")
FIXES = {
    Cause.DOWN: "wait until it answers, or check the address and the network",
    Cause.SLOW: "wait, or use a faster link, smaller payloads or a store that is nearer",
    Cause.FULL: "make room",
    Cause.DENIED: "give these credentials the right to read, list and create there",
    Cause.CREDENTIALS: "put valid ones into the environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; "
    "GOOGLE_APPLICATION_CREDENTIALS; AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY), or give the machine a "
    "role",
    Cause.NO_BUCKET: "make it, or correct the name",
    Cause.CLOCK: "set this machine's clock (NTP): signatures are refused when it is off by 15 minutes",
    Cause.REGION: "set AWS_REGION to the bucket's region",
    Cause.UNFIT: "use a store that creates a key only if it is absent (S3, R2, GCS, Azure or a directory)",
}
REFUSED = (Cause.DENIED, Cause.CREDENTIALS, Cause.NO_BUCKET, Cause.CLOCK, Cause.REGION, Cause.UNFIT)
CODES = {
    "NoSuchBucket": Cause.NO_BUCKET,
    "ContainerNotFound": Cause.NO_BUCKET,
    "InvalidBucketName": Cause.NO_BUCKET,
    "RequestTimeTooSkewed": Cause.CLOCK,
    "ExpiredToken": Cause.CREDENTIALS,
    "TokenRefreshRequired": Cause.CREDENTIALS,
    "InvalidToken": Cause.CREDENTIALS,
    "InvalidAccessKeyId": Cause.CREDENTIALS,
    "SignatureDoesNotMatch": Cause.CREDENTIALS,
    "AuthenticationFailed": Cause.CREDENTIALS,
    "InvalidAuthenticationInfo": Cause.CREDENTIALS,
    "PermanentRedirect": Cause.REGION,
    "AuthorizationHeaderMalformed": Cause.REGION,
    "IllegalLocationConstraintException": Cause.REGION,
    "SlowDown": Cause.SLOW,
    "RequestTimeout": Cause.SLOW,
    "IncompleteBody": Cause.DOWN,
    "BadDigest": Cause.DOWN,
    "ServerBusy": Cause.SLOW,
    "NotImplemented": Cause.UNFIT,
    "QuotaExceeded": Cause.FULL,
    "XMinioStorageFull": Cause.FULL,
}
STATUSES = {
    "301": Cause.REGION,
    "307": Cause.REGION,
    "400": Cause.UNFIT,
    "401": Cause.CREDENTIALS,
    "403": Cause.DENIED,
    "404": Cause.NO_BUCKET,
    "405": Cause.UNFIT,
    "408": Cause.SLOW,
    "429": Cause.SLOW,
    "501": Cause.UNFIT,
    "507": Cause.FULL,
}
SIGNS = (
    ("token request", Cause.CREDENTIALS),
    ("169.254.169.254", Cause.CREDENTIALS),
    ("metadata.google.internal", Cause.CREDENTIALS),
    ("OpenCredentials", Cause.CREDENTIALS),
    ("DecodeCredentials", Cause.CREDENTIALS),
    ("MissingAccount", Cause.CREDENTIALS),
    ("MissingSecretAccessKey", Cause.CREDENTIALS),
    ("MissingAccessKeyId", Cause.CREDENTIALS),
    ("BareRedirect", Cause.REGION),
    ("Request date header too old", Cause.CLOCK),
    ("kind: Timeout", Cause.SLOW),
)


def store_error(where: str, what: str, error: Exception, *, creating: bool = False) -> StoreError:
    """The one line for an exception of the client; `what`: the request, with its key."""
    text = str(error)
    cause = cause_of(text, missing_is_bucket=creating or what.startswith("list"))
    found = STATUS.search(text), CODE.search(text), KIND.search(text)
    detail = " ".join(match[1] for match in found if match) or type(error).__name__
    message = f"store {where}: {what}: {cause.value} ({detail}). Fix: {FIXES[cause]}."
    return StoreRefusedError(message, cause) if cause in REFUSED else StoreDownError(message, cause)


def cause_of(text: str, *, missing_is_bucket: bool = True) -> Cause:
    """The cause by the first of: a sign in the text, the service's code, the status."""
    for sign, cause in SIGNS:
        if sign in text:
            return cause
    code, status = CODE.search(text), STATUS.search(text)
    if code and code[1] in CODES:
        return CODES[code[1]]
    if status and (status[1] != "404" or missing_is_bucket):
        return STATUSES.get(status[1], Cause.DOWN)
    return Cause.DOWN


def never_landed(error: Exception) -> bool:
    """Whether a create that failed so can't have reached the store."""
    return "kind: Connect" in str(error)
