"""Prints what roc-validator finds in crates, offline: `python validate_crate.py FOLDER...`.

Its cache gets the true RO-Crate 1.1 context from the rocrate wheel.
"""

import io
import json
import sys
import tempfile
from importlib import resources
from pathlib import Path

import requests
import urllib3
from requests_cache import CachedSession
from rocrate_validator import models, services


def validate(crates):
    with tempfile.TemporaryDirectory() as folder:
        cache = str(Path(folder) / "cache")
        session = CachedSession(cache_name=cache, expire_after=-1)
        body = resources.files("rocrate").joinpath("data/ro-crate.jsonld").read_bytes()
        request = requests.Request("GET", "https://w3id.org/ro/crate/1.1/context").prepare()
        response = requests.Response()
        response.status_code, response.url, response.request, response._content = (200, request.url, request, body)
        response.headers["Content-Type"] = "application/ld+json"
        raw = {"preload_content": False, "request_url": request.url}
        response.raw = urllib3.HTTPResponse(io.BytesIO(body), response.headers, 200, **raw)
        session.cache.save_response(response, session.cache.create_key(request))
        session.close()
        how = {"profile_identifier": "process-run-crate-0.5", "requirement_severity": "REQUIRED", "offline": True}
        settings = [models.ValidationSettings(rocrate_uri=crate, cache_path=cache, **how) for crate in crates]
        return [[issue.message for issue in services.validate(each).get_issues()] for each in settings]


if __name__ == "__main__":
    print(json.dumps(validate(sys.argv[1:])))
