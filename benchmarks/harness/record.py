"""One JSON of all that was measured on a CUDA device, a section for each script."""

import json
from pathlib import Path
from typing import Any

import torch

from harness.machine import machine

RESULTS = Path(__file__).parents[1] / "results" / "cuda.json"


def section(device: torch.device) -> dict[str, Any]:
    """What a section begins with: where and with what it is measured."""
    found: dict[str, Any] = {"machine": machine(), "torch": torch.__version__, "cells": {}}
    if device.type == "cuda":
        found["device"] = torch.cuda.get_device_name(device)
    return found


def keep(name: str, found: dict[str, Any], path: Path = RESULTS) -> None:
    """Write a section, and leave the others as they are."""
    path.parent.mkdir(exist_ok=True)
    everything = json.loads(path.read_text()) if path.exists() else {}
    everything[name] = found
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(everything, indent=1) + "\n")
    partial.replace(path)
