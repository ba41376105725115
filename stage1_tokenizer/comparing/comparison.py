"""A whole comparison: every row, and the report on them."""

import json
from typing import Any

from shared.disk.atomic import write_text
from shared.disk.outputs import check_writable
from shared.environment import machine, now
from shared.runs.run_directory import RUNS
from stage1_tokenizer.comparing.config import Comparison
from stage1_tokenizer.comparing.report import write_report
from stage1_tokenizer.comparing.row import check_row, result_of_row
from stage1_tokenizer.run_config import TokenizerRun


def compare(comparison: Comparison, runs: dict[str, TokenizerRun], command: str) -> dict[str, Any]:
    """Train, measure and report every row that is not finished yet; returns what results.json holds.

    Raises UserError before the first is trained where one cannot be.
    """
    folder = RUNS / "compare" / comparison.name
    check_writable(folder)
    for config in runs.values():
        check_row(config)
    rows = [result_of_row(folder / name, config, comparison) for name, config in runs.items()]
    first = next(iter(runs.values()))
    results = {
        "name": comparison.name,
        "command": command,
        "machine": machine(),
        "date": now(),
        "data": f"{first.data.where} at {first.data.height_width[0]} x {first.data.height_width[1]} px",
        "budget": {
            "images": first.training.images,
            "batch": first.training.batch_size * first.training.accumulation,
            "minutes": comparison.minutes,
        },
        "rows": rows,
    }
    write_text(json.dumps(results, indent=1) + "\n", folder / "results.json")
    write_report(results, folder)
    return results
