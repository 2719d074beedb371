"""Trackers that a loop logs to by itself: TensorBoard, Weights & Biases, MLflow, ClearML, Aim."""

from functools import partial
from typing import Any

from traceml_agent.capture.framework import Framework, as_logging, patch
from traceml_agent.capture.session import SESSION
from traceml_agent.guard import guard
from traceml_agent.schema.phases import PATCH_OF_PHASE

PATCH = PATCH_OF_PHASE["logging"]
"""The patch of the phase: in as soon as any tracker is."""
_SUMMARY_WRITER = (
    "add_scalar", "add_scalars", "add_histogram", "add_image", "add_images", "add_figure",
    "add_video", "add_audio", "add_text", "add_graph", "add_embedding", "add_mesh", "add_pr_curve",
    "add_hparams", "flush",
)  # fmt: skip
_REPORTS = (
    "report_scalar", "report_single_value", "report_histogram", "report_text", "report_image",
    "report_media", "report_table", "report_plotly", "report_matplotlib_figure",
)  # fmt: skip
_MLFLOW_CLIENT = (
    "log_metric", "log_batch", "log_param", "log_artifact", "log_artifacts", "log_figure",
    "log_image", "log_dict", "log_text", "log_table",
)  # fmt: skip

TRACKERS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "torch.utils.tensorboard.writer": ("tensorboard", "SummaryWriter", _SUMMARY_WRITER),
    "tensorboardX.writer": ("tensorboardX", "SummaryWriter", _SUMMARY_WRITER),
    "wandb.sdk.wandb_run": ("wandb", "Run", ("log",)),
    "mlflow.tracking.client": ("mlflow", "MlflowClient", _MLFLOW_CLIENT),
    "clearml.logger": ("clearml", "Logger", _REPORTS),
    "aim.sdk.run": ("aim", "BasicRun", ("track",)),
}
"""By the module that is imported: the package, the class, and the methods by which it logs."""


def install(module: Any) -> str:
    """Patches the class of a tracker. A call within another one, or in a phase, is a part of it."""
    package, class_name, methods = TRACKERS[module.__name__]
    owner = getattr(module, class_name, None)
    if owner is None and getattr(module.__spec__, "_initializing", False):
        # Its import imports torch, which starts the agent: what is half imported tells no hook
        # when it is done.
        SESSION.looks[module.__name__] = partial(_look_again, module)
        SESSION.statuses.setdefault(PATCH, "active")
        return "active"
    if owner is None:
        return f"not in: {package} has another shape here"
    framework = Framework(package)
    missing: list[str] = []
    for method in methods:
        missing += patch(owner, method, as_logging, framework, f"{class_name}.{method}")
    if len(missing) == len(methods):
        return f"not in: {package} has another shape here"
    SESSION.statuses.setdefault(PATCH, "active")
    return "active"


def _look_again(module: Any, _at_end: bool) -> tuple[()]:
    if hasattr(module, TRACKERS[module.__name__][1]):
        SESSION.looks[module.__name__] = _nothing
        with guard(module.__name__):
            install(module)
    return ()


def _nothing(_at_end: bool) -> tuple[()]:
    return ()
