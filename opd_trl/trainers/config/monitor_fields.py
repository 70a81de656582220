"""Fields of OPDConfig for the monitor, which watches a run."""

from dataclasses import dataclass, field


@dataclass
class MonitorFields:
    """Whether it warns, and whether it stops a run."""

    # Monitor
    monitor: bool = field(
        default=True,
        metadata={
            "help": "Warn once of each sign of a failing run in the logged lines (it sees no others: keep "
            "logging_steps small), and write output_dir/run_log for `opd-trl report`."
        },
    )
    monitor_stop: bool = field(default=False, metadata={"help": "Save and stop at the first warning of the monitor."})
    monitor_eval_prompts: int = field(
        default=0,
        metadata={
            "help": "Rows of the training set, rounded up to whole batches of all processes, that are held out. The "
            "student answers them every `monitor_eval_steps`, and the log has the exact divergence from the teacher "
            "on them (`held_out/...`): the figure that tells whether a run works. 0: none."
        },
    )
    monitor_eval_steps: int = field(
        default=50,
        metadata={"help": "Optimizer steps between two looks at held-out rows; each takes as long as a rollout."},
    )
