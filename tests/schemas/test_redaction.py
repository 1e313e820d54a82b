"""Credentials in URIs are hidden; what names an image stays, so that rows can be joined back."""

from __future__ import annotations

import pytest

from wordmask.schemas.redaction import redacted, uri_without_credentials
from wordmask.schemas.settings import RunSettings


@pytest.mark.parametrize(
    "uri",
    [
        "s3://lake/img;v=2.png",
        "https://cdn.example/get?id=17",
        "https://cdn.example/get?id=17&size=large#page=2",
        "https://cdn.example/get?expires=never&policy=square&st=3",
        "https://cdn.example:8443/me@home.png",
        "https://cdn.example/get?tokens=12&signed=yes&design=4",
        "https://b.oss.example/a.png?x-oss-process=image/resize,w_9&x-oss-style=small",
        "images/a=b?c=d.png",
        "mail/me@home.png",
        "a b.png?what",
    ],
)
def test_a_uri_without_credentials_stays_as_it_is(uri: str) -> None:
    assert uri_without_credentials(uri) == uri


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        (
            "https://b.s3.example/a.png?id=17&X-Amz-Credential=AK%2F1&X-Amz-Date=2&x-amz-signature=3",
            "https://b.s3.example/a.png?id=17&X-Amz-Credential=***&X-Amz-Date=***"
            "&x-amz-signature=***",
        ),
        (
            "https://b.s3.example/a.png?AWSAccessKeyId=AK&Expires=17&Signature=s%3D",
            "https://b.s3.example/a.png?AWSAccessKeyId=***&Expires=***&Signature=***",
        ),
        (
            "https://d1.cloudfront.example/a.png?v=2&Policy=p&Key-Pair-Id=K&Signature=s",
            "https://d1.cloudfront.example/a.png?v=2&Policy=***&Key-Pair-Id=***&Signature=***",
        ),
        (
            "https://x.blob.example/c/a.png?sv=2022&sr=b&sp=r&se=2026&sig=s%3D",
            "https://x.blob.example/c/a.png?sv=***&sr=***&sp=***&se=***&sig=***",
        ),
        (
            "https://storage.example/a.png?GoogleAccessId=g&X-Goog-Signature=s&generation=5",
            "https://storage.example/a.png?GoogleAccessId=***&X-Goog-Signature=***&generation=5",
        ),
        ("https://h/a.png?access_token=s&id=1", "https://h/a.png?access_token=***&id=1"),
        ("https://h/a.png?id=1#token=s", "https://h/a.png?id=1#token=***"),
        ("s3://lake/img;v=2;token=s;w.png", "s3://lake/img;v=2;token=***"),
        ("https://h/a.png?id=1?sig=s", "https://h/a.png?id=1?sig=***"),
        ("https://h/a.png?X%2DAmz%2DSignature=s", "https://h/a.png?X%2DAmz%2DSignature=***"),
        ("https://user:s@h/a.png?id=1", "https://***@h/a.png?id=1"),
        ("s3://AKIA:se/cr+et@lake/a;v=2.png", "s3://***@lake/a;v=2.png"),
    ],
)
def test_credentials_are_known_by_name_and_hidden(uri: str, shown: str) -> None:
    assert uri_without_credentials(uri) == shown


KEYS = """
    secret_key secretkey access_key accesskey aws_access_key_id apikey authkey auth_key
    subscription-key Ocp-Apim-Subscription-Key oauth_signature x-oss-signature hdnts hdnea hdntl
"""


@pytest.mark.parametrize("name", KEYS.split())
def test_keys_and_signatures_are_hidden_however_their_names_are_written(name: str) -> None:
    assert uri_without_credentials(f"https://h/a?id=1&{name}=s") == f"https://h/a?id=1&{name}=***"


def test_logs_hide_the_whole_query_of_a_web_address_but_no_part_of_a_path() -> None:
    said = "https://h/get?id=17&k=s is gone, s3://lake/img;v=2.png is not"
    assert redacted(said) == "https://h/get?*** is gone, s3://lake/img;v=2.png is not"


def test_an_output_may_lie_in_a_folder_with_a_parameter_in_its_name() -> None:
    assert RunSettings(input="s3://lake/day;v=2", output="out").input == "s3://lake/day;v=2"
