"""Make the bucket of MLFLOW_ARTIFACTS_DESTINATION where it is missing, and become the command that is given.

python deploy/bucket.py mlflow server
"""

import os
import sys
from urllib.parse import urlsplit

import boto3
from botocore.exceptions import BotoCoreError, ClientError


def make(bucket: str) -> None:
    """Make a bucket, unless it is there. Raises ClientError where the store refuses."""
    store = boto3.client("s3")
    try:
        store.head_bucket(Bucket=bucket)
    except ClientError as error:
        if error.response["Error"]["Code"] != "404":
            raise
        store.create_bucket(Bucket=bucket)


if __name__ == "__main__":
    try:
        make(urlsplit(os.environ["MLFLOW_ARTIFACTS_DESTINATION"]).netloc)
    except (BotoCoreError, ClientError) as error:
        sys.exit(f"error: the store at {os.environ.get('AWS_ENDPOINT_URL', 'S3')}: {error}")
    os.execvp(sys.argv[1], sys.argv[1:])
