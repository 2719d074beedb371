"""`traceml-agent export`: what DuckDB reads is what the spools hold."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import pytest

from tests.cli.conftest import Cli
from tests.report import synthetic_run as made
from tests.scale.job import Job, Straggler
from tests.scale.simulate import write_job
from traceml_agent.report.runs import summary_payload
from traceml_agent.report.series import totals
from traceml_agent.schema.phases import PHASES
from traceml_agent.schema.records import DeviceSteps
from traceml_agent.sinks import parquet
from traceml_agent.spool.digested import read_spool

MS = made.MS
TABLES = ("steps", "step_sums", "samples", "events", "findings", "spools")


def export_to(cli: Cli, run_dir: Path, directory: Path, *more: str) -> None:
    done = cli("export", str(run_dir), "--to", "parquet", str(directory), *more)
    assert done.returncode == 0, done.stderr


def payload_of(parts: Sequence[Path]) -> dict[str, Any]:
    return summary_payload(parts[0])


def table(directory: Path, name: str) -> str:
    """A table as DuckDB reads it."""
    return f"read_parquet('{directory}/{name}/**/*.parquet', hive_partitioning = true)"


def query(sql: str) -> list[tuple[object, ...]]:
    return duckdb.sql(sql).fetchall()


def test_the_sums_are_those_of_the_spools_over_ranks_attempts_and_thinned_steps(
    cli: Cli, tmp_path: Path
) -> None:
    job = Job(
        ranks=3,
        steps=3_000,
        step_ms=20.0,
        restarts=(1_000,),
        torn=(1,),
        checkpoint_every=400,
        spool_max_mb=0.05,
        stragglers=(Straggler(2, "input_wait", 5.0),),
    )
    run_dir = write_job(job, tmp_path / "run")
    export_to(cli, run_dir, tmp_path / "out")
    known = {}
    for path in run_dir.glob("*.jsonl"):
        spool = read_spool(path)
        assert spool.sums
        done = totals(spool)
        assert done is not None
        identity = spool.header.identity
        known[identity.rank, identity.attempt] = (
            done.count,
            done.duration_ns,
            *(done.phase_ns[name] for name in PHASES),
            done.samples,
            done.updates,
        )
    names = ("duration_ns", *(f"{name}_ns" for name in PHASES), "samples", "updates")
    sums = ", ".join(f"sum({name})::int64" for name in names)
    columns = ", ".join(("rank", "attempt", *names))
    rows = query(f"""
        select rank, attempt, sum(count)::int64, {sums} from (
            select 1 as count, {columns} from {table(tmp_path / "out", "steps")}
            union all select count, {columns} from {table(tmp_path / "out", "step_sums")}
        ) group by rank, attempt""")
    assert {(row[0], row[1]): row[2:] for row in rows} == known
    assert len(known) == 6


def test_each_step_has_its_own_times_and_its_residual(cli: Cli, tmp_path: Path) -> None:
    made.run_of(tmp_path / "run", made.steps(3, durations=[10.0, 20.0, 10.0]))
    export_to(cli, tmp_path / "run", tmp_path / "out")
    start = made.FIRST_STEP_NS
    wall = made.HEADER.wall_ns - made.HEADER.monotonic_ns
    assert query(
        "select step, start_ns, start_wall_ns, duration_ns, forward_ns, eval_ns, residual_ns, "
        f"samples, d2h_ns, device_duration_ns from {table(tmp_path / 'out', 'steps')} order by step"
    ) == [
        (step, at, at + wall, duration, 3_500_000, 0, residual, 32, 0, None)
        for step, at, duration, residual in (
            (1, start, 10 * MS, 200_000),
            (2, start + 10 * MS, 20 * MS, 10_200_000),
            (3, start + 30 * MS, 10 * MS, 200_000),
        )
    ]


def test_what_was_not_measured_is_null_and_a_measured_zero_is_zero(
    cli: Cli, tmp_path: Path
) -> None:
    device = DeviceSteps(1, 2, [9 * MS, None], {"forward": [None, 5 * MS]})
    batch = replace(made.steps(3), samples=None)
    statuses = {**made.ACTIVE, "transfer": "not in: no such attribute"}
    more = [device, *made.process_samples([1000])]
    made.run_of(tmp_path / "run", batch, statuses=statuses, more=more)
    export_to(cli, tmp_path / "run", tmp_path / "out")
    assert query(
        "select h2d_ns, residual_ns, samples, eval_ns, device_duration_ns, device_forward_ns, "
        f"device_backward_ns, device_h2d_ns from {table(tmp_path / 'out', 'steps')} order by step"
    ) == [
        (None, None, None, 0, 9 * MS, None, 0, None),
        (None, None, None, 0, None, None, None, None),
        (None, None, None, 0, None, None, None, None),
    ]
    assert query(
        "select kind, process_rss_bytes, process_read_bytes, host_cpu_percent "
        f"from {table(tmp_path / 'out', 'samples')}"
    ) == [("process", 1000, None, None)]


def test_samples_events_findings_and_spools_say_what_the_records_say(
    cli: Cli, tmp_path: Path
) -> None:
    job = Job(ranks=4, steps=60, ranks_per_node=2, on_device=True, checkpoint_every=25,
              stragglers=(Straggler(3, "input_wait", 60.0),), is_synchronous=False)  # fmt: skip
    run_dir = write_job(job, tmp_path / "run")
    out = tmp_path / "out"
    export_to(cli, run_dir, out)
    spools = [read_spool(path) for path in sorted(run_dir.glob("*.jsonl"))]
    assert query(
        f"select kind, count(*) from {table(out, 'samples')} group by kind order by 1"
    ) == [
        ("device", sum(len(spool.process_samples) for spool in spools)),
        ("gpu", sum(len(spool.gpu_samples) for spool in spools)),
        ("host", sum(len(spool.host_samples) for spool in spools)),
        ("process", sum(len(spool.process_samples) for spool in spools)),
    ]
    assert query(
        "select distinct gpu_power_w, gpu_reasons_json, gpu_ecc_corrected from "
        f"{table(out, 'samples')} where kind = 'gpu'"
    ) == [(550.0, "{}", None)]
    assert query(
        "select rank, step, duration_ns, detail_json->>'call' from "
        f"{table(out, 'events')} where rank = 2 order by step"
    ) == [(2, 25, 200 * MS, "torch.save"), (2, 50, 200 * MS, "torch.save")]
    payload = summary_payload(run_dir)
    (verdict,) = query(
        "select kind, severity, section, summary, action from "
        f"{table(out, 'findings')} where is_primary"
    )
    assert verdict == tuple(
        payload["primary_diagnosis"][name]
        for name in ("kind", "severity", "section", "summary", "action")
    )
    found = query(f"select kind from {table(out, 'findings')} where not is_primary")
    assert [kind for (kind,) in found] == [finding["kind"] for finding in payload["findings"]]
    assert query(
        f"select rank, hostname, end_status, problems from {table(out, 'spools')} order by rank"
    ) == [(rank, f"node000{rank // 2}", "finished", []) for rank in range(4)]


def test_many_ranks_share_files_and_the_files_are_cut_at_a_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = write_job(Job(ranks=20, steps=50), tmp_path / "run")

    def files(directory: Path) -> int:
        written = parquet.export([run_dir], directory, payload_of, replace=False, problems=[])
        assert written[directory / "steps" / "run=run"] == 1_000
        found = [path.name for path in (directory / "steps").rglob("*.parquet")]
        assert query(f"select count(*), sum(rank) from {table(directory, 'steps')}") == [
            (1_000, 50 * sum(range(20)))
        ]
        return len(found)

    assert files(tmp_path / "whole") == 1
    monkeypatch.setattr(parquet, "ROWS_A_GROUP", 100)
    monkeypatch.setattr(parquet, "ROWS_A_FILE", 300)
    assert files(tmp_path / "cut") == 4


@pytest.mark.parametrize(
    "run_id", ["007", "a b/ü=1%2F'\n", "..", "2026-01-01", "x" * 4000, "__HIVE_DEFAULT_PARTITION__"]
)
def test_a_run_id_of_any_characters_comes_back_exactly(tmp_path: Path, run_id: str) -> None:
    header = replace(made.HEADER, run_id=run_id)
    made.run_of(tmp_path / "odd", made.steps(5), header=header)
    made.run_of(tmp_path / "plain", made.steps(7))
    out = tmp_path / "o u t"
    for name in ("odd", "plain"):
        parquet.export([tmp_path / name], out, payload_of, replace=False, problems=[])
    for name in ("steps", "findings", "spools"):
        rows = query(f"select distinct run_id from {table(out, name)}")
        assert {row[0] for row in rows} == {run_id, "run-1"}
    assert len(list((out / "steps").iterdir())) == 2


def test_tables_without_rows_still_have_their_columns(cli: Cli, tmp_path: Path) -> None:
    made.run_of(tmp_path / "run")
    export_to(cli, tmp_path / "run", tmp_path / "out")
    for name in ("steps", "step_sums", "events"):
        assert query(f"select count(rank) from {table(tmp_path / 'out', name)}") == [(0,)]


def test_pyarrow_data_sets_find_runs_by_partition_as_ray_and_spark_do(
    cli: Cli, tmp_path: Path
) -> None:
    import pyarrow.dataset as ds

    for run_id, count in (("a b", 5), ("c", 7)):
        header = replace(made.HEADER, run_id=run_id)
        made.run_of(tmp_path / run_id, made.steps(count), header=header)
        export_to(cli, tmp_path / run_id, tmp_path / "out")
    data = ds.dataset(tmp_path / "out" / "steps", partitioning="hive")
    assert data.to_table(filter=ds.field("run") == "a b").num_rows == 5
    assert data.count_rows() == 12


def test_a_run_that_is_there_is_refused_and_with_replace_written_anew(
    cli: Cli, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    made.run_of(tmp_path / "run", made.steps(5))
    export_to(cli, tmp_path / "run", out)
    made.run_of(tmp_path / "run", made.steps(9))
    done = cli("export", str(tmp_path / "run"), "--to", "parquet", str(out))
    assert (done.returncode, done.stdout) == (2, "")
    assert "--replace" in done.stderr
    assert query(f"select count(*) from {table(out, 'steps')}") == [(5,)]
    export_to(cli, tmp_path / "run", out, "--replace")
    assert query(f"select count(*) from {table(out, 'steps')}") == [(9,)]
    assert sorted(path.name for path in out.iterdir()) == sorted(TABLES)


def test_an_export_that_fails_half_way_leaves_what_was_there(cli: Cli, tmp_path: Path) -> None:
    out = tmp_path / "out"
    made.run_of(tmp_path / "run", made.steps(5))
    export_to(cli, tmp_path / "run", out)
    newer = replace(made.rank_header(1, 2), schema="traceml-spool/99")
    made.run_of(tmp_path / "run", made.steps(5), header=newer)
    done = cli("export", str(tmp_path / "run"), "--to", "parquet", str(out), "--replace")
    assert done.returncode == 2
    assert "update traceml-agent" in done.stderr
    assert query(f"select count(*) from {table(out, 'steps')}") == [(5,)]
    assert sorted(path.name for path in out.iterdir()) == sorted(TABLES)


def test_parts_of_a_run_become_what_one_shared_directory_becomes(cli: Cli, tmp_path: Path) -> None:
    job = Job(ranks=6, steps=200, ranks_per_node=2, restarts=(90,), torn=(3,),
              stragglers=(Straggler(4, "input_wait", 5.0),))  # fmt: skip
    shared = write_job(job, tmp_path / "shared")
    parts = [tmp_path / f"node{number}" for number in range(3)]
    for number, path in enumerate(sorted(shared.iterdir())):
        parts[number % 3].mkdir(exist_ok=True)
        shutil.copy2(path, parts[number % 3])
    (copy,) = list(parts[0].glob("*.jsonl"))[:1]
    shutil.copy2(copy, parts[1])  # as a file system that is shared after all would show it
    export_to(cli, shared, tmp_path / "of-one")
    done = cli(
        "export", *map(str, [*parts, parts[0]]), "--to", "parquet", str(tmp_path / "of-parts")
    )
    assert done.returncode == 0, done.stderr
    for name in TABLES:
        whole, merged = (table(tmp_path / out, name) for out in ("of-one", "of-parts"))
        assert query(f"select count(*) from {whole}") == query(f"select count(*) from {merged}")
        assert query(f"select * from {whole} except all select * from {merged}") == []
    assert not list(tmp_path.glob("node*/final*"))


def test_parts_of_two_runs_are_refused_and_nothing_is_written(cli: Cli, tmp_path: Path) -> None:
    made.run_of(tmp_path / "run", made.steps(5))
    header = replace(made.rank_header(1, 2), run_id="another")
    made.run_of(tmp_path / "stranger", made.steps(5), header=header)
    parts = (str(tmp_path / "run"), str(tmp_path / "stranger"))
    done = cli("export", *parts, "--to", "parquet", str(tmp_path / "out"))
    assert (done.returncode, done.stdout) == (2, "")
    assert "no parts of one run" in done.stderr
    assert not (tmp_path / "out").exists()


def test_files_that_are_no_spools_are_left_out_and_named(cli: Cli, tmp_path: Path) -> None:
    made.run_of(tmp_path / "run", made.steps(5))
    (tmp_path / "run" / "0foreign.jsonl").write_text('{"loss": 0.1}\n')
    done = cli("export", str(tmp_path / "run"), "--to", "parquet", str(tmp_path / "out"))
    assert done.returncode == 0
    assert "left out: " in done.stderr
    assert "0foreign.jsonl" in done.stderr
    assert query(f"select count(*) from {table(tmp_path / 'out', 'steps')}") == [(5,)]


def test_bad_input_is_one_line_and_exit_code_2(cli: Cli, tmp_path: Path) -> None:
    made.run_of(tmp_path / "run", made.steps(5))
    (tmp_path / "file").touch()
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "x.jsonl").write_text("{}\n")
    for run, directory, part in (
        ("nowhere", "out", "nowhere"),
        (str(tmp_path / "file"), "out", "takes the directory of a run"),
        (str(tmp_path / "foreign"), "out", "no readable spool"),
        (str(tmp_path / "run"), "file", "cannot export to file"),
        (str(tmp_path / "run"), "file/below", "cannot export to file/below"),
    ):
        done = cli("export", run, "--to", "parquet", directory)
        assert (done.returncode, done.stdout) == (2, ""), (run, directory)
        assert part in done.stderr
        assert "Traceback" not in done.stderr
        assert not (tmp_path / "out").exists()


def test_without_pyarrow_the_message_names_the_extra(cli: Cli, tmp_path: Path) -> None:
    made.run_of(tmp_path / "run", made.steps(5))
    (tmp_path / "hides").mkdir()
    (tmp_path / "hides" / "pyarrow.py").write_text("raise ImportError('hidden by the test')\n")
    done = cli("export", str(tmp_path / "run"), "--to", "parquet", "out",
               PYTHONPATH=str(tmp_path / "hides"))  # fmt: skip
    assert done.returncode == 2
    assert "pip install 'traceml-agent[export]'" in done.stderr
    assert not (tmp_path / "out").exists()
