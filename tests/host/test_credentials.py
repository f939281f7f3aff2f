"""Keys and tokens stay in memory: in a job they are refused with the way out, and nothing shows or records them."""

import json

import pyarrow.parquet as pq
import pytest
from conftest import MODEL, demo_records

from batchgen.host import credentials
from batchgen.host.credentials import in_settings, in_uris, redacted, stripped
from batchgen.job import drift, spec
from batchgen.output.sealed import opened

SECRET = "wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEY"
REFUSED = {
    f"s3://AKIAKEY:{SECRET}@bucket/x.jsonl": "s3://***@bucket/x.jsonl",
    f"S3://AKIAKEY:{SECRET[:9]}/{SECRET}@bucket/x.jsonl": "S3://***@bucket/x.jsonl",
    f"https://user:{SECRET}@host/x.jsonl": "https://***@host/x.jsonl",
    f"https://{SECRET}@host/x.jsonl": "https://***@host/x.jsonl",
    f"https://host/x.jsonl?X-Amz-Date=1&X-Amz-Signature={SECRET}": "https://host/x.jsonl?X-Amz-Date=***&X-Amz-Signature=***",
    f"https://host/x.jsonl?a=1&token={SECRET}": "https://host/x.jsonl?a=1&token=***",
    f"https://a.blob.core.windows.net/c/x.jsonl?sv=2&sig={SECRET}": "https://a.blob.core.windows.net/c/x.jsonl?sv=2&sig=***",
    f"abfs://account:{SECRET}@container/x.jsonl": "abfs://***@container/x.jsonl",
    f"s3://bucket/x.jsonl?endpoint_override=http%3A%2F%2Fu%3A{SECRET}%40host": "s3://bucket/x.jsonl?endpoint_override=http://***@host",
}
PLAIN = [
    "hf://datasets/org/name@main/x.jsonl",
    "abfs://container@account.dfs.core.windows.net/x.jsonl",
    "hdfs://me@host/x.jsonl",
    "https://host:8080/a@b/x.jsonl?page=2&author=me&max_tokens=5&key=x.jsonl",
    "s3://bucket/a@b:c/x.jsonl?region=us-east-1&scheme=http",
    "file:///data/a:b@c/x.jsonl",
]


@pytest.mark.parametrize("uri", REFUSED)
def test_credentials_in_a_uri_are_refused_and_not_shown(batchgen, tmp_path, uri):
    job_file = tmp_path / "job.toml"
    job_file.write_text(f'[input]\npath = {json.dumps(uri)}\n[model]\npath = "m"\n[output]\npath = "out"\n')
    for given in ([uri, "--model", MODEL, "--output", tmp_path / "out"], [job_file]):
        for command in ("plan", "run"):
            refused = batchgen(command, *given)
            assert refused.exit_code == 2
            assert f"[input] path {REFUSED[uri]}: contains a key or token; " in refused.stderr
            assert "in the environment (AWS_ACCESS_KEY_ID" in refused.stderr
            assert SECRET not in refused.stderr + refused.stdout
    assert not (tmp_path / "out").exists()


def test_a_uri_without_its_credentials_names_the_same_file():
    assert [stripped(uri) for uri in REFUSED][:4] == [
        *("s3://bucket/x.jsonl", "S3://bucket/x.jsonl", "https://host/x.jsonl", "https://host/x.jsonl")
    ]
    assert stripped(f"https://host/x.jsonl?token={SECRET}&a=1") == "https://host/x.jsonl?a=1"


@pytest.mark.parametrize("uri", PLAIN)
def test_a_uri_without_credentials_is_left_as_it_is(uri):
    assert (in_uris([uri]), redacted(uri), stripped(uri)) == ("", uri, uri)


@pytest.mark.parametrize(
    ("setting", "key"),
    [
        (f"hf_token={SECRET}", "hf_token"),
        (f'kv_transfer_config={{kv_connector_extra_config={{api_key="{SECRET}"}}}}', "kv_transfer_config"),
        (f'model_loader_extra_config={{"secret_access_key": "{SECRET}"}}', "model_loader_extra_config"),
        (f"otlp_traces_endpoint=https://user:{SECRET}@host", "otlp_traces_endpoint"),
        ("served_model_name=hf_" + "a" * 34, "served_model_name"),
    ],
)
def test_a_token_in_engine_is_refused_and_not_shown(batchgen, write_rows, tmp_path, setting, key):
    given = [write_rows(demo_records(1)), "--model", MODEL, "--output", tmp_path / "out", "--engine", setting]
    refused = batchgen("run", *given)
    assert refused.exit_code == 2
    assert f"[engine] {key}" in refused.stderr and "holds" not in refused.stderr
    assert SECRET not in refused.stderr and "a" * 34 not in refused.stderr
    assert not (tmp_path / "out").exists()


