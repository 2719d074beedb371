"""The scenarios: a known fault of known size each, and healthy runs.

`kinds` are the findings that name the cause: the first finding of the run, or the one behind its
verdict, has to be one of them. `held_out`: no rule or threshold was tuned on it.
"""

import os
from collections.abc import Iterator

from tests.truth.held_out import held_out
from tests.truth.programs import SLOW_RANK, in_worker, program, timed, work
from tests.truth.scenario import INPUT, RESIDUAL, Scenario

CGROUP = "/sys/fs/cgroup/cpu"
"""Of version 1, where a quota can be given."""
STEP_S = 0.020
"""What a step of the scripts takes on the machine that the sizes were chosen on."""


def _sized(*percents: int) -> Iterator[tuple[int, float]]:
    """Shares of a faulty step, and the seconds that make them."""
    for percent in percents:
        yield percent, STEP_S * percent / (100 - percent)


def scenarios() -> list[Scenario]:
    """All of them, each with a name of its own."""
    tuned = (
        _small, _loop, _input, _workers, _model, _now_and_then, _host, _devices, _ranks, _healthy
    )  # fmt: skip
    return [*(scenario for family in tuned for scenario in family()), *held_out()]


def _small() -> Iterator[Scenario]:
    """A twentieth of the step, about which nothing has to be done: its line is named all the same.
    Of a larger model: plain Python of less than 5 ms is a matter of its own (docs/accuracy.md)."""
    larger = {"hidden": "2800", "batch": "128", "steps": "80"}  # not so large that pages are new
    python = work(0.006)
    for name, script in (
        ("metrics", program(after=timed(python), **larger)),
        ("decode-main", program(item=timed(work(0.006 / 128)), **larger)),
        ("collate-main", program(collate=timed(python), **larger)),
        ("forward", program(forward=timed(python), **larger)),
        ("tolist", program(
            setup="big = torch.randn(240_000)", after=timed("values = big.tolist()"), **larger
        )),
    ):  # fmt: skip
        yield Scenario(f"{name}-5", script, toggles=True, is_small=True, kinds=("SLOW_LINE",))


def _loop() -> Iterator[Scenario]:
    """Work between the calls of the model."""
    for percent, seconds in _sized(10, 20, 50):
        yield Scenario(
            f"metrics-{percent}", program(after=timed(work(seconds))), toggles=True, kinds=RESIDUAL
        )
    for percent, seconds in _sized(20, 50):
        items = int(seconds * 40_000_000)
        yield Scenario(
            f"tolist-{percent}",
            program(
                setup=f"big = torch.randn({items})",
                after=timed("values = big.tolist()"),
            ),
            toggles=True,
            kinds=RESIDUAL,
        )
    yield Scenario(
        "logging",
        program(
            setup='log = open("log.jsonl", "w")\n'
            "row = {str(i): random.random() for i in range(4000)}",
            after=timed("log.write(json.dumps(row))"),
        ),
        toggles=True,
        kinds=RESIDUAL,
    )
    yield Scenario(
        "print-tensor",
        program(setup="torch.set_printoptions(threshold=100_000)", after=timed("print(x[:8])")),
        toggles=True,
        kinds=RESIDUAL,
    )
    yield Scenario(
        "sleep-in-callback",
        program(
            definitions="class Callback:\n    def on_step(self, step):\n"
            "        global lost\n        began = clock()\n"
            "        if FAULT: time.sleep(0.008)  # FAULT\n        lost += clock() - began",
            setup="callback = Callback()",
            after="callback.on_step(step)",
        ),
        toggles=True,
        kinds=RESIDUAL,
    )
    yield Scenario(
        "flush-each-step",
        program(
            setup='log = open("log.txt", "w")\nbody = "x" * 6_000_000',
            after=timed("log.write(body); log.flush(); os.fsync(log.fileno())"),
        ),
        toggles=True,
        kinds=RESIDUAL,
    )


def _input() -> Iterator[Scenario]:
    """Input that the main process makes."""
    for percent, seconds in _sized(10, 20, 50):
        yield Scenario(
            f"decode-main-{percent}",
            program(batch="16", item=timed(work(seconds / 16))),
            toggles=True,
            kinds=INPUT,
        )
    for percent, seconds in _sized(20, 50):
        yield Scenario(
            f"collate-main-{percent}",
            program(collate=timed(work(seconds))),
            toggles=True,
            kinds=INPUT,
        )
    yield Scenario(
        "io-main",
        program(
            batch="16",
            setup='open("blob", "wb").write(os.urandom(1 << 20))',
            item=timed('open("blob", "rb").read()'),
        ),
        toggles=True,
        kinds=INPUT,
    )
    generator = (
        "def batches(loader):\n    global lost\n    for batch in range(120 * SCALE):\n"
        "        began = clock()\n        if FAULT: {s}  # FAULT\n"
        "        lost += clock() - began\n"
        "        yield torch.randn(64, 512), torch.randint(10, (64,))"
    )
    for percent, seconds in _sized(20, 50):
        yield Scenario(
            f"generator-{percent}",
            program(definitions=generator.format(s=work(seconds)), batches="batches(loader)"),
            toggles=True,
            kinds=(*INPUT, "INPUT_WITHOUT_LOADER"),
        )


