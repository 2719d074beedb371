"""Which parts of a text are hidden, and which must stay readable."""

import sys
import time

import pytest

from traceml_agent.redact import (
    KEPT_LIMIT,
    READ_LIMIT,
    STACK_LIMIT,
    describe,
    is_secret_name,
    places,
    redact,
    secrets_of,
)

SECRET = "Tr0ub4dor-and-3"
HEX_40 = "0123456789abcdef0123456789abcdef01234567"
HIDES = [
    f"--api-key {SECRET}",
    f"--api-key={SECRET}",
    f"--apiKey {SECRET}",
    f"unrecognized arguments: --token={SECRET} --verbose",
    f"Command '['login', '--token', '{SECRET}']' returned non-zero exit status 1.",
    f"Command \"['login', '--password={SECRET}']\" failed",
    f"token={SECRET}",
    f"token: {SECRET}",
    f'{{"api_key": "{SECRET}", "lr": 0.1}}',
    f"{{'password': '{SECRET}'}}",
    f"password='{SECRET} with words'",
    f'client_secret = "{SECRET}"',
    f"AWS_SECRET_ACCESS_KEY={SECRET}",
    f"export WANDB_API_KEY={SECRET}; python train.py",
    f"PGPASSWORD={SECRET} psql",
    f"MY_OWN_KEY={SECRET}",
    f"Invalid API key: {SECRET}",
    f"the password is {SECRET}",
    f"wrong password '{SECRET}' for user u",
    f"wrong password {SECRET}",
    f"Authorization: Bearer {SECRET}",
    f"{{'Authorization': 'Bearer {SECRET}'}}",
    f"sent header Bearer {SECRET}",
    f"cookie: {SECRET}",
    f"https://u:{SECRET}@host/repo.git",
    f"https://{SECRET}@host/repo.git",
    f"clone of 'https://u:{SECRET}@host/repo.git' failed",
    f"postgresql+psycopg2://u:{SECRET}@host:5432/db",
    f"https://u:{SECRET}/x@host/",
    f"u:{SECRET}@host: connection refused",
    f"https://host/data?X-Amz-Credential=1&token={SECRET}&x=2",
    f"https://host/blob?sv=2020&sig={SECRET}",
    f"DefaultEndpointsProtocol=https;AccountKey={SECRET};x=1",
    f"error: outer: token={SECRET}",
    f"a = 1, b = 2, secret = {SECRET}",
]
SHAPES = [
    "sk-proj-abcdefghij0123456789",
    "hf_" + "AbCdEfGhIj" * 3,
    "ghp_" + "a1B2" * 9,
    "github_pat_" + "a1B2_" * 6,
    "glpat-abcdefghij0123456789",
    "xoxb-123456789012-abcdef",
    "AKIAIOSFODNN7EXAMPLE",
    "AIza" + "Sy0-" * 9,
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2lnbmF0dXJl",
    "nvapi-" + "a1-_" * 8,
    "sk_live_abcdefgh12345678",
    HEX_40,
    "aB3dE5gH7jK9mN1pQ3sT5vW7yZ9bC1dF",
]
STAYS = [
    "",
    "--lr 0.1 --tokenizer gpt2 --max-tokens 512 --batch-size=32",
    "/home/author/secrets/train.py",
    "/home/user/.cache/huggingface/hub/models--gpt2/snapshots/" + HEX_40 + "/model.safetensors",
    "No such file or directory: '/data/tokens/passwords.txt'",
    "mat1 and mat2 shapes cannot be multiplied (3x4 and 5x2)",
    "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79.15 GiB of "
    "which 17.25 MiB is free. Process 1234 has 79.12 GiB memory in use.",
    'Missing key(s) in state_dict: "model.token_embedding.weight", "key.bias".',
    "Unexpected key(s) in state_dict: encoder.key: torch.Size([3, 4])",
    "'AWS_SECRET_ACCESS_KEY'",
    "eos_token='</s>', pad_token: <pad>, eos_token_id=50256, num_tokens=7, token=5",
    "use_auth_token=False, token=None, password=None",
    "token 5 is out of range",
    "the token is invalid",
    "the password is wrong",
    "backward pass: 3 ms, forward_pass=4",
    "Trying to backward through the graph a second time",
    "https://pytorch.org/docs/stable/notes/cuda.html?highlight=a#memory",
    "https://host:8080/path and mail to a@b.org",
    "author=Jane, authors: 3, monkey=1, keyboard: 2, passes=3, tokens: [1, 2, 3]",
    "PWD=/home/user/work",
    "sk-learn, hf_transfer, hf_hub_download and task-specific-risk-adjusted-names",
    "GPU-8f6dc0a4-1d2e-4f6b-9a7c-0123456789ab at 0x7f1234567890",
    "BertForSequenceClassificationWithAdditionalPoolingHeads2",
    "12:30:45 rank0@node3: NCCL timeout, expected 1: got 2@3",
    "basic training of the bearer failed",
]


@pytest.mark.parametrize("text", HIDES)
def test_a_value_that_its_place_gives_away_is_hidden(text: str) -> None:
    hidden = redact(text)
    assert SECRET not in hidden
    assert "dor-and-3" not in hidden
    assert "[redacted]" in hidden


