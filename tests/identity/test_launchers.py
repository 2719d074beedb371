"""Who a process is, from the variables of each launcher.

Those of torchrun, srun (22.05) and multiprocessing were written down from real runs (tests/slurm
and tests/e2e start them too). mpirun, Ray Train and deepspeed are started by tests/engines; here
are their documented variables for several nodes.
"""

import pytest

from traceml_agent.identity import Group, resolve_identity
from traceml_agent.schema.records import Identity


def env(text: str) -> dict[str, str]:
    return dict(pair.split("=", 1) for pair in text.split())


SRUN = """SLURM_JOB_ID=4 SLURM_STEP_ID=0 SLURM_PROCID=2 SLURM_LOCALID=0 SLURM_NODEID=1
SLURM_NTASKS=3
SLURM_STEP_NUM_TASKS=3 SLURM_STEP_TASKS_PER_NODE=2,1 SLURM_TASKS_PER_NODE=2,1"""
HET = """SLURM_HET_SIZE=2 SLURM_JOB_ID=2 SLURM_STEP_ID=0 SLURM_PROCID=1 SLURM_LOCALID=0
SLURM_NODEID=1 SLURM_NTASKS=3 SLURM_STEP_NUM_TASKS=3 SLURM_STEP_TASKS_PER_NODE=1,2
SLURM_JOB_ID_HET_GROUP_0=2 SLURM_JOB_ID_HET_GROUP_1=3 SLURM_NTASKS_HET_GROUP_1=2"""
TORCHRUN = """RANK=3 LOCAL_RANK=1 GROUP_RANK=1 ROLE_RANK=3 WORLD_SIZE=4 LOCAL_WORLD_SIZE=2
GROUP_WORLD_SIZE=2 MASTER_ADDR=host1 MASTER_PORT=41201 TORCHELASTIC_RUN_ID=job
TORCHELASTIC_RESTART_COUNT=1 TORCHELASTIC_MAX_RESTARTS=3"""
ONE_TASK_A_NODE = """SLURM_JOB_ID=7 SLURM_STEP_ID=1 SLURM_PROCID=1 SLURM_LOCALID=0 SLURM_NODEID=1
SLURM_NTASKS=2 SLURM_STEP_NUM_TASKS=2 SLURM_STEP_TASKS_PER_NODE=1(x2)"""
BATCH = "SLURM_JOB_ID=4 SLURM_PROCID=0 SLURM_NTASKS=4 SLURM_NODEID=0 SLURM_TASKS_PER_NODE=2(x2)"
OPEN_MPI = """OMPI_COMM_WORLD_RANK=5 OMPI_COMM_WORLD_SIZE=8 OMPI_COMM_WORLD_LOCAL_RANK=1
OMPI_COMM_WORLD_LOCAL_SIZE=4 OMPI_COMM_WORLD_NODE_RANK=1 PMIX_NAMESPACE=prterun-host1-4711@1"""
ORTED = "SLURM_JOB_ID=9 SLURM_STEP_ID=0 SLURM_PROCID=0 SLURM_STEP_NUM_TASKS=1"
HYDRA = "PMI_RANK=3 PMI_SIZE=4 MPI_LOCALRANKID=1 MPI_LOCALNRANKS=2 PMI_FD=9"
RAY = """RAY_JOB_ID=01000000 RANK=1 LOCAL_RANK=1 NODE_RANK=0 WORLD_SIZE=2 LOCAL_WORLD_SIZE=2
MASTER_ADDR=10.0.0.4 MASTER_PORT=36251"""
DEEPSPEED = """RANK=9 LOCAL_RANK=1 WORLD_SIZE=16 LOCAL_SIZE=8 CROSS_RANK=1 CROSS_SIZE=2
MASTER_ADDR=worker-1 MASTER_PORT=29500"""
TUTORIAL = "RANK=1 WORLD_SIZE=2 MASTER_ADDR=localhost MASTER_PORT=12355"

