"""The client of an S3 server: AWS, or a compatible one (MinIO, Ceph, OpenShift Data Foundation).

The environment names it, with the variables of an OpenShift AI data connection: ``AWS_S3_ENDPOINT``,
``AWS_ACCESS_KEY_ID``, ``AWS_SECRET_ACCESS_KEY``, ``AWS_DEFAULT_REGION``; ``AWS_CA_BUNDLE`` for a private CA.
"""

import os
from typing import TYPE_CHECKING

from pipeline.core.errors import SettingsInvalid
from pipeline.core.trusted_ca import REMEDY

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


def s3_client() -> "S3Client":
    """Return a client of the server that the environment names; threads may share it.

    Raises ``SettingsInvalid`` if the endpoint is not a valid URL. ``explain`` describes the errors of its calls.
    """
    # Imported here: it takes a quarter of a second, and most runs do not use S3.
    import boto3
    from botocore.config import Config

    # A data connection may leave a field empty, which means "not given". Credentials, AWS_ENDPOINT_URL and
    # AWS_CA_BUNDLE are read by botocore itself.
    endpoint = os.environ.get("AWS_S3_ENDPOINT") or None
    if endpoint and not endpoint.startswith(("http://", "https://")):
        raise SettingsInvalid(
            f"AWS_S3_ENDPOINT is {endpoint!r}: expected a URL that begins with https:// or http://; "
            "correct it in the data connection"
        )
    own_server = endpoint or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    # A separate session: boto3's default session keeps the first credentials that it reads.
    return boto3.Session().client(
        "s3",
        endpoint_url=endpoint,
        config=Config(
            connect_timeout=10,
            read_timeout=60,
            retries={"mode": "standard", "total_max_attempts": 5},
            # A server in a cluster has one DNS name, not one a bucket.
            s3={"addressing_style": "path" if own_server else "auto"},
            # Many servers refuse the checksums that boto3 sends by default since 1.36.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        ),
    )


def explain(error: Exception) -> str:
    """Describe an error of a request, and what to do, in one sentence.

    ``error`` is botocore's: a ``ClientError`` (the server's answer) or a ``BotoCoreError`` (there was none).
    """
    from botocore.exceptions import ClientError

    if isinstance(error, ClientError):
        code = error.response["Error"]["Code"]
        return f"the S3 server answered {code}: {_ADVICE.get(code, 'see the log of the server')}"
    name = type(error).__name__
    return f"{name}: {_ADVICE.get(name, str(error))}"


_KEYS = "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY of the data connection"
_ENDPOINT = "check AWS_S3_ENDPOINT of the data connection, and that the server runs and can be reached from here"
_FULL = "there is no room left; raise the bucket's quota, or delete unused objects"
_ADVICE = {
    "NoSuchBucket": "there is no such bucket; check its name, or create it",
    "NoSuchKey": "there is no such object; check its name",
    "404": "there is no such bucket or object; check the names",
    "AccessDenied": "the keys are valid but not allowed to do this; grant it, or use other keys",
    "403": f"the keys are wrong or not allowed to do this; {_KEYS}",
    "InvalidAccessKeyId": f"the access key is unknown; {_KEYS}",
    "SignatureDoesNotMatch": f"the secret key is wrong; {_KEYS}",
    "ExpiredToken": "the session has expired; renew the keys",
    "QuotaExceeded": _FULL,
    "XMinioStorageFull": _FULL,
    "XMinioAdminBucketQuotaExceeded": _FULL,
    "NoCredentialsError": f"there are no credentials; {_KEYS}",
    "PartialCredentialsError": f"half of the credentials is missing; {_KEYS}",
    "EndpointConnectionError": _ENDPOINT,
    "ConnectTimeoutError": _ENDPOINT,
    "SSLError": f"its certificate is not trusted; {REMEDY}, or outside a cluster name its file in AWS_CA_BUNDLE",
}