@pytest.mark.parametrize("token", SHAPES)
@pytest.mark.parametrize("text", ["{}", "got {} here", "x={};", "('{}',)", "bad: {}."])
def test_a_token_of_a_known_form_is_hidden_wherever_it_stands(token: str, text: str) -> None:
    assert token not in redact(text.format(token))


def test_a_private_key_is_hidden_whole_and_also_where_it_was_cut() -> None:
    begin, end = "-----BEGIN RSA PRIVATE KEY-----", "-----END RSA PRIVATE KEY-----"
    body = "MIIEow\nIBAAKCAQ/EA+x\n"
    assert redact(f"bad key {begin}\n{body}{end} there") == "bad key [redacted] there"
    assert redact(f"bad key {begin}\n{body}") == "bad key [redacted]"


@pytest.mark.parametrize("text", STAYS)
def test_what_people_need_to_understand_an_error_stays(text: str) -> None:
    assert redact(text) == text


def test_around_a_hidden_value_the_text_stays() -> None:
    said = f"push to https://u:{SECRET}@host/r.git (token='{SECRET}', lr=0.1) failed"
    kept = "push to https://[redacted]@host/r.git (token='[redacted]', lr=0.1) failed"
    assert redact(said) == kept


def test_values_of_the_environment_and_of_arguments_are_found_by_their_names() -> None:
    environ = {
        "HOME": "/home/someone",
        "PWD": "/home/someone/work",
        "AWS_SECRET_ACCESS_KEY": "plain words here",
        "HF_TOKEN": "short",
        "USE_AUTH_TOKEN": "true",
        "TOKENIZERS_PARALLELISM": "enabled",
        "SSH_AUTH_SOCK": "/tmp/ssh/agent",
        "DATABASE_URL": "postgres://someone:password-in-url@host/db",
    }
    argv = ["train.py", "--api-key", "key-by-option", "auth.password=by-equals", "-p", "hunter2"]
    argv += ["--lr", "0.12345", "--tokenizer", "gpt2-large", "-p", "80808080", "-p", "out/models"]
    assert set(secrets_of(environ.items(), argv)) == {
        "plain words here",
        "someone:password-in-url",
        "password-in-url",
        "key-by-option",
        "by-equals",
        "hunter2",
    }


def test_a_known_value_is_hidden_in_any_context_the_longer_one_first() -> None:
    secrets = secrets_of([("A_TOKEN", "abcdef"), ("B_TOKEN", "abcdefgh")], [])
    assert redact("abcdefgh/abcdef.txt", secrets) == "[redacted]/[redacted].txt"


@pytest.mark.parametrize("name", ["DB_PASS", "--pass", "accessToken", "x-api-key", "KAGGLE_KEY"])
def test_names_of_secrets(name: str) -> None:
    assert is_secret_name(name)


@pytest.mark.parametrize("name", ["", "-", "key", "pass", "tokens", "token_ids", "tokenizer_name"])
def test_names_of_other_things(name: str) -> None:
    assert not is_secret_name(name)


def test_a_value_that_the_reading_limit_cuts_is_dropped_and_not_shown_in_part() -> None:
    text = "x" * (READ_LIMIT - 30) + " token=" + "abcdefghij" * 10
    assert "abcdef" not in redact(text)
    assert "abcdef" not in redact("z" * (READ_LIMIT - 5) + "sk-abcdefghijklmnopq")


PARTS = ["a", "-", "://", "u:p@", "token=", "'", "a.", "--a", "eyJ", "\n", ":", "a_token", "is"]


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("end", ["", " "])
def test_a_text_of_any_form_takes_no_longer_than_its_length_says(part: str, end: str) -> None:
    """A pattern that goes back over itself would need minutes for these."""
    begun = time.process_time()
    redact((part + end) * READ_LIMIT)
    assert time.process_time() - begun < 2


def test_an_error_is_described_by_type_and_message_alone() -> None:
    error = ValueError("bad shape")
    error.__notes__ = [f"note {SECRET}"]
    assert describe(type(error), str(error)) == "ValueError: bad shape"
    assert describe(type(error), None) == "ValueError"
    assert describe(pytest.UsageError, "x").endswith("UsageError: x")


def test_a_description_holds_nothing_that_steers_a_terminal_or_that_no_file_takes() -> None:
    said = describe(ValueError, "red \x1b[31m bell \a half \udcff\nnext line")
    assert said == "ValueError: red  [31m bell   half  \nnext line"
    assert len(describe(ValueError, "word " * 5000)) <= KEPT_LIMIT


def test_a_stack_names_file_line_and_function_and_no_source_text() -> None:
    def fail() -> None:
        raise ValueError("secret-in-source")

    try:
        fail()
    except ValueError:
        text = places(sys.exc_info()[2])
    lines = text.splitlines()
    assert [line.rpartition(" ")[2] for line in lines] == [
        "test_a_stack_names_file_line_and_function_and_no_source_text",
        "fail",
    ]
    assert all(line.startswith(f'  File "{__file__}", line ') for line in lines)
    assert "secret-in-source" not in text


def test_of_a_deep_stack_the_innermost_frames_stay() -> None:
    def deeper(depth: int) -> None:
        if depth == 0:
            raise ValueError
        deeper(depth - 1)

    try:
        deeper(500)
    except ValueError:
        text = places(sys.exc_info()[2])
    assert len(text) <= STACK_LIMIT
    assert text.startswith("  File ")
    assert text.endswith(", in deeper\n")
