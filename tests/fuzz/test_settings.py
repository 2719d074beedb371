"""Any environment and any settings file: no error, one line a problem, and names that are safe."""

import dataclasses
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.budget import examples
from tests.report.synthetic_run import HEADER
from traceml_agent.config import PREFIX, RUN_ID_CHARACTERS, RUN_ID_LIMIT, Config, resolve, to_env
from traceml_agent.identity import resolve_identity
from traceml_agent.run_key import Launch, resolve_run_key
from traceml_agent.spool.format import encode, spool_path
from traceml_agent.spool.plausible import check

# What an environment can hold: any bytes but NUL, as Python shows them.
RAW = st.binary(max_size=40).map(lambda b: os.fsdecode(b.replace(b"\0", b"")))
ODD = st.sampled_from(
    ("", " ", "0", "-1", "1e400", "nan", "inf", "-inf", "9" * 5000, "1_0", "\u0661", "\u00b2",
     "~", "~nobody-of-this-name/x", "/\ud800", "a" * 5000, "../../x", ".", "-rf", "a\nb", "true",
     ",", ",,a", "a,../b", "\x1b[2J", "None", "4294967296", "18446744073709551616")
)  # fmt: skip
VALUES = ODD | RAW | st.text(st.characters(exclude_characters="\0"), max_size=20)
FIELDS = tuple(field.name for field in dataclasses.fields(Config))
VARIABLES = st.sampled_from([PREFIX + name.upper() for name in FIELDS]) | RAW.map(
    lambda name: PREFIX + name.replace("=", "")
)
LAUNCH = Launch("1a2b3c4d", "parent-1-1a2b3c4d", "20260101-000000-2", False, "host")
LAUNCHERS = st.sampled_from(
    ("RANK", "LOCAL_RANK", "GROUP_RANK", "NODE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE",
     "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "MASTER_PORT", "SLURM_STEP_ID",
     "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_STEP_NUM_TASKS", "SLURM_JOB_ID",
     "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_RESTART_COUNT", "OMPI_COMM_WORLD_RANK",
     "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE", "PMI_RANK", "PMI_SIZE")
)  # fmt: skip


def of_one_line(problems):
    return all(problem and problem.splitlines() == [problem] for problem in problems)


@settings(max_examples=examples(400))
@given(st.dictionaries(VARIABLES, VALUES, max_size=6))
def test_any_environment_gives_settings_that_can_be_used(tmp_path_factory, environ):
    found = resolve(environ, tmp_path_factory.getbasetemp())
    assert of_one_line(found.problems)
    config = found.config
    assert 0.05 <= config.sample_interval_s <= 3600
    assert 0.05 <= config.flush_interval_s <= 60
    assert config.runs_dir.is_absolute()
    assert config.run_id is None or is_safe(config.run_id)
    # What is handed to a child is understood there.
    assert resolve(to_env(config), tmp_path_factory.getbasetemp()).config == config


def is_safe(name):
    return 0 < len(name) <= RUN_ID_LIMIT and set(name) <= RUN_ID_CHARACTERS and name[0] not in ".-"


@settings(max_examples=examples(300))
@given(
    values=st.dictionaries(st.sampled_from((*FIELDS, "stranger")), st.deferred(lambda: TOML)),
    form=st.sampled_from(("traceml.toml", "pyproject.toml")),
)
def test_any_settings_file_gives_settings_that_can_be_used(tmp_path_factory, values, form):
    directory = tmp_path_factory.getbasetemp() / "settings"
    directory.mkdir(exist_ok=True)
    for name in ("traceml.toml", "pyproject.toml"):
        (directory / name).unlink(missing_ok=True)
    head = "[tool.traceml]\n" if form == "pyproject.toml" else ""
    text = head + "".join(f"{name} = {value}\n" for name, value in values.items())
    (directory / form).write_bytes(text.encode("utf-8", "surrogateescape"))
    assert of_one_line(resolve({}, directory).problems)


TOML = st.sampled_from(
    ("1", "-1", "0.5", "nan", "inf", "true", '"x"', '""', "[1, 2]", '["a", 1]', '["process"]', "{}",
     "{a = 1}", "2026-01-01", "2026-13-45", "9" * 5000, "[" * 3000, '"\\u0000"', '"a\\nb"',
     "'~x/y'", '"""\na\nb"""', "=", "\x00", "\udcff", "1e400", "{a = {b = [[]]}}")
)  # fmt: skip


@settings(max_examples=examples(150))
@given(st.binary(max_size=120))
def test_a_settings_file_of_junk_is_one_problem(tmp_path_factory, junk):
    directory = tmp_path_factory.getbasetemp() / "junk"
    directory.mkdir(exist_ok=True)
    (directory / "traceml.toml").write_bytes(junk)
    assert of_one_line(resolve({}, directory).problems)


@settings(max_examples=examples(500))
@given(st.dictionaries(LAUNCHERS, VALUES | st.integers(0, 64).map(str), max_size=12))
def test_any_launcher_gives_an_identity_that_can_be_written_and_read(tmp_path, environ):
    identity = resolve_identity(environ)
    assert identity.world_size >= 1
    assert identity.local_world_size >= 1
    assert min(identity.rank, identity.local_rank, identity.node_rank, identity.attempt) >= 0
    header = dataclasses.replace(HEADER, identity=identity)
    encode(header)
    check(header)
    run_id = resolve_run_key(environ, None, LAUNCH).run_id
    assert is_safe(run_id), run_id
    name = spool_path(tmp_path, "host", 1, identity.attempt, identity.rank).name
    assert len(os.fsencode(name)) < 200


@pytest.mark.parametrize("name", ["a\nTRACEML_SUMMARY=0", "\x1b[2J", "\udcff"])
def test_a_setting_with_a_strange_name_is_named_in_one_line(tmp_path, name):
    (problem,) = resolve({PREFIX + name: "1"}, tmp_path).problems
    assert problem.isprintable()
