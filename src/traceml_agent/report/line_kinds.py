"""What a line of the program does, as far as its text and the library it called tell."""

import re
from functools import lru_cache

SYNC, PRINT, LOG, WRITE, SERIALIZE = "sync", "print", "log", "write", "serialize"
SLEEP, WAIT, NETWORK, PROCESS, PYTHON = "sleep", "wait", "network", "process", "python"

_OF_LIBRARY = (
    (PRINT, ("torch/_tensor_str.py", "torch/_tensor.py:__repr__", "torch/_tensor.py:__format__")),
    (PRINT, ("tqdm/", "rich/", "numpy/_core/arrayprint", "numpy/core/arrayprint")),
    (LOG, ("logging/", "wandb/", "tensorboard/", "torch/utils/tensorboard/", "tensorboardX/")),
    (LOG, ("mlflow/", "comet_ml/", "neptune/", "aim/", "loguru/", "structlog/")),
    (PROCESS, ("subprocess.py",)),
    (NETWORK, ("socket.py", "ssl.py", "http/", "urllib/", "urllib3/", "requests/", "httpx/")),
    (NETWORK, ("botocore/", "boto3/", "s3fs/", "fsspec/", "gcsfs/", "aiohttp/")),
    (WAIT, ("threading.py", "queue.py", "concurrent/futures/", "multiprocessing/", "selectors.py")),
    (WRITE, ("torch/serialization.py:save", "pandas/io/", "h5py/", "csv.py")),
    (SERIALIZE, ("json/", "pickle.py", "yaml/", "copy.py")),
)
"""What the beginning of a function of a library says."""
_OF_TEXT = (
    (SYNC, re.compile(r"\.(item|tolist|cpu|numpy|nonzero)\([^()]*\)$|\bsynchronize\(")),
    (SLEEP, re.compile(r"\bsleep\(")),
    # Only a tensor that has to be waited for takes long enough to be seen here.
    (SYNC, re.compile(r"^(float|int|bool)\(")),
    (PRINT, re.compile(r"^print\(")),
    (LOG, re.compile(r"\b(log|logger|logging|wandb|writer|run)\.(\w*log\w*|add_\w+|info|debug)\(")),
    (WRITE, re.compile(r"\.(write|writelines|flush|dump|save\w*|to_(csv|json|parquet))\(|^open\(")),
    (SERIALIZE, re.compile(r"\b(json|pickle|yaml)\.dumps\(|\bdeepcopy\(")),
    (PROCESS, re.compile(r"\b(subprocess\.\w+|os\.system)\(")),
    (WAIT, re.compile(r"\.(acquire|wait|join|result)\([^()]*\)$")),
)
_ANYWHERE = (
    (SYNC, re.compile(r"\.(item|tolist|cpu|numpy)\(\)|\bsynchronize\(")),
    (SLEEP, re.compile(r"\bsleep\(")),
    (PRINT, re.compile(r"\bprint\(")),
)
"""Of a whole line, where the expression at work is not known."""

ADVICE = {
    SYNC: "It reads a value of a tensor, and so waits until that is computed. Keep it as a "
    "tensor (`total += loss.detach()`) and read it every N steps, or after the loop.",
    PRINT: "Print every N steps, and numbers rather than tensors.",
    LOG: "Log every N steps, or hand the values to a thread that does.",
    WRITE: "Write every N steps, or collect the lines and write them at once.",
    SERIALIZE: "Convert less, or every N steps.",
    SLEEP: "The program sleeps here: leave it out, or do other work meanwhile.",
    WAIT: "It waits for another thread or process: look at what that does.",
    NETWORK: "It waits for the network: do it every N steps, or in a thread.",
    PROCESS: "It runs another program in each step: do it once, or every N steps.",
    PYTHON: "It runs in plain Python: use operations on whole tensors, or do it every N steps.",
}
WORDS = {
    SYNC: "waits for a value of a tensor",
    PRINT: "prints",
    LOG: "logs",
    WRITE: "writes",
    SERIALIZE: "serializes",
    SLEEP: "sleeps",
    WAIT: "waits for another thread or process",
    NETWORK: "waits for the network",
    PROCESS: "runs another program",
    PYTHON: "runs plain Python",
}


@lru_cache(maxsize=4096)  # the ranks of a job run the same lines
def kind_of(call: str | None, text: str | None, callee: str | None, leaf: str | None) -> str | None:
    """What a line does; None where nothing tells."""
    for name in (callee, leaf):
        for kind, beginnings in _OF_LIBRARY:
            if name is not None and name.startswith(beginnings):
                return kind
    if call is not None:
        found = next((kind for kind, pattern in _OF_TEXT if pattern.search(call)), None)
        if found is not None or call.endswith(")"):
            return found
        text = call  # no call: a loop, a comprehension
    if text is None:
        return None
    found = next((kind for kind, pattern in _OF_TEXT if pattern.search(text)), None)
    return found or next((kind for kind, pattern in _ANYWHERE if pattern.search(text)), None)