def test_arguments_about_tokens_that_are_no_secrets_are_none():
    assert not in_settings({"max_num_batched_tokens": 5, "long_prefill_token_threshold": 4, "hf_token": True})
    assert not in_settings({"hf_overrides": {"eos_token": "</s>", "mask_token": "<m>", "num_key_value_heads": 2}})


def test_secrets_of_the_environment_are_hidden_in_messages(batchgen, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", SECRET)
    (tmp_path / SECRET).mkdir()
    said = batchgen("plan", tmp_path / SECRET, "--model", MODEL, "--output", tmp_path / "out").stderr
    assert f"{tmp_path}/***: folder without" in said


@pytest.mark.parametrize(
    "option", [f"export=ALL,HF_TOKEN={SECRET}", f"comment=https://user:{SECRET}@host/", f"comment=see?token={SECRET}"]
)
def test_sbatch_gets_no_secrets(batchgen, write_rows, tmp_path, option):
    job_file = tmp_path / "job.toml"
    path = write_rows(demo_records(1))
    job_file.write_text(f'[input]\npath = "{path}"\n[model]\npath = "{MODEL}"\n[output]\npath = "out"\n')
    refused = batchgen("submit", job_file, "--dry-run", "--sbatch", option)
    assert refused.exit_code == 2
    assert "export it in your shell" in refused.stderr and SECRET not in refused.stderr + refused.stdout
    refused = batchgen("submit", job_file, "--dry-run", "--", "--engine", f"hf_token={SECRET}")
    assert refused.exit_code == 2
    assert SECRET not in refused.stderr + refused.stdout


# --- folders of older versions, which recorded what they were given


@pytest.fixture
def old(generate, write_rows, monkeypatch):
    """A finished job whose record holds a key in a URI and a token in [engine]."""
    with monkeypatch.context() as older:
        older.setattr(spec, "_refuse_secrets", lambda tables, where: None)
        older.setattr(credentials, "without_secrets", dict)
        out = generate([write_rows([*demo_records(3), "no"])], engine={"hf_token": SECRET})
    path = out / "_job.json"
    record = opened(path.read_bytes())
    assert record["results"]["engine"]["hf_token"] == record["spec"]["engine"]["hf_token"] == SECRET
    uri = f"s3://AKIAKEY:{SECRET}@bucket/x.jsonl"
    record["plan"]["files"][0]["path"] = uri
    record["spec"]["input"]["path"] = [uri]
    path.write_text(json.dumps({**record, "digest": drift.fingerprint(record)}))
    return out


def test_an_older_folder_with_secrets_opens_and_shows_none(batchgen, old, tmp_path):
    for command in (["status", old], ["status", old, "--json"], ["rejects", old]):
        done = batchgen(*command)
        assert done.exit_code == 0, done.stderr
        assert SECRET not in done.stdout + done.stderr
    assert batchgen("export", old, "--to", tmp_path / "card").exit_code == 0
    assert SECRET not in (tmp_path / "card" / "README.md").read_text()
    assert "hf_token" not in (tmp_path / "card" / "README.md").read_text()
    assert pq.read_table(tmp_path / "card" / "data").num_rows == 3


def test_a_job_that_was_begun_with_a_token_goes_on_without_it(batchgen, old, tmp_path):
    again = batchgen("run", tmp_path / "in.jsonl", "--model", MODEL, "--output", old)
    assert (again.exit_code, again.stdout[:16]) == (0, "all done already"), again.stderr


def test_it_says_that_its_record_holds_secrets(batchgen_process, old):
    done = batchgen_process("rejects", old)
    assert done.stderr == (
        f"batchgen: warning: {old}/_job.json: an older batchgen wrote keys or tokens into it; revoke them, they may "
        "have been read\n"
    )