def _workers() -> Iterator[Scenario]:
    """Input that workers make. They sleep, so that the number of cores does not matter."""
    waits = ("INPUT_BOUND", "WORKER_BOUND", "HEAD_OF_LINE", "PREFETCH_LOW", "TRANSFER_BOUND")
    known = {"has_share": False, "workers_only": True}
    for seconds in (0.03, 0.06):
        yield Scenario(
            f"decode-worker-{int(seconds * 1000)}ms",
            program(
                batch="16", item=in_worker(f"time.sleep({seconds / 16})"), loader="num_workers=1"
            ),
            toggles=True,
            kinds=waits,
            **known,
        )
    yield Scenario(
        "collate-worker",
        program(collate=in_worker("time.sleep(0.05)"), loader="num_workers=1"),
        toggles=True,
        kinds=waits,
        **known,
    )
    yield Scenario(
        "too-few-workers",
        program(
            batch="16", item=in_worker("time.sleep(0.006)"), loader="num_workers=2", width="256"
        ),
        toggles=True,
        kinds=waits,
        **known,
    )
    yield Scenario(
        "one-slow-item",
        program(
            batch="16",
            item=in_worker("time.sleep(0.25 if index % 97 == 0 else 0)"),
            loader="num_workers=2",
        ),
        toggles=True,
        kinds=waits,
        **known,
    )
    yield Scenario(
        "spawned-workers",
        program(
            batch="16",
            item=in_worker("time.sleep(0.003)"),
            loader='num_workers=1, multiprocessing_context="spawn"',
        ),
        toggles=True,
        kinds=waits,
        **known,
    )

    yield Scenario(
        "workers-made-anew",
        program(
            steps="10",
            epochs="12",
            width="256",
            loader="num_workers=1, persistent_workers=not FAULT",
        ),
        kinds=(*waits, "EPOCH_RESTART"),
        has_line=False,
        **known,
    )
    yield Scenario(
        "cold-files",
        program(
            batch="4",
            setup='open("blob", "wb").write(os.urandom(2 << 20))\nos.sync()',
            definitions="def cold(file):\n    with open(file, 'rb') as source:\n"
            "        os.posix_fadvise(source.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)\n"
            "        return len(source.read())",
            item=in_worker('cold("blob")'),
            loader="num_workers=1",
        ),
        toggles=True,
        kinds=(*waits, "STORAGE_BOUND"),
        has_line=False,  # the line that reads is in the function that is called
        **known,
    )


def _model() -> Iterator[Scenario]:
    """Work inside the model's own calls."""
    for percent, seconds in _sized(20, 50):
        yield Scenario(
            f"forward-{percent}",
            program(forward=timed(work(seconds))),
            toggles=True,
            kinds=("SLOW_LINE", "HOST_SYNC", "COMPUTE_BOUND"),
        )
    yield Scenario(
        "item-in-forward",
        program(forward=timed("for row in x[:, :40].flatten(): row.item()")),
        toggles=True,
        kinds=("SLOW_LINE", "HOST_SYNC", "COMPUTE_BOUND"),
    )
    slow = (
        "class Slow(torch.optim.SGD):\n    def step(self, closure=None):\n        global lost\n"
        "        began = clock()\n        if FAULT: {s}  # FAULT\n"
        "        lost += clock() - began\n        return super().step(closure)"
    )
    for percent, seconds in _sized(20, 50):
        yield Scenario(
            f"optimizer-{percent}",
            program(
                definitions=slow.format(s=work(seconds)),
                optimizer="Slow(model.parameters(), lr=0.01)",
            ),
            toggles=True,
            kinds=("SLOW_LINE", "COMPUTE_BOUND", "OPTIMIZER_BOUND"),
        )


