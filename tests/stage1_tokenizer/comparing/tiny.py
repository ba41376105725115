"""The smallest comparison: two rows that train in seconds."""

from pathlib import Path

import yaml


def tiny_comparison(drawings: Path, tmp_path: Path, **changes: object) -> Path:
    backbone = {"kind": "conv", "stem": 4, "widths": [16, 32], "depths": [1, 1], "heads": 2}
    base = {
        "data": {"source": str(drawings), "image_size": 32, "validation_fraction": 0.2},
        "model": {"backbone": backbone, "quantiser": {"codes": 64, "dim": 8, "warm_up": 8}},
        "training": {"images": 64, "batch_size": 8, "log_every": 16, "evaluate_every": 32, "save_every": 16},
    }
    attention = {"kind": "attention", "patch": 8, "positions": 4, "width": 32, "depth": 1, "heads": 2}
    rows = [
        {"name": "conv", "model": {"backbone": {"heads": 1}}},
        {"name": "attention", "model": {"backbone": attention}},
    ]
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump({"name": "tiny", "base": base, "rows": rows, "panel": 2, **changes}))
    return path