LAUNCHERS = {
    "srun": (SRUN, Identity(2, 0, 1, 3, 1, 0, "slurm", "4.0")),
    "srun, a script copies the numbers": (
        f"{SRUN} RANK=2 WORLD_SIZE=3 LOCAL_RANK=0",
        Identity(2, 0, 1, 3, 1, 0, "slurm", "4.0"),
    ),
    "srun --mpi=pmi2": (
        f"{SRUN} PMI_RANK=2 PMI_SIZE=3",
        Identity(2, 0, 1, 3, 1, 0, "slurm", "4.0"),
    ),
    "srun over a het job": (HET, Identity(1, 0, 1, 3, 2, 0, "slurm", "2.0")),
    "srun, requeued": (
        f"{SRUN} SLURM_RESTART_COUNT=2",
        Identity(2, 0, 1, 3, 1, 2, "slurm", "4.0"),
    ),
    "srun, task of an array": (
        f"{SRUN} SLURM_ARRAY_JOB_ID=3 SLURM_ARRAY_TASK_ID=8",
        Identity(2, 0, 1, 3, 1, 0, "slurm", "3_8.0"),
    ),
    "torchrun": (TORCHRUN, Identity(3, 1, 1, 4, 2, 1, "torchrun")),
    "srun and torchrun in it": (
        f"{ONE_TASK_A_NODE} {TORCHRUN}",
        Identity(3, 1, 1, 4, 2, 1, "torchrun", "7.1"),
    ),
    "the batch script": (BATCH, Identity(0, 0, 0, 1, 1, 0, "none", "4")),
    "mpirun of Open MPI": (OPEN_MPI, Identity(5, 1, 1, 8, 4, 0, "mpi")),
    "mpirun under Slurm: no step": (
        f"{ORTED} {OPEN_MPI}",
        Identity(5, 1, 1, 8, 4, 0, "mpi", "9"),
    ),
    "mpirun of MPICH and Intel": (HYDRA, Identity(3, 1, 1, 4, 2, 0, "mpi")),
    "mpirun, a script copies the numbers": (
        f"{OPEN_MPI} RANK=5 WORLD_SIZE=8 MASTER_ADDR=h MASTER_PORT=1",
        Identity(5, 1, 1, 8, 4, 0, "mpi"),
    ),
    "mpirun, a script deals out ranks of its own": (
        f"{OPEN_MPI} RANK=2 WORLD_SIZE=8 LOCAL_RANK=0",
        Identity(2, 0, 0, 8, 1, 0, "environment"),
    ),
    "Ray Train": (RAY, Identity(1, 1, 0, 2, 2, 0, "ray")),
    "deepspeed": (DEEPSPEED, Identity(9, 1, 1, 16, 8, 0, "environment")),
    "mp.spawn, RANK set in the function": (TUTORIAL, Identity(1, 1, 0, 2, 2, 0, "environment")),
    "nothing": ("HOME=/root", Identity(0, 0, 0, 1, 1, 0, "none")),
}


@pytest.mark.parametrize("case", LAUNCHERS)
def test_each_launcher_tells_who_the_process_is(case: str) -> None:
    variables, identity = LAUNCHERS[case]
    assert resolve_identity(env(variables)) == identity


@pytest.mark.parametrize(
    ("tasks", "sizes"),
    [
        ("4", [4]),
        ("2(x3),1", [2, 2, 2, 1]),
        ("1,2(x2)", [1, 2, 2]),
        ("nonsense", [1]),
        ("2(x", [1]),
        ("2", [2, 1]),
    ],
)
def test_tasks_on_the_node_are_read_from_slurm_s_short_form(tasks: str, sizes: list[int]) -> None:
    for node, size in enumerate(sizes):
        variables = env(SRUN) | {"SLURM_NODEID": str(node), "SLURM_STEP_TASKS_PER_NODE": tasks}
        assert resolve_identity(variables).local_world_size == size


def test_a_process_group_alone_gives_the_ranks() -> None:
    found = resolve_identity({}, Group(rank=3, world_size=4))
    assert found == Identity(3, 3, 0, 4, 4, 0, "process group")


def test_a_process_group_over_tasks_that_are_one_a_node_gives_the_ranks() -> None:
    found = resolve_identity(env(ONE_TASK_A_NODE), Group(rank=5, world_size=8))
    assert found == Identity(5, 1, 1, 8, 4, 0, "slurm", "7.1")


def test_a_process_group_of_a_part_of_the_job_changes_nothing() -> None:
    for group in (Group(rank=0, world_size=2), Group(rank=0, world_size=1)):
        assert resolve_identity(env(TORCHRUN), group).rank == 3


def test_a_rank_that_the_program_gives_itself_counts() -> None:
    found = resolve_identity(env(TORCHRUN), Group(rank=0, world_size=4))
    assert (found.rank, found.local_rank, found.world_size) == (0, 1, 4)