def _now_and_then() -> Iterator[Scenario]:
    """What a few steps do."""
    for every, megabytes in ((20, 40), (50, 120)):
        yield Scenario(
            f"checkpoint-every-{every}",
            program(
                steps="200",
                block="100",
                setup=f"state = torch.randn({megabytes} * 262_144)",
                after=timed('torch.save(state, "checkpoint.pt")', f"FAULT and step % {every} == 0"),
            ),
            toggles=True,
            kinds=("CHECKPOINT_COST", "PERIODIC_SPIKES"),
        )
    yield Scenario(
        "eval-every-25",
        program(
            steps="150",
            block="100",
            definitions="def evaluate(model):\n    model.eval()\n    with torch.no_grad():\n"
            "        for _ in range(30): model(torch.randn(64, 512))\n    model.train()",
            after=timed("evaluate(model)", "FAULT and step % 25 == 0"),
        ),
        toggles=True,
        kinds=("EVAL_COST", "PERIODIC_SPIKES"),
    )
    yield Scenario(
        "spike-every-20",
        program(
            steps="200",
            block="100",
            after=timed(work(0.2), "FAULT and step % 20 == 0"),
        ),
        toggles=True,
        kinds=("PERIODIC_SPIKES", *RESIDUAL),
    )
    for objects in (300_000, 1_000_000):
        yield Scenario(
            f"gc-{objects // 1000}k",
            program(
                setup=f"held = [[i] for i in range({objects} if FAULT else 1)]",
                after=timed("gc.collect()", "FAULT and step % 4 == 0"),
            ),
            kinds=("GC_PAUSES", "PERIODIC_SPIKES", *RESIDUAL),
        )
    yield Scenario(
        "gc-automatic",
        program(
            setup="held = [[i] for i in range(600_000 if FAULT else 1)]\ngrown = []",
            after="if FAULT:\n    grown.extend([] for _ in range(60_000))  # FAULT\n"
            "    if step % 10 == 9: grown.clear()",
        ),
        kinds=("GC_PAUSES", "PERIODIC_SPIKES", *RESIDUAL),
        has_share=False,
        has_line=False,
    )
    yield Scenario(
        "recompiles",
        program(
            imports="import torch._dynamo",
            steps="150",
            setup='compiled = torch.compile(lambda x, k: x * k, backend="eager", dynamic=False)\n'
            "torch._dynamo.config.cache_size_limit = 10_000",
            after=timed("compiled(torch.randn(4, 2 + step % 60), 2.0)"),
        ),
        kinds=("RECOMPILES", "PERIODIC_SPIKES"),
        has_line=False,  # the finding names the function that is compiled, not the call
    )


def _host() -> Iterator[Scenario]:
    """What the machine, or the program's other threads, take from the training thread."""
    yield Scenario(
        "gil-hog",
        program(
            definitions="def hog():\n    while True: sum(range(1000))",
            setup="if FAULT: threading.Thread(target=hog, daemon=True).start()",
        ),
        kinds=("GIL_CONTENTION", "CPU_CONTENTION"),
        has_share=False,
        has_line=False,
    )
    yield Scenario(
        "one-core-two-burners",
        program(
            imports="import subprocess",
            setup="burn = [subprocess.Popen([sys.executable, '-c', 'while True: pass']) "
            "for _ in range(2 if FAULT else 0)]",
            finish="for process in burn: process.kill()",
        ),
        kinds=("CPU_CONTENTION", "CPU_OVERSUBSCRIBED"),
        has_share=False,
        has_line=False,
        command=("taskset", "-c", "0"),
    )
    if os.access(CGROUP, os.W_OK):
        yield Scenario(
            "cpu-quota",
            program(
                setup=f"group = '{CGROUP}/traceml-truth-' + str(os.getpid())\n"
                "if FAULT:\n    os.mkdir(group)\n"
                "    open(group + '/cpu.cfs_quota_us', 'w').write('60000')\n"
                "    open(group + '/cgroup.procs', 'w').write(str(os.getpid()))",
                finish="if FAULT:\n"
                f"    open('{CGROUP}/cgroup.procs', 'w').write(str(os.getpid()))\n"
                "    os.rmdir(group)",
            ),
            kinds=("CPU_THROTTLED",),
            has_share=False,
            has_line=False,
        )
    yield Scenario(
        "too-many-threads",
        program(setup="torch.set_num_threads(16 if FAULT else 1)"),
        kinds=("CPU_OVERSUBSCRIBED", "CPU_CONTENTION"),
        has_share=False,
        has_line=False,
        command=("taskset", "-c", "0"),
    )
    yield Scenario(
        "allocation-churn",
        program(
            imports="import ctypes",
            hidden="4096",
            setup="mallopt = ctypes.CDLL(None).mallopt\n"
            "if not FAULT:\n    mallopt(-4, 0)  # never map, and\n"
            "    mallopt(-1, 2**31 - 1)  # never trim",
        ),
        kinds=("ALLOCATION_CHURN",),
        has_share=False,
        has_line=False,
    )
    yield Scenario(
        "memory-leak-in-worker",
        program(
            steps="300",
            definitions="kept = []",
            item=in_worker("kept.append(torch.ones(1 << 15))"),
            loader="num_workers=1",
        ),
        kinds=("CREEP_EARLY", "CREEP_CONFIRMED", "RSS_GROWTH"),
        has_share=False,
        has_line=False,
        has_clean_twin=False,
        workers_only=True,
        variables={"TRACEML_SAMPLE_INTERVAL_S": "0.2"},
    )
    yield Scenario(
        "memory-leak",
        program(
            steps="300",
            setup="kept = []",
            after=in_worker("kept.append(torch.ones(1 << 19))"),
        ),
        kinds=("CREEP_EARLY", "CREEP_CONFIRMED", "RSS_GROWTH"),
        has_share=False,
        has_line=False,
        has_clean_twin=False,
        variables={"TRACEML_SAMPLE_INTERVAL_S": "0.2"},
    )


def _devices() -> Iterator[Scenario]:
    """What a GPU or its link does; the library of the driver is simulated, torch has no device."""
    known = {"has_share": False, "has_line": False, "has_clean_twin": False}
    fast = {"TRACEML_SAMPLE_INTERVAL_S": "0.2"}
    healthy = "throttle 0\npcie_gen 5\n"
    yield Scenario(
        "gpu-too-hot",
        program(steps="200"),
        kinds=("GPU_THROTTLED", "HIGH_GPU_TEMPERATURE"),
        gpus=healthy + "throttle 64\nclock_sm 1200\ntemperature 88\n",
        variables=fast,
        **known,
    )
    yield Scenario(
        "narrow-link",
        program(steps="200"),
        kinds=("PCIE_DEGRADED",),
        gpus=healthy + "pcie_width 4\n",
        variables=fast,
        **known,
    )


def _ranks() -> Iterator[Scenario]:
    """One rank that holds up the others. Work is sleep, so that cores do not matter."""
    for where, kinds in (
        ("item", ("INPUT_STRAGGLER",)),
        ("forward", ("COMPUTE_STRAGGLER",)),
    ):
        yield Scenario(
            f"slow-rank-{where}",
            SLOW_RANK.replace(f"# slow {where}", "time.sleep(0.02 * SLOW)"),
            kinds=kinds,
            ranks=2,
            has_share=False,
            has_line=False,
        )


def _healthy() -> Iterator[Scenario]:
    """Nothing is wrong, however it looks."""
    calm = {"kinds": (), "has_share": False, "has_line": False, "has_clean_twin": False}
    texts = {
        "plain": program(),
        "two-epochs": program(steps="60", epochs="2"),
        "workers": program(loader="num_workers=1", width="64"),
        "persistent-workers": program(
            steps="60", epochs="2", loader="num_workers=1, persistent_workers=True", width="64"
        ),
        "adam": program(optimizer="torch.optim.Adam(model.parameters())"),
        "small-steps": program(width="128", hidden="512", batch="32", steps="400"),
        "large-steps": program(batch="256", steps="40"),
        "slow-warm-up": program(after="if FAULT and step <= 10: time.sleep(0.2)"),
        "slow-first-step": program(after="if FAULT and step == 1: time.sleep(3.0)"),
        "jitter": program(
            batch="32",
            forward="for _ in range(random.randrange(3)): x = self.second(x).relu()",
            steps="200",
        ),
        "one-long-pause": program(after="if step == 60: time.sleep(1.5)", steps="200"),
        "rare-log": program(after="if step % 50 == 0: print(loss.item())"),
        "one-checkpoint": program(epoch_end='    torch.save(model.state_dict(), "model.pt")'),
        "one-evaluation": program(
            epoch_end="    model.eval()\n    with torch.no_grad(): model(torch.randn(64, 512))\n"
            "    model.train()"
        ),
        "no-loader": program(
            definitions="def batches(loader):\n    for _ in range(120 * SCALE):\n"
            "        yield torch.randn(64, 512), torch.randint(10, (64,))",
            batches="batches(loader)",
        ),
        "idle-thread": program(
            setup="threading.Thread(target=time.sleep, args=(1e6,), daemon=True).start()"
        ),
        "many-objects": program(setup="held = [[i] for i in range(300_000)]\ngc.freeze()"),
    }
    for name, text in texts.items():
        yield Scenario(f"healthy-{name}", text, **calm)
